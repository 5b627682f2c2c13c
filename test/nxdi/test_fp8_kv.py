"""FP8 keys and values in the graphs, plain and with kernels, against the CPU runtime's in plain torch.

Tolerance 2e-3 on logits of about one: products of other shapes round otherwise before a key is stored, so that one code
in a thousand may be the next.
"""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from qwen36_neuron.artifact.check import check
from qwen36_neuron.checkpoint.kv_scales import FILE, KVScales, load_kv_scales, save_kv_scales
from qwen36_neuron.config import ModelConfig
from qwen36_neuron.errors import ConfigError
from qwen36_neuron.graph.profile import Profile
from qwen36_neuron.ops.fp8 import STORAGE
from qwen36_neuron.runtime import DraftRequest, RuntimeConfig, open_runtime
from qwen36_neuron.runtime.cpu import CpuRuntime

from .support import BLOCKS, last, logits, neuron, runtime_config
from .test_kernels import launches  # noqa: F401

TOLERANCE = 2e-3
DRAFTS = {"max_drafts": 2, "max_proposals": 2}
FP8 = {"kv_cache_dtype": "fp8", **DRAFTS}
KERNELS = [{"kernels": "torch"}, pytest.param({"kernels": "nki", "logical_cores": 1}, marks=pytest.mark.interpreter)]


