"""FP8 checkpoints through NxD's own quantised layers, against the CPU runtime that multiplies the same payload out.

Tolerance 2e-5: a scale a channel is applied after the product here and before it there, which rounds otherwise.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from qwen36_neuron.artifact import build
from qwen36_neuron.artifact.audit import LaunchArguments, audit
from qwen36_neuron.artifact.check import check
from qwen36_neuron.artifact.manifest import read_manifest
from qwen36_neuron.checkpoint.conversion import FORMATS, Conversion, part_of
from qwen36_neuron.checkpoint.fp8 import BLOCK, STORED
from qwen36_neuron.checkpoint.maker import write_weights
from qwen36_neuron.checkpoint.quantiser import Quantiser
from qwen36_neuron.checkpoint.weight_format import WeightFormat
from qwen36_neuron.config import ModelConfig
from qwen36_neuron.graph.profile import Profile
from qwen36_neuron.runtime import DraftRequest, RuntimeConfig, open_runtime

from .support import BLOCKS, last, logits, neuron

TOLERANCE = 2e-5
DRAFTS = {"max_drafts": 2, "max_proposals": 2}
CASES = [("fp8-mlp", "channel"), ("fp8", "channel"), ("fp8-mlp", "block")]


@pytest.fixture(params=CASES, ids=["-".join(case) for case in CASES])
def case(request: pytest.FixtureRequest, tiny_checkpoint: Path, tmp_path: Path) -> tuple[str, str, Path]:
    """Number format, scales, and the tiny checkpoint converted to them."""
    weights, scales = request.param
    source = in_blocks(tiny_checkpoint, tmp_path / "published") if scales == "block" else tiny_checkpoint
    Quantiser(Conversion(source, FORMATS[WeightFormat(weights)]), tmp_path / "fp8").run()
    return weights, scales, tmp_path / "fp8"


def in_blocks(source: Path, folder: Path) -> Path:
    """A copy with its MLPs as published in FP8: 128x128 blocks up to 448."""
    shutil.copytree(source, folder)
    stored = load_file(source / "model.safetensors")
    for name in [name for name in stored if part_of(name) == "mlp"]:
        blocks = stored[name].float().unflatten(0, (-1, BLOCK)).unflatten(2, (-1, BLOCK))
        scale = blocks.abs().amax((1, 3)) / 448
        stored[name.replace("weight", "weight_scale_inv")] = scale
        payload = (blocks / scale[:, None, :, None]).clamp(-448, 448).to(STORED)
        stored[name] = payload.reshape(stored[name].shape)
    write_weights(folder, stored)
    return folder


def make(make_options: Callable[..., Any], folder: Path, **changes: Any) -> Any:
    from qwen36_neuron.nxdi.application import NeuronQwen36ForCausalLM
    from qwen36_neuron.nxdi.config import Qwen36InferenceConfig

    config = Qwen36InferenceConfig.from_checkpoint(folder, make_options(**changes))
    return NeuronQwen36ForCausalLM(str(folder), config)


def test_logits_are_those_of_the_cpu_runtime(
    case: tuple[str, str, Path], parallel_state: None, make_options: Callable[..., Any], tokens: list[int]
) -> None:
    """A prefill, a chunk after it and decode steps; and drafts, of a layer in bf16 and a head that may be FP8."""
    from .rig.container import CpuContainer

    weights, scales, folder = case
    device = neuron(CpuContainer(make(make_options, folder, weights=weights, scales=scales, **DRAFTS)), **DRAFTS)
    sizes = {"max_model_len": 512, "num_lanes": 4, "num_blocks": 65, "num_slots": 4}
    cpu = open_runtime(RuntimeConfig(model=folder, kernels="torch", **sizes, **DRAFTS))
    for start, stop in ((0, 200), (200, 300), (300, 301), (301, 302)):
        row = last(1, tokens[start:stop], start, BLOCKS)
        assert (logits(device, row) - logits(cpu, row)).abs().max() <= TOLERANCE
    request = DraftRequest("a", 1, (tokens[302],), BLOCKS, 2)
    assert device.draft([request]) == cpu.draft([request])


def test_exactly_the_matrices_of_the_format_are_quantised_layers(
    case: tuple[str, str, Path], parallel_state: None, make_options: Callable[..., Any]
) -> None:
    from neuronx_distributed.quantization.quantization_layers import QuantizedColumnParallel, QuantizedRowParallel

    weights, scales, folder = case
    app = make(make_options, folder, weights=weights, scales=scales, **DRAFTS)
    instance = app.token_generation_model.get_model_instance()
    instance.load_module()
    assert type(instance.module.network.mtp.layer.mlp.down_proj).__name__ == "RowParallelLinear"
    found = {
        n for n, m in instance.module.named_modules() if isinstance(m, QuantizedColumnParallel | QuantizedRowParallel)
    }
    endings = {"gate_up_proj", "down_proj"}
    if weights == "fp8":
        endings |= {"in_proj_qkvz", "out_proj", "in_proj_qgkv", "o_proj", "lm_head"}
    assert {name.rsplit(".", 1)[-1] for name in found} == endings
    assert not any("mtp" in name for name in found)
    state = app.rank_state_dict(0)
    assert {name.removesuffix(".scale") for name in state if name.endswith(".scale")} == found
    for name in found:
        assert state[f"{name}.weight"].dtype == STORED
        held = instance.module.get_submodule(name)
        assert state[f"{name}.scale"].shape == held.scale.shape
        assert held.scale.dtype == torch.float32


def test_nxdi_compiles_with_the_arguments_that_the_dry_run_prints(
    case: tuple[str, str, Path], parallel_state: None, make_options: Callable[..., Any]
) -> None:
    weights, scales, folder = case
    options = make_options(weights=weights, scales=scales, **DRAFTS)
    app = make(make_options, folder, weights=weights, scales=scales, **DRAFTS)
    profile = Profile("test", "", options)
    listed = check(profile, ModelConfig.from_pretrained(folder)).graphs
    instance = app.token_generation_model.get_model_instance()
    instance.load_module()
    states = len(list(instance.module.kv_mgr.states()))
    for model in app.models:
        printed = [graph for graph in listed if graph.tag == model.tag]
        assert [list(graph.bucket) for graph in printed] == model.neuron_config.buckets
        for graph, example in zip(printed, model.input_generator(), strict=True):
            # NxDI leaves blanks after the opening quote, which mean nothing.
            assert graph.arguments.split() == re.sub(r"='\s+", "='", model.compiler_args).split()
            assert graph.states == states
            assert list(graph.inputs.values()) == [tuple(tensor.shape) for tensor in example]


def test_a_compiled_artifact_passes_its_audit_and_keeps_its_options(
    case: tuple[str, str, Path],
    parallel_state: None,
    make_options: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All of a build but the compiler: the options NxDI saves are those of the profile and of the checkpoint."""
    from qwen36_neuron.nxdi.application import NeuronQwen36ForCausalLM
    from qwen36_neuron.nxdi.config import Qwen36InferenceConfig

    def save_configuration(app: Any, folder: str) -> None:
        app.config.save(folder)
        (Path(folder) / "model.pt").write_bytes(b"graphs")

    weights, scales, folder = case
    monkeypatch.setattr(build, "SDK", ())
    monkeypatch.setattr(NeuronQwen36ForCausalLM, "compile", save_configuration)
    profile = Profile("test", "", make_options(weights=weights))
    artifact = tmp_path / "artifact"
    build.compile_artifact(check(profile, ModelConfig.from_pretrained(folder)), folder, artifact)
    start = LaunchArguments(folder, 512, 4, 4, 1, "float32")
    assert audit(read_manifest(artifact), start, artifact, checksums=True) == []
    saved = Qwen36InferenceConfig.load(str(artifact)).neuron_config.options
    assert saved == make_options(weights=weights, scales=scales)


def test_options_survive_nxdis_json(make_options: Callable[..., Any]) -> None:
    options = make_options(weights="fp8", scales="block")
    assert type(options).from_json(options.to_json()) == options
