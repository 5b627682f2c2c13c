"""Converting checkpoints to FP8: what is converted, what it loads as, and what an interruption leaves."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from qwen36_neuron.checkpoint import quantiser as module
from qwen36_neuron.checkpoint.conversion import PARTS, Conversion
from qwen36_neuron.checkpoint.files import INDEX, CheckpointError, CheckpointFiles
from qwen36_neuron.checkpoint.fp8 import STORED, Scales, dequantise
from qwen36_neuron.checkpoint.load import load_weights
from qwen36_neuron.checkpoint.maker import PRESETS, make_checkpoint, write_weights
from qwen36_neuron.checkpoint.quantiser import JOURNAL, Quantiser, verify
from qwen36_neuron.checkpoint.sharding import Slice
from qwen36_neuron.config import ModelConfig
from qwen36_neuron.errors import ConfigError

SPEC = replace(
    PRESETS["tiny"],
    vocab_size=1024,
    intermediate_size=512,
    num_query_heads=4,
    num_kv_heads=2,
    num_key_heads=2,
    num_value_heads=4,
    num_mtp_layers=1,
)
ALL = frozenset(PARTS)
MLP = frozenset({"mlp"})
NORMS = {"input_layernorm", "post_attention_layernorm", "norm", "q_norm", "k_norm"}
KEPT = NORMS | {"embed_tokens", "conv1d", "A_log", "dt_bias", "in_proj_a", "in_proj_b"}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("bf16"), SPEC)


@pytest.fixture(scope="module")
def config(source: Path) -> ModelConfig:
    return ModelConfig.from_pretrained(source)


@pytest.fixture(scope="module")
def published(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint as the published FP8 ones are: every projection but the head in 128x128 blocks up to 448."""
    folder = tmp_path_factory.mktemp("published") / "fp8"
    shutil.copytree(source, folder)
    stored: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        stored[name] = tensor
        if re.search(r"^(?!model.visual).*_proj(_qkv|_z)?\.weight$", name):
            blocks = tensor.float().unflatten(0, (-1, 128)).unflatten(2, (-1, 128))
            scale = (blocks.abs().amax((1, 3)) / 448).to(torch.bfloat16)
            spread = scale.float()[:, None, :, None]
            payload = (blocks / spread).clamp(-448, 448).to(STORED)
            stored[name] = payload.reshape(tensor.shape)
            stored[name.removesuffix("weight") + "weight_scale_inv"] = scale
    write_weights(folder, stored)
    text = json.loads((folder / "config.json").read_text())
    text["quantization_config"] = {
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
        "modules_to_not_convert": ["lm_head", "model.visual", "in_proj_a", "in_proj_b", "mtp.fc"],
    }
    (folder / "config.json").write_text(json.dumps(text))
    return folder


def convert(
    source: Path, target: Path, parts: frozenset[str] = MLP, scales: Scales | None = None
) -> dict[str, torch.Tensor]:
    """Convert into small files; the tensors written, by published name."""
    Quantiser(Conversion(source, parts, scales), target, max_shard_bytes=1 << 20).run()
    return {name: t for file in target.glob("*.safetensors") for name, t in load_file(file).items()}


def test_mlp_only_converts_gate_up_and_down_of_every_layer_and_nothing_else(source: Path, tmp_path: Path) -> None:
    before, after = load_file(source / "model.safetensors"), convert(source, tmp_path / "fp8")
    names = {
        f"model.language_model.layers.{i}.mlp.{p}_proj" for i in range(SPEC.num_layers) for p in ("gate", "up", "down")
    }
    assert set(after) == set(before) | {f"{name}.scale" for name in names}
    assert {name for name, tensor in after.items() if tensor.dtype == STORED} == {f"{name}.weight" for name in names}
    for name in names:
        assert after[f"{name}.scale"].shape == (before[f"{name}.weight"].shape[0], 1)
        assert after[f"{name}.scale"].dtype == torch.float32
    for name, tensor in before.items():
        assert after[name].dtype == STORED or torch.equal(after[name], tensor), name


def test_all_parts_leave_norms_embeddings_gates_convolution_vision_and_the_draft_layer(
    source: Path, tmp_path: Path
) -> None:
    after = convert(source, tmp_path / "fp8", ALL)
    text = {name: t for name, t in after.items() if "visual" not in name and not name.startswith("mtp")}
    plain = [name for name, t in text.items() if t.dtype != STORED and not name.endswith(".scale")]
    assert {name.removesuffix(".weight").rsplit(".")[-1] for name in plain} == KEPT
    assert not any(t.dtype == STORED for name, t in after.items() if name.startswith(("mtp", "model.visual")))


@pytest.mark.parametrize("parts", [MLP, ALL])
def test_the_cpu_loader_multiplies_the_payload_out(
    source: Path, config: ModelConfig, tmp_path: Path, parts: frozenset[str]
) -> None:
    after = convert(source, tmp_path / "fp8", parts)
    weights, plain = load_weights(tmp_path / "fp8", config), load_weights(source, config)
    base = "model.language_model.layers.0.mlp."
    gate_up = torch.cat(
        [after[f"{base}{p}_proj.weight"].float() * after[f"{base}{p}_proj.scale"] for p in ("gate", "up")]
    )
    assert torch.equal(weights["layers.0.mlp.gate_up_proj.weight"], gate_up)
    for name, tensor in plain.items():
        error = (weights[name] - tensor).norm() / tensor.norm()
        assert error == 0 or 0.02 < error < 0.03, name


