"""Rows laid out for the graphs, and cut where a graph takes no more."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qwen36_neuron.graph.buckets import Buckets, PrefillBucket
from qwen36_neuron.graph.inputs import (
    DraftRow,
    decode_groups,
    decode_inputs,
    draft_inputs,
    draft_rows,
    empty_decode,
    empty_draft,
    empty_prefill,
    empty_verify,
    graph_inputs,
    prefill_inputs,
    prefill_pieces,
    verify_inputs,
    verify_pieces,
)
from qwen36_neuron.ops.sampling import GREEDY
from qwen36_neuron.runtime import Commit, DraftRequest, Output, Row, Sampling

LANES = 4
BLOCKS = tuple(range(10, 42))
BUCKETS = Buckets.grid((128, 256), (512, 2048), (2048,))


def test_a_chunk_is_laid_out_from_the_start_of_its_block() -> None:
    row = Row("a", 3, range(100, 160), 70, BLOCKS, commits=(Commit(128, 2),))
    inputs = prefill_inputs(row, PrefillBucket(128, 512), 2, LANES)
    assert inputs.tokens[0].tolist() == [0] * 6 + list(range(100, 160)) + [0] * 62
    assert (int(inputs.starts), int(inputs.lengths), int(inputs.sources), int(inputs.lanes)) == (70, 60, 3, 3)
    assert inputs.table[0].tolist() == [10, 11, 12] + [0] * 7
    assert inputs.commit_at.tolist() == [1, 1]
    assert inputs.commit_to.tolist() == [LANES + 2, 0]


def test_a_restored_row_reads_its_slot_and_writes_its_lane() -> None:
    inputs = prefill_inputs(Row("a", 3, [1, 2], 64, BLOCKS, restore=5), PrefillBucket(128, 512), 1, LANES)
    assert (int(inputs.sources), int(inputs.lanes)) == (LANES + 5, 3)


def test_only_needed_blocks_are_in_the_table() -> None:
    """Blocks reserved ahead would be written to by padding."""
    inputs = prefill_inputs(Row("a", 1, [5] * 64, 0, BLOCKS), PrefillBucket(256, 0), 1, LANES)
    assert inputs.table[0].tolist() == [10, 0, 0, 0]


def test_decode_rows_then_scratch() -> None:
    rows = [Row("a", 2, [7], 127, BLOCKS, commits=(Commit(128, 1),)), Row("b", 4, [8], 64, (3, 4), restore=6)]
    inputs = decode_inputs(rows, LANES, 2048, 1, LANES)
    assert inputs.tokens[:, 0].tolist() == [7, 8, 0, 0]
    assert inputs.starts.tolist() == [127, 64, 0, 0]
    assert inputs.sources.tolist() == [2, LANES + 6, 0, 0]
    assert inputs.lanes.tolist() == [2, 4, 0, 0]
    assert inputs.table[:2, :3].tolist() == [[10, 11, 0], [3, 4, 0]]
    assert not inputs.table[2:].any()
    assert (inputs.commit_at.tolist(), inputs.commit_to.tolist()) == ([0], [LANES + 1])


def test_sampling_parameters_by_row_and_greedy_padding() -> None:
    rows = [Row("a", 1, [7], 0, BLOCKS), Row("b", 2, [8], 0, (3,), sampling=Sampling(0.5, 0.25, 20, 0.75, 0.125))]
    inputs = decode_inputs(rows, LANES, 2048, 1, LANES, sampling=True)
    assert inputs.sampling is not None
    assert inputs.sampling.tolist() == [list(GREEDY), [0.5, 20.0, 0.75, 0.125, 0.25], list(GREEDY), list(GREEDY)]
    assert decode_inputs(rows, LANES, 2048, 1, LANES).sampling is None
    assert graph_inputs(inputs)[-1] is inputs.sampling
    drawn = prefill_inputs(rows[1], PrefillBucket(128, 0), 1, LANES, sampling=True).sampling
    assert drawn is not None
    assert drawn.tolist() == [[0.5, 20.0, 0.75, 0.125, 0.25]]


def test_rows_to_draft_from_then_scratch() -> None:
    rows = [DraftRow(3, 7, 63, 2, BLOCKS, 2), DraftRow(1, 8, 5, 0, (3,), 1)]
    inputs = draft_inputs(rows, 3, 256, 2)
    assert inputs.tokens.tolist() == [[7], [8], [0]]
    assert inputs.starts.tolist() == [63, 5, 0]
    assert inputs.wanted.tolist() == [[1, 1], [1, 0], [0, 0]]
    assert (inputs.accepted.tolist(), inputs.lanes.tolist()) == ([2, 0, 0], [3, 1, 0])
    assert inputs.table.tolist() == [[10, 11, 0, 0], [3, 0, 0, 0], [0] * 4]
    assert not any(tensor.any() for tensor in empty_draft(4, 256, 3))


def test_what_is_drafted_of_a_request() -> None:
    """Behind the accepted drafts of its lane's last row, and no more than its blocks and the maximum length hold."""
    asked = [
        DraftRequest("a", 1, (5, 6, 7), BLOCKS, 3),
        DraftRequest("b", 2, (8,), (4,), 3),
        DraftRequest("c", 3, (9,), BLOCKS, 3),
        DraftRequest("d", 4, (1,), (5,), 3),
    ]
    rows = draft_rows(asked, {1: 10, 2: 61, 3: 510, 4: 63}, 512)
    assert [(row.lane, row.token, row.start, row.accepted, row.count) for row in rows] == [
        (1, 7, 12, 2, 3),
        (2, 8, 61, 0, 2),
        (3, 9, 510, 0, 1),
        (4, 1, 63, 0, 0),
    ]


