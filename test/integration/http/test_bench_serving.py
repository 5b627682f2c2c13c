"""The serving benchmark runs from one command and writes what it promises. How fast anything is, is not tested."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.http, pytest.mark.slow]

SCRIPT = Path(__file__).parents[3] / "scripts" / "bench_serving.py"


def test_quick_run_of_all_sides(tiny_checkpoint, tmp_path):
    options = ["--rounds", "1", "--threads", "1", "--http", "--out", tmp_path, "--model", tiny_checkpoint]
    done = subprocess.run(
        [sys.executable, SCRIPT, "--quick", *options],
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    result = json.loads((tmp_path / "serving.json").read_text())
    assert result["provenance"]["kind"] == "measured"
    sides = {"engine", "transformers", "http"}
    for row in result["summary"]["prefill"] + result["summary"]["decode"]:
        assert row["tokens_per_second"].keys() == sides
        assert row["ratio"] > 0
    for row in result["summary"]["prefill"]:
        assert row["fraction_of_matmul_peak"] > 0  # above 1 where the machine was slower when the peak was taken
    for row in result["summary"]["decode"]:
        assert 0 < row["overhead_ms"] < row["step_ms"]
    assert (tmp_path / "serving.png").stat().st_size > 10_000
    assert str(tmp_path) not in json.dumps(result)
