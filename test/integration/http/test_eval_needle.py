"""The trained demo checkpoint behind a real server: it finds needles, and its answers make sense."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .conftest import Server

pytestmark = [pytest.mark.http, pytest.mark.slow]

ROOT = Path(__file__).parents[3]


def test_quick_run_finds_every_needle(demo: Server, tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "scripts" / "eval_needle.py", "--quick", "--base-url", str(demo.http.base_url)]
    done = subprocess.run(
        [*command, "--out", tmp_path, "--at-least", "1"], capture_output=True, text=True, timeout=1200, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    result = json.loads((tmp_path / "needle.json").read_text())
    assert set(result["shares"].values()) == {1.0}
    asked = [answer for answer in result["answers"] if answer["kind"] != "open"]
    assert len(asked) == 12
    for answer in asked:
        assert 0.6 * answer["length"] < answer["prompt_tokens"] <= answer["length"]
    assert (tmp_path / "needle.png").stat().st_size > 10_000
    assert str(tmp_path) not in json.dumps(result)


def test_calls_a_tool_without_being_forced(demo: Server) -> None:
    city: dict[str, Any] = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    tool: dict[str, Any] = {
        "name": "get_weather",
        "description": "Get the current weather in a city.",
        "parameters": city,
    }
    reply = demo.chat(
        "What is the weather in Paris?",
        tools=[{"type": "function", "function": tool}],
        temperature=0,
        max_tokens=128,
        extra_body={"chat_template_kwargs": {"enable_thinking": False}},
    )
    (call,) = reply.choices[0].message.tool_calls
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments) == {"city": "Paris"}


def test_thinks_and_then_answers(demo: Server) -> None:
    message = demo.chat("What is 23 + 45?", temperature=0, max_tokens=128).choices[0].message
    assert "3 + 5 = 8" in (getattr(message, "reasoning", None) or message.reasoning_content)
    assert message.content.strip() == "23 + 45 = 68"
