"""Loading from files: every layout that is published, and every way in which one can be wrong, named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
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


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model.", "model.", ""])
def test_every_spelling_gives_the_same(
    folder: Path, config: ModelConfig, changed: Callable[[Callable[[Tensors], Tensors]], Path], prefix: str
) -> None:
    """With what some exporters leave in: frequencies, and a vision tower beside the text model."""

    def spell(tensors: Tensors) -> Tensors:
        named = {name.replace("model.language_model.", prefix): t for name, t in tensors.items()}
        named |= {"visual.patch_embed.proj.weight": torch.zeros(2, 3)}
        return named | {f"{prefix}layers.3.self_attn.rotary_emb.inv_freq": torch.zeros(32)}

    copy = changed(spell)
    assert same(load_weights(copy, config, include_mtp=True), load_weights(folder, config, include_mtp=True))

    def lose(tensors: Tensors) -> Tensors:
        return {name: t for name, t in spell(tensors).items() if not name.endswith("layers.1.linear_attn.A_log")}

    shutil.rmtree(copy)
    with pytest.raises(CheckpointError) as caught:
        load_weights(changed(lose), config)
    assert caught.value.missing == (f"{prefix}layers.1.linear_attn.A_log",)


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


@pytest.mark.parametrize("flags", [(True, True), (True, False), (False, True), (True, None), (None, True)])
def test_a_head_beside_a_tied_flag_is_used(
    tmp_path: Path, flags: tuple[bool | None, bool | None], caplog: pytest.LogCaptureFixture
) -> None:
    """As transformers does; wherever the flag is. The same values again are one tensor."""
    copy = make_checkpoint(tmp_path / "tied", SPEC)
    raw = json.loads((copy / "config.json").read_text())
    for place, flag in ((raw, flags[0]), (raw["text_config"], flags[1])):
        place.pop("tie_word_embeddings", None)
        place |= {} if flag is None else {"tie_word_embeddings": flag}
    (copy / "config.json").write_text(json.dumps(raw))
    tensors, config = load_file(copy / "model.safetensors"), ModelConfig.from_pretrained(copy)
    assert config.tie_word_embeddings
    for tp in (1, 2):
        weights = load_weights(copy, config, tp=tp, rank=tp - 1)
        assert torch.equal(weights["lm_head.weight"], tensors["lm_head.weight"].chunk(tp)[-1])
    assert "tie_word_embeddings" in caplog.text
    assert "lm_head.weight" in caplog.text
    short = {name: t for stored, t in tensors.items() if (name := canonical_name(stored)) is not None}
    assert torch.equal(arrange(short, config, 2, torch.float32)["lm_head.weight"], tensors["lm_head.weight"])

    write_weights(copy, tensors | {"lm_head.weight": tensors["model.language_model.embed_tokens.weight"].clone()})
    weights = load_weights(copy, config)
    assert weights["lm_head.weight"] is weights["embed_tokens.weight"]

    write_weights(copy, tensors | {"lm_head.weight": torch.zeros(7, 256)})
    with pytest.raises(CheckpointError, match=r"wrong: lm_head\.weight is F32 \(7, 256\)"):
        load_weights(copy, config)


def test_transformers_uses_that_head_too(tmp_path: Path) -> None:
    copy = make_checkpoint(tmp_path / "tied", SPEC)
    raw = json.loads((copy / "config.json").read_text())
    raw["text_config"]["tie_word_embeddings"] = raw["tie_word_embeddings"] = True
    (copy / "config.json").write_text(json.dumps(raw))
    model = AutoModelForCausalLM.from_pretrained(copy, dtype=torch.float32)
    weights = load_weights(copy, ModelConfig.from_pretrained(copy))
    assert torch.equal(weights["lm_head.weight"], model.lm_head.weight)


def test_an_error_is_ten_lines_at_most_and_has_some_of_each_kind(
    config: ModelConfig, changed: Callable[[Callable[[Tensors], Tensors]], Path]
) -> None:
    def spoil(tensors: Tensors) -> Tensors:
        kept = {name: t for name, t in tensors.items() if "layers.1." not in name}
        kept |= {f"model.layers.9.extra.{i}": torch.zeros(1) for i in range(40)}
        return {name: torch.zeros(3) if "layers.2." in name else t for name, t in kept.items()}

    with pytest.raises(CheckpointError) as caught:
        load_weights(changed(spoil), config)
    error, lines = caught.value, str(caught.value).splitlines()
    assert len(error.missing) > 9
    assert len(error.unknown) == 40
    assert len(error.wrong) > 9
    assert len(lines) <= 10
    for kind, found in (("missing", error.missing), ("unknown", error.unknown), ("wrong", error.wrong)):
        shown = sum(line.startswith(f"  {kind}: ") for line in lines)
        assert shown >= 2
        assert f"{len(found) - shown} {kind}" in lines[-1]


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


def split(folder: Path, files: dict[str, Callable[[str], bool]]) -> None:
    """Puts the tensors of a checkpoint into files of their own, with an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    table = {name: next(file for file, takes in files.items() if takes(name)) for name in tensors}
    for file in files:
        save_file({name: t for name, t in tensors.items() if table[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))


def test_absent_files_of_what_is_not_needed_are_a_warning(
    folder: Path, config: ModelConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = shutil.copytree(folder, tmp_path / "split")
    split(
        copy,
        {
            "mtp.safetensors": lambda name: name.startswith("mtp."),
            "vision.safetensors": lambda name: "visual" in name,
            "head.safetensors": lambda name: name == "lm_head.weight",
            "text.safetensors": lambda name: True,
        },
    )
    for lost in ("mtp.safetensors", "vision.safetensors"):
        (copy / lost).unlink()
    assert same(load_weights(copy, config), load_weights(folder, config))
    assert "lacks mtp.safetensors, vision.safetensors" in caplog.text
    with pytest.raises(CheckpointError, match=r"missing: mtp\.safetensors") as caught:
        load_weights(copy, config, include_mtp=True)
    assert "mtp.safetensors" in caught.value.missing
    (copy / "head.safetensors").unlink()
    with pytest.raises(CheckpointError) as caught:
        load_weights(copy, config)
    assert caught.value.missing == ("head.safetensors",)


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