@pytest.fixture(scope="module")
def folder(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint with scales beside it; one is no power of two, and some values are cut off."""
    made = tmp_path_factory.mktemp("fp8") / "model"
    shutil.copytree(tiny_checkpoint, made)
    keys = {3: torch.tensor([2.0**-5]), 4: torch.tensor([0.037])}
    scales = KVScales(keys, {3: torch.tensor([2.0**-8]), 4: torch.tensor([2.0**-9])}, "test")
    save_kv_scales(scales, ModelConfig.from_pretrained(made), made / FILE, {})
    return made


@pytest.fixture
def app(parallel_state: None, folder: Path, make_options: Callable[..., Any]) -> Callable[..., Any]:
    from qwen36_neuron.nxdi.application import NeuronQwen36ForCausalLM
    from qwen36_neuron.nxdi.config import Qwen36InferenceConfig

    def make(**changes: Any) -> NeuronQwen36ForCausalLM:
        config = Qwen36InferenceConfig.from_checkpoint(folder, make_options(**{**FP8, **changes}))
        return NeuronQwen36ForCausalLM(str(folder), config)

    return make


@pytest.mark.parametrize("kernels", KERNELS, ids=["torch", "nki"])
def test_logits_codes_and_drafts_are_those_of_the_cpu_runtime(
    kernels: dict[str, Any], app: Callable[..., Any], folder: Path, tokens: list[int]
) -> None:
    """Prompts to a block's edge and after it, decoded tokens beside dummy rows, and drafts that are wrong."""
    from .rig.container import CpuContainer

    container = CpuContainer(app(**kernels))
    device = neuron(container, **FP8)
    sizes = {"max_model_len": 512, "num_lanes": 4, "num_blocks": 65, "num_slots": 4}
    cpu = open_runtime(RuntimeConfig(model=folder, kernels="torch", **sizes, **FP8))
    for start, stop in ((0, 127), (127, 128), (128, 193), (193, 194)):
        row = last(1, tokens[start:stop], start, BLOCKS)
        assert (logits(device, row) - logits(cpu, row)).abs().max() <= TOLERANCE
    drafted = last(1, tokens[194:195], 194, BLOCKS, drafts=(7, tokens[196]))
    assert (logits(device, drafted) - logits(cpu, drafted)).abs().max() <= TOLERANCE
    after = last(1, tokens[195:196], 195, BLOCKS)
    assert (logits(device, after) - logits(cpu, after)).abs().max() <= TOLERANCE
    request = DraftRequest("a", 1, (tokens[196],), BLOCKS, 2)
    assert device.draft([request]) == cpu.draft([request])
    assert isinstance(cpu, CpuRuntime)
    for at, state in enumerate(container.memory.past_key_values):
        other = cpu.cache.kv[(3, 4)[at // 2]][at % 2]
        held = slice(64 + 1, 4 * 64)  # of whole blocks; the draft layer has nothing at position 0
        codes, others = (half.view(torch.uint8).flatten(0, 1)[held] for half in (state, other))
        wrong = (codes != others).float().mean()
        assert wrong <= 2e-3, (at, wrong)


@pytest.mark.interpreter
def test_attention_stays_as_it_is_beside_fused_kernels(
    app: Callable[..., Any],
    folder: Path,
    tokens: list[int],
    launches: Counter[tuple[str, int]],  # noqa: F811
) -> None:
    """Their kernel reads no FP8; `paged_attention` does, and all else is fused. Tolerance as of bfloat16 graphs."""
    from .rig.container import CpuContainer

    changes = {"kernels": "fused", "logical_cores": 1, "dtype": "bfloat16"}
    device = neuron(CpuContainer(app(**changes)), **FP8)
    sizes = {"max_model_len": 512, "num_lanes": 4, "num_blocks": 65, "num_slots": 4}
    cpu = open_runtime(RuntimeConfig(model=folder, kernels="torch", **sizes, **FP8))
    for start, stop in ((0, 70), (70, 71), (71, 72)):
        row = last(1, tokens[start:stop], start, BLOCKS)
        found, want = logits(device, row), logits(cpu, row)
        assert (found - want).abs().max() <= 2e-2 * want.abs().max()
    blocks = launches["decode_mlp", 1] + launches["decode_mlp_projection", 1]
    assert (blocks, launches["decode_head", 1]) == (2 * 4, 3)
    assert (launches["decode_attention", 1], launches["paged_attention", 1]) == (0, 3)


def test_scales_are_weights_in_fp32(app: Callable[..., Any], folder: Path) -> None:
    made = app(dtype="bfloat16")
    model = ModelConfig.from_pretrained(folder)
    expected = load_kv_scales(folder, model, draft_layer=True).weights(model)
    state = made.rank_state_dict(0)
    for name, scale in expected.items():
        assert state[f"network.{name}"].dtype == torch.float32
        assert torch.equal(state[f"network.{name}"], scale)
    instance = made.token_generation_model.get_model_instance()
    instance.load_module()
    assert instance.module.network.layers[3].mixer.k_scale.dtype == torch.float32
    assert {state.dtype for state in instance.module.kv_mgr.past_key_values} == {STORAGE}


def test_the_compiler_is_told_as_the_dry_run_prints(app: Callable[..., Any], folder: Path) -> None:
    made = app()
    listed = check(Profile("test", "", made.options), ModelConfig.from_pretrained(folder)).graphs
    for model in made.models:
        printed = {graph.arguments for graph in listed if graph.tag == model.tag}
        assert "fp8e4m3fn-as-fp8e4m3" in model.compiler_args
        assert [line.split() for line in printed] == [re.sub(r"='\s+", "='", model.compiler_args).split()]


def test_a_start_that_asks_for_other_numbers_is_refused(app: Callable[..., Any]) -> None:
    from .rig.container import CpuContainer

    container = CpuContainer(app())
    with pytest.raises(ConfigError, match="FP8 keys and values is True, asked for False"):
        neuron(container, **DRAFTS)
    assert runtime_config(container, **FP8).fp8_kv


def test_nxdis_own_switch_follows(make_options: Callable[..., Any]) -> None:
    from qwen36_neuron.nxdi.config import Qwen36NeuronConfig

    assert Qwen36NeuronConfig(make_options(kv_cache_dtype="fp8")).kv_cache_quant
    with pytest.raises(ConfigError, match="kv_cache_quant=True: contradicts kv_cache_dtype=auto"):
        Qwen36NeuronConfig(make_options(), kv_cache_quant=True)
