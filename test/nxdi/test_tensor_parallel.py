"""Ranks, each a process, NxD's collectives through gloo: against the CPU runtime, which is one rank."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from draft_oracle import DraftOracle

from qwen36_neuron.checkpoint.maker import PRESETS, make_checkpoint
from qwen36_neuron.graph.sampling import parameter_tensor
from qwen36_neuron.ops.sampling import UNDECIDED, sample_all
from qwen36_neuron.runtime import Output, Row, RuntimeConfig, Step, open_runtime

from .conftest import SOURCES
from .rows import DRAFTED_AFTER, sampling
from .support import TOLERANCE


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of sizes that four ranks can split; two of them share a key and value head."""
    sizes = {"num_layers": 4, "num_key_heads": 4, "num_value_heads": 12, "num_mtp_layers": 1, "intermediate_size": 1024}
    return make_checkpoint(tmp_path_factory.mktemp("ranks"), replace(PRESETS["demo"], **sizes))


def run(
    checkpoint: Path, folder: Path, ranks: int, dtype: str = "float32", kernels: str = "torch"
) -> list[dict[str, torch.Tensor]]:
    """What each rank found."""
    folder.mkdir(exist_ok=True)
    script = Path(__file__).with_name("rank.py")
    processes = [
        subprocess.Popen(
            [
                *(sys.executable, str(script), SOURCES or "", str(checkpoint), str(ranks), str(rank)),
                *(str(folder / "rendezvous"), str(folder / f"{rank}.pt"), dtype, kernels),
            ],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors[-3000:]
    found = [torch.load(folder / f"{rank}.pt") for rank in range(ranks)]
    for name in found[0]:
        assert all(torch.equal(found[0][name], other[name]) for other in found[1:]), name
    return found


BAR = 1e-2
"""In bfloat16: root mean square of the errors, of the largest logit."""


def test_ranks_with_fused_kernels(checkpoint: Path, tmp_path: Path) -> None:
    """Which sum over the ranks inside, in the interpreters of four processes: chunks, steps, drafts, a checkpoint.

    Of random weights, whose logits are small beside what makes them: so they are to be as close as plain graphs' are,
    and a draft is another now and then. Tokens are those of the same call's logits.
    """
    whole, wrong = reference(checkpoint), reference(checkpoint, {303: 7})[303:304]
    expected = {
        "logits": torch.cat((whole[99:100], whole[289:300], whole[199:201])),
        "drafted logits": torch.cat((whole[300:303], wrong, whole[303:306], whole[304:305])),
    }
    errors: dict[str, list[float]] = {name: [] for name in expected}
    made = []
    for kernels in ("fused", "torch"):
        found = run(checkpoint, tmp_path / kernels, 4, "bfloat16", kernels)[0]
        asked = parameter_tensor([sampling(index) for index in range(len(found["tokens"]))])
        tokens, drawn = found["tokens"].int(), sample_all(found["logits"], asked, found["logits"].shape[1])
        assert ((tokens == drawn) | (tokens == UNDECIDED)).all()
        assert (tokens == UNDECIDED).sum() <= 3
        assert torch.equal(found["drafted"], found["drafted logits"].argmax(-1))
        made.append(found["made"])
        for name, want in expected.items():
            errors[name].append(float((found[name] - want).square().mean().sqrt() / want.abs().max()))
    same = int((made[0] == made[1]).sum())
    print(f"errors of fused and plain graphs: {errors}; drafts: {same} of {made[0].numel()} the same")
    assert same >= 12
    for name, (fused, plain) in errors.items():
        assert fused <= min(BAR, 1.25 * plain), name


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks(checkpoint: Path, tmp_path: Path, ranks: int) -> None:
    found = run(checkpoint, tmp_path, ranks)
    whole = reference(checkpoint)
    expected = torch.cat((whole[99:100], whole[289:300], whole[199:201]))
    error = (found[0]["logits"] - expected).abs().max().item()
    print(f"largest logit error {error:.2e}")
    assert error <= TOLERANCE
    asked = parameter_tensor([sampling(index) for index in range(len(expected))])
    assert torch.equal(found[0]["tokens"].int(), sample_all(expected, asked, expected.shape[1]))
    assert (found[0]["tokens"] != expected.argmax(-1)).any()

    wrong = reference(checkpoint, {303: 7})[303:304]
    behind = torch.cat((whole[300:303], wrong, whole[303:306], whole[304:305]))
    error = (found[0]["drafted logits"] - behind).abs().max().item()
    print(f"largest logit error with drafts {error:.2e}")
    assert error <= TOLERANCE
    assert torch.equal(found[0]["drafted"], behind.argmax(-1))

    oracle, text = DraftOracle(checkpoint), tokens()
    assert [tuple(drafts) for drafts in found[0]["made"].tolist()] == [
        oracle(text[: at + 1], 3) for at in DRAFTED_AFTER
    ]


def tokens() -> list[int]:
    """The text of rank.py."""
    ids: list[int] = torch.randint(0, 4000, (512,), generator=torch.Generator().manual_seed(0)).tolist()
    return ids


def reference(checkpoint: Path, changes: Mapping[int, int] | None = None) -> torch.Tensor:
    """Every logit of the tokens of rank.py, run by the CPU runtime at once: logits do not depend on how they are cut.

    Args:
        changes: other tokens by position.
    """
    runtime = open_runtime(RuntimeConfig(checkpoint, max_model_len=512, num_lanes=2, num_blocks=17, kernels="torch"))
    text = tokens()
    for position, token in (changes or {}).items():
        text[position] = token
    row = Row("whole", 1, text[:306], 0, range(1, 9), output=Output.ALL_LOGITS)
    every = runtime.run(Step((row,))).rows[0].logits
    assert every is not None
    return every
