"""`qwen36 bench` and `qwen36 validate` from end to end, on as little work as shows that what is written is whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command import qwen36

from nki_kernels import examples
from qwen36_cli import validate
from qwen36_cli.bench import apc, kernels
from qwen36_lab.validation.server import Check


@pytest.mark.interpreter
def test_kernels_are_priced_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("prefill_fused", "qk_l2norm")
    monkeypatch.setattr(kernels, "forms", lambda: [kernels.Form(name, examples.l2norm()) for name in names])
    monkeypatch.setattr(kernels, "bars", lambda us, fused: [{"what": "x", "modelled": 1.0, "bar": "<= 2", "met": True}])
    ended = qwen36("bench", "kernels", "--out", tmp_path / "kernels")
    assert ended.exit_code == 0, ended.stderr
    assert ended.stdout.startswith("Modelled, not measured.\n")
    made = json.loads((tmp_path / "kernels" / "kernels.json").read_text())
    assert made["provenance"]["kind"] == "modelled"
    assert set(made["forms"]) == set(made["total_us"]) == set(names)
    assert made["total_us"]["qk_l2norm"] > 0
    assert (tmp_path / "kernels" / "prefill.png").stat().st_size > 1000
    assert qwen36("bench", "kernels", "--nki-library", tmp_path / "none").exit_code == 2


def test_every_trace_is_replayed_where_all_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qwen36_lab.apc import plot, replay

    asked: dict[str, Any] = {}

    def run(names: list[str], slots: list[int], kv_ratio: float, seed: int, *_: Any) -> dict[str, Any]:
        asked.update(names=names, slots=slots, kv_ratio=kv_ratio, seed=seed)
        return {"seed": seed, "kv_ratio": kv_ratio, "cells": []}

    monkeypatch.setattr(replay, "run", run)
    monkeypatch.setattr(plot, "plot", lambda result, path: path.write_bytes(b"png"))
    words = ("--trace", "all", "--slots", "4", "--slots", "8", "--kv-ratio", "3", "--seed", "5", "--out", tmp_path)
    ended = qwen36("bench", "apc", *words)
    assert ended.exit_code == 0, ended.stderr
    assert asked == {"names": list(apc.TRACES), "slots": [4, 8], "kv_ratio": 3.0, "seed": 5}
    assert json.loads((tmp_path / "traces.json").read_text())["provenance"]["kind"] == "modelled"
    ended = qwen36("bench", "apc", "--trace", "all", "--keep", "--seed", "6", "--out", tmp_path)
    assert ended.exit_code == 2
    assert "is of another commit, seed or kv-ratio. Give another --out." in ended.stderr


@pytest.mark.slow
def test_both_samplers_are_measured(tmp_path: Path) -> None:
    ended = qwen36("bench", "sampling", "--vocab", "4096", "--rounds", "1", "--threads", "1", "--out", tmp_path)
    assert ended.exit_code == 0, ended.stderr
    made = json.loads((tmp_path / "sampling.json").read_text())
    assert made["settings"]["vocab"] == 4096
    assert {row["rows"] for row in made["results"]} == {1, 8}
    assert all(row["ours_ms"] > 0 and row["vllm_ms"] > 0 for row in made["results"])


@pytest.mark.parametrize("passes", [True, False])
def test_a_validation_writes_a_file_a_check_and_says_by_its_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, passes: bool
) -> None:
    found = Check("kernels", passes, {"cases": [{"error": 0.5, "bar": 1.0}]}, [] if passes else ["a wrong kernel"])
    monkeypatch.setattr(validate, "kernels", lambda *_: found)
    monkeypatch.setattr(validate, "unit_tests", lambda: Check("tests", True, {"summary": "3 passed"}))
    ended = qwen36("validate", "--device", "interpreter", "--tests", "--out", tmp_path)
    assert ended.exit_code == (0 if passes else 1)
    assert "3 passed" in ended.stdout
    assert ("a wrong kernel" in ended.stdout) is not passes
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["checks"] == {"tests": True, "kernels": passes}
    assert {file.name for file in tmp_path.iterdir()} == {"kernels.json", "tests.json", "summary.json"}
