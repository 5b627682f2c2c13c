"""Made checkpoints, against what transformers expects of a published one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    Qwen3_5ForConditionalGeneration,
)

from qwen36_neuron.checkpoint.maker import PRESETS, make_checkpoint
from qwen36_neuron.config import ModelConfig
from qwen36_neuron.errors import ConfigError

SMALL = replace(PRESETS["tiny"], vocab_size=1024, intermediate_size=64)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the folder's safetensors files."""
    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            found |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a mapping
    return found


@pytest.mark.parametrize("loader", [AutoModelForCausalLM, Qwen3_5ForConditionalGeneration])
@pytest.mark.parametrize("checkpoint", ["tiny_checkpoint", "demo_checkpoint"])
def test_transformers_loads_every_tensor(loader: Any, checkpoint: str, request: pytest.FixtureRequest) -> None:
    model, info = loader.from_pretrained(
        request.getfixturevalue(checkpoint), dtype=torch.float32, output_loading_info=True
    )
    assert not any(info.values()), info
    assert all(torch.isfinite(tensor).all() for tensor in model.state_dict().values())


def test_every_tensor_of_the_files_is_one_that_transformers_has(tiny_checkpoint: Path) -> None:
    with torch.device("meta"):
        model = Qwen3_5ForConditionalGeneration(AutoConfig.from_pretrained(tiny_checkpoint))
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    made = {name: tuple(tensor.shape) for name, tensor in tensors(tiny_checkpoint).items()}
    drafts = {name for name in made if name.startswith("mtp.")}
    assert len(drafts) == 15
    assert {name: shape for name, shape in made.items() if name not in drafts} == expected


def test_the_parameters_are_as_many_as_the_config_says(tiny_checkpoint: Path, demo_checkpoint: Path) -> None:
    for folder in (tiny_checkpoint, demo_checkpoint):
        text = [tensor for name, tensor in tensors(folder).items() if "visual" not in name]
        assert sum(t.numel() for t in text) == ModelConfig.from_pretrained(folder).num_parameters(include_mtp=True)
    assert ModelConfig.from_pretrained(demo_checkpoint).num_parameters() == pytest.approx(13e6, rel=0.05)


def test_the_same_spec_gives_the_same_bytes(tmp_path: Path) -> None:
    first, again, other = (tmp_path / name for name in ("first", "again", "other"))
    make_checkpoint(first, SMALL)
    make_checkpoint(again, SMALL)
    make_checkpoint(other, replace(SMALL, seed=1))
    for file in first.iterdir():
        assert file.read_bytes() == (again / file.name).read_bytes()
    weights = "model.safetensors"
    assert (first / weights).read_bytes() != (other / weights).read_bytes()


def test_a_tensor_does_not_depend_on_the_others(tmp_path: Path) -> None:
    plain = tensors(make_checkpoint(tmp_path / "plain", SMALL))
    more = tensors(make_checkpoint(tmp_path / "more", replace(SMALL, num_layers=5, num_mtp_layers=1)))
    assert set(plain) < set(more)
    assert all(torch.equal(plain[name], more[name]) for name in plain)


def test_shards_hold_what_one_file_holds(tmp_path: Path) -> None:
    whole = tensors(make_checkpoint(tmp_path / "whole", SMALL))
    limit = 300_000
    folder = make_checkpoint(tmp_path / "shards", replace(SMALL, max_shard_bytes=limit))
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) > 2
    assert {file.name for file in files} == set(index["weight_map"].values())
    for file in files:
        with safe_open(file, "pt") as opened:
            held = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a mapping
        assert all(index["weight_map"][name] == file.name for name in held)
        assert len(held) == 1 or sum(tensor.nbytes for tensor in held.values()) <= limit
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in whole.values())
    sharded = tensors(folder)
    assert set(sharded) == set(whole)
    assert all(torch.equal(sharded[name], whole[name]) for name in whole)
    _, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtype_and_tied_head(tmp_path: Path, dtype: Any) -> None:
    folder = make_checkpoint(tmp_path / dtype, replace(SMALL, dtype=dtype, tie_word_embeddings=True))
    made = tensors(folder)
    assert {tensor.dtype for tensor in made.values()} == {getattr(torch, dtype)}
    assert "lm_head.weight" not in made
    assert ModelConfig.from_pretrained(folder).tie_word_embeddings
    _, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info


def test_decay_covers_short_and_long_memory(demo_checkpoint: Path) -> None:
    made = tensors(demo_checkpoint)
    decay = torch.cat(
        [
            made[name].float().exp() * torch.nn.functional.softplus(made[name.replace("A_log", "dt_bias")].float())
            for name in made
            if name.endswith("A_log")
        ]
    )
    assert decay.min() < 0.03
    assert decay.max() > 0.3
    assert decay.max() < 1.7


def test_norms_are_off_their_neutral_value(demo_checkpoint: Path) -> None:
    for name, tensor in tensors(demo_checkpoint).items():
        if "norm" in name and "visual" not in name:
            neutral = 1.0 if "linear_attn" in name else 0.0
            assert (tensor.float() - neutral).abs().mean() > 0.05, name
            assert (tensor.float() - neutral).abs().max() < 1.0, name


def test_greedy_text_wanders(tiny_checkpoint: Path) -> None:
    """A loop would hide errors: most tokens of a long greedy answer are different ones, and depend on the prompt."""
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
    answers = []
    for prompt in ("Hello there, my friend", "Goodbye there, my friend"):
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        out = model.generate(ids, max_new_tokens=100, do_sample=False, eos_token_id=None)
        answers.append(out[0, ids.shape[1] :].tolist())
    assert all(len(set(answer)) > 80 for answer in answers)
    assert answers[0][-20:] != answers[1][-20:]


def test_ids_in_the_configs_are_the_tokenizers(tiny_checkpoint: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
    config = AutoConfig.from_pretrained(tiny_checkpoint)
    generation = GenerationConfig.from_pretrained(tiny_checkpoint)
    assert len(tokenizer) == config.text_config.vocab_size
    assert generation.eos_token_id == [tokenizer.eos_token_id, tokenizer.pad_token_id]
    assert tokenizer.convert_ids_to_tokens([config.image_token_id, config.vision_start_token_id]) == [
        "<|image_pad|>",
        "<|vision_start|>",
    ]


def test_sizes_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="linear_num_value_heads"):
        make_checkpoint(tmp_path / "bad", replace(SMALL, num_key_heads=2))
    assert not list(tmp_path.iterdir())


def test_a_folder_with_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("mine")
    with pytest.raises(ConfigError, match="not empty"):
        make_checkpoint(tmp_path, SMALL)
    assert [file.name for file in tmp_path.iterdir()] == ["kept"]
