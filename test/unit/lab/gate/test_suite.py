"""A suite is read whole or refused by the field that is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qwen36_lab.gate.suite import Suite
from qwen36_neuron.errors import ConfigError

ENVELOPE = {"prompt_tokens": 100, "completion_tokens": 20}


def raw(**changes: Any) -> dict[str, Any]:
    return {"envelope": ENVELOPE, "rows": [{"id": "a", "prompt": "p"}], **changes}


def row(**changes: Any) -> dict[str, Any]:
    return raw(labels=["x", "y"], rows=[{"id": "a", "prompt": "p", **changes}])


def test_a_suite_is_read_from_yaml_and_says_which_file_it_was(tmp_path: Path) -> None:
    file = tmp_path / "tickets.yaml"
    file.write_text(
        """
        envelope: {prompt_tokens: 100, completion_tokens: 20}
        labels: [refund, invoice]
        limits: {pass_rate: 0.9, skipped: 3}
        rows:
        - {id: a, prompt: Hello, hard: true, expect: {contains: hi}}
        - id: b
          messages: [{role: system, content: s}, {role: user, content: u}]
          max_tokens: 5
          expect: {label: refund, exact: " refund "}
        """
    )
    suite = Suite.load(file)
    assert (suite.name, suite.prompt_tokens, suite.completion_tokens) == ("tickets", 100, 20)
    assert suite.limits.pass_rate == 0.9
    assert suite.limits.skipped == 3
    first, second = suite.rows
    assert first.messages == ({"role": "user", "content": "Hello"},)
    assert first.hard
    assert first.checks.contains == ("hi",)
    assert second.checks.exact == "refund"
    assert second.max_tokens == 5
    file.write_text(file.read_text() + "\n")
    assert Suite.load(file).digest != suite.digest


@pytest.mark.parametrize(
    ("given", "field"),
    [
        (None, "suite"),
        ({"rows": []}, "suite.envelope"),
        (raw(envelope={"prompt_tokens": 5}), "envelope.completion_tokens"),
        (raw(envelope={**ENVELOPE, "prompt_tokens": 0}), "envelope.prompt_tokens"),
        (raw(envelope={**ENVELOPE, "prompt_tokens": True}), "envelope.prompt_tokens"),
        (raw(rows=[]), "rows"),
        (raw(rows=[{"id": "a", "prompt": "p"}, {"id": "a", "prompt": "q"}]), "rows.id"),
        (raw(colour="red"), "suite.colour"),
        (raw(labels=["x", "X"]), "labels"),
        (raw(label_field="kind"), "label_field"),
        (raw(limits={"pass_rate": 2}), "limits.pass_rate"),
        (raw(limits={"pass_rate": True}), "limits.pass_rate"),
        (raw(limits={"skipped": -1}), "limits.skipped"),
        (raw(limits={"f1": 0.5}), "limits.f1"),
        (raw(limits={"recall": 0.5}), "limits"),
        (raw(parameters={"max_tokens": 5}), "parameters.max_tokens"),
        (row(prompt=5), "rows[0].prompt"),
        (row(messages=[{"role": "user", "content": "u"}]), "rows[0]"),
        (raw(rows=[{"id": "a"}]), "rows[0]"),
        (raw(rows=[{"prompt": "p"}]), "rows[0].id"),
        (raw(rows=[{"id": "a", "messages": []}]), "rows[0].messages"),
        (row(hard="yes"), "rows[0].hard"),
        (row(max_tokens=21), "rows[0].max_tokens"),
        (row(parameters={"stream": True}), "rows[0].parameters.stream"),
        (row(expect={"matches": "x"}), "rows[0].expect.matches"),
        (row(expect={"label": "z"}), "rows[0].expect.label"),
        (row(expect={"exact": 4}), "rows[0].expect.exact"),
        (row(expect={"contains": [""]}), "rows[0].expect.contains"),
        (row(expect={"json_schema": {"type": "nothing"}}), "rows[0].expect.json_schema"),
        (row(expect={"json_schema": "object"}), "rows[0].expect.json_schema"),
    ],
)
def test_what_is_wrong_is_named(given: Any, field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Suite.parse("s", given)
    assert caught.value.field == field


@pytest.mark.parametrize("content", [None, "rows: [", b"\xff\xfe"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: str | bytes | None) -> None:
    file = tmp_path / "s.yaml"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=r"s\.yaml"):
        Suite.load(file)
