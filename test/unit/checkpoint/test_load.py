"""Loading from files: every layout that is published, and every way in which one can be wrong, named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from qwen36_neuron.checkpoint.files import CheckpointError
from qwen36_neuron.checkpoint.load import load_weights
from qwen36_neuron.checkpoint.maker import PRESETS, make_checkpoint, write_weights
from qwen36_neuron.checkpoint.names import canonical_name
from qwen36_neuron.checkpoint.sharding import arrange, rank_weights
from qwen36_neuron.config import ModelConfig

SPEC = replace(
    PRESETS["tiny"],
    vocab_size=1024,
    intermediate_size=64,
    num_query_heads=4,
    num_key_heads=4,
    num_value_heads=4,
    num_mtp_layers=1,
    dtype="float32",
)
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint"), SPEC)


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


def same(left: Tensors, right: Tensors) -> bool:
    return set(left) == set(right) and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("tp", [1, 2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_rank_reads_its_part_of_the_arranged_whole(
    folder: Path, config: ModelConfig, tp: int, dtype: torch.dtype
) -> None:
    stored = load_file(folder / "model.safetensors")
    full = {short: tensor for name, tensor in stored.items() if (short := canonical_name(name)) is not None}
    arranged = arrange(full, config, tp, dtype, include_mtp=True)
    for rank in range(tp):
        weights = load_weights(folder, config, tp=tp, rank=rank, dtype=dtype, include_mtp=True)
        layout = rank_weights(config, tp, rank, include_mtp=True)
        assert set(weights) == set(arranged)
        for name, tensor in weights.items():
            whole, weight = arranged[name], layout[name]
            assert torch.equal(tensor, whole if weight.replicated else whole.chunk(tp, weight.dim)[rank]), name
            assert tensor.is_contiguous()


def test_values_are_those_that_transformers_loads(folder: Path, config: ModelConfig) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    weights = load_weights(folder, config)
    mlp, mixer = model.model.layers[3].mlp, model.model.layers[3].self_attn
    gate_up = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight])
    assert torch.equal(weights["layers.3.mlp.gate_up_proj.weight"], gate_up)
    assert torch.equal(weights["layers.3.mixer.o_proj.weight"], mixer.o_proj.weight)
    delta = model.model.layers[0].linear_attn
    assert torch.equal(weights["layers.0.mixer.A"], -delta.A_log.float().exp())
    assert torch.equal(weights["layers.0.mixer.conv_weight"], delta.conv1d.weight.squeeze(1))
    assert torch.equal(weights["norm.weight"], 1 + model.model.norm.weight)
    assert torch.equal(weights["lm_head.weight"], model.lm_head.weight)
    assert not any(name.startswith("mtp.") for name in weights)


def test_sharded_files_give_the_same(folder: Path, config: ModelConfig, tmp_path: Path) -> None:
    sharded = make_checkpoint(tmp_path / "sharded", replace(SPEC, max_shard_bytes=500_000))
    assert len(list(sharded.glob("*.safetensors"))) > 2
    assert same(
        load_weights(sharded, config, tp=2, rank=1, include_mtp=True),
        load_weights(folder, config, tp=2, rank=1, include_mtp=True),
    )


def test_a_text_only_checkpoint_gives_the_same(
    folder: Path, config: ModelConfig, changed: Callable[[Callable[[Tensors], Tensors]], Path]
) -> None:
    def text_only(tensors: Tensors) -> Tensors:
        kept = {name: t for name, t in tensors.items() if "visual" not in name and not name.startswith("mtp")}
        return {name.replace("model.language_model.", "model."): t for name, t in kept.items()}

    assert same(load_weights(changed(text_only), config), load_weights(folder, config))


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
def test_stored_half_precision_is_read_exactly(
    folder: Path,
    config: ModelConfig,
    changed: Callable[[Callable[[Tensors], Tensors]], Path],
    stored: torch.dtype,
) -> None:
    copy = changed(lambda tensors: {name: t.to(stored) for name, t in tensors.items()})
    weights, exact = load_weights(copy, config), load_weights(folder, config)
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    name = "layers.0.mixer.in_proj_qkvz.weight"
    assert torch.equal(weights[name], exact[name].to(stored).float())
    # The sum is taken in fp32: rounding 1 + w to half precision would lose most of w.
    norm = load_file(folder / "model.safetensors")["model.language_model.norm.weight"]
    assert torch.equal(weights["norm.weight"], 1 + norm.to(stored).float())


def test_tied_embeddings_share_one_tensor(tmp_path: Path) -> None:
    tied = make_checkpoint(tmp_path / "tied", replace(SPEC, tie_word_embeddings=True))
    weights = load_weights(tied, ModelConfig.from_pretrained(tied))
    assert weights["lm_head.weight"] is weights["embed_tokens.weight"]


def test_everything_wrong_is_listed_at_once(
    config: ModelConfig, changed: Callable[[Callable[[Tensors], Tensors]], Path]
) -> None:
    text = "model.language_model."

    def spoil(tensors: Tensors) -> Tensors:
        del tensors[f"{text}layers.1.linear_attn.A_log"]
        del tensors["lm_head.weight"]
        tensors[f"{text}layers.0.mlp.extra.weight"] = torch.zeros(2)
        tensors[f"{text}layers.9.input_layernorm.weight"] = torch.zeros(2)
        tensors["model.norm.weight"] = torch.zeros(256)  # a second spelling of one that is there
        tensors[f"{text}layers.3.self_attn.k_proj.weight"] = torch.zeros(128, 256)
        tensors[f"{text}layers.2.input_layernorm.weight"] = torch.zeros(256, dtype=torch.int32)
        return tensors

    with pytest.raises(CheckpointError) as caught:
        load_weights(changed(spoil), config)
    error = caught.value
    assert set(error.missing) == {f"{text}layers.1.linear_attn.A_log", "lm_head.weight"}
    # Which of the two spellings comes first in the file is the file's affair; one of them is one too many.
    assert len(error.unknown) == 3
    assert {f"{text}layers.0.mlp.extra.weight", f"{text}layers.9.input_layernorm.weight"} < set(error.unknown)
    assert set(error.unknown) & {"model.norm.weight", f"{text}norm.weight"}
    assert {item.name: item.found for item in error.wrong} == {
        f"{text}layers.3.self_attn.k_proj.weight": "F32 (128, 256)",
        f"{text}layers.2.input_layernorm.weight": "I32 (256,)",
    }
    for name in (*error.missing, *error.unknown, *(item.name for item in error.wrong)):
        assert name in str(error)
    assert "(256, 256)" in str(error)


def test_a_missing_draft_layer_matters_only_when_asked_for(
    config: ModelConfig, changed: Callable[[Callable[[Tensors], Tensors]], Path]
) -> None:
    copy = changed(lambda tensors: {name: t for name, t in tensors.items() if not name.startswith("mtp.")})
    load_weights(copy, config)
    with pytest.raises(CheckpointError) as caught:
        load_weights(copy, config, include_mtp=True)
    assert len(caught.value.missing) == 15


def test_missing_files_are_named(config: ModelConfig, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"neither model\.safetensors nor"):
        load_weights(tmp_path, config)
    sharded = make_checkpoint(tmp_path / "sharded", replace(SPEC, max_shard_bytes=500_000))
    lost = sorted(sharded.glob("*.safetensors"))[:2]
    for file in lost:
        file.unlink()
    with pytest.raises(CheckpointError) as caught:
        load_weights(sharded, config)
    assert caught.value.missing == tuple(file.name for file in lost)


@pytest.mark.parametrize("content", [b"", b"not safetensors at all, but some bytes", None])
def test_a_damaged_file_is_named(folder: Path, config: ModelConfig, tmp_path: Path, content: bytes | None) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:-100] if content is None else content)
    with pytest.raises(CheckpointError, match=r"unreadable file: model\.safetensors"):
        load_weights(tmp_path, config)


@pytest.mark.parametrize("content", ["{", "[]", json.dumps({"weight_map": None}), json.dumps({"metadata": {}})])
def test_a_damaged_index_is_named(config: ModelConfig, tmp_path: Path, content: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_weights(tmp_path, config)
