"""What each route's requests get filled in, normalised and translated, before the backend sees them."""

from __future__ import annotations

from typing import Any

from .defaults import NON_THINKING, THINKING, fill_mode, fill_sampling
from .limits import for_tokenize
from .messages import normalise, normalise_input
from .settings import ProxySettings

_RESPONSES = ("temperature", "top_p", "top_k", "presence_penalty", "repetition_penalty")
"""Sampling parameters of /v1/responses."""

_MESSAGES = ("temperature", "top_p", "top_k")
"""Sampling parameters of /v1/messages."""


_CARRIED = "sampling."
"""What the names of parameters begin with that are carried in `vllm_xargs`: vllm_integration.requested.PREFIX."""


class RequestDefaults:
    """One function for each route. All change top-level fields only.

    Args:
        settings: the modes and the strictness to fill in by.
    """

    def __init__(self, settings: ProxySettings) -> None:
        self.settings = settings

    def chat(self, body: dict[str, Any]) -> None:
        """/v1/chat/completions."""
        normalise(body, strict=self.settings.strict_messages)
        thinks = fill_mode(body, self.settings.enable_thinking)
        if thinks is not None and self.settings.sampling_defaults:
            fill_sampling(body, thinks)

    def tokenize(self, body: dict[str, Any]) -> None:
        """/tokenize: messages are counted as a chat request would render them."""
        if "messages" in body:
            normalise(body, strict=self.settings.strict_messages)
            for_tokenize(body, body)
            fill_mode(body, self.settings.enable_thinking)

    def responses(self, body: dict[str, Any]) -> None:
        """/v1/responses."""
        if not self.settings.strict_messages:
            normalise_input(body)
        reasoning = body.get("reasoning")
        effort = reasoning.get("effort") if isinstance(reasoning, dict) else None
        thinks = fill_mode(body, self.settings.enable_thinking, effort)
        if thinks is not None and self.settings.sampling_defaults:
            fill_sampling(body, thinks, _RESPONSES)

    def messages(self, body: dict[str, Any]) -> None:
        """/v1/messages. What its protocol has no field for goes beside it, where the plugin looks for it."""
        thinks, carried = self._anthropic_mode(body), {}
        if thinks is not None and self.settings.sampling_defaults:
            fill_sampling(body, thinks, _MESSAGES)
            penalty = (THINKING if thinks else NON_THINKING)["presence_penalty"]
            if penalty and body.get("temperature") != 0:
                carried[f"{_CARRIED}presence_penalty"] = penalty
        thinking = body.get("thinking")
        if thinks and isinstance(thinking, dict) and thinking.get("budget_tokens") is not None:
            carried[f"{_CARRIED}thinking_token_budget"] = thinking["budget_tokens"]
        given = body.get("vllm_xargs")
        if carried and (given is None or isinstance(given, dict)):
            body["vllm_xargs"] = {**carried, **(given or {})}

    def count_tokens(self, body: dict[str, Any]) -> None:
        """/v1/messages/count_tokens: counted as the same request to /v1/messages would render."""
        self._anthropic_mode(body)

    def _anthropic_mode(self, body: dict[str, Any]) -> bool | None:
        """The mode, which Anthropic's clients choose by `thinking.type` or `output_config.effort`."""
        thinking, config = body.get("thinking"), body.get("output_config")
        default, effort = self.settings.enable_thinking, None
        if isinstance(thinking, dict) and thinking.get("type") in ("enabled", "adaptive", "disabled"):
            default = thinking["type"] != "disabled"
        elif isinstance(config, dict):
            effort = config.get("effort")
        return fill_mode(body, default, effort)
