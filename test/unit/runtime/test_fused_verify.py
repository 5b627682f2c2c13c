"""Rows that verify drafts in fused calls beside the same rows operation by operation: results and all that is held."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

pytest.importorskip("numba")

from qwen36_neuron.config import BLOCK_SIZE
from qwen36_neuron.runtime import Commit, Output, Row, RuntimeConfig, Step, open_runtime
from qwen36_neuron.runtime.cpu import CpuRuntime

LANES, MOST, TABLE, SLOTS = 6, 16, 8, 4
LOGITS, STATES = 5e-5, 2e-5
"""As of steps without drafts, see test_fused.py: roundings are carried through eight layers and from step to step."""


def opened(folder: Path, kernels: str) -> CpuRuntime:
    made = open_runtime(
        RuntimeConfig(
            model=folder,
            kernels=kernels,
            max_model_len=TABLE * BLOCK_SIZE,
            num_blocks=1 + LANES * TABLE,
            num_lanes=LANES,
            num_slots=SLOTS,
            max_drafts=MOST,
        )
    )
    assert isinstance(made, CpuRuntime)
    return made


def blocks_of(lane: int) -> tuple[int, ...]:
    return tuple(range(1 + TABLE * (lane - 1), 1 + TABLE * lane))


class Sequences:
    """Steps of rows of every kind, and what was among them."""

    def __init__(self, seed: int) -> None:
        self.draw, self.seen = random.Random(seed), set[str]()
        self.held, self.drafted = dict[int, int](), dict[int, int]()
        self.tables = {lane: blocks_of(lane) for lane in range(1, LANES + 1)}
        self.kept: dict[int, tuple[int, tuple[int, ...]]] = {}  # slot -> its boundary and the blocks before it

    def step(self) -> Step:
        lanes = self.draw.sample(range(1, LANES + 1), self.draw.randint(1, LANES))
        free = set(range(1, SLOTS + 1))
        rows = tuple(row for lane in lanes if (row := self._row(lane, free)) is not None)
        if len({(len(row.drafts), row.start - self.held.get(row.lane, 0)) for row in rows}) > 2:
            self.seen.add("ragged")
        for row in rows:
            self.held[row.lane], self.drafted[row.lane] = row.end, len(row.drafts)
        return Step(rows)

    def _row(self, lane: int, free: set[int]) -> Row | None:
        draw, held, restore, accepted = self.draw, self.held.get(lane, 0), None, 0
        full = held > TABLE * BLOCK_SIZE - 2 * (1 + MOST)
        own, start = set(blocks_of(lane)), held
        lent = any(own & set(table) for other, table in self.tables.items() if other != lane)
        usable = [slot for slot, (_, blocks) in self.kept.items() if slot in free and not own & set(blocks)]
        if usable and not lent and draw.random() < 0.15:
            restore = draw.choice(usable)
            start, shared = self.kept[restore]
            self._take_blocks(lane, shared)
            free.discard(restore)
            held = start
        elif held and not lent and (full or draw.random() < 0.05):
            start = held = 0
            self._take_blocks(lane, ())
            self.seen.add("a lane used again")
        elif full:
            return None
        elif held:
            accepted = draw.randint(0, self.drafted[lane])
            start = held + accepted
        count = 1 if (start and draw.random() < 0.9) or draw.random() < 0.5 else draw.choice((2, 40, 130))
        drafts = draw.choice((0, 1, 2, 3, 3, 7, MOST)) if count == 1 or draw.random() < 0.3 else 0
        boundary, commits = (start + count) // BLOCK_SIZE * BLOCK_SIZE, ()
        if boundary > held and free and restore is None:
            chosen = draw.choice(sorted(free))
            free.remove(chosen)
            self.kept[chosen] = boundary, self.tables[lane][: boundary // BLOCK_SIZE]
            commits = (Commit(boundary, chosen),)
            self.seen.add("a boundary that a draft crossed" if boundary <= start else "a boundary")
        for name, found in {
            "plain": count == 1 and not drafts and not accepted,
            "drafts from the start": start == 0 and drafts > 0,
            "drafts behind a checkpoint": restore is not None and drafts > 0,
            "drafts behind a chunk": count > 32 and drafts > 0,
            "taken in alone": accepted > 0 and not drafts,
            f"{MOST} of {MOST}": accepted == MOST and drafts == MOST,
        }.items():
            self.seen |= {name} if found else set()
        tokens, more = ([draw.randrange(4000) for _ in range(n)] for n in (count, drafts))
        table = self.tables[lane]
        return Row(str(lane), lane, tokens, start, table, restore, commits, Output.LOGITS, drafts=tuple(more))

    def _take_blocks(self, lane: int, shared: tuple[int, ...]) -> None:
        """Begin a sequence in a lane's own blocks, behind those of others: what was kept of what they held is gone."""
        self.tables[lane] = (*shared, *blocks_of(lane)[len(shared) :])
        lost = [slot for slot, (_, blocks) in self.kept.items() if set(blocks) & set(blocks_of(lane))]
        for slot in lost:
            del self.kept[slot]


