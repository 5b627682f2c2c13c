"""Fields of a body that would be forgotten: what a request asks for is done, or refused by name.

vLLM's request models take any field and log those that they do not know; of those that they know, some do nothing for
this model or this server. OpenAI's and Anthropic's servers refuse both with 400, and so does this one. Labels, which
ask nothing of an answer, pass, and so does whatever a field says that is what happens anyway. Not looked into are
messages, which clients send back with all that they were sent, and `vllm_xargs`, which are for extensions.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from .chat_proxy.errors import ProxyError

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
MESSAGES, COUNT_TOKENS = "/v1/messages", "/v1/messages/count_tokens"
TOKENIZE, DETOKENIZE = "/tokenize", "/detokenize"

RENDER = "/render"
"""Ends the routes whose answer is what a request would run: its tokens and sampling parameters."""

LABELS = frozenset({"user", "metadata", "safety_identifier", "prompt_cache_key", "session_id", "request_id"})
"""Names for whoever asks or what is asked. Prefixes are cached whatever `prompt_cache_key` says."""

_READ_BESIDE = {
    MESSAGES: frozenset({"thinking", "cache_control"}),
    COUNT_TOKENS: frozenset({"thinking", "cache_control"}),
    TOKENIZE: frozenset({"reasoning_effort", "documents"}),
    RESPONSES: frozenset({"stream_options"}),
}
"""Fields that the proxy reads, or that say what is done unasked, and that vLLM's models of the route lack."""

_OFFERED = frozenset({"enable_thinking", "reasoning_effort"})
"""Template variables that the proxy and vLLM give to every template, whether it uses them or not."""

_RENAMED = {
    "guided_json": "structured_outputs.json",
    "guided_regex": "structured_outputs.regex",
    "guided_choice": "structured_outputs.choice",
    "guided_grammar": "structured_outputs.grammar",
    "guided_json_object": "response_format",
    "guided_whitespace_pattern": "structured_outputs.whitespace_pattern",
    "functions": "tools",
    "function_call": "tool_choice",
    "max_new_tokens": "max_tokens",
    "stop_sequences": "stop",
    "enable_thinking": "chat_template_kwargs.enable_thinking",
    "add_bos_token": "add_special_tokens",
}
"""Fields of older or other servers, and what they are called here."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a server does, as far as the fields of a request depend on it.

    Attributes:
        priorities: the scheduler goes by priority.
        template: source of the chat template, "" where it is not known.
        template_takes: which of some template variables the chat template uses.
    """

    priorities: bool = False
    template: str = ""
    template_takes: Callable[[Mapping[str, Any]], Collection[str]] | None = None


@dataclass(frozen=True, slots=True)
class _Rule:
    """Why a field is refused, and the values of it that ask for nothing."""

    why: str
    neutral: tuple[Any, ...] = ()


_KEEP_THINKING = {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}
"""What coding agents send with every request: clear no reasoning."""

_RULES: Mapping[str, _Rule] = {
    "audio": _Rule("answers are text"),
    "modalities": _Rule("answers are text", (["text"],)),
    "prediction": _Rule("predicted outputs are not used"),
    "web_search_options": _Rule("no search runs here; offer it as a tool"),
    "verbosity": _Rule("the model has no such setting; say it in the prompt", ("medium",)),
    "service_tier": _Rule("there is one tier", ("auto", "default", "standard_only")),
    "store": _Rule("no answer is stored; send false, and the conversation with each request", (False,)),
    "conversation": _Rule("no conversation is stored; send it with each request"),
    "prompt_cache_retention": _Rule("prefixes are cached while there is room", ("in_memory", "in-memory")),
    "container": _Rule("no code runs here"),
    "mcp_servers": _Rule("no server of tools is called from here", ([],)),
    "context_management": _Rule("a conversation is not edited here", ({}, {"edits": []}, _KEEP_THINKING)),
    "mm_processor_kwargs": _Rule("the model is served for text alone", ({},)),
    "media_io_kwargs": _Rule("the model is served for text alone", ({},)),
    "routed_experts_prompt_start": _Rule("which experts a token had is not reported", (0,)),
    "return_assistant_tokens_mask": _Rule("the chat template does not mark the assistant's tokens", (False,)),
}

_NESTED: Mapping[str, Mapping[str, _Rule]] = {
    "text": {"verbosity": _RULES["verbosity"]},
    "reasoning": {
        "summary": _Rule("reasoning is given whole, not summarised", ("auto",)),
        "generate_summary": _Rule("reasoning is given whole, not summarised", ("auto",)),
    },
    "stream_options": {"include_obfuscation": _Rule("streams are not padded", (False,))},
}


def check_fields(route: str, body: Mapping[str, Any], facts: Facts) -> None:
    """Raises ProxyError 400 for the first field of a request that would have no effect.

    Args:
        route: path of the request; of others than those of this module nothing is known, and all pass. A request that
            is only rendered has the fields of its own route.
        body: its parsed body.
        facts: what the server does.
    """
    known = known_fields(route)
    if not known:
        return
    for name, value in body.items():
        if value is not None and name not in LABELS:
            _check_field(route, name, value, body, facts, known)
    for name, rules in _NESTED.items():
        inside = _object(body, name)
        for key, rule in rules.items():
            _apply(f"{name}.{key}", inside.get(key), rule)
    for name, keys in _closed_objects():
        for key, value in _object(body, name).items():
            if value is not None and key not in keys and key not in _NESTED.get(name, ()):
                raise _unknown(f"{name}.{key}", route, keys, key)
    _check_template(body, facts)


