"""Sampling parameters that a protocol has no field for, carried in `vllm_xargs` under names of this project's own.

Anthropic's messages reach vLLM without penalties and without their thinking budget. The proxy writes those as
`{"sampling.presence_penalty": 1.5}`, and they are put where vLLM's own field would be before a request is validated.
"""

from __future__ import annotations

from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import SamplingParams, validate_thinking_token_budget

PREFIX = "sampling."
_PENALTIES = ("presence_penalty", "repetition_penalty", "min_p")
_BUDGET = "thinking_token_budget"


def apply_requested(params: SamplingParams) -> None:
    """Move the parameters under PREFIX from `extra_args` to their fields. Changes `params`.

    Raises:
        VLLMValidationError: one that is unknown or out of its range.
    """
    extra = params.extra_args or {}
    named = {key: value for key, value in extra.items() if key.startswith(PREFIX)}
    if not named:
        return
    for key, value in named.items():
        name = key.removeprefix(PREFIX)
        if name == _BUDGET:
            params.thinking_token_budget = validate_thinking_token_budget(value)
        elif name not in _PENALTIES or isinstance(value, bool) or not isinstance(value, int | float):
            known = ", ".join(PREFIX + each for each in (*_PENALTIES, _BUDGET))
            raise VLLMValidationError(f"{key} = {value!r} is none of {known}, each a number", parameter="vllm_xargs")
        else:
            setattr(params, name, float(value))
    params.extra_args = {key: value for key, value in extra.items() if key not in named} or None
    params._verify_args()
