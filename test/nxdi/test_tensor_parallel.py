"""Two ranks, each a process, NxD's collectives through gloo: against the CPU runtime, which is one rank."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

from qwen36_neuron.graph.sampling import parameter_tensor
from qwen36_neuron.ops.sampling import sample_all
from qwen36_neuron.runtime import Output, Row, RuntimeConfig, Step, open_runtime

from .conftest import SOURCES
from .rows import sampling
from .support import TOLERANCE

RANKS = 2


def test_two_ranks(demo_checkpoint: Path, tmp_path: Path) -> None:
    script = Path(__file__).with_name("rank.py")
    processes = [
        subprocess.Popen(
            [
                *(sys.executable, str(script), SOURCES or "", str(demo_checkpoint), str(RANKS), str(rank)),
                *(str(tmp_path / "rendezvous"), str(tmp_path / f"{rank}.pt")),
            ],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(RANKS)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors[-3000:]
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(RANKS)]
    assert torch.equal(found[0]["logits"], found[1]["logits"])
    assert torch.equal(found[0]["tokens"], found[1]["tokens"])

    expected = torch.cat(reference(demo_checkpoint))
    error = (found[0]["logits"] - expected).abs().max().item()
    print(f"largest logit error {error:.2e}")
    assert error <= TOLERANCE
    asked = parameter_tensor([sampling(index) for index in range(len(expected))])
    assert torch.equal(found[0]["tokens"].int(), sample_all(expected, asked, expected.shape[1]))
    assert (found[0]["tokens"] != expected.argmax(-1)).any()


def reference(checkpoint: Path) -> list[torch.Tensor]:
    """The same rows as in rank.py, run by the CPU runtime with other cuts: logits do not depend on them."""
    runtime = open_runtime(RuntimeConfig(checkpoint, max_model_len=512, num_lanes=2, num_blocks=17, kernels="torch"))
    tokens = torch.randint(0, 4000, (512,), generator=torch.Generator().manual_seed(0)).tolist()

    def last(length: int, lane: int, blocks: range) -> torch.Tensor:
        row = Row("whole", lane, tokens[:length], 0, blocks, output=Output.ALL_LOGITS)
        every = runtime.run(Step((row,), (lane,))).rows[0].logits
        assert every is not None
        return every

    whole = last(300, 1, range(1, 9))
    return [whole[99:100], whole[289:], whole[199:201]]
