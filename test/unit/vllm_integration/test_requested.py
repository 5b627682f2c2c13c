"""Sampling parameters carried beside a protocol that has no field for them arrive in theirs."""

from __future__ import annotations

import pytest
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import SamplingParams

from vllm_integration.chat_proxy.request_defaults import _CARRIED
from vllm_integration.platform import QwenPlatform
from vllm_integration.requested import PREFIX


def validated(**extra: object) -> SamplingParams:
    params = SamplingParams(extra_args=dict(extra) or None)
    QwenPlatform.validate_request({"type": "token"}, params)
    return params


def test_they_arrive_and_nothing_else_changes():
    params = validated(**{"sampling.presence_penalty": 1.5, "sampling.thinking_token_budget": 7, "other": "x"})
    assert (params.presence_penalty, params.thinking_token_budget) == (1.5, 7)
    assert params.extra_args == {"other": "x"}
    assert validated(other="x").presence_penalty == 0.0
    assert validated().extra_args is None


@pytest.mark.parametrize(
    "extra",
    [
        {"sampling.presence_penalty": 3.0},
        {"sampling.presence_penalty": "x"},
        {"sampling.thinking_token_budget": -2},
        {"sampling.thinking_token_budget": 1.5},
        {"sampling.temperature": 1.0},
    ],
)
def test_what_is_unknown_or_out_of_range_is_refused(extra):
    with pytest.raises(VLLMValidationError):
        validated(**extra)


def test_both_ends_agree_on_the_name():
    assert _CARRIED == PREFIX