@pytest.mark.parametrize("made", ["demo", "tiny_mixture"])
def test_any_steps_give_and_leave_what_plain_torch_does(made: str, request: pytest.FixtureRequest) -> None:
    checkpoint = request.getfixturevalue(f"{made}_checkpoint")
    plain, fused = opened(checkpoint, "torch"), opened(checkpoint, "fused")
    sequences, worst = Sequences(0), 0.0
    for _ in range(120):
        step = sequences.step()
        for one, other in zip(plain.run(step).rows, fused.run(step).rows, strict=True):
            assert one.logits is not None
            assert other.logits is not None
            assert one.logits.shape == other.logits.shape
            worst = max(worst, (one.logits - other.logits).abs().max().item())
    assert 0.0 < worst <= LOGITS
    assert sequences.seen == {
        "a boundary", "a boundary that a draft crossed", "a lane used again", "drafts behind a checkpoint",
        "drafts behind a chunk", "drafts from the start", "plain", "ragged", "taken in alone", f"{MOST} of {MOST}",
    }  # fmt: skip
    for layer, bank in plain.cache.banks.items():
        other = fused.cache.banks[layer]
        assert (bank.recurrent[1:] - other.recurrent[1:]).abs().max() <= STATES
        assert (bank.window[1:] - other.window[1:]).abs().max() <= STATES
        for name in ("inputs", "k", "v", "g", "beta"):
            agree(*(getattr(run.cache.drafts[layer], name)[1:] for run in (plain, fused)))
    for layer, halves in plain.cache.kv.items():
        for half, other_half in zip(halves, fused.cache.kv[layer], strict=True):
            agree(half[1:], other_half[1:])


def agree(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Of numbers of any size: keys come out of a norm with the checkpoint's factors, g out of a softplus."""
    largest = expected.abs().max().item()
    assert largest > 0.0
    assert (found - expected).abs().max() <= STATES * max(1.0, largest)


def test_rows_of_few_positions_are_one_call(demo_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So a step reads the weights once, whatever its rows propose and confirm."""
    fused, calls = opened(demo_checkpoint, "fused"), []
    through = fused._program.through  # type: ignore[attr-defined]
    monkeypatch.setattr(
        fused._program,  # type: ignore[attr-defined]
        "through",
        lambda tokens, mix: (calls.append(len(tokens)), through(tokens, mix))[1],
    )
    starts = tuple(Row(str(n), n, [5], 0, blocks_of(n), drafts=(1, 2, 3)[: n - 1]) for n in (1, 2, 3, 4))
    fused.run(Step(starts))
    fused.run(Step(tuple(Row(str(n), n, [6], n, blocks_of(n), drafts=(4,) * (n % 3)) for n in (3, 1, 4, 2))))
    assert calls == [1 + 2 + 3 + 4, 1 + 2 + 3 + 1 + 1]
