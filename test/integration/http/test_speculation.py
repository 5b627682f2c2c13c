"""A server that speculates answers as one that does not, by every kind of request, and counts what it drafts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .conftest import Server, running

pytestmark = pytest.mark.http

TOOL = {
    "type": "function",
    "function": {
        "name": "look",
        "parameters": {"type": "object", "properties": {"at": {"enum": ["sky", "sea"]}}, "required": ["at"]},
    },
}
SCHEMA = {
    "type": "object",
    "properties": {"count": {"type": "integer", "maximum": 9}, "of": {"enum": ["cats", "dogs"]}},
    "required": ["count", "of"],
    "additionalProperties": False,
}
OFF = {"chat_template_kwargs": {"enable_thinking": False}}
REQUESTS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0, **OFF},
    "seeded, of several choices": {"seed": 5, "temperature": 1.2, "top_p": 0.9, "n": 3, **OFF},
    "thinking, with a budget": {"temperature": 0, "thinking_token_budget": 7},
    "log-probabilities": {"temperature": 0, "logprobs": True, "top_logprobs": 2, **OFF},
    "penalties and bias": {"seed": 2, "presence_penalty": 1.0, "logit_bias": {"300": 3.0}, "min_p": 0.02, **OFF},
    "a schema": {
        "temperature": 0,
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}},
    },
    "a tool": {"temperature": 0, "tools": [TOOL], "tool_choice": "required", **OFF},
    "stop strings": {"temperature": 0, "stop": ["e", "zz"], "min_tokens": 5, **OFF},
    "few tokens": {"temperature": 0, "max_tokens": 3, **OFF},
}


@pytest.fixture(scope="module")
def speculating(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("speculating") / "log"
    asked = '{"method":"qwen3_5_mtp","num_speculative_tokens":3}'
    with running(tiny_checkpoint, log, "--speculative-config", asked, "--no-adaptive-drafts") as server:
        yield server


@pytest.mark.parametrize("name", REQUESTS)
def test_answers_are_those_without(server: Server, speculating: Server, name: str) -> None:
    messages = [{"role": "user", "content": "Count what you see. " * 8}]
    body = {"model": "tiny", "messages": messages, "max_tokens": 40, "return_token_ids": True, **REQUESTS[name]}
    found = []
    for each in (server, speculating):
        answer = each.http.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200, answer.text
        content = answer.json()
        found.append(([_known(choice) for choice in content["choices"]], content["usage"]["completion_tokens"]))
    assert found[0] == found[1]


def _known(choice: dict[str, Any]) -> dict[str, Any]:
    """What of a choice does not differ from one answer to the next: call ids do, and log-probabilities by rounding."""
    message = choice["message"]
    return {
        "index": choice["index"],
        "content": message["content"],
        "reasoning": message.get("reasoning"),
        "calls": [call["function"] for call in message.get("tool_calls") or ()],
        "tokens": choice["token_ids"],
        "reason": (choice["finish_reason"], choice["stop_reason"]),
        "likely": [entry["token"] for entry in (choice.get("logprobs") or {}).get("content") or ()],
    }


def test_a_stream_is_the_same_text(server: Server, speculating: Server) -> None:
    texts = []
    for each in (server, speculating):
        stream = each.client.completions.create(
            model="tiny", prompt="abc " * 30, max_tokens=60, temperature=0, stream=True, extra_body={"ignore_eos": True}
        )
        texts.append("".join(chunk.choices[0].text for chunk in stream if chunk.choices))
    assert texts[0] == texts[1]


def test_drafts_are_counted_and_nothing_is_left_held(speculating: Server) -> None:
    speculating.complete("abc " * 30, max_tokens=40)
    counts = speculating.wait_idle()
    drafted, accepted = (counts[f"vllm:spec_decode_num_{name}_tokens_total"] for name in ("draft", "accepted"))
    assert drafted >= counts["vllm:spec_decode_num_drafts_total"] > 0
    assert drafted >= accepted
    assert counts["qwen36:decode_rows_total"] > 0
