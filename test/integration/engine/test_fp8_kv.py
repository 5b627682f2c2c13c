"""FP8 keys and values through vLLM: blocks of a quarter, exact reuse, preemption and drafts; and what is refused."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from engine import Engine, greedy
from quantised import configure
from safetensors.torch import load_file

from qwen36_neuron.checkpoint.kv_scales import FILE, calibrated, save_kv_scales
from qwen36_neuron.checkpoint.maker import write_weights
from qwen36_neuron.config import ModelConfig
from qwen36_neuron.errors import ConfigError
from qwen36_neuron.ops.fp8 import STORAGE
from qwen36_neuron.runtime.kv_calibration import KVObserver

KV = {"num_bits": 8, "type": "float", "strategy": "tensor", "symmetric": True, "dynamic": False}
ALONE = {"quant_method": "compressed-tensors", "format": "dense", "quantization_status": "frozen", "config_groups": {}}


def text(length: int, seed: int) -> list[int]:
    return [random.Random(f"{seed} {n}").randrange(4000) for n in range(length)]


@pytest.fixture(scope="module")
def folder(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint with calibrated scales beside it."""
    made = tmp_path_factory.mktemp("fp8") / "model"
    shutil.copytree(tiny_checkpoint, made)
    observer = KVObserver(made, 256, draft_layer=True)
    list(observer.observe(text(400, 0)))
    save_kv_scales(calibrated(observer.largest, "text"), ModelConfig.from_pretrained(made), made / FILE, {})
    return made


@pytest.fixture(scope="module")
def published(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint as llm-compressor publishes one of which keys and values alone are FP8."""
    made = tmp_path_factory.mktemp("published") / "model"
    shutil.copytree(tiny_checkpoint, made)
    configure(made, {**ALONE, "kv_cache_scheme": KV})
    tensors = load_file(made / "model.safetensors")
    prefix = next(name for name in tensors if name.endswith("3.self_attn.k_norm.weight")).removesuffix("k_norm.weight")
    for at in (prefix, "mtp.layers.0.self_attn."):
        tensors |= {f"{at}k_scale": torch.tensor([0.02]), f"{at}v_scale": torch.tensor([0.01])}
        tensors[f"{at}k_zero_point"] = torch.zeros(1)
    write_weights(made, tensors)
    return made


def test_warm_is_cold(folder: Path, engines: list[Engine]) -> None:
    """With reuse, with preemption, and with drafts of the checkpoint's own layer."""
    common: dict[str, Any] = {"kv_cache_dtype": "fp8", "max_model_len": 1024, "num_gpu_blocks_override": 22}
    drafts = {"method": "mtp", "num_speculative_tokens": 3}
    engines.append(Engine(folder, **common))
    engines.append(Engine(folder, **common, enable_prefix_caching=True))
    engines.append(Engine(folder, **common, enable_prefix_caching=True, speculative_config=drafts))
    cold, warm, drafted = engines
    prompts = [text(120, 1) + text(31 * n, n) for n in range(6)]
    expected = [cold.generate([prompt], greedy(40))[0] for prompt in prompts]
    for engine in (warm, drafted):
        assert engine.runtime.cache.kv[3][0].dtype == STORAGE
        assert engine.generate(prompts, greedy(40)) == expected
        outputs = engine.outputs(prompts, greedy(40))
        assert [list(output.outputs[0].token_ids) for output in outputs] == expected
        assert any(output.num_cached_tokens for output in outputs)


def test_as_many_bytes_are_four_times_the_blocks(folder: Path, published: Path, engines: list[Engine]) -> None:
    """`auto` is what the checkpoint declares."""
    memory = {"kv_cache_memory_bytes": 64 << 20}
    engines += [
        Engine(folder, **memory),
        Engine(folder, **memory, kv_cache_dtype="fp8_e4m3"),
        Engine(published, **memory),
    ]
    plain, given, declared = (engine.worker.runner.runtime.capacity.num_blocks for engine in engines)
    assert given == declared == 4 * plain
    assert engines[2].runtime.model.layers[3].mixer.k_scale.tolist() == [pytest.approx(0.04)], "for 240, not 448"
    assert len(engines[2].generate([text(70, 3)], greedy(4))[0]) == 4


def build(folder: Path, **arguments: Any) -> Any:
    from vllm.engine.arg_utils import EngineArgs

    named = {"dtype": "float32", "max_model_len": 1024, "max_num_seqs": 4, "skip_tokenizer_init": True, **arguments}
    return EngineArgs(model=str(folder), **named).create_engine_config()


@pytest.mark.usefixtures("engines")
class TestConfiguration:
    @pytest.mark.parametrize(
        ("value", "message"),
        [
            ("fp8_e5m2", "of two digits instead of three"),
            ("fp8_per_token_head", "scales by token"),
            ("fp8_inc", "Gaudi"),
            ("nvfp4", "no device of this plugin"),
            ("float16", "no float16"),
        ],
    )
    def test_others_are_refused_by_name(self, folder: Path, value: str, message: str) -> None:
        with pytest.raises(ConfigError, match=rf"^kv_cache_dtype='{value}': is not served: .*{message}.*Use fp8"):
            build(folder, kv_cache_dtype=value)

    def test_the_number_format_of_the_model_may_be_named(self, folder: Path, published: Path) -> None:
        for each in (folder, published):
            config = build(each, kv_cache_dtype="bfloat16", dtype="bfloat16")
            assert config.cache_config.cache_dtype == "bfloat16"
        with pytest.raises(ConfigError, match=r"kv_cache_dtype='bfloat16'.*the model, which is float32"):
            build(folder, kv_cache_dtype="bfloat16")

    def test_scale_1_is_refused_before_anything_is_built(self, tiny_checkpoint: Path) -> None:
        with pytest.raises(ConfigError, match=r"kv_cache_dtype='fp8'.*scale of 1.*526 tokens.*calibrate-kv"):
            build(tiny_checkpoint, kv_cache_dtype="fp8")

    def test_scales_that_nothing_reads_are_refused(self, tiny_checkpoint: Path, folder: Path) -> None:
        with pytest.raises(ConfigError, match=r"additional_config.kv_scales=.*--kv-cache-dtype fp8"):
            build(tiny_checkpoint, additional_config={"kv_scales": str(folder / FILE)})

    def test_a_draft_layer_needs_scales_too(self, published: Path, tmp_path: Path) -> None:
        made = tmp_path / "copy"
        shutil.copytree(published, made)
        tensors = load_file(made / "model.safetensors")
        kept = {name: tensor for name, tensor in tensors.items() if not name.startswith("mtp") or "scale" not in name}
        write_weights(made, kept)
        assert build(made).cache_config.cache_dtype == "fp8"
        with pytest.raises(ConfigError, match=r"lacks mtp.layers.0.self_attn.k_scale.*calibrate-kv"):
            build(made, speculative_config=json.loads('{"method": "mtp", "num_speculative_tokens": 2}'))
