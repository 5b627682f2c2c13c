"""What an artifact may be compiled for."""

from __future__ import annotations

from typing import Any

import pytest

from qwen36_neuron.errors import ConfigError
from qwen36_neuron.graph.buckets import Buckets
from qwen36_neuron.graph.options import GraphOptions


def make(**changes: Any) -> GraphOptions:
    settings = {
        "max_model_len": 1000,
        "num_lanes": 8,
        "num_blocks": 129,
        "buckets": Buckets.grid((128, 512), (1024,), (256, 1024)),
    }
    return GraphOptions(**(settings | changes))


def test_as_json_and_back() -> None:
    options = make(
        num_slots=7, tp_degree=4, dtype="float32", decode_commits=3, decode_rows=(1, 4), sampling_candidates=64
    )
    assert GraphOptions.from_json(options.to_json()) == options
    options = make(num_slots=7, kernels="nki", max_drafts=4, max_proposals=3, kv_cache_dtype="fp8")
    assert GraphOptions.from_json(options.to_json()) == options


def test_an_artifact_from_before_there_was_fp8_kv_has_none() -> None:
    saved = make().to_json()
    del saved["kv_cache_dtype"]
    assert not GraphOptions.from_json(saved).fp8_kv


def test_decode_graphs_and_which_one_a_call_takes() -> None:
    options = make(decode_rows=(1, 4))
    assert options.decode_graphs == [(8, 256), (8, 1024), (1, 256), (1, 1024), (4, 256), (4, 1024)]
    assert [options.decode_rows_for(count) for count in range(1, 9)] == [1, 4, 4, 4, 8, 8, 8, 8]
    assert [make().decode_rows_for(count) for count in (1, 8)] == [8, 8]
    assert make(max_drafts=2).draft_graphs == []
    drafting = make(decode_rows=(1,), max_drafts=3, max_proposals=2)
    assert drafting.draft_graphs == [(n, rows, size) for n in (1, 2) for rows in (8, 1) for size in (256, 1024)]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dtype", "float16"),
        ("decode_rows", (0,)),
        ("decode_rows", (8,)),
        ("decode_rows", (4, 1)),
        ("decode_rows", (1, 1)),
        ("num_lanes", 0),
        ("num_slots", -1),
        ("prefill_commits", 0),
        ("decode_commits", 0),
        ("sampling_candidates", -1),
        ("sampling_candidates", 1025),
        ("max_drafts", -1),
        ("max_drafts", 64),
        ("max_proposals", -1),
        ("max_proposals", 1),  # of no drafts that a row may have
        ("logical_cores", 3),
        ("dma_transposes", "no"),
        ("kernels", "interpreter"),
        ("num_blocks", 16),
        ("max_model_len", 1025),
    ],
)
def test_bad_values_are_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match="decode_buckets" if field == "max_model_len" else field):
        make(**{field: value})


def test_positions_and_places_that_a_graph_cannot_count_are_refused() -> None:
    """A position is taken in two parts of 11 bits; NKI kernels compute places of the cache in fp32."""
    long = {"buckets": Buckets.grid((128,), (1 << 22,), (1 << 22,)), "num_blocks": (1 << 16) + 1, "num_lanes": 1}
    assert make(max_model_len=1 << 22, **long).max_model_len == 1 << 22
    with pytest.raises(ConfigError, match="beyond the 4194304 positions") as caught:
        make(max_model_len=(1 << 22) + 1, **long)
    assert caught.value.field == "max_model_len"
    assert make(kernels="nki", num_blocks=1 << 18).num_blocks == 1 << 18
    assert make(num_blocks=(1 << 18) + 1).num_blocks == (1 << 18) + 1
    with pytest.raises(ConfigError, match="cannot tell apart") as caught:
        make(kernels="nki", num_blocks=(1 << 18) + 1)
    assert caught.value.field == "num_blocks"