@pytest.mark.parametrize("tp", [1, 2])
def test_ranks_get_their_rows_and_columns_with_the_scales_that_nxd_wants(
    source: Path, config: ModelConfig, tmp_path: Path, tp: int
) -> None:
    convert(source, tmp_path / "fp8", ALL)
    for rank in range(tp):
        kept = load_weights(tmp_path / "fp8", config, tp=tp, rank=rank, dtype=torch.bfloat16, keep_fp8=True)
        plain = load_weights(tmp_path / "fp8", config, tp=tp, rank=rank)
        fp8 = {name for name, tensor in kept.items() if tensor.dtype == STORED}
        assert len(fp8) == 4 * config.num_layers + 1
        for name in fp8:
            payload, scale = kept[name], kept[name.removesuffix("weight") + "scale"]
            assert scale.shape == (payload.shape[0], 1)
            # Exactly so: query and gate rows, and the parts of fused matrices, keep the scales of their own rows.
            assert torch.equal(payload.float() * scale, plain[name]), name


def test_published_blocks_stay_exact_but_for_counted_values(published: Path, tmp_path: Path) -> None:
    before = load_file(published / "model.safetensors")
    after = convert(published, tmp_path / "fp8")
    manifest = json.loads((tmp_path / "fp8" / "fp8.json").read_text())
    assert manifest["scales"] == "block"
    inexact = total = 0
    for name in (name for name, tensor in after.items() if tensor.dtype == STORED):
        base = name.removesuffix("weight")
        exact = dequantise(before[name], before[f"{base}weight_scale_inv"])
        stored = dequantise(after[name], after[f"{base}scale"])
        inexact += int((exact != stored).sum())
        total += exact.numel()
        assert torch.equal(after[f"{base}scale"], 2 * before[f"{base}weight_scale_inv"].float())
        assert after[name].float().abs().max() <= 224
    assert (manifest["inexact_halves"], manifest["halved_values"]) == (inexact, total)
    assert 0 < inexact < 0.01 * total


def test_other_matrices_of_a_published_checkpoint_become_bf16(published: Path, tmp_path: Path) -> None:
    before, after = load_file(published / "model.safetensors"), convert(published, tmp_path / "fp8")
    name = "model.language_model.layers.3.self_attn.q_proj.weight"
    exact = dequantise(before[name], before[name.removesuffix("weight") + "weight_scale_inv"])
    assert torch.equal(after[name], exact.to(torch.bfloat16))
    assert not any(name.endswith("weight_scale_inv") for name in after)
    assert "quantization_config" not in json.loads((tmp_path / "fp8" / "config.json").read_text())


def test_published_blocks_can_be_given_a_scale_a_channel(published: Path, tmp_path: Path) -> None:
    after = convert(published, tmp_path / "fp8", ALL, Scales.CHANNEL)
    assert all(tensor.shape[1] == 1 for name, tensor in after.items() if name.endswith(".scale"))
    assert after["lm_head.weight"].dtype == STORED


def test_blocks_are_cut_between_ranks_and_never_through(published: Path, config: ModelConfig, tmp_path: Path) -> None:
    convert(published, tmp_path / "fp8")
    folder = tmp_path / "fp8"
    for rank in range(2):
        kept = load_weights(folder, config, tp=2, rank=rank, keep_fp8=True)
        plain = load_weights(folder, config, tp=2, rank=rank)
        for part in ("gate_up_proj", "down_proj"):
            name = f"layers.1.mlp.{part}"
            assert torch.equal(dequantise(kept[f"{name}.weight"], kept[f"{name}.scale"]), plain[f"{name}.weight"])
    name = "layers.1.mlp.down_proj.weight"
    with CheckpointFiles(folder) as files, pytest.raises(CheckpointError, match="cut a block"):
        files.read_fp8(Slice(name, 1, 128, 320))


def test_the_cpu_loader_reads_published_blocks_as_they_are_and_the_device_does_not(
    published: Path, config: ModelConfig
) -> None:
    before, base = load_file(published / "model.safetensors"), "model.language_model.layers.0.mlp.down_proj."
    exact = dequantise(before[f"{base}weight"], before[f"{base}weight_scale_inv"])
    for rank in range(2):
        weights = load_weights(published, config, tp=2, rank=rank)
        assert torch.equal(weights["layers.0.mlp.down_proj.weight"], exact.chunk(2, 1)[rank])
    with pytest.raises(CheckpointError, match="up to 448"):
        load_weights(published, config, keep_fp8=True)


