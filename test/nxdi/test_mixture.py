"""A mixture of experts in the graphs, the trained one, against the CPU runtime: one rank, and four."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from draft_oracle import DraftOracle

from qwen36_neuron.checkpoint.conversion import FORMATS, Conversion
from qwen36_neuron.checkpoint.maker import PRESETS, make_checkpoint
from qwen36_neuron.checkpoint.quantiser import Quantiser
from qwen36_neuron.checkpoint.weight_format import WeightFormat
from qwen36_neuron.errors import ConfigError
from qwen36_neuron.graph.buckets import Buckets
from qwen36_neuron.graph.options import GraphOptions
from qwen36_neuron.nxdi.application import NeuronQwen36ForCausalLM
from qwen36_neuron.nxdi.config import Qwen36InferenceConfig
from qwen36_neuron.runtime import Commit, Row, RuntimeConfig, Step, open_runtime

from .rig.container import CpuContainer
from .rows import DRAFTED_AFTER
from .support import BLOCKS, last, logits, neuron, prompts, snapshot
from .test_tensor_parallel import reference, run, tokens

TRAINED = Path(__file__).resolve().parents[2] / "assets" / "demo-moe-checkpoint"
TOLERANCE = 1e-5
"""In fp32, of the largest logit: experts are summed in another order."""
NARROW = 2e-2
"""In bfloat16, likewise, from the CPU runtime in fp32."""
SIZES: dict[str, Any] = {"max_model_len": 512, "num_lanes": 4, "num_blocks": 65, "num_slots": 4}


@pytest.fixture
def load_mixture(parallel_state: None) -> Callable[..., CpuContainer]:
    """A loaded container of the trained mixture; graphs of one row, and of all four."""

    def make(**changes: Any) -> CpuContainer:
        settings: dict[str, Any] = {
            "dtype": "float32",
            "decode_rows": (1,),
            "buckets": Buckets.grid((128,), (512,), (512,)),
        }
        options = GraphOptions(**(SIZES | settings | changes))
        return CpuContainer(
            NeuronQwen36ForCausalLM(str(TRAINED), Qwen36InferenceConfig.from_checkpoint(TRAINED, options))
        )

    return make


@pytest.fixture(scope="module")
def trained() -> Any:
    return open_runtime(RuntimeConfig(TRAINED, kernels="torch", **SIZES))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of sizes that four ranks can split, as the trained one's are not; two of them share a key and value head."""
    mixture = {"num_experts": 16, "num_experts_per_tok": 4, "intermediate_size": 64, "shared_intermediate_size": 128}
    sizes = {"num_layers": 4, "num_key_heads": 4, "num_value_heads": 12, "num_mtp_layers": 1, **mixture}
    return make_checkpoint(tmp_path_factory.mktemp("ranks"), replace(PRESETS["demo"], **sizes))


def text() -> list[int]:
    """Of the trained mixture's vocabulary."""
    return [token % 2000 for token in tokens()]


@pytest.mark.parametrize("ranks", [1, 4])
def test_ranks_of_a_mixture(checkpoint: Path, tmp_path: Path, ranks: int) -> None:
    """Chunks, steps, a checkpoint and its reuse, drafts verified right and wrong, drafts of a layer with experts."""
    found = run(checkpoint, tmp_path, ranks)[0]
    whole, wrong = reference(checkpoint), reference(checkpoint, {303: 7})[303:304]
    expected = {
        "logits": torch.cat((whole[99:100], whole[289:300], whole[199:201])),
        "drafted logits": torch.cat((whole[300:303], wrong, whole[303:306], whole[304:305])),
    }
    for name, want in expected.items():
        error = ((found[name] - want).abs().max() / want.abs().max()).item()
        print(f"{ranks} ranks, {name}: error {error:.2e} of the largest")
        assert error <= TOLERANCE
    assert torch.equal(found["drafted"], expected["drafted logits"].argmax(-1))
    oracle, ids = DraftOracle(checkpoint), tokens()
    assert [tuple(drafts) for drafts in found["made"].tolist()] == [oracle(ids[: at + 1], 3) for at in DRAFTED_AFTER]


