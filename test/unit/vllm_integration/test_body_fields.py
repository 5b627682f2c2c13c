"""What a request asks for is done or refused by name: no field of any route is taken and then forgotten."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from vllm.entrypoints.anthropic.protocol import AnthropicCountTokensRequest, AnthropicMessagesRequest
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
from vllm.entrypoints.serve.tokenize.protocol import DetokenizeRequest, TokenizeChatRequest, TokenizeCompletionRequest

from vllm_integration.body_fields import (
    CHAT,
    COMPLETIONS,
    COUNT_TOKENS,
    DETOKENIZE,
    LABELS,
    MESSAGES,
    RESPONSES,
    TOKENIZE,
    Facts,
    check_fields,
)
from vllm_integration.chat_proxy.errors import ProxyError

FACTS = Facts(
    template="{{ messages }}{{ enable_thinking }}", template_takes=lambda given: given.keys() & {"enable_thinking"}
)

DONE = """
messages prompt input model instructions system tokens stream stream_options n temperature top_p top_k min_p seed
max_tokens max_completion_tokens max_output_tokens min_tokens stop stop_sequences stop_token_ids ignore_eos
include_stop_str_in_output frequency_penalty presence_penalty repetition_penalty logit_bias logprobs top_logprobs
prompt_logprobs logprob_token_ids allowed_token_ids bad_words response_format structured_outputs text tools
tool_choice parallel_tool_calls reasoning reasoning_effort include_reasoning thinking_token_budget output_config
use_beam_search echo add_generation_prompt continue_final_message add_special_tokens skip_special_tokens
spaces_between_special_tokens truncate_prompt_tokens truncation_side truncation chat_template chat_template_kwargs
return_tokens_as_token_ids return_token_ids return_token_strs return_prompt_text cache_salt
vllm_xargs repetition_detection stream_interval previous_input_messages enable_response_messages
"""
"""Fields that vLLM or the proxy act on; what they do is tested elsewhere."""

REFUSED_BY_VLLM = {"suffix", "prompt_embeds", "background", "previous_response_id"}
REFUSED_AS_A_WHOLE = {"kv_transfer_params", "ec_transfer_params"}
REFUSED_BY_VALUE = {"documents", "mm_processor_kwargs", "media_io_kwargs", "priority", "length_penalty", "store"} | {
    "routed_experts_prompt_start",
    "return_assistant_tokens_mask",
    "service_tier",
    "return_token_offsets",
}
OF_TOOLS_THAT_RUN_ELSEWHERE = {"include", "max_tool_calls"}
"""They say something of tools that a server runs itself; tools of that kind are refused."""


@pytest.mark.parametrize(
    "model",
    [
        ChatCompletionRequest,
        CompletionRequest,
        ResponsesRequest,
        AnthropicMessagesRequest,
        AnthropicCountTokensRequest,
        TokenizeChatRequest,
        TokenizeCompletionRequest,
        DetokenizeRequest,
    ],
)
def test_every_field_that_vllm_knows_has_been_looked_at(model: Any) -> None:
    looked_at = (
        set(DONE.split())
        | LABELS
        | REFUSED_BY_VLLM
        | REFUSED_AS_A_WHOLE
        | REFUSED_BY_VALUE
        | OF_TOOLS_THAT_RUN_ELSEWHERE
    )
    assert set(model.model_fields) <= looked_at, "a new field of vLLM's: is it done, or to be refused by name?"


def refusal(route: str, body: Mapping[str, Any], facts: Facts = FACTS) -> ProxyError | None:
    try:
        check_fields(route, body, facts)
    except ProxyError as error:
        return error
    return None


@pytest.mark.parametrize(
    ("route", "field", "value", "told"),
    [
        (CHAT, "foo_bar", 1, "foo_bar is not a field of /v1/chat/completions."),
        (CHAT, "temprature", 1, "Did you mean temperature?"),
        (COMPLETIONS, "guided_regex", "a", "It is structured_outputs.regex here."),
        (CHAT, "functions", [{"name": "f"}], "It is tools here."),
        (COMPLETIONS, "best_of", 3, "ask for them with n"),
        (CHAT, "modalities", ["text", "audio"], "answers are text"),
        (CHAT, "audio", {"voice": "x"}, "answers are text"),
        (CHAT, "prediction", {"type": "content", "content": "x"}, "not used"),
        (CHAT, "web_search_options", {}, "offer it as a tool"),
        (CHAT, "verbosity", "low", "say it in the prompt"),
        (CHAT, "service_tier", "flex", "one tier"),
        (CHAT, "store", True, "send false"),
        (RESPONSES, "store", True, "send false"),
        (RESPONSES, "conversation", "c", "with each request"),
        (RESPONSES, "text", {"verbosity": "low"}, "text.verbosity"),
        (RESPONSES, "reasoning", {"summary": "detailed"}, "not summarised"),
        (CHAT, "priority", 5, "--scheduling-policy priority"),
        (CHAT, "length_penalty", 2.0, "use_beam_search"),
        (CHAT, "return_token_offsets", True, "/v1/chat/completions/render"),
        (TOKENIZE, "return_token_offsets", True, "/v1/completions/render"),
        (f"{CHAT}/render", "temprature", 1, "not a field of /v1/chat/completions/render. Did you mean temperature?"),
        (f"{COMPLETIONS}/render", "best_of", 3, "ask for them with n"),
        (f"{MESSAGES}/render", "container", "c", "no code runs here"),
        (CHAT, "documents", [{"text": "a"}], "put them into a message"),
        (CHAT, "mm_processor_kwargs", {"a": 1}, "text alone"),
        (CHAT, "media_io_kwargs", {"image": {}}, "text alone"),
        (CHAT, "routed_experts_prompt_start", 1, "is not reported"),
        (CHAT, "return_assistant_tokens_mask", True, "does not mark"),
        (CHAT, "chat_template_kwargs", {"thinking": False}, "switch is enable_thinking"),
        (TOKENIZE, "chat_template_kwargs", {"foo": 1}, "no such variable"),
        (CHAT, "stream_options", {"foo": 1}, "stream_options.foo"),
        (CHAT, "stream_options", {"include_obfuscation": True}, "not padded"),
        (CHAT, "structured_outputs", {"regex": "a", "foo": 1}, "structured_outputs.foo"),
        (MESSAGES, "container", "x", "no code runs"),
        (MESSAGES, "mcp_servers", [{"name": "x"}], "no server of tools"),
        (MESSAGES, "context_management", {"edits": [{"type": "clear_tool_uses_20250919"}]}, "not edited"),
        (MESSAGES, "presence_penalty", 1.0, "is not a field of /v1/messages"),
        (COUNT_TOKENS, "foo", 1, "is not a field"),
        (DETOKENIZE, "foo", 1, "is not a field"),
    ],
)
def test_what_would_be_forgotten_is_refused(route: str, field: str, value: Any, told: str) -> None:
    error = refusal(route, {"model": "m", field: value})
    assert error is not None
    assert error.status == 400
    assert told in error.message
    assert (error.param or "").split(".")[0] == field
    assert refusal(route, {field: None}) is None, "null asks for nothing"


@pytest.mark.parametrize(
    ("route", "body"),
    [
        (CHAT, {"user": "u", "metadata": {"a": "b"}, "safety_identifier": "s", "prompt_cache_key": "k"}),
        (CHAT, {"store": False, "service_tier": "auto", "modalities": ["text"], "verbosity": "medium"}),
        (CHAT, {"priority": 0, "length_penalty": 1.0, "documents": [], "mm_processor_kwargs": {}}),
        (CHAT, {"length_penalty": 2.0, "use_beam_search": True}),
        (CHAT, {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}),
        (CHAT, {"chat_template_kwargs": {"enable_thinking": True, "reasoning_effort": "low"}}),
        (CHAT, {"vllm_xargs": {"checkpoints": [64], "of_an_extension": 1}}),
        (COMPLETIONS, {"best_of": 1}),
        (COMPLETIONS, {"return_token_offsets": False}),
        (f"{COMPLETIONS}/render", {"return_token_offsets": True}),
        (f"{CHAT}/render", {"return_token_offsets": True, "stream": True}),
        (COMPLETIONS, {"best_of": 2, "n": 2}),
        (RESPONSES, {"reasoning": {"effort": "low", "summary": "auto"}, "store": False, "include": []}),
        (RESPONSES, {"stream_options": {"include_obfuscation": False}}),
        (MESSAGES, {"thinking": {"type": "enabled", "budget_tokens": 5}, "cache_control": {"type": "ephemeral"}}),
        (MESSAGES, {"context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}}),
        (MESSAGES, {"service_tier": "standard_only", "mcp_servers": [], "stop_sequences": ["a"]}),
        (COUNT_TOKENS, {"max_tokens": 5, "thinking": {"type": "disabled"}}),
        (TOKENIZE, {"reasoning_effort": "none", "max_tokens": 5, "tools": []}),
        ("/v1/models", {"foo": 1}),
    ],
)
def test_what_asks_for_nothing_or_is_done_passes(route: str, body: dict[str, Any]) -> None:
    assert refusal(route, body) is None


def test_what_the_server_was_started_with_decides() -> None:
    assert refusal(CHAT, {"priority": 5}, Facts(priorities=True)) is None
    assert refusal(CHAT, {"documents": [{}]}, Facts(template="{{ documents }}")) is None
    assert refusal(CHAT, {"chat_template_kwargs": {"foo": 1}}, Facts()) is None, "no template is known"


def test_a_request_with_its_own_template_may_name_any_variable() -> None:
    assert refusal(CHAT, {"chat_template": "{{ foo }}", "chat_template_kwargs": {"foo": 1}}) is None


@pytest.mark.parametrize("name", ["stream_options", "structured_outputs", "vllm_xargs", "chat_template_kwargs", "text"])
@pytest.mark.parametrize("value", [True, "x", [1], 5])
def test_what_should_be_an_object_and_is_not_is_left_to_vllm(name: str, value: Any) -> None:
    assert refusal(RESPONSES if name == "text" else CHAT, {name: value}) is None
