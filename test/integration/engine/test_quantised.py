"""Quantised checkpoints through vLLM: greedy tokens of transformers on the same numbers; --quantization is checked."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest

pytest.importorskip("compressed_tensors")

from engine import Engine, greedy, greedy_of_transformers
from quantised import FORMS, Made, block_fp8, configure, make

from qwen36_neuron.errors import ConfigError

COUNT = 8
PROMPTS = [[random.Random(length).randrange(1000) for _ in range(length)] for length in (5, 64, 150)]


@pytest.fixture(scope="module", params=["w8a16 groups", "auto-round", "block fp8 and vocabulary"])
def made(request: pytest.FixtureRequest, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tiny_checkpoint, tmp_path_factory.mktemp("made"), FORMS[request.param]())


def test_greedy_tokens_are_those_of_transformers(made: Made, engines: list[Engine]) -> None:
    method = json.loads((made.folder / "config.json").read_text())["quantization_config"]["quant_method"]
    engines.append(Engine(made.folder, quantization=method, num_gpu_blocks_override=50))
    assert engines[0].generate(PROMPTS, greedy(COUNT)) == greedy_of_transformers(made.plain, PROMPTS, COUNT)


def build(folder: Path, **arguments: object) -> object:
    from vllm.engine.arg_utils import EngineArgs

    named = {"dtype": "float32", "max_model_len": 1024, "max_num_seqs": 4, "skip_tokenizer_init": True, **arguments}
    return EngineArgs(model=str(folder), **named).create_engine_config()


@pytest.mark.usefixtures("engines")
class TestConfiguration:
    @pytest.fixture(scope="class")
    def folder(self, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return make(tiny_checkpoint, tmp_path_factory.mktemp("made"), block_fp8()).folder

    @pytest.mark.parametrize("asked", [None, "fp8", "FP8"])
    def test_the_checkpoint_s_own_method_may_be_named(self, folder: Path, asked: str | None) -> None:
        assert build(folder, quantization=asked).quant_config.content["quant_method"] == "fp8"  # type: ignore[attr-defined]

    @pytest.mark.parametrize("asked", ["compressed-tensors", "awq", "nonsense"])
    def test_another_method_is_refused(self, folder: Path, asked: str) -> None:
        with pytest.raises(ConfigError, match=rf"quantization='{asked}': the checkpoint is fp8.*give fp8"):
            build(folder, quantization=asked)

    @pytest.mark.parametrize("asked", ["fp8", "inc"])
    def test_weights_are_not_quantised_as_they_are_loaded(self, tiny_checkpoint: Path, asked: str) -> None:
        with pytest.raises(ConfigError, match=rf"quantization='{asked}': the checkpoint is not quantised"):
            build(tiny_checkpoint, quantization=asked)

    @pytest.mark.parametrize(
        ("config", "message"),
        [
            ({"quant_method": "awq", "bits": 4}, "quantization_config.quant_method='awq'"),
            (block_fp8().config | {"weight_block_size": [64, 64]}, "weight_block_size="),
            (block_fp8().config | {"modules_to_not_convert": []}, "missing: .*weight_scale_inv"),
        ],
    )
    def test_what_is_not_served_is_refused_before_anything_is_built(
        self, folder: Path, config: dict[str, object], message: str, tmp_path: Path
    ) -> None:
        copied = tmp_path / "copy"
        shutil.copytree(folder, copied)
        configure(copied, config)
        with pytest.raises(ConfigError, match=message):
            build(copied)

    def test_a_device_is_given_what_has_been_compiled_for_it(self, folder: Path) -> None:
        remedy = "Compile it with `qwen36 compile --weights fp8` or bf16"
        with pytest.raises(ConfigError, match=f"not run on a Neuron device as it is published.*{remedy}"):
            build(folder, additional_config={"device": "neuron", "artifact": str(folder)})
