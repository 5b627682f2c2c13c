"""What the validation refuses to let pass: each check is shown something wrong."""

from __future__ import annotations

import json
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from rich.console import Console

import nki_kernels
from qwen36_cli import validate
from qwen36_lab.validation import kernels, memory
from qwen36_lab.validation.server import QUICK, Server, coherence, decode_rate, prefix_reuse


class Replies:
    """A server whose answers are set: a chat text by how often it was asked, and streams."""

    def __init__(self) -> None:
        self.texts = ["I can answer questions."]
        self.tokens: int | None = None
        self.cached = [0, 448]
        self.asked: dict[str, int] = {}

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/models":
            return httpx.Response(200, json={"data": [{"id": "m"}]})
        body = json.loads(request.content)
        if request.url.path == "/v1/chat/completions":
            question = body["messages"][0]["content"]
            self.asked[question] = self.asked.get(question, 0) + 1
            text = self.texts[self.asked[question] % len(self.texts)]
            return httpx.Response(200, json={"choices": [{"message": {"content": text}, "finish_reason": "stop"}]})
        prompt = body["prompt"]
        self.asked[prompt] = self.asked.get(prompt, 0) + 1
        cached = self.cached[min(self.asked[prompt], len(self.cached)) - 1]
        return httpx.Response(200, text=self.stream(self.tokens or body["max_tokens"], cached))

    def stream(self, tokens: int, cached: int) -> str:
        parts = [{"choices": [{"token_ids": [n]}]} for n in range(tokens)]
        usage = {"prompt_tokens": 512, "prompt_tokens_details": {"cached_tokens": cached}}
        return "".join(f"data: {json.dumps(part)}\n\n" for part in [*parts, {"choices": [], "usage": usage}])


@pytest.fixture
def replies() -> Replies:
    return Replies()


@pytest.fixture
def server(replies: Replies, monkeypatch: pytest.MonkeyPatch) -> Server:
    made = httpx.Client(base_url="http://test", transport=httpx.MockTransport(replies))
    monkeypatch.setattr(httpx, "Client", lambda **_: made)
    return Server("http://test", None, "none")


def test_good_answers_pass(server: Server) -> None:
    assert server.model == "m"
    assert coherence(server, QUICK).passed


@pytest.mark.parametrize(
    ("texts", "problem"),
    [([""], "no answer"), (["the fox the fox " * 20], "a loop"), (["I am here.", "I am there."], "changes")],
)
def test_answers_that_make_no_sense(server: Server, replies: Replies, texts: list[str], problem: str) -> None:
    replies.texts = texts
    found = coherence(server, QUICK)
    assert found.passed is False
    assert problem in found.problems[0]


def test_a_stream_that_ends_early(server: Server, replies: Replies) -> None:
    replies.tokens = 3
    found = decode_rate(server, QUICK, "seed")
    assert found.passed is False
    assert "asked for 17 tokens, got [3]" in found.problems[0]


@pytest.mark.parametrize(
    ("cached", "problem"), [([0, 64], "64 of 512 tokens of a repeated prompt"), ([64, 448], "of a new prompt")]
)
def test_a_prefix_that_is_not_reused(server: Server, replies: Replies, cached: list[int], problem: str) -> None:
    replies.cached = cached
    found = prefix_reuse(server, QUICK, "seed")
    assert found.passed is False
    assert any(problem in line for line in found.problems)


@pytest.mark.interpreter
def test_a_kernel_that_is_wrong_or_fails() -> None:
    case = next(case for case in kernels.cases(1) if case.twin.__name__ == "qk_l2norm_torch")
    assert kernels.run(case, 1, None).passed

    def twin(x: torch.Tensor) -> torch.Tensor:
        return case.twin(x) * 1.05

    assert not kernels.run(replace(case, twin=twin), 1, None).passed
    nothing = replace(case, kernel={1: lambda x: x * torch.nan})  # by the cores of a launch, as a kernel
    assert kernels.run(nothing, 1, None).error == float("inf")

    def broken(_: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("NCC_TEST")

    outcome = kernels.run(replace(case, kernel={1: broken}), 1, None)
    assert (outcome.passed, outcome.problem) == (False, "RuntimeError: NCC_TEST")


def test_every_kernel_of_the_package_is_validated() -> None:
    twins = {file.stem.removesuffix("_torch") for file in Path(nki_kernels.__file__).parent.glob("*_torch.py")}
    validated = {case.twin.__module__.rsplit(".", 1)[-1].removesuffix("_torch") for case in kernels.cases(1)}
    assert validated == twins


def test_the_interpreter_is_not_said_to_have_run_where_it_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validate, "real_nki_present", lambda: True)
    found = validate.kernels(validate.Device.INTERPRETER, 2, Console())
    assert (found.passed, found.figures) == (None, {})


def fake_monitor(folder: Path, report: Any) -> None:
    tool = folder / "neuron-monitor"
    tool.write_text(f"#!/bin/sh\necho '{json.dumps(report)}'\nsleep 5\n")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)


def test_memory_as_neuron_monitor_reports_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    used = {"host": 2**20, "neuron_device": 3 * 2**30, "usage_breakdown": {"host": {}}}
    runtime = {"neuron_runtime_tag": "367", "report": {"memory_used": {"neuron_runtime_used_bytes": used}}}
    fake_monitor(tmp_path, {"neuron_runtime_data": [runtime, runtime]})
    found = memory.memory()
    assert found.passed
    assert found.figures["device_gib"] == 6.0
    fake_monitor(tmp_path, {"neuron_runtime_data": []})
    assert memory.memory().passed is None


def test_memory_without_the_tool_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = memory.memory()
    assert (found.passed, found.problems) == (None, ["neuron-monitor is not installed here"])
