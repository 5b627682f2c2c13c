"""What a chat request means when it leaves the mode or the sampling open.

The values are those of the Qwen3.6-27B model card ("We recommend using the following set of sampling parameters"):
thinking mode for general tasks, and instruct (non-thinking) mode.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any

THINKING: Mapping[str, float] = MappingProxyType(
    {
        "temperature": 1.0,
        "top_p": 0.95,
        "top_k": 20,
        "min_p": 0.0,
        "presence_penalty": 0.0,
        "repetition_penalty": 1.0,
    }
)
NON_THINKING: Mapping[str, float] = MappingProxyType(
    {
        "temperature": 0.7,
        "top_p": 0.8,
        "top_k": 20,
        "min_p": 0.0,
        "presence_penalty": 1.5,
        "repetition_penalty": 1.0,
    }
)


def fill_mode(body: dict[str, Any], enable_thinking: bool, effort: Any = None) -> bool | None:
    """Choose the mode of a request that renders the chat template, unless the client chose it. Changes `body`.

    The client chooses by `chat_template_kwargs.enable_thinking` or, as vLLM reads it, by an effort.

    Args:
        body: of the request.
        enable_thinking: the mode of one that does not choose.
        effort: what the client asked for, where its protocol does not call it `reasoning_effort`.

    Returns:
        Whether the request thinks, or None where the body is malformed and the backend must say so.
    """
    kwargs = body.get("chat_template_kwargs")
    if kwargs is None:
        kwargs = {}
    if not isinstance(kwargs, dict):
        return None
    if "enable_thinking" in kwargs:
        chosen = kwargs["enable_thinking"]
        return chosen if isinstance(chosen, bool) else None
    if effort is None:
        effort = body.get("reasoning_effort")
    if effort is not None:
        return effort != "none"
    body["chat_template_kwargs"] = {**kwargs, "enable_thinking": enable_thinking}
    return enable_thinking


def fill_sampling(body: dict[str, Any], thinks: bool, names: Collection[str] = tuple(THINKING)) -> None:
    """Fill in the sampling parameters that the client left out. Changes `body`.

    A client that asks for temperature 0 wants the most likely tokens, so nothing is added that would bend them.

    Args:
        body: of the request.
        thinks: its mode.
        names: the parameters that its protocol has.
    """
    if body.get("temperature") == 0:
        return
    for name, value in (THINKING if thinks else NON_THINKING).items():
        if name in names and body.get(name) is None:
            body[name] = value