@pytest.mark.parametrize("after_files", [0, 1, 3])
def test_an_interrupted_conversion_goes_on_and_ends_with_the_same_bytes(
    source: Path, tmp_path: Path, after_files: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert(source, tmp_path / "whole")
    target = tmp_path / "cut"
    quantiser = Quantiser(Conversion(source), target, max_shard_bytes=1 << 20)
    written: list[str] = []
    write = Quantiser._write

    def fail_later(self: Quantiser, name: str, *rest: object) -> object:
        written.append(name)
        if len(written) > after_files:
            (target / f"{name}.part").write_bytes(b"half a file")
            raise KeyboardInterrupt
        return write(self, name, *rest)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(Quantiser, "_write", fail_later)
        with pytest.raises(KeyboardInterrupt):
            quantiser.run()
    assert not (target / INDEX).exists()
    with (target / JOURNAL).open("a") as journal:
        journal.write('{"file": "model-0')  # cut in the middle of a line
    again: list[str] = []
    with monkeypatch.context() as patched:
        patched.setattr(Quantiser, "_write", lambda self, name, *rest: again.append(name) or write(self, name, *rest))
        steps: list[int] = []
        Quantiser(Conversion(source), target, max_shard_bytes=1 << 20).run(steps.append)
    assert len(again) == len(quantiser.shards) - after_files
    assert sum(steps) == quantiser.total_bytes
    whole = {file.name: file.read_bytes() for file in (tmp_path / "whole").iterdir()}
    assert {file.name: file.read_bytes() for file in target.iterdir()} == whole


def test_a_finished_file_that_was_damaged_is_written_again(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantiser = Quantiser(Conversion(source), tmp_path / "fp8", max_shard_bytes=1 << 20)
    with monkeypatch.context() as patched:
        patched.setattr(Quantiser, "_finish", lambda self, done: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            quantiser.run()
    damaged = tmp_path / "fp8" / list(quantiser.shards)[1]
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\x00\x01")
    quantiser.run()
    assert verify(tmp_path / "fp8") == []


def test_verifying_names_a_file_with_one_changed_byte(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "fp8")
    file = sorted((tmp_path / "fp8").glob("*.safetensors"))[2]
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert verify(tmp_path / "fp8") == [file.name]


def test_pieces_of_rows_give_the_same_bytes_as_whole_matrices(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = convert(source, tmp_path / "whole", ALL)
    monkeypatch.setattr(module, "CHUNK_VALUES", 1)
    pieces = convert(source, tmp_path / "pieces", ALL)
    assert all(torch.equal(whole[name].view(torch.uint8), pieces[name].view(torch.uint8)) for name in whole)


def test_refusals_name_the_remedy(source: Path, published: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Known: mlp"):
        Conversion(source, frozenset({"norms"}))
    with pytest.raises(ConfigError, match="is the checkpoint itself"):
        Quantiser(Conversion(source), source)
    with pytest.raises(ConfigError, match="--scales channel"):
        Quantiser(Conversion(published, ALL), tmp_path / "a").run()  # the head is bf16
    with pytest.raises(ConfigError, match="not in blocks"):
        Quantiser(Conversion(source, MLP, Scales.BLOCK), tmp_path / "b").run()
    convert(source, tmp_path / "fp8")
    with pytest.raises(ConfigError, match="already holds weights"):
        convert(source, tmp_path / "fp8")
    with pytest.raises(ConfigError, match="weight_scale_inv"):
        Quantiser(Conversion(tmp_path / "fp8"), tmp_path / "c").run()  # converted already
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / JOURNAL).write_text('{"identity": "other"}\n')
    with pytest.raises(ConfigError, match="another conversion"):
        convert(source, tmp_path / "d")


def test_a_head_tied_to_the_embedding_cannot_be_converted(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "tied", replace(SPEC, tie_word_embeddings=True))
    with pytest.raises(ConfigError, match="tied head"):
        Quantiser(Conversion(folder, ALL), tmp_path / "fp8").run()


def test_broken_scales_are_named(source: Path, config: ModelConfig, tmp_path: Path) -> None:
    stored = convert(source, tmp_path / "fp8")
    base = "model.language_model.layers.0.mlp.gate_proj."
    for file in (tmp_path / "fp8").glob("*.safetensors*"):
        file.unlink()
    scale = stored.pop(f"{base}scale")
    write_weights(tmp_path / "fp8", stored)
    with pytest.raises(CheckpointError, match=r"gate_proj.weight is F8_E4M3"):
        load_weights(tmp_path / "fp8", config)
    write_weights(tmp_path / "fp8", stored | {f"{base}scale": scale[:-1]})
    with pytest.raises(CheckpointError, match=r"gate_proj.weight is F8_E4M3"):
        load_weights(tmp_path / "fp8", config)
    write_weights(tmp_path / "fp8", stored | {f"{base}scale": scale, "model.language_model.norm.scale": scale.clone()})
    with pytest.raises(CheckpointError, match=r"unknown: model.language_model.norm.scale"):
        load_weights(tmp_path / "fp8", config)
    stored[f"{base}weight"] = dequantise(stored[f"{base}weight"], scale, (1, 256)).to(torch.bfloat16)
    write_weights(tmp_path / "fp8", stored)
    with pytest.raises(CheckpointError, match="all or none"):
        load_weights(tmp_path / "fp8", config, keep_fp8=True)
