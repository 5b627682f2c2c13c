"""FP8 MLPs as NKI kernels, against NxD's quantised layers and against what the weights are, multiplied out."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from qwen36_neuron.artifact.check import check
from qwen36_neuron.checkpoint.conversion import FORMATS, Conversion
from qwen36_neuron.checkpoint.maker import PRESETS, make_checkpoint
from qwen36_neuron.checkpoint.quantiser import Quantiser
from qwen36_neuron.checkpoint.weight_format import WeightFormat
from qwen36_neuron.errors import ConfigError
from qwen36_neuron.graph.profile import Profile
from qwen36_neuron.runtime import RuntimeConfig, open_runtime

from .support import BLOCKS, last, logits, neuron
from .test_kernels import launches  # noqa: F401


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint whose hidden size the kernel takes, by number format."""
    spec = replace(PRESETS["demo"], num_layers=4, hidden_size=512, intermediate_size=512, num_mtp_layers=1)
    source = make_checkpoint(tmp_path_factory.mktemp("wide"), spec)
    made = {}
    for weights in (WeightFormat.FP8_MLP, WeightFormat.FP8):
        made[weights.value] = tmp_path_factory.mktemp("fp8") / weights.value
        Quantiser(Conversion(source, FORMATS[weights]), made[weights.value]).run()
    return made


@pytest.fixture
def make(parallel_state: None, make_options: Callable[..., Any], folders: dict[str, Path]) -> Callable[..., Any]:
    """An application on one of the checkpoints, in bfloat16."""
    from qwen36_neuron.nxdi.application import NeuronQwen36ForCausalLM
    from qwen36_neuron.nxdi.config import Qwen36InferenceConfig

    def make(weights: str, **changes: Any) -> NeuronQwen36ForCausalLM:
        options = make_options(weights=weights, dtype="bfloat16", **changes)
        config = Qwen36InferenceConfig.from_checkpoint(folders[weights], options)
        return NeuronQwen36ForCausalLM(str(folders[weights]), config)

    return make


@pytest.mark.parametrize("weights", ["fp8-mlp", "fp8"])
@pytest.mark.parametrize("cores", [1, 2])
def test_logits_are_as_close_as_those_of_quantised_layers(
    make: Callable[..., Any], folders: dict[str, Path], weights: str, cores: int, tokens: list[int],
    launches: Any,  # noqa: F811
) -> None:  # fmt: skip
    """Root mean square against the same weights in fp32: at most 1.25 of what NxD's layers are off by in bfloat16."""
    from .rig.container import CpuContainer

    sizes = {"max_model_len": 512, "num_lanes": 4, "num_blocks": 65, "num_slots": 4}
    exact = open_runtime(RuntimeConfig(folders[weights], kernels="torch", **sizes))
    plain = neuron(CpuContainer(make(weights)))
    kernel = neuron(CpuContainer(make(weights, kernels="nki", logical_cores=cores)))
    errors = {"plain": 0.0, "kernel": 0.0}
    for start, stop in ((0, 200), (200, 300), (300, 301)):
        row = last(1, tokens[start:stop], start, BLOCKS)
        want = logits(exact, row)
        for name, runtime in (("plain", plain), ("kernel", kernel)):
            errors[name] += (logits(runtime, row) - want).square().mean().item()
    assert errors["kernel"] ** 0.5 <= 1.25 * errors["plain"] ** 0.5, errors
    assert launches["fp8_mlp", cores] == 4 * 3


def test_weights_are_those_of_the_checkpoint(make: Callable[..., Any]) -> None:
    """One layer, against the payload multiplied out, on more tokens than one launch takes."""
    from qwen36_neuron.nxdi.fp8_mlp import Fp8MLP

    plain, app = make("fp8-mlp").rank_state_dict(0), make("fp8-mlp", kernels="nki", logical_cores=1)
    instance = app.context_encoding_model.get_model_instance()
    instance.load_module()
    instance.module.load_state_dict(app.rank_state_dict(0), strict=False)
    mlp = instance.module.network.layers[1].mlp
    assert isinstance(mlp, Fp8MLP)
    names = ("gate_up_proj", "down_proj")
    gate_up, down = (
        plain[f"network.layers.1.mlp.{name}.weight"].float() * plain[f"network.layers.1.mlp.{name}.scale"]
        for name in names
    )
    x = torch.randn(1, 600, 512, generator=torch.Generator().manual_seed(0)).bfloat16()
    gate, up = (x.float() @ gate_up.t()).chunk(2, dim=-1)
    want = (F.silu(gate) * up) @ down.t()
    error = (mlp(x).float() - want).abs().max() / want.abs().max()
    assert error <= 2e-2  # of bfloat16 twice: the inner activations and the result


