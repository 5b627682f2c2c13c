"""Experts in both published layouts: the same weights bit by bit, and what is neither refused by its tensors' names."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from qwen36_neuron.checkpoint.conversion import FORMATS, Conversion
from qwen36_neuron.checkpoint.expert_errors import EXPERTS, expert_errors, summary
from qwen36_neuron.checkpoint.experts import apart, joined
from qwen36_neuron.checkpoint.files import CheckpointError
from qwen36_neuron.checkpoint.fp8 import STORED, quantise_channels
from qwen36_neuron.checkpoint.load import load_weights
from qwen36_neuron.checkpoint.maker import PRESETS, make_checkpoint, write_weights
from qwen36_neuron.checkpoint.names import canonical_name
from qwen36_neuron.checkpoint.quantiser import Quantiser
from qwen36_neuron.checkpoint.sharding import arrange, rank_weights
from qwen36_neuron.checkpoint.weight_format import WeightFormat
from qwen36_neuron.config import ModelConfig

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


@pytest.fixture
def converted(folder: Path, tmp_path: Path) -> Path:
    Quantiser(Conversion(folder, FORMATS[WeightFormat.FP8_MLP]), tmp_path / "fp8").run()
    return tmp_path / "fp8"


def test_both_layouts_are_converted_to_the_same_fp8(
    folder: Path, converted: Path, changed: Callable[[Callable[[Tensors], Tensors]], Path], tmp_path: Path
) -> None:
    """A matrix and its scales an expert, as dense ones; the draft layer stays as it is published."""
    Quantiser(Conversion(changed(mtp_joined), FORMATS[WeightFormat.FP8_MLP]), tmp_path / "other").run()
    sides = [{k: t for file in at.glob("*.safetensors") for k, t in load_file(file).items()}
             for at in (converted, tmp_path / "other")]  # fmt: skip
    assert set(sides[0]) == set(sides[1])
    for name, tensor in sides[0].items():
        assert torch.equal(tensor.view(torch.uint8), sides[1][name].view(torch.uint8)), name
    source = load_file(folder / "model.safetensors")
    for part, rows in (("gate", slice(0, 64)), ("up", slice(64, 128)), ("down", slice(None))):
        whole = source[f"{TEXT}{'down' if part == 'down' else 'gate_up'}_proj"][2, rows]
        codes, scale = quantise_channels(whole)
        assert torch.equal(sides[0][f"{TEXT}2.{part}_proj.weight"].float(), codes.float())
        assert torch.equal(sides[0][f"{TEXT}2.{part}_proj.scale"], scale)
    assert torch.equal(sides[0][f"{MTP}gate_up_proj"], source[f"{MTP}gate_up_proj"])
    assert sides[0][f"{TEXT.removesuffix('experts.')}gate.weight"].dtype == torch.float32
    assert sides[0][f"{TEXT.removesuffix('experts.')}shared_expert.up_proj.weight"].dtype == STORED


@pytest.mark.parametrize("tp", [1, 4])
def test_a_rank_has_codes_and_scales_of_its_part(converted: Path, config: ModelConfig, tp: int) -> None:
    plain = load_weights(converted, config, tp=tp, rank=tp - 1, include_mtp=True)
    coded = load_weights(converted, config, tp=tp, rank=tp - 1, include_mtp=True, keep_fp8=True)
    for matrix in ("gate_up_proj", "down_proj"):
        codes, scale = (coded[f"layers.1.mlp.experts.{matrix}{end}"] for end in ("", "_scale"))
        assert (codes.dtype, scale.shape) == (STORED, (3, codes.shape[1], 1))
        assert torch.equal(codes.float() * scale, plain[f"layers.1.mlp.experts.{matrix}"])
        assert coded[f"mtp.layer.mlp.experts.{matrix}"].dtype == torch.float32


def test_the_report_names_the_expert_that_lost_most(
    changed: Callable[[Callable[[Tensors], Tensors]], Path], tmp_path: Path
) -> None:
    """One with an outlier a row: the scale is the outlier's, and the rest of the row is in its last digits."""

    def spoil(tensors: Tensors) -> Tensors:
        spoilt = tensors[f"{TEXT}down_proj"].clone()
        spoilt[1] *= 1e-3
        spoilt[1, :, 0] = 1.0
        return tensors | {f"{TEXT}down_proj": spoilt}

    source = changed(spoil)
    Quantiser(Conversion(source, FORMATS[WeightFormat.FP8_MLP]), tmp_path / "fp8").run()
    report = json.loads((tmp_path / "fp8" / EXPERTS).read_text())
    assert len(report["experts"]) == 4 * (3 + 1)
    one = next(entry for entry in report["experts"] if (entry["layer"], entry["expert"]) == (1, 1))
    matrix = load_file(source / "model.safetensors")[f"{TEXT}down_proj"][1]
    codes, scale = quantise_channels(matrix)
    lost = codes.float() * scale - matrix
    assert one["matrices"]["down"]["relative"] == pytest.approx(float(lost.norm() / matrix.norm()), rel=1e-4)
    assert one["matrices"]["down"]["largest"] == pytest.approx(float((lost.abs().amax(1) / matrix.abs().amax(1)).max()))
    worst = max(report["experts"], key=lambda entry: entry["relative"])
    assert [report["worst"][0][key] for key in ("layer", "expert")] == [worst["layer"], worst["expert"]]
    assert f"layer {worst['layer']}, expert {worst['expert']}" in summary(report).splitlines()[1]
    assert "shared" in {entry["expert"] for entry in report["experts"]}


def test_no_report_of_a_dense_checkpoint() -> None:
    error = {"sqnr_db": 30.0, "max_of_channel": 0.01}
    assert expert_errors({"model.language_model.layers.0.mlp.up_proj.weight": error}) is None