def test_examples_run_on_scratch_alone() -> None:
    for example in (
        empty_prefill(PrefillBucket(128, 256), 3, sampling=True),
        empty_decode(LANES, 256, 2, sampling=True),
        empty_decode(LANES, 256, 2),
        empty_verify(LANES, 256, 3, 2),
    ):
        assert all(tensor.dtype is torch.int32 for tensor in graph_inputs(example._replace(sampling=None)))
        if example.sampling is not None:
            assert example.sampling.tolist() == [list(GREEDY)] * len(example.tokens)
        for name in ("starts", "sources", "lanes", "table", "commit_to"):
            assert not getattr(example, name).any(), name


def test_rows_with_drafts_rows_without_and_scratch() -> None:
    """A checkpoint is after so many tokens, those counted that the row takes in."""
    how = Sampling(0.5, 0.25, 20, later=(0.5, 0.75))
    rows = [
        Row("a", 2, [7], 129, BLOCKS, commits=(Commit(128, 1),), sampling=how, drafts=(8, 9)),
        Row("b", 4, [5], 64, (3, 4), restore=6),
        Row("c", 1, [6], 63, (5, 6, 7), drafts=(4,)),
    ]
    inputs = verify_inputs(rows, [3, 0, 0], LANES, 2048, 3, 1, LANES, sampling=True)
    assert inputs.tokens.tolist() == [[7, 8, 9, 0], [5, 0, 0, 0], [6, 4, 0, 0], [0] * 4]
    assert (inputs.starts.tolist(), inputs.lengths.tolist()) == ([129, 64, 63, 0], [3, 1, 2, 0])
    assert (inputs.accepted.tolist(), inputs.lanes.tolist()) == ([3, 0, 0, 0], [2, 4, 1, 0])
    assert inputs.sources.tolist() == [2, LANES + 6, 1, 0]
    assert inputs.table[:3, :4].tolist() == [[10, 11, 12, 0], [3, 4, 0, 0], [5, 6, 0, 0]]  # one for the draft
    assert (inputs.commit_at.tolist(), inputs.commit_after.tolist()) == ([0], [2])
    assert inputs.commit_to.tolist() == [LANES + 1]
    assert inputs.sampling is not None
    assert inputs.sampling[0, :, 4].tolist() == [0.25, 0.5, 0.75, 0.0]
    assert inputs.sampling[1:].flatten(0, 1).tolist() == [list(GREEDY)] * 12


