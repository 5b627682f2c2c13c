"""Rows cut into launches: nothing is lost, nothing is twice, and a checkpoint is where its row is."""

from __future__ import annotations

import random
from functools import partial

import pytest
import torch
from bank_cases import int32

from qwen36_neuron.ops.banks import Verify
from qwen36_neuron.ops.parts import cut, pending_rows


def rows_of(batch: int, checks: int, seed: int) -> Verify:
    """Some rows start, some are padding; any of the checkpoints are asked for, of different rows."""
    choose = random.Random(seed)
    lanes, accepted = [n + 1 for n in range(batch)], [choose.randint(0, 4) for _ in range(batch)]
    asked = choose.sample(range(batch), choose.randint(0, min(batch, checks)))
    at = asked + [choose.randrange(batch) for _ in range(checks - len(asked))]
    to = [50 + n if n < len(asked) else 0 for n in range(checks)]
    fresh = torch.tensor([choose.random() < 0.3 for _ in range(batch)])
    after = [choose.randint(1, accepted[row] + 1) for row in at]
    return Verify(fresh, int32(*lanes), int32(*lanes), int32(*accepted), int32(*at), int32(*after), int32(*to))


def at_most(both: int, checks: int) -> int:
    """So many rows and checkpoints together."""
    return max(0, both - checks)


@pytest.mark.parametrize(("batch", "checks"), [(1, 1), (1, 3), (5, 1), (8, 2), (8, 12), (13, 5)])
@pytest.mark.parametrize("both", [2, 4, 7, 100])
def test_every_row_and_every_checkpoint_is_in_one_part(batch: int, checks: int, both: int) -> None:
    for seed in range(5):
        rows = rows_of(batch, checks, seed)
        parts = cut(rows, partial(at_most, both))
        assert [n for part in parts for n in range(part.first, part.last)] == list(range(batch))
        found = {}
        for part in parts:
            own, n = slice(part.first, part.last), part.last - part.first
            assert n <= at_most(both, len(part.to))
            assert torch.equal(part.lane, rows.lane[own])
            assert torch.equal(part.accepted, rows.accepted[own])
            assert torch.equal(part.source, torch.where(rows.fresh, 0, rows.source)[own])
            assert ((part.row >= 0) & (part.row < n)).all()
            for row, after, to in zip(part.row.tolist(), part.after.tolist(), part.to.tolist(), strict=True):
                if to:
                    assert to not in found
                    found[to] = part.first + row, after
        triples = zip(rows.commit_at.tolist(), rows.commit_after.tolist(), rows.commit_to.tolist(), strict=True)
        assert found == {to: (row, after) for row, after, to in triples if to}


def test_what_one_launch_takes_is_one_part() -> None:
    rows = rows_of(8, 2, 0)
    (part,) = cut(rows, partial(at_most, 10))
    assert torch.equal(part.to, rows.commit_to)
    assert len(cut(rows, partial(at_most, 9))) == 2


def test_rows_of_which_not_one_fits_are_refused() -> None:
    with pytest.raises(ValueError, match="a launch takes 0 rows with a checkpoint, must be 1 at least"):
        cut(rows_of(3, 1, 0), partial(at_most, 1))


def test_drafts_that_were_wrong_are_read_from_the_scratch_lane() -> None:
    assert pending_rows(int32(2, 0, 5), int32(1, 0, 3), 3).view(3, 3).tolist() == [[6, 0, 0], [0, 0, 0], [15, 16, 17]]


def test_what_layers_share_is_made_once() -> None:
    rows, made = rows_of(2, 1, 0), []
    for key in ("one", "one", "other"):
        rows.once(key, partial(made.append, key))
    assert made == ["one", "other"]
