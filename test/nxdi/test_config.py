"""NxDI's configuration objects, filled from ours."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import neuronx_distributed_inference.utils
import pytest
from neuronx_distributed_inference.utils.hf_adapter import load_pretrained_config

from qwen36_neuron.checkpoint.maker import PRESETS, make_checkpoint
from qwen36_neuron.config import ModelConfig
from qwen36_neuron.errors import ConfigError
from qwen36_neuron.graph.compiler import decode_options, prefill_options
from qwen36_neuron.nxdi.application import NeuronQwen36ForCausalLM
from qwen36_neuron.nxdi.config import UNSUPPORTED, Qwen36InferenceConfig, Qwen36NeuronConfig
from qwen36_neuron.nxdi.register import register


def test_saved_and_loaded_again(demo_checkpoint: Path, make_options: Callable[..., Any], tmp_path: Path) -> None:
    """NxDI writes the configuration beside the compiled graphs, and builds the application from it when loading."""
    config = Qwen36InferenceConfig.from_checkpoint(demo_checkpoint, make_options(tp_degree=2))
    config.save(str(tmp_path))
    again = Qwen36InferenceConfig.load(str(tmp_path))
    assert again.neuron_config.options == make_options(tp_degree=2)
    published = ModelConfig.from_pretrained(demo_checkpoint)  # takes the tokens that end an answer from another file
    assert replace(again.model_config, eos_token_ids=()) == replace(published, eos_token_ids=())
    assert json.loads(again.to_json_string()) == json.loads(config.to_json_string())


def test_from_nxdis_own_reader_and_settings(demo_checkpoint: Path) -> None:
    """As NxDI's tools build it: transformers reads config.json, and buckets come as plain settings."""
    settings = Qwen36NeuronConfig(
        batch_size=4,
        seq_len=500,
        torch_dtype="float32",
        context_encoding_buckets=[128, 256],
        prefix_buckets=[512],
        token_generation_buckets=[512],
        tp_degree=2,
    )
    config = Qwen36InferenceConfig(settings, load_config=load_pretrained_config(str(demo_checkpoint)))
    ours = ModelConfig.from_pretrained(demo_checkpoint)
    found = config.model_config
    assert (found.layer_types, found.rope, found.num_kv_heads) == (ours.layer_types, ours.rope, ours.num_kv_heads)
    options = settings.options
    assert (options.max_model_len, options.num_lanes, options.num_blocks, options.tp_degree) == (500, 4, 33, 2)
    assert [(p.active, p.prefix) for p in options.buckets.prefill] == [(128, 0), (128, 512), (256, 0), (256, 512)]


def test_fused_kernels_of_a_mixture_are_refused_by_name(make_options: Callable[..., Any], tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "mixture", PRESETS["tiny-moe"])
    with pytest.raises(ConfigError, match=r"kernels='fused'.*mixture of experts.*Use kernels: nki or torch"):
        Qwen36InferenceConfig.from_checkpoint(folder, make_options(kernels="fused", dtype="bfloat16"))


@pytest.mark.parametrize("setting", sorted(UNSUPPORTED))
def test_what_does_not_work_is_refused_by_name(make_options: Callable[..., Any], setting: str) -> None:
    value = UNSUPPORTED[setting][0]
    other: object = "config" if setting == "cast_type" else "other"
    if isinstance(value, bool):
        other = not value
    elif isinstance(value, int):
        other = value * 2 or 4
    with pytest.raises(ConfigError) as refused:
        Qwen36NeuronConfig(make_options(), **{setting: other})
    assert refused.value.field == setting
    assert UNSUPPORTED[setting][1] in str(refused.value)


def test_tp_that_does_not_divide(tiny_checkpoint: Path, make_options: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match="tp_degree"):
        Qwen36InferenceConfig.from_checkpoint(tiny_checkpoint, make_options(tp_degree=5))


def test_registered_in_nxdis_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a table of our own: importing NxDI's imports all its models, which do not agree with every transformers."""
    table: dict[str, Any] = {"llama": {"causal-lm": object}}
    module = types.ModuleType("neuronx_distributed_inference.utils.constants")
    module.MODEL_TYPES = table  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(neuronx_distributed_inference.utils, "constants", module, raising=False)
    register()
    register()
    ours = {name: {"causal-lm": NeuronQwen36ForCausalLM} for name in ("qwen3_5", "qwen3_5_moe")}
    assert table == {"llama": {"causal-lm": object}} | ours


def test_each_graph_has_its_own_compiler_arguments(make_app: Callable[..., Any]) -> None:
    app = make_app()
    prefill, decode = (wrapper.compiler_args for wrapper in app.models)
    assert "-O1" in prefill
    assert "-O2" in decode
    for arguments in (prefill, decode):
        assert arguments.count("--auto-cast=none") == arguments.count("--lnc=2") == arguments.count("-O") == 1
        assert arguments.count("--internal-hlo2tensorizer-options='--verify-hlo=true'") == 1
        assert "modular-flow-mac-threshold" not in arguments
    assert [wrapper.priority_model_idx for wrapper in app.models] == [None, 0]


def test_long_context_arguments() -> None:
    short, long = prefill_options(8192, 2).arguments(), prefill_options(131072, 2).arguments()
    assert "--vectorize-strided-dma" in short
    assert "--vectorize-strided-dma" not in long
    assert "--hbm-scratchpad-page-size=1024" in long
    assert "scratchpad" not in short
    assert "--disable-mixed-precision-accumulation" in decode_options(32768, 2).arguments()