def _object(body: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """An object inside the body; what should be one and is not is vLLM's to refuse."""
    inside = body.get(name)
    return inside if isinstance(inside, dict) else {}


@cache
def known_fields(route: str) -> frozenset[str]:
    """The fields of a route's bodies, none for a route that this module does not know."""
    of = route.removesuffix(RENDER)
    names = {name for model in _models(of) for name in _names(model)}
    return frozenset(names | LABELS | _READ_BESIDE.get(of, frozenset())) if names else frozenset()


def _models(route: str) -> tuple[Any, ...]:
    """vLLM's models of a route's bodies. Of a body that is only counted, those of the request that it stands for."""
    from vllm.entrypoints.anthropic.protocol import AnthropicCountTokensRequest, AnthropicMessagesRequest
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest
    from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
    from vllm.entrypoints.serve.tokenize.protocol import (
        DetokenizeRequest,
        TokenizeChatRequest,
        TokenizeCompletionRequest,
    )

    return {
        CHAT: (ChatCompletionRequest,),
        COMPLETIONS: (CompletionRequest,),
        RESPONSES: (ResponsesRequest,),
        MESSAGES: (AnthropicMessagesRequest,),
        COUNT_TOKENS: (AnthropicCountTokensRequest, AnthropicMessagesRequest),
        TOKENIZE: (TokenizeCompletionRequest, TokenizeChatRequest, ChatCompletionRequest),
        DETOKENIZE: (DetokenizeRequest,),
    }.get(route, ())


def _names(model: Any) -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield name
        if field.alias:
            yield field.alias


@cache
def _closed_objects() -> tuple[tuple[str, frozenset[str]], ...]:
    """Objects of a body whose keys are all known."""
    from dataclasses import fields

    from vllm.entrypoints.generate.base.protocol import StreamOptions
    from vllm.sampling_params import StructuredOutputsParams

    wanted = frozenset(field.name for field in fields(StructuredOutputsParams) if not field.name.startswith("_"))
    return ("stream_options", frozenset(_names(StreamOptions))), ("structured_outputs", wanted)


def _check_field(
    route: str, name: str, value: Any, body: Mapping[str, Any], facts: Facts, known: Collection[str]
) -> None:
    if name in _RULES:
        _apply(name, value, _RULES[name])
    elif name == "best_of":
        if value not in (1, body.get("n")):
            raise _refused(name, "the best of several answers is not chosen here; ask for them with n")
    elif name == "priority":
        if value != 0 and not facts.priorities:
            raise _refused(name, "requests are served in the order of their arrival; --scheduling-policy priority")
    elif name == "return_token_offsets":
        if value is not False and not route.endswith(RENDER):
            raise _refused(name, f"places of tokens in the text are told by {CHAT}{RENDER} and {COMPLETIONS}{RENDER}")
    elif name == "length_penalty":
        if value != 1 and not body.get("use_beam_search"):
            raise _refused(name, "it is part of beam search; set use_beam_search")
    elif name == "documents":
        if value != [] and facts.template and "documents" not in facts.template:
            raise _refused(name, "the chat template has no place for documents; put them into a message")
    elif name not in known:
        raise _unknown(name, route, known, name)


def _apply(name: str, value: Any, rule: _Rule) -> None:
    if value is not None and not any(value == each and type(value) is type(each) for each in rule.neutral):
        raise _refused(name, rule.why)


def _check_template(body: Mapping[str, Any], facts: Facts) -> None:
    given = body.get("chat_template_kwargs")
    if not isinstance(given, dict) or facts.template_takes is None or body.get("chat_template") is not None:
        return
    asked = {key: value for key, value in given.items() if value is not None and key not in _OFFERED}
    taken = facts.template_takes(asked) if asked else ()
    for key in asked:
        if key not in taken:
            remedy = "; the model's switch is enable_thinking" if "think" in key else ""
            raise _refused(f"chat_template_kwargs.{key}", f"the chat template has no such variable{remedy}")


def _refused(name: str, why: str) -> ProxyError:
    return ProxyError(400, f"{name} would have no effect: {why}.", reason="field", param=name)


def _unknown(name: str, route: str, known: Collection[str], key: str) -> ProxyError:
    meant = _RENAMED.get(key) or next(iter(difflib.get_close_matches(key, sorted(known), 1)), None)
    hint = f" It is {meant} here." if key in _RENAMED else f" Did you mean {meant}?" if meant else ""
    return ProxyError(400, f"{name} is not a field of {route}.{hint}", reason="field", param=name)


def facts_of(state: Any) -> Facts:
    """What the server of vLLM's application state does."""
    config = getattr(state, "vllm_config", None)
    if config is None:
        return Facts()
    serving = getattr(state, "openai_serving_chat", None)
    template, takes = _template_of(serving) if serving is not None else ("", None)
    return Facts(
        priorities=config.scheduler_config.policy == "priority",
        template=template,
        template_takes=takes,
    )


def _template_of(serving: Any) -> tuple[str, Callable[[Mapping[str, Any]], Collection[str]] | None]:
    from vllm.renderers.hf import resolve_chat_template, resolve_chat_template_kwargs

    if serving.model_config.skip_tokenizer_init:
        return "", None
    tokenizer = serving.renderer.tokenizer
    template = resolve_chat_template(tokenizer, serving.chat_template, None, model_config=serving.model_config)
    if template is None:
        return "", None

    def takes(given: Mapping[str, Any]) -> Collection[str]:
        return resolve_chat_template_kwargs(tokenizer, template, dict(given), raise_on_unexpected=False)

    return template, takes
