"""The CPU runtime with fused operations beside the one without, and the choice between them."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("numba")

from qwen36_neuron import runtime as package
from qwen36_neuron.errors import ConfigError
from qwen36_neuron.runtime import Commit, Output, Row, Runtime, RuntimeConfig, Step, cpu_kernels, open_runtime
from qwen36_neuron.runtime import fused as fused_runtime
from qwen36_neuron.runtime.cpu import CpuRuntime

LANES = 12


def opened(folder: Path, kernels: str) -> Runtime:
    sizes = {"max_model_len": 512, "num_blocks": 129, "num_lanes": LANES, "num_slots": 4}
    return open_runtime(RuntimeConfig(model=folder, kernels=kernels, **sizes))  # type: ignore[arg-type]


@pytest.mark.parametrize("short", [fused_runtime.SHORT, 128])
def test_any_steps_give_what_plain_torch_gives(
    short: int, demo_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts and decode in one step, batches on both sides of what fused projections take, lanes in any order.

    All prefill attention in one call, and only that of sequences of up to 128 tokens.

    Tolerance: 5e-5 on logits of about one. Both sides carry their roundings through eight layers and, in the states,
    from step to step: transformers' own prefill and decode of such a model differ by 2e-5 after one prompt. Windows
    hold projections of up to five: 4e-5.
    """
    monkeypatch.setattr(fused_runtime, "SHORT", short)
    plain, fused = opened(demo_checkpoint, "torch"), opened(demo_checkpoint, "fused")
    draw = random.Random(0)
    held: dict[int, int] = {}
    blocks = {lane: [10 * (lane - 1) + n for n in range(1, 9)] for lane in range(1, LANES + 1)}
    worst, sizes = 0.0, set()
    for _ in range(80):
        lanes = draw.sample(range(1, LANES + 1), draw.randint(1, LANES))
        rows = []
        for lane in lanes:
            start = held.get(lane, 0)
            count = 1 if start and draw.random() < 0.8 else draw.choice((1, 2, 3, 31, 32, 33, 64, 65, 130))
            if start + count > 512 or (start and draw.random() < 0.03):
                start = 0
            tokens = [draw.randrange(4000) for _ in range(count)]
            boundary = (start + count) // 64 * 64
            commits = (Commit(boundary, 1 + len(rows)),) if boundary > start and len(rows) < 4 else ()
            rows.append(Row(str(lane), lane, tokens, start, blocks[lane], commits=commits, output=Output.LOGITS))
            held[lane] = start + count
        sizes.add(sum(len(row.tokens) == 1 for row in rows))
        released = tuple(row.lane for row in rows if row.start == 0)
        results = [run.run(Step(tuple(rows), released)).rows for run in (plain, fused)]
        for a, b in zip(*results, strict=True):
            assert a.logits is not None
            assert b.logits is not None
            worst = max(worst, (a.logits - b.logits).abs().max().item())
    assert {0, 1, 8, 9} <= sizes
    assert 0.0 < worst <= 5e-5
    assert isinstance(plain, CpuRuntime)
    assert isinstance(fused, CpuRuntime)
    for layer, bank in plain.cache.banks.items():
        assert (bank.recurrent[1:] - fused.cache.banks[layer].recurrent[1:]).abs().max() <= 2e-5
        assert (bank.window[1:] - fused.cache.banks[layer].window[1:]).abs().max() <= 4e-5


