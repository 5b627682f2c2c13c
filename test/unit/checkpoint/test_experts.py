"""Experts in both published layouts: the same weights bit by bit, and what is neither refused by its tensors' names."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from qwen36_neuron.checkpoint.conversion import Conversion
from qwen36_neuron.checkpoint.experts import apart, joined
from qwen36_neuron.checkpoint.files import CheckpointError
from qwen36_neuron.checkpoint.load import load_weights
from qwen36_neuron.checkpoint.maker import PRESETS, make_checkpoint, write_weights
from qwen36_neuron.checkpoint.names import canonical_name
from qwen36_neuron.checkpoint.sharding import arrange, rank_weights
from qwen36_neuron.config import ModelConfig
from qwen36_neuron.errors import ConfigError

SPEC = replace(
    PRESETS["tiny-moe"],
    vocab_size=1024,
    num_query_heads=4,
    num_key_heads=4,
    num_value_heads=4,
    num_mtp_layers=1,
    dtype="float32",
    num_experts=3,
    shared_intermediate_size=32,
)
Tensors = dict[str, torch.Tensor]
TEXT, MTP = "model.language_model.layers.1.mlp.experts.", "mtp.layers.0.mlp.experts."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As published: a tensor for all experts."""
    return make_checkpoint(tmp_path_factory.mktemp("mixture"), SPEC)


@pytest.fixture(scope="module")
def config(folder: Path) -> ModelConfig:
    return ModelConfig.from_pretrained(folder)


@pytest.fixture
def changed(folder: Path, tmp_path: Path) -> Callable[[Callable[[Tensors], Tensors]], Path]:
    """Makes a copy of the checkpoint whose tensors went through a function."""

    def change(edit: Callable[[Tensors], Tensors]) -> Path:
        copy = tmp_path / "changed"
        shutil.copytree(folder, copy)
        write_weights(copy, edit(load_file(copy / "model.safetensors")))
        return copy

    return change


def mtp_joined(tensors: Tensors) -> Tensors:
    """Matrices of their own but for the draft layer's, which is copied as it was."""
    return apart({k: t for k, t in tensors.items() if not k.startswith("mtp.")}) | {
        name: t for name, t in tensors.items() if name.startswith("mtp.")
    }


@pytest.mark.parametrize("edit", [apart, mtp_joined], ids=["apart", "draft layer joined"])
@pytest.mark.parametrize("tp", [1, 2, 4])
def test_both_layouts_give_the_same_bits(
    folder: Path,
    config: ModelConfig,
    changed: Callable[[Callable[[Tensors], Tensors]], Path],
    edit: Callable[[Tensors], Tensors],
    tp: int,
) -> None:
    """And what one rank reads of files is its part of what is arranged in memory."""
    copy = changed(edit)
    stored = {
        short: t
        for name, t in load_file(folder / "model.safetensors").items()
        if (short := canonical_name(name)) is not None
    }
    whole = arrange(stored, config, tp, torch.float32, include_mtp=True)
    for rank in range(tp):
        layout = rank_weights(config, tp, rank, include_mtp=True)
        one = load_weights(folder, config, tp=tp, rank=rank, include_mtp=True)
        other = load_weights(copy, config, tp=tp, rank=rank, include_mtp=True)
        assert set(one) == set(other) == set(whole)
        for name, tensor in one.items():
            part = whole[name] if layout[name].replicated else whole[name].chunk(tp, layout[name].dim)[rank]
            assert torch.equal(tensor, other[name]), name
            assert torch.equal(tensor, part), name


def test_a_ranks_part_is_inside_each_expert(folder: Path, config: ModelConfig) -> None:
    stored = load_file(folder / "model.safetensors")
    gate_up, down = stored[f"{TEXT}gate_up_proj"], stored[f"{TEXT}down_proj"]
    part = load_weights(folder, config, tp=2, rank=1)
    gate, up = gate_up.chunk(2, 1)
    assert torch.equal(part["layers.1.mlp.experts.gate_up_proj"], torch.cat((gate[:, 32:], up[:, 32:]), 1))
    assert torch.equal(part["layers.1.mlp.experts.down_proj"], down[:, :, 32:])
    assert part["layers.1.mlp.router.weight"].shape == (3, 256)
    assert part["layers.1.mlp.shared.down_proj.weight"].shape == (256, 16)


def test_joined_and_apart_are_inverse(folder: Path) -> None:
    stored = load_file(folder / "model.safetensors")
    back = joined(apart(stored))
    assert set(back) == set(stored)
    assert all(torch.equal(back[name], tensor) for name, tensor in stored.items())


def without(*names: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: t for name, t in tensors.items() if name not in names}


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (without(f"{TEXT}gate_up_proj"), f"missing: {TEXT}gate_up_proj"),
        (without(f"{MTP}down_proj"), f"missing: {MTP}down_proj"),
        (lambda t: without(f"{TEXT}2.up_proj.weight")(apart(t)), f"missing: {TEXT}2.up_proj.weight"),
        (without(f"{TEXT.removesuffix('experts.')}gate.weight"), "missing: .*layers.1.mlp.gate.weight"),
        (
            lambda t: t | {f"{TEXT}gate_up_proj": t[f"{TEXT}gate_up_proj"][:2]},
            "gate_up_proj is F32 .2, 128, 256.*3, 128",
        ),
        (lambda t: t | {f"{TEXT}gate_up_proj": t[f"{TEXT}gate_up_proj"].mT}, "gate_up_proj is F32 .3, 256, 128"),
        (lambda t: apart(t) | {f"{TEXT}3.up_proj.weight": torch.zeros(64, 256)}, f"unknown: {TEXT}3.up_proj.weight"),
        (
            lambda t: t | {f"{TEXT}0.up_proj.weight": torch.zeros(64, 256)},
            "layers.1.mlp.experts.down_proj. and in matrices of their own .layers.1.mlp.experts.0.up_proj.weight",
        ),
        (
            lambda t: (
                apart({k: v for k, v in t.items() if k.startswith(TEXT)})
                | without(*(f"{TEXT}{n}_proj" for n in ("gate_up", "down")))(t)
            ),
            r"\(layers.0.mlp.experts.down_proj\) and in matrices of their own \(layers.1.mlp.experts.0.down_proj",
        ),
    ],
    ids=str,
)
def test_what_is_missing_or_mixed_is_named(
    config: ModelConfig,
    changed: Callable[[Callable[[Tensors], Tensors]], Path],
    edit: Callable[[Tensors], Tensors],
    named: str,
) -> None:
    with pytest.raises(CheckpointError, match=named):
        load_weights(changed(edit), config, include_mtp=True)


def test_a_dense_checkpoint_is_no_mixture_nor_the_other_way_round(
    config: ModelConfig, folder: Path, tmp_path: Path
) -> None:
    dense = make_checkpoint(tmp_path / "dense", replace(PRESETS["tiny"], vocab_size=1024))
    with pytest.raises(CheckpointError, match=r"missing: .*experts"):
        load_weights(dense, config)
    with pytest.raises(CheckpointError, match=r"unknown: .*experts"):
        load_weights(folder, replace(config, moe=None, intermediate_size=64))


@pytest.mark.parametrize("edit", [dict, apart], ids=["joined", "apart"])
def test_a_conversion_to_fp8_is_refused(
    changed: Callable[[Callable[[Tensors], Tensors]], Path], edit: Callable[[Tensors], Tensors]
) -> None:
    with pytest.raises(ConfigError, match=r"experts.*not converted to FP8 yet.*device=cpu"):
        _ = Conversion(changed(edit)).work
