"""Every kind of graph as HLO, by real torch_xla in a Python of its own: see lowering.py and README.md."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from .conftest import SOURCES
from .support import TRAINED

XLA_PYTHON = os.environ.get("QWEN36_XLA_PYTHON")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        XLA_PYTHON is None or SOURCES is None,
        reason="set QWEN36_XLA_PYTHON to a Python with torch_xla 2.9, and QWEN36_NXDI_SOURCES (test/nxdi/README.md)",
    ),
]

INPUTS = {
    "context encoding": 9,
    "context encoding after a prefix": 9,
    "decoding": 8,
    "decoding of one row": 8,
    "verifying": 11,
    "verifying of one row": 11,
    "drafting": 6,
    "drafting of one row": 6,
}
LAYERS, ATTENTION, DRAFTS = 4, 1, 2
STATES = 2 * ATTENTION + 4 * (LAYERS - ATTENTION) + 2 + 2
"""Keys and values; recurrent states, windows and what is pending of drafts; the draft layer's keys and values, and
hidden states."""
RANKS = ["network.embed_tokens.rank_util.rank", "rank_util.rank"]
"""Rank numbers, which one rank does not need."""
ONLY_KEYS = [
    *("mixer.o_proj.weight", "mixer.q_norm.weight", "mlp.down_proj.weight", "mlp.gate_up_proj.weight"),
    "post_norm.weight",
]
"""Weights of the draft layer that a graph does not read which only writes its keys and values."""
TOLERANCE = 1e-5
"""Of the largest value of the same tensor: XLA fuses and sums in another order."""


OF_FUSED = {
    "context encoding": {
        "causal_conv1d",
        "gated_delta_rule_prefill",
        "gated_rms_norm",
        "paged_attention",
        "state_copy",
    },
    "decoding": {"decode_delta_net"},
    "verifying": {"causal_conv1d_verify", "gated_delta_rule_verify"},
    "drafting": {"paged_attention"},
}
"""Kernels of a kind of graph with `kernels: fused`, beside the head and those of whole parts of a layer."""
WHOLE = {"decode_attention", "decode_mlp", "decode_mlp_projection", "gated_norm_projection", "norm_projection"}
OF_DRAFTS = {"factors", "inputs"}
"""States that only a graph that verifies drafts writes by a kernel."""


def lower(checkpoint: Path, out: Path, *options: str) -> dict[str, dict[str, Any]]:
    """What lowering.py found of one graph of each kind."""
    command = [
        *(str(XLA_PYTHON), str(Path(__file__).with_name("lowering.py"))),
        *("--sources", str(SOURCES), "--checkpoint", str(checkpoint), "--out", str(out), "--first-of-each", *options),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return dict(zip(INPUTS, json.loads((out / "hlo.json").read_text())["graphs"], strict=True))


@pytest.fixture(scope="module")
def graphs(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Of plain operations."""
    return lower(tiny_checkpoint, tmp_path_factory.mktemp("hlo"))