def test_nothing_is_compiled_after_warm_up(tiny_checkpoint: Path) -> None:
    """A request must not wait for a compiler. In a process of its own, where no other test has compiled anything."""
    command = [sys.executable, "-c", SERVED, str(tiny_checkpoint)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    warm, served = json.loads(done.stdout)
    assert len(warm) >= 12
    # One form of every operation does for all shapes, but for rows to norm that do not lie one after the other.
    assert {name: forms for name, forms in warm.items() if forms != 1} == {"normalise": 2}
    assert served == warm


@pytest.mark.parametrize("form", ["w8a16 groups", "block fp8 and vocabulary"])
def test_nor_for_a_quantised_checkpoint(form: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """There are more forms of a projection then, one for each way in which weights are held."""
    pytest.importorskip("compressed_tensors")
    from quantised import FORMS, make

    folder = make(tiny_checkpoint, tmp_path, FORMS[form]()).folder
    done = subprocess.run([sys.executable, "-c", SERVED, str(folder)], capture_output=True, text=True, check=True)
    warm, served = json.loads(done.stdout)
    assert warm["norm_project_both_few"] >= 1
    assert warm["write_out"] >= 2
    assert served == warm


def test_nor_for_a_mixture_of_experts(tiny_mixture_checkpoint: Path) -> None:
    command = [sys.executable, "-c", SERVED, str(tiny_mixture_checkpoint)]
    warm, served = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert warm["add_experts"] == 1
    assert served == warm


SERVED = """
import json, sys
from pathlib import Path
from numba.core.dispatcher import Dispatcher
from qwen36_neuron.ops.attention import numba as attention_prefill, numba_step as attention, numba_verify as attend_few
from qwen36_neuron.ops.gated_delta_rule import numba as delta_net_prefill, numba_step as delta_net, numba_verify as few
from qwen36_neuron.ops.numba import held, pairs, projections, rows
from qwen36_neuron.runtime import Commit, DraftRequest, Output, Row, RuntimeConfig, Step, open_runtime
from qwen36_neuron.checkpoint.load import is_quantised
from qwen36_neuron.config import ModelConfig
from qwen36_neuron.ops.moe import numba as moe
from qwen36_neuron.ops.mtp.numba import make_drafts, write_entries

def compiled():
    modules = (attention, attention_prefill, attend_few, delta_net, delta_net_prefill, few, projections, rows)
    if is_quantised(Path(sys.argv[1])):
        modules += (held, pairs)
    if ModelConfig.from_pretrained(sys.argv[1]).moe:
        modules += (held, moe)
    found = {name: value for module in modules for name, value in vars(module).items() if isinstance(value, Dispatcher)}
    found = {name: value for name, value in found.items() if value.targetoptions.get("parallel")}
    found |= {"make_drafts": make_drafts, "write_entries": write_entries}
    return {name: len(value.signatures) for name, value in found.items()}

sizes = {"num_lanes": 12, "num_slots": 4, "max_drafts": 3, "max_proposals": 3}
run = open_runtime(RuntimeConfig(Path(sys.argv[1]), kernels="fused", **sizes))
run.warm_up()
warm = compiled()
prompts = {2: 1, 3: 64, 4: 200, 5: 3, 7: 130}
blocks = {lane: range(8 * lane, 8 * lane + 8) for lane in prompts}
run.run(Step(tuple(Row(str(n), n, [5] * prompts[n], 0, blocks[n], output=Output.ALL_LOGITS) for n in prompts)))
run.run(Step(tuple(Row(str(n), n, [1], prompts[n], blocks[n]) for n in prompts)))
run.run(Step((Row("8", 8, [1] * 1100, 0, range(100, 118)),)))
run.run(Step((Row("2", 2, [1] * 90, 2, blocks[2], commits=(Commit(64, 1),)),)))
run.run(Step(tuple(Row(str(n), n, [5] * 70, 0, (8 * n, 8 * n + 1)) for n in (1, 9, 11)), (1, 9, 11)))
run.run(Step(tuple(Row(str(n), n, [1], 70, (8 * n, 8 * n + 1)) for n in (1, 9, 11))))
run.run(Step(tuple(Row(str(n), n, [1], 71, (8 * n, 8 * n + 1), drafts=(2,) * (n % 4)) for n in (1, 9, 11))))
run.run(Step(tuple(Row(str(n), n, [1], 73, (8 * n, 8 * n + 1)) for n in (9, 11))))
run.draft([DraftRequest("9", 9, (1,), (72, 73), 3), DraftRequest("11", 11, (1,), (88, 89), 1)])
print(json.dumps((warm, compiled())))
"""


def test_the_default_is_what_can_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cpu_kernels(RuntimeConfig(tmp_path)) == "fused"
    assert cpu_kernels(RuntimeConfig(tmp_path, dtype="bfloat16")) == "torch"
    assert cpu_kernels(RuntimeConfig(tmp_path, kernels="torch")) == "torch"
    monkeypatch.setattr(package, "find_spec", lambda name: None)
    assert cpu_kernels(RuntimeConfig(tmp_path)) == "torch"
    with pytest.raises(ConfigError, match=r"kernels='fused': needs Numba.*pip install"):
        cpu_kernels(RuntimeConfig(tmp_path, kernels="fused"))


def test_bfloat16_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"kernels='fused': computes in float32, not bfloat16"):
        RuntimeConfig(tmp_path, kernels="fused", dtype="bfloat16")


def test_threads_are_those_of_torch(tiny_checkpoint: Path) -> None:
    from numba import get_num_threads

    fused, threads = opened(tiny_checkpoint, "fused"), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        fused.run(Step((Row("a", 1, [5], 0, (1,)),)))
        assert get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)