def test_an_example_with_drafts_is_greedy_padding() -> None:
    inputs = empty_verify(LANES, 256, 2, 1, sampling=True)
    assert inputs.sampling is not None
    assert inputs.sampling.flatten(0, 1).tolist() == [list(GREEDY)] * (3 * LANES)


@pytest.mark.parametrize("accepted", [0, 2])
@pytest.mark.parametrize("drafts", [(), (40, 41)])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_row_is_cut_where_it_takes_drafts_in_and_where_it_has_some(
    count: int, drafts: tuple[int, ...], accepted: int
) -> None:
    row = Row("a", 1, list(range(count)), 64, BLOCKS, commits=(Commit(64, 3),) if accepted else (), drafts=drafts)
    first, between, last = verify_pieces(row, accepted)
    pieces = [*first, *between, *last]
    assert [token for piece in pieces for token in piece.tokens] == list(range(count))
    assert [piece.start for piece in pieces] == [
        64 + sum(len(p.tokens) for p in pieces[:n]) for n in range(len(pieces))
    ]
    assert [len(piece.tokens) for piece in (*first, *last)] == [1] * len(first + last)
    assert [piece.drafts for piece in pieces] == [()] * (len(pieces) - 1) + [drafts]
    assert [commit for piece in pieces[1:] for commit in piece.commits] == []
    assert bool(last) == bool(drafts or (accepted and count == 1))
    assert bool(first) == bool(accepted and count > 1)


@given(
    start=st.integers(0, 1500),
    length=st.integers(2, 500),
    marks=st.sets(st.integers(1, 31), max_size=8),
    commits=st.integers(1, 3),
)
def test_pieces_are_the_row(start: int, length: int, marks: set[int], commits: int) -> None:
    """Cut anywhere: the same tokens and checkpoints in order, each piece in one bucket, restored and answered once."""
    wanted = tuple(Commit(64 * n, n) for n in sorted(marks) if start < 64 * n <= start + length)
    restore = 3 if start and not start % 64 else None
    row = Row("a", 1, list(range(length)), start, BLOCKS, restore=restore, commits=wanted, output=Output.TOKEN)
    pieces = prefill_pieces(row, BUCKETS, commits)
    assert [token for piece in pieces for token in piece.tokens] == list(range(length))
    assert [commit for piece in pieces for commit in piece.commits] == list(wanted)
    assert [piece.restore for piece in pieces] == [restore] + [None] * (len(pieces) - 1)
    assert [piece.output for piece in pieces] == [Output.NOTHING] * (len(pieces) - 1) + [Output.TOKEN]
    position = start
    for piece in pieces:
        assert piece.start == position
        position = piece.end
        assert len(piece.commits) <= commits
        assert piece is pieces[-1] or piece.end % 64 == 0
        bucket = BUCKETS.prefill_for(piece.start, len(piece.tokens))
        assert piece.start % 64 + len(piece.tokens) <= bucket.active


@pytest.mark.parametrize(("commits", "sizes"), [(1, [2, 3]), (2, [4, 1]), (5, [4, 1])])
def test_decode_rows_in_calls(commits: int, sizes: list[int]) -> None:
    rows = [Row(str(n), n, [0], 63, BLOCKS, commits=(Commit(64, n),) if n in (2, 3) else ()) for n in (1, 2, 3, 4, 5)]
    groups = decode_groups(rows, 4, commits)
    assert [row for group in groups for row in group] == rows
    assert all(sum(len(row.commits) for row in group) <= commits for group in groups)
    assert [len(group) for group in groups] == sizes