@pytest.fixture(scope="module")
def with_kernels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Of fused kernels, which want the larger checkpoint."""
    return lower(TRAINED, tmp_path_factory.mktemp("hlo"), "--kernels", "fused", "--dtype", "bfloat16")


@pytest.mark.parametrize("kind", INPUTS)
def test_a_graph_is_static_complete_and_right(graphs: dict[str, dict[str, Any]], kind: str) -> None:
    graph = graphs[kind]
    assert graph["problems"] == [], "dynamic shapes, loops, branches, calls or random state"
    assert graph["states"] == graph["aliased"] == STATES
    assert graph["outputs"] == 2 + STATES
    # Everything else is a parameter of the graph, the inputs in order among it.
    if kind.startswith("drafting"):
        network = [name for name in graph["unused"] if name not in RANKS]
        assert all(name.startswith(("network.layers.", "network.norm.")) for name in network)
        of_drafts = 12 + 2 + 1  # the layer's own; embedding and head; rotary frequencies
        assert len(network) == graph["parameters"]["weights"] - len(RANKS) - of_drafts
    else:
        own = [*(f"network.mtp.layer.{name}" for name in ONLY_KEYS), "network.mtp.norm.weight"]
        assert sorted(graph["unused"]) == sorted([*RANKS, *own])
    assert graph["parameters"]["inputs"] == len(graph["inputs"]) == INPUTS[kind]
    assert graph["constants"] == [], "a tensor of another trace, which a device would take for an input"
    assert graph["relative_error"]["logits"] <= TOLERANCE
    assert graph["relative_error"]["states"] <= TOLERANCE
    assert graph["tokens_agree"]


@pytest.mark.parametrize("kind", ["decoding", "verifying", "drafting"])
def test_every_layer_writes_its_state_once(graphs: dict[str, dict[str, Any]], kind: str) -> None:
    """A write by index is a scatter; more of them would be copies of a whole cache. Each draft has keys and values."""
    more = 2 * (DRAFTS - 1) if kind == "drafting" else 0
    assert graphs[kind]["operations"]["scatter"] == STATES + more


@pytest.mark.parametrize("kind", INPUTS)
def test_a_graph_has_every_kernel_that_was_launched(with_kernels: dict[str, dict[str, Any]], kind: str) -> None:
    """As custom calls, each as often as the interpreter ran it for the module itself, and nothing else unknown."""
    graph, stage = with_kernels[kind], kind.split(" of ")[0].split(" after ")[0]
    whole = WHOLE if stage in ("decoding", "verifying") else set()
    if stage == "decoding":  # the whole mixer behind its input is one
        whole = whole - {"gated_norm_projection"}
    assert set(graph["kernels"]) == OF_FUSED[stage] | whole | {"decode_head"}
    assert graph["kernels"] == graph["launched"]
    assert graph["problems"] == [], "dynamic shapes, loops, branches, unknown calls or random state"
    assert graph["constants"] == []


@pytest.mark.parametrize("kind", INPUTS)
def test_a_kernel_gives_back_the_state_that_it_writes(with_kernels: dict[str, dict[str, Any]], kind: str) -> None:
    """To the output that takes the state's place, with nothing between that would copy it."""
    graph, stage = with_kernels[kind], kind.split(" of ")[0].split(" after ")[0]
    by = {name.removeprefix("kv_mgr."): writer for name, writer in graph["written_by"].items()}
    recurrent = {writer for name, writer in by.items() if name.startswith("recurrent")}
    windows = {writer for name, writer in by.items() if name.startswith("window")}
    pending = {writer for name, writer in by.items() if name.split(".")[0] in OF_DRAFTS}
    attention = [by[f"past_key_values.{n}"] for n in range(4)]  # of two layers; the draft layer's come after
    if stage == "verifying":
        assert recurrent == {"gated_delta_rule_verify"}
        assert windows == {"causal_conv1d_verify"}
        assert pending == {"gated_delta_rule_verify", "causal_conv1d_verify"}
    elif stage == "decoding":
        assert (recurrent, windows, pending) == ({"decode_delta_net"}, {"decode_delta_net"}, {"scatter"})
    elif stage == "context encoding":
        assert (recurrent, windows, pending) == ({"gated_delta_rule_prefill"}, {"state_copy"}, {"scatter"})
    else:
        assert recurrent | windows | pending == {"scatter"}
    assert set(attention) == ({"decode_attention"} if stage in ("decoding", "verifying") else {"scatter"})


def test_the_check_finds_what_no_graph_may_have(tmp_path: Path) -> None:
    code = """
import lowering
bad = "%a = (f32[2]{0}, s32[]) while((f32[2]{0}, s32[]) %t), body=%b\\n%c = f32[<=8]{0} custom-call(f32[2]{0} %d)"
assert len(lowering.problems(bad)) == 3, lowering.problems(bad)
assert lowering.problems("%a = f32[8]{0} add(f32[8]{0} %b, f32[8]{0} %c)") == []
"""
    folder = Path(__file__).parent
    done = subprocess.run(
        [str(XLA_PYTHON), "-c", code], cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