@pytest.mark.parametrize(("dtype", "kernels"), [("bfloat16", "torch"), ("bfloat16", "nki"), ("float32", "torch")])
def test_answers_of_the_trained_mixture(
    load_mixture: Callable[..., CpuContainer], trained: Any, dtype: str, kernels: str
) -> None:
    """Greedy tokens of three questions, decoded together beside a dummy row, and of one from a kept prefix."""
    runtime = neuron(load_mixture(dtype=dtype, kernels=kernels))
    bar = NARROW if dtype == "bfloat16" else TOLERANCE
    asked = prompts(3)
    long = [*asked[0], *([asked[1][-1]] * (70 - len(asked[0])))]  # a block and more, to keep a checkpoint of

    def compare(*rows: Row) -> list[int]:
        step = Step(rows)
        pairs = list(zip(trained.run(step).rows, runtime.run(step).rows, strict=True))
        for want, got in pairs:
            assert (want.logits - got.logits).abs().max() <= bar * want.logits.abs().max()
            assert int(want.logits.argmax()) == int(got.logits.argmax())
        return [int(want.logits.argmax()) for want, _ in pairs]

    blocks = [tuple(range(1 + 8 * n, 9 + 8 * n)) for n in range(4)]
    following = [compare(last(n + 1, ids, 0, blocks[n]))[0] for n, ids in enumerate(asked)]
    held = [len(ids) for ids in asked]
    for _ in range(6):
        rows = [last(n + 1, [following[n]], held[n], blocks[n]) for n in range(3)]
        following, held = compare(*rows), [count + 1 for count in held]
    compare(last(4, long[:64], 0, blocks[3], commits=(Commit(64, 1),)))
    compare(last(1, long[64:], 64, (blocks[3][0], 40, 41), restore=1))


def test_a_dummy_row_changes_no_memory(load_mixture: Callable[..., CpuContainer]) -> None:
    """A row beside three that are not in use: what is written is scratch, its own lane and its own block."""
    container = load_mixture(decode_rows=())
    runtime = neuron(container)
    for lane in (1, 2):
        logits(runtime, last(lane, text()[:40], 0, tuple(8 * lane + n for n in range(8))))
    before = snapshot(container)
    logits(runtime, last(1, [5], 40, tuple(range(8, 16))))
    for name, state in snapshot(container).items():
        changed = (state != before[name]).flatten(1).any(1).nonzero().flatten().tolist()
        assert set(changed) <= {0, 1, 8}, name


def test_a_checkpoint_of_a_mixture_continues_bit_for_bit(load_mixture: Callable[..., CpuContainer]) -> None:
    ids = text()
    warm, cold = neuron(load_mixture()), neuron(load_mixture())
    warm.run(Step((Row("a", 1, ids[:128], 0, BLOCKS, commits=(Commit(128, 2),)),)))
    found = logits(warm, last(3, ids[128:200], 128, BLOCKS, restore=2))
    cold.run(Step((Row("a", 2, ids[:128], 0, BLOCKS),)))
    assert torch.equal(found, logits(cold, last(2, ids[128:200], 128, BLOCKS)))


@pytest.mark.parametrize("weights", ["fp8-mlp", "fp8"])
@pytest.mark.parametrize(("dtype", "kernels"), [("float32", "torch"), ("bfloat16", "nki")])
def test_experts_in_fp8(parallel_state: None, tmp_path: Path, weights: str, dtype: str, kernels: str) -> None:
    """Codes of the converted checkpoint, a prompt and steps, against the CPU runtime that multiplies them out.

    2e-5 in fp32: scales are applied after the products here. Experts and shared one are plain operations with NKI too.
    """
    Quantiser(Conversion(TRAINED, FORMATS[WeightFormat(weights)]), tmp_path / "fp8").run()
    buckets = Buckets.grid((128,), (512,), (512,))
    options = GraphOptions(dtype=dtype, kernels=kernels, weights=weights, buckets=buckets, **SIZES)
    config = Qwen36InferenceConfig.from_checkpoint(tmp_path / "fp8", options)
    container = CpuContainer(NeuronQwen36ForCausalLM(str(tmp_path / "fp8"), config))
    experts = next(iter(container.modules.values())).network.layers[0].mlp.experts
    assert experts.down_proj.dtype == torch.float8_e4m3fn
    device, cpu = neuron(container), open_runtime(RuntimeConfig(tmp_path / "fp8", kernels="torch", **SIZES))
    ids = prompts(1)[0]
    for start, stop in ((0, len(ids) - 1), (len(ids) - 1, len(ids))):
        found, want = (logits(side, last(1, ids[start:stop], start, BLOCKS)) for side in (device, cpu))
        assert (found - want).abs().max() <= (2e-5 if dtype == "float32" else NARROW) * want.abs().max()
        assert int(found.argmax()) == int(want.argmax())


def test_experts_with_scales_of_blocks_are_refused() -> None:
    options = GraphOptions(weights="fp8", scales="block", buckets=Buckets.grid((128,), (512,), (512,)), **SIZES)
    with pytest.raises(ConfigError, match=r"scales='block'.*Convert with --scales channel"):
        Qwen36InferenceConfig.from_checkpoint(TRAINED, options)
