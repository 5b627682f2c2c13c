"""The graphs, run through NxDI's own classes, against the CPU runtime on the same steps, in fp32.

Tolerance 1e-5: the graphs sum in another order (masked whole blocks, no flash attention, no packed weights). Only the
logits after the first token of a sequence are less certain: its state holds one key, and where the query hardly meets
it the norm enlarges what rounding left. There each runtime is up to 4e-5 from the same network in fp64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from qwen36_neuron.graph.buckets import Buckets, PrefillBucket
from qwen36_neuron.runtime import Commit, Output, Row, Step

from .conftest import BUCKETS
from .support import BLOCKS, TOLERANCE, logits, neuron
from .traffic import Traffic

FIRST_TOKEN_TOLERANCE = 5e-5

SPARSE = Buckets((PrefillBucket(128, 512), PrefillBucket(256, 0), PrefillBucket(256, 512)), (256, 512))
"""Not a grid, and with a short bucket that must take long chunks in pieces."""


@pytest.mark.parametrize(
    ("buckets", "seed"),
    [(Buckets.grid(BUCKETS, BUCKETS, BUCKETS), 0), (SPARSE, 1)],
    ids=["grid-128-256-512", "sparse"],
)
def test_200_steps_of_traffic(load: Callable[..., Any], cpu: Any, buckets: Buckets, seed: int) -> None:
    """Chunks with prefix, batch-4 decode with dummy rows, idle lanes, checkpoints committed and restored."""
    container = load(buckets=buckets)
    runtime = neuron(container)
    runtime.warm_up()
    assert set(container.calls) == {(w.tag, i) for w, i in container.routes.values()}
    traffic = Traffic(cpu.capacity, seed)
    worst = 0.0
    for step in traffic.steps(200):
        expected, actual = cpu.run(step), runtime.run(step)
        following = {}
        for row, want, got in zip(step.rows, expected.rows, actual.rows, strict=True):
            error = (want.logits - got.logits).abs().max().item()
            assert error <= (FIRST_TOKEN_TOLERANCE if row.end == 1 else TOLERANCE), row
            worst = max(worst, error) if row.end > 1 else worst
            following[row.lane] = int(want.logits.argmax())
        traffic.advance(step, following)
    print(f"largest logit error {worst:.2e}; {traffic.counts}")
    assert traffic.counts["restores"] >= 5
    assert traffic.counts["commits"] >= 10
    assert traffic.counts["prefill rows"] >= 20
    assert traffic.counts["decode rows"] >= 150


def test_a_checkpoint_continues_bit_for_bit(load: Callable[..., Any], tokens: list[int]) -> None:
    """Warm output equals that of a cold run cut at the same boundary, when both take the same graphs."""
    runtime, cold = neuron(load()), neuron(load())
    runtime.run(Step((Row("a", 1, tokens[:192], 0, BLOCKS, commits=(Commit(128, 2), Commit(192, 1))),)))
    runtime.run(Step((Row("b", 1, tokens[:64], 0, range(20, 28)),)))  # the lane goes on to something else
    warm = logits(runtime, Row("c", 3, tokens[192:300], 192, BLOCKS, restore=1, output=Output.LOGITS))
    cold.run(Step((Row("a", 2, tokens[:192], 0, BLOCKS),)))
    assert torch.equal(warm, logits(cold, Row("a", 2, tokens[192:300], 192, BLOCKS, output=Output.LOGITS)))


def test_more_checkpoints_than_a_graph_takes(load: Callable[..., Any], cpu: Any, tokens: list[int]) -> None:
    """Four in one chunk of graphs that take one, and two in one decode step."""
    runtime = neuron(load(prefill_commits=1, decode_commits=1))
    for side in (runtime, cpu):
        every = tuple(Commit(64 * n, n) for n in (1, 2, 3, 4))
        side.run(Step((Row("a", 1, tokens[:300], 0, BLOCKS, commits=every),)))
    for slot in (4, 3, 2, 1):
        row = Row("b", 2, tokens[64 * slot : 64 * slot + 30], 64 * slot, BLOCKS, restore=slot, output=Output.LOGITS)
        assert (logits(runtime, row) - logits(cpu, row)).abs().max() <= TOLERANCE
    others = tuple(range(20, 28))
    for side in (runtime, cpu):
        side.run(Step((Row("c", 3, tokens[:63], 0, BLOCKS), Row("d", 4, tokens[100:163], 0, others))))
        pair = (
            Row("c", 3, tokens[63:64], 63, BLOCKS, commits=(Commit(64, 1),)),
            Row("d", 4, tokens[163:164], 63, others, commits=(Commit(64, 2),)),
        )
        side.run(Step(pair))
    for slot, blocks, first in ((1, BLOCKS, 64), (2, others, 164)):
        row = Row("e", 1, tokens[first : first + 20], 64, blocks, restore=slot, output=Output.LOGITS)
        assert (logits(runtime, row) - logits(cpu, row)).abs().max() <= TOLERANCE


def test_every_logit_of_a_prompt(load: Callable[..., Any], cpu: Any, tokens: list[int]) -> None:
    runtime = neuron(load())
    for side in (runtime, cpu):
        side.run(Step((Row("a", 1, tokens[:128], 0, BLOCKS, commits=(Commit(128, 1),)),)))
    row = Row("b", 2, tokens[128:200], 128, BLOCKS, restore=1, commits=(Commit(192, 2),), output=Output.ALL_LOGITS)
    actual, expected = logits(runtime, row), logits(cpu, row)
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= TOLERANCE
    after = Row("c", 3, tokens[192:230], 192, BLOCKS, restore=2, output=Output.LOGITS)
    assert (logits(runtime, after) - logits(cpu, after)).abs().max() <= TOLERANCE
