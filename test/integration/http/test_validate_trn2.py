"""The validation of an installation, in its small form: the same checks as on a Trn2, on what there is here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .conftest import Server

pytestmark = [pytest.mark.http, pytest.mark.slow]

SCRIPT = Path(__file__).parents[3] / "scripts" / "validate_trn2.py"


def validate(*options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False)


def read(folder: Path) -> dict[str, Any]:
    return {file.stem: json.loads(file.read_text()) for file in folder.glob("*.json")}


def test_kernels_and_server(demo: Server, tmp_path: Path) -> None:
    done = validate("--device", "interpreter", "--quick", "--base-url", demo.url, "--out", tmp_path)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    found = read(tmp_path)
    assert set(found) == {"kernels", "coherence", "decode_rate", "prefix_reuse", "memory", "summary"}
    verdicts = {name: result["passed"] for name, result in found.items()}
    assert verdicts == dict.fromkeys(found, True) | {"memory": None}
    assert found["memory"]["problems"] == ["neuron-monitor is not installed here"]
    for result in found.values():
        assert result["provenance"]["kind"] == "measured"
        assert result["device"].startswith("no Neuron device")
    assert {case["kernel"] for case in found["kernels"]["figures"]["cases"]} >= {
        "gated_delta_rule_prefill",
        "gated_delta_rule_decode",
        "paged_attention",
        "fp8_mlp",
        "state_copy",
    }
    rates = found["decode_rate"]["figures"]
    assert all(rates[f"batch_{batch}"]["tokens_per_second"] > 0 for batch in (1, 8))
    reuse = found["prefix_reuse"]["figures"]
    assert reuse["cached_tokens"]["cold"] == [0, 0, 0]
    assert reuse["prompt_tokens"][0] - reuse["cached_tokens"]["warm"][0] <= 128
    assert str(tmp_path) not in json.dumps(found)


def test_a_server_that_is_not_there_fails(tmp_path: Path) -> None:
    done = validate(
        *("--device", "interpreter", "--server-only", "--base-url", "http://127.0.0.1:9", "--out", tmp_path)
    )
    assert done.returncode == 1
    summary = read(tmp_path)["summary"]
    assert not summary["passed"]
    assert "ConnectError" in summary["problems"]["coherence"][0]


def test_a_neuron_device_is_not_claimed_where_there_is_none(tmp_path: Path) -> None:
    done = validate("--device", "neuron", "--out", tmp_path)
    assert done.returncode == 1
    found = read(tmp_path)
    assert found["summary"]["device"] == "no Neuron device found in /dev"
    assert found["kernels"]["problems"][0].startswith("no Neuron device for torch_xla")