@pytest.mark.parametrize("weights", ["fp8-mlp", "fp8"])
def test_the_draft_layers_mlp_is_none_of_them(make: Callable[..., Any], weights: str) -> None:
    """Its weights are bf16 in a converted checkpoint, which the kernel does not read."""
    from qwen36_neuron.model.mlp import MLP

    app = make(weights, kernels="nki", logical_cores=1, max_drafts=1, max_proposals=1)
    instance = app.draft_model.get_model_instance()
    instance.load_module()
    assert isinstance(instance.module.network.mtp.layer.mlp, MLP)
    state = app.rank_state_dict(0)
    assert {name for name in state if "mtp.layer.mlp" in name} == {
        f"network.mtp.layer.mlp.{part}.weight" for part in ("gate_up_proj", "down_proj")
    }
    assert all(tensor.dtype is torch.bfloat16 for name, tensor in state.items() if "mtp.layer.mlp" in name)
    missing, unexpected = instance.module.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.startswith("kv_mgr.") for name in missing)


def test_what_stays_with_quantised_layers(make: Callable[..., Any]) -> None:
    """Everything else that is FP8; and MLPs whose scales are of blocks, or whose activations are fp32."""
    from neuronx_distributed.quantization.quantization_layers import QuantizedColumnParallel, QuantizedRowParallel

    def quantised(app: Any) -> set[str]:
        instance = app.token_generation_model.get_model_instance()
        instance.load_module()
        kinds = QuantizedColumnParallel | QuantizedRowParallel
        return {
            name.rsplit(".", 1)[-1] for name, module in instance.module.named_modules() if isinstance(module, kinds)
        }

    assert quantised(make("fp8-mlp", kernels="nki", logical_cores=1)) == set()
    rest = {"in_proj_qkvz", "out_proj", "in_proj_qgkv", "o_proj", "lm_head"}
    assert quantised(make("fp8", kernels="nki", logical_cores=1)) == rest
    options = make("fp8-mlp", kernels="nki", logical_cores=1).options
    assert not replace(options, scales="block").mlp_kernel
    assert not replace(options, dtype="float32").mlp_kernel
    assert not replace(options, weights="bf16").mlp_kernel


def test_a_hidden_size_that_the_kernel_does_not_take_is_named(
    make_options: Callable[..., Any], tiny_checkpoint: Path
) -> None:
    from qwen36_neuron.nxdi.config import Qwen36InferenceConfig

    options = make_options(weights="fp8-mlp", dtype="bfloat16", kernels="nki", logical_cores=1)
    with pytest.raises(ConfigError, match="256 hidden channels a rank must be a multiple of 512"):
        Qwen36InferenceConfig.from_checkpoint(tiny_checkpoint, options)


@pytest.mark.parametrize("weights", ["fp8-mlp", "fp8"])
def test_nxdi_compiles_with_the_arguments_that_the_dry_run_prints(make: Callable[..., Any], weights: str) -> None:
    """Without quantised layers NxDI does not say how FP8 is to be read, and the kernel reads codes as they are."""
    app = make(weights, kernels="nki", logical_cores=2)
    listed = check(Profile("test", "", app.options), app.config.model_config).graphs
    for model in app.models:
        model.get_model_instance().load_module()
        for graph in (graph for graph in listed if graph.tag == model.tag):
            assert graph.arguments.split() == re.sub(r"='\s+", "='", model.compiler_args).split()
            assert ("fp8e4m3" in graph.arguments) == (weights == "fp8")
