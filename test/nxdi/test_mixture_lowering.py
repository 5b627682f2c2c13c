"""Every kind of graph of a mixture as HLO, as `test_lowering.py` has those of a dense model."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from .conftest import SOURCES
from .test_lowering import INPUTS, STATES, TOLERANCE, XLA_PYTHON

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        XLA_PYTHON is None or SOURCES is None,
        reason="set QWEN36_XLA_PYTHON to a Python with torch_xla 2.9, and QWEN36_NXDI_SOURCES (test/nxdi/README.md)",
    ),
]


def test_graphs_of_a_mixture_are_static_complete_and_right(tiny_mixture_checkpoint: Path, tmp_path: Path) -> None:
    """Prompts and four rows of drafts lay blocks out, by a write a layer beside those of states; other steps do not."""
    command = [
        *(str(XLA_PYTHON), str(Path(__file__).with_name("lowering.py"))),
        *("--sources", str(SOURCES), "--checkpoint", str(tiny_mixture_checkpoint), "--out", str(tmp_path)),
        "--first-of-each",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    graphs = dict(zip(INPUTS, json.loads((tmp_path / "hlo.json").read_text())["graphs"], strict=True))
    for kind, graph in graphs.items():
        assert graph["problems"] == [], kind
        assert graph["constants"] == [], kind
        assert graph["states"] == graph["aliased"] == STATES
        assert max(graph["relative_error"][what] for what in ("logits", "states")) <= TOLERANCE, kind
        assert graph["tokens_agree"], kind
    assert graphs["decoding"]["operations"]["scatter"] == STATES
    assert graphs["verifying"]["operations"]["scatter"] == STATES + 4
