"""`scripts/quantise.py` without the tools that it runs: what it refuses, and what it copies."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

SCRIPT = Path(__file__).parents[3] / "scripts" / "quantise.py"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


def run(*words: object) -> tuple[int, str]:
    done = subprocess.run([sys.executable, str(SCRIPT), *map(str, words)], capture_output=True, text=True, check=False)
    return done.returncode, " ".join(done.stderr.replace("│", " ").split())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"--recipe": "int4"}, "none of: w8a16-group"),
        ({"--model": "nowhere"}, "has no config.json"),
        ({"--out": "."}, "is there already"),
        ({"--data": None}, "give --data"),
        ({"--recipe": "w8a16-channel"}, "leave --data out"),
        ({"--recipe": "w8a16-channel", "--data": None, "--samples": "5"}, "leave --samples out"),
        ({"--recipe": "w8a16-channel", "--data": None, "--length": "5"}, "leave --length out"),
        ({"--data": "nowhere.txt"}, "cannot be read"),
        ({}, "llmcompressor is not installed for this Python: pip install llmcompressor"),
        ({"--recipe": "auto-round"}, "auto-round is not installed"),
    ],
)
def test_what_cannot_be_run_is_named(model: Path, tmp_path: Path, changes: dict[str, str | None], says: str) -> None:
    text = tmp_path / "text.txt"
    text.write_text("a text")
    asked = {"--recipe": "w8a16-group", "--model": str(model), "--out": str(tmp_path / "out"), "--data": str(text)}
    words = [word for pair in {**asked, **changes}.items() if pair[1] is not None for word in pair]
    status, said = run(*words)
    assert status == 2
    assert says in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("own", ["none", "copied", "quantised"])
def test_the_draft_layer_is_copied_unless_the_tool_did(model: Path, tmp_path: Path, own: str) -> None:
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        from quantise import copy_draft_layer
    finally:
        sys.path.remove(str(SCRIPT.parent))
    drafts = {"mtp.fc.weight": torch.ones(2, 4), "mtp.norm.weight": torch.ones(2)}
    save_file({**drafts, "lm_head.weight": torch.ones(2)}, model / "model.safetensors")
    out = tmp_path / "out"
    out.mkdir()
    written = {
        "none": {},
        "copied": drafts,
        "quantised": {
            "mtp.fc.qweight": torch.ones(1),
            "mtp.fc.scales": torch.ones(1),
            "mtp.norm.weight": torch.ones(2),
        },
    }[own]
    save_file({"lm_head.weight": torch.ones(2), **written}, out / "model.safetensors")
    assert copy_draft_layer(model, out) == (2 if own == "none" else 0)
    if own == "none":
        assert set(load_file(out / "mtp.safetensors")) == set(drafts)
        places = json.loads((out / "model.safetensors.index.json").read_text())["weight_map"]
        assert places == {"lm_head.weight": "model.safetensors", **dict.fromkeys(drafts, "mtp.safetensors")}
