"""`qwen36 calibrate-kv`: a file with its provenance, which other commands then take."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from command import qwen36
from safetensors import safe_open

from qwen36_neuron.artifact.manifest import weights_digest

TEXT = "The cache holds blocks of tokens, and each block waits for its turn. " * 30


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text(TEXT)
    return file


def test_scales_and_what_they_were_made_from(tiny_checkpoint: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "kv.safetensors"
    words = ("--model", str(tiny_checkpoint), "--text", str(text), "--out", str(out), "--max-tokens", "200")
    done = qwen36("calibrate-kv", *words, "--window", "128")
    assert done.exit_code == 0, done.stderr
    with safe_open(out, framework="pt") as opened:
        about = opened.metadata()
        names = sorted(opened.keys())
    assert names == [f"{at}.self_attn.{kind}_scale" for at in ("layers.3", "mtp.layers.0") for kind in "kv"]
    assert about["text_sha256"] == hashlib.sha256(TEXT.encode()).hexdigest()
    assert (about["tokens"], about["window"], about["largest"]) == ("200", "128", "240")
    assert about["model_weights"] == weights_digest(tiny_checkpoint)
    both = ("--reference", str(tiny_checkpoint), "--candidate", str(tiny_checkpoint), "--text", str(text), "--json")
    fp8 = qwen36("compare", *both, "--candidate-kv-cache-dtype", "fp8", "--kv-scales", str(out), "--window", "256")
    assert fp8.exit_code == 0, fp8.stderr
    assert 0 < json.loads(fp8.stdout)["kl_mean"] < 1e-2
    refused = qwen36("compare", *both, "--candidate-kv-cache-dtype", "fp8")
    assert refused.exit_code == 2
    assert "calibrate-kv" in refused.stderr


def test_nothing_to_read(tiny_checkpoint: Path, tmp_path: Path) -> None:
    done = qwen36("calibrate-kv", "--model", str(tiny_checkpoint), "--text", str(tmp_path / "none"))
    assert done.exit_code == 2
    assert "no such file" in done.stderr
