"""Which weights each rank gets, and which layers NxD exchanges when weights are quantised."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from neuronx_distributed.quantization.quantization_config import (
    QuantizedDtype,
    get_default_per_channel_custom_qconfig_dict,
)
from neuronx_distributed.quantization.quantize import convert
from safetensors.torch import load_file

from qwen36_neuron.model.mlp import MLP

DRAFTS = {"max_drafts": 2, "max_proposals": 2}


@pytest.mark.parametrize(("tp", "drafts"), [(1, {}), (1, DRAFTS), (2, {})], ids=["one", "one drafting", "two"])
def test_a_ranks_weights_are_its_cut_of_the_arranged_ones(
    make_app: Callable[..., Any], tp: int, drafts: dict[str, int]
) -> None:
    """The per-rank loader against NxD's way: convert the whole state dict, then cut equal parts."""
    app = make_app(tp_degree=tp, dtype="bfloat16", **drafts)
    whole = app.get_state_dict(app.model_path, app.config)
    for rank in range(tp):
        mine = app.rank_state_dict(rank)
        assert set(mine) == set(whole)
        for name, tensor in mine.items():
            assert tensor.dtype == whole[name].dtype
            if tensor.shape == whole[name].shape:
                assert torch.equal(tensor, whole[name]), name
                continue
            (dim,) = (d for d in range(tensor.dim()) if tensor.shape[d] != whole[name].shape[d])
            assert torch.equal(tensor, whole[name].chunk(tp, dim)[rank]), name


@pytest.mark.parametrize("drafts", [{}, DRAFTS], ids=["plain", "drafting"])
def test_the_modules_parameters_are_exactly_those_loaded(make_app: Callable[..., Any], drafts: dict[str, int]) -> None:
    app = make_app(**drafts)
    for wrapper in app.models:
        instance = wrapper.get_model_instance()
        instance.load_module()
        names = {name for name, _ in instance.module.named_parameters() if not name.startswith("kv_mgr.")}
        assert names == set(app.rank_state_dict(0))
        assert any(".mtp." in name for name in names) == bool(drafts)


def test_sharded_files_are_written_rank_by_rank(make_app: Callable[..., Any], tmp_path: Path) -> None:
    app = make_app(tp_degree=2)
    app.shard_weights(str(tmp_path))
    assert not list(tmp_path.iterdir())
    app.neuron_config.save_sharded_checkpoint = True
    app.shard_weights(str(tmp_path))
    for rank in range(2):
        stored = load_file(tmp_path / "weights" / f"tp{rank}_sharded_checkpoint.safetensors")
        expected = app.rank_state_dict(rank)
        assert set(stored) == set(expected)
        assert all(torch.equal(stored[name], expected[name]) for name in stored)


def test_loading_gives_every_rank_its_weights(make_app: Callable[..., Any]) -> None:
    app = make_app(tp_degree=2)

    class Device:
        nxd_model: Any

        def initialize(self, weights: list[dict[str, torch.Tensor]], start: torch.Tensor) -> None:
            self.weights, self.start = weights, start

    device = Device()
    device.nxd_model = device
    app.traced_model = device
    app.load_weights("nowhere")
    assert int(device.start) == 0
    ranks = [int(weights["network.embed_tokens.rank_util.rank"]) for weights in device.weights]
    assert ranks == [0, 1]


def test_quantisation_by_exact_type_takes_the_mlp_alone(make_app: Callable[..., Any]) -> None:
    """NxD exchanges layers of exactly its own types; the list of names to leave alone must spare all but the MLP."""
    instance = make_app(dtype="bfloat16").context_encoding_model.get_model_instance()
    instance.load_module()
    config = get_default_per_channel_custom_qconfig_dict()
    config["quantized_dtype"] = QuantizedDtype.F8E4M3
    convert(instance.module, q_config=config, inplace=True, modules_to_not_convert=["mixer", "lm_head"])
    blocks = [block for block in instance.module.modules() if isinstance(block, MLP)]
    quantised = {id(module) for module in instance.module.modules() if type(module).__name__.startswith("Quantized")}
    assert quantised == {id(layer) for block in blocks for layer in (block.gate_up_proj, block.down_proj)}
    for block in blocks:
        assert block.gate_up_proj.weight.dtype is torch.float8_e4m3fn
        assert block.gate_up_proj.scale.dtype is torch.float32
