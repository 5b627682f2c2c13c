"""What goes into the graphs: rows of the step contract laid out in the shapes of a bucket.

All tensors are int32, but for the sampling parameters, which are fp32. Entry 0 of the state banks, block 0 of the KV
cache and slot 0 are scratch: padding writes there and nothing reads it. Lane n is entry n; checkpoint slot s is entry
num_lanes + s, so that restoring a checkpoint is reading another entry and costs no copy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from ..config import BLOCK_SIZE
from ..step import DraftRequest, Output, Row
from .buckets import Buckets, PrefillBucket
from .sampling import parameter_tensor


@dataclass(frozen=True, slots=True)
class DraftRow:
    """A token that is certain and has not run, from which `count` drafts are to be made.

    Attributes:
        start: its position.
        accepted: how many of its lane's last drafts were right, which it follows.
        blocks: KV blocks of its sequence, enough for the positions that the drafts are made at.
    """

    lane: int
    token: int
    start: int
    accepted: int
    blocks: Sequence[int]
    count: int

    @property
    def reach(self) -> int:
        """Tokens that the layer's cache holds then."""
        return self.start + self.count


class PrefillInputs(NamedTuple):
    """One row of up to `active` new tokens, laid out from the start of the block that the first one falls into.

    Attributes:
        tokens: [1, active]; the first start % BLOCK_SIZE are padding, as is everything after the row's own.
        starts: [1], tokens held before. At 0 the state starts from zero.
        lengths: [1], new tokens, padding not counted.
        sources: [1], entry to read the state from: the lane's, or a slot's.
        lanes: [1], entry to leave the state in.
        table: [1, blocks], the row's KV blocks in order.
        commit_at: [commits], number of whole blocks of this layout after which to take a checkpoint.
        commit_to: [commits], entry to leave it in; 0 for none.
        sampling: [1, columns] fp32, see `ops.sampling.COLUMNS`; None in a graph that draws no tokens.
    """

    tokens: torch.Tensor
    starts: torch.Tensor
    lengths: torch.Tensor
    sources: torch.Tensor
    lanes: torch.Tensor
    table: torch.Tensor
    commit_at: torch.Tensor
    commit_to: torch.Tensor
    sampling: torch.Tensor | None = None


class DecodeInputs(NamedTuple):
    """Rows of one token.

    Attributes:
        tokens: [batch, 1].
        starts, sources, lanes: [batch], as for a prefill.
        table: [batch, blocks].
        commit_at: [commits], row whose state after the step is a checkpoint.
        commit_to: [commits], entry to leave it in; 0 for none.
        sampling: [batch, columns] fp32, as for a prefill.
    """

    tokens: torch.Tensor
    starts: torch.Tensor
    sources: torch.Tensor
    lanes: torch.Tensor
    table: torch.Tensor
    commit_at: torch.Tensor
    commit_to: torch.Tensor
    sampling: torch.Tensor | None = None


class VerifyInputs(NamedTuple):
    """Rows of one token that is certain and of drafts behind it; those without drafts, and padded ones, among them.

    Attributes:
        tokens: [batch, 1 + drafts]; what a row does not have is padding.
        starts: [batch], as for a prefill: the first token's position, accepted drafts of the row before counted.
        lengths: [batch], real tokens: 1 + the row's drafts, 0 for a padded row.
        accepted: [batch], how many of its lane's pending drafts each row takes in before its own token.
        sources, lanes: [batch], as for a prefill.
        table: [batch, blocks].
        commit_at: [commits], row of which a state is a checkpoint; at most one of a row.
        commit_after: [commits], after how many tokens, accepted ones counted: 1 to accepted + 1.
        commit_to: [commits], entry to leave it in; 0 for none.
        sampling: [batch, 1 + drafts, columns] fp32, a place's own.
    """

    tokens: torch.Tensor
    starts: torch.Tensor
    lengths: torch.Tensor
    accepted: torch.Tensor
    sources: torch.Tensor
    lanes: torch.Tensor
    table: torch.Tensor
    commit_at: torch.Tensor
    commit_after: torch.Tensor
    commit_to: torch.Tensor
    sampling: torch.Tensor | None = None


class DraftInputs(NamedTuple):
    """Rows of a certain token that has not run, from which the draft layer is to draft; padded ones among them.

    Attributes:
        tokens: [batch, 1].
        starts: [batch], the token's position.
        wanted: [batch, drafts], 1 for a draft that is asked for, 0 after them and in a padded row.
        accepted: [batch], of the lane's pending drafts those that were right: the token follows them.
        lanes: [batch].
        table: [batch, blocks], as for a prefill.
    """

    tokens: torch.Tensor
    starts: torch.Tensor
    wanted: torch.Tensor
    accepted: torch.Tensor
    lanes: torch.Tensor
    table: torch.Tensor


GraphInputs = PrefillInputs | DecodeInputs | VerifyInputs | DraftInputs


def graph_inputs(inputs: GraphInputs) -> tuple[torch.Tensor, ...]:
    """What a graph is called with: the fields that it has, in order."""
    return tuple(tensor for tensor in inputs if tensor is not None)


def empty_prefill(bucket: PrefillBucket, commits: int, sampling: bool = False) -> PrefillInputs:
    """A call on the scratch entry and block alone: to trace with, and to warm up without a trace in any memory.

    `sampling` says whether the graph draws tokens.
    """
    row = _zeros(1), torch.ones(1, dtype=torch.int32), _zeros(1), _zeros(1)
    commit = _ones(commits), _zeros(commits)
    return PrefillInputs(_zeros(1, bucket.active), *row, _zeros(1, bucket.table_width), *commit, _greedy(1, sampling))


def empty_decode(batch: int, bucket: int, commits: int, sampling: bool = False) -> DecodeInputs:
    """As `empty_prefill`, of padded rows alone."""
    rows = _zeros(batch), _zeros(batch), _zeros(batch)
    table, commit = _zeros(batch, bucket // BLOCK_SIZE), (_zeros(commits), _zeros(commits))
    return DecodeInputs(_zeros(batch, 1), *rows, table, *commit, _greedy(batch, sampling))


def empty_verify(batch: int, bucket: int, drafts: int, commits: int, sampling: bool = False) -> VerifyInputs:
    """As `empty_decode`, for rows of up to `drafts` drafts."""
    rows = _zeros(batch), _zeros(batch), _zeros(batch), _zeros(batch), _zeros(batch)
    table, commit = _zeros(batch, bucket // BLOCK_SIZE), (_zeros(commits), _ones(commits), _zeros(commits))
    drawn = _greedy(batch * (1 + drafts), sampling)
    drawn = drawn if drawn is None else drawn.view(batch, 1 + drafts, -1)
    return VerifyInputs(_zeros(batch, 1 + drafts), *rows, table, *commit, drawn)


def empty_draft(batch: int, bucket: int, drafts: int) -> DraftInputs:
    """As `empty_decode`, for up to `drafts` drafts a row."""
    rows = _zeros(batch), _zeros(batch, drafts), _zeros(batch), _zeros(batch)
    return DraftInputs(_zeros(batch, 1), *rows, _zeros(batch, bucket // BLOCK_SIZE))


def prefill_inputs(
    row: Row, bucket: PrefillBucket, commits: int, num_lanes: int, sampling: bool = False
) -> PrefillInputs:
    """The row in the shape of `bucket`. Only its new tokens go in; a computed prefix is never run again."""
    inputs = empty_prefill(bucket, commits, sampling)
    lead = row.start % BLOCK_SIZE
    inputs.tokens[0, lead : lead + len(row.tokens)] = torch.tensor(row.tokens, dtype=torch.int32)
    inputs.starts[0], inputs.lengths[0] = row.start, len(row.tokens)
    inputs.sources[0], inputs.lanes[0] = _source(row, num_lanes), row.lane
    _fill_table(inputs.table[0], row)
    for index, commit in enumerate(row.commits):
        inputs.commit_at[index] = (commit.boundary - row.start + lead) // BLOCK_SIZE
        inputs.commit_to[index] = num_lanes + commit.slot
    _fill_sampling(inputs.sampling, [row])
    return inputs


def decode_inputs(
    rows: Sequence[Row], batch: int, bucket: int, commits: int, num_lanes: int, sampling: bool = False
) -> DecodeInputs:
    """The rows, then padded ones."""
    inputs = empty_decode(batch, bucket, commits, sampling)
    used = 0
    for index, row in enumerate(rows):
        inputs.tokens[index, 0], inputs.starts[index] = row.tokens[0], row.start
        inputs.sources[index], inputs.lanes[index] = _source(row, num_lanes), row.lane
        _fill_table(inputs.table[index], row)
        for commit in row.commits:
            inputs.commit_at[used], inputs.commit_to[used] = index, num_lanes + commit.slot
            used += 1
    _fill_sampling(inputs.sampling, rows)
    return inputs


def verify_inputs(
    rows: Sequence[Row],
    accepted: Sequence[int],
    batch: int,
    bucket: int,
    drafts: int,
    commits: int,
    num_lanes: int,
    sampling: bool = False,
) -> VerifyInputs:
    """The rows, then padded ones. accepted: of its lane's pending drafts, those that each row takes in."""
    inputs = empty_verify(batch, bucket, drafts, commits, sampling)
    used = 0
    for index, (row, right) in enumerate(zip(rows, accepted, strict=True)):
        real = 1 + len(row.drafts)
        inputs.tokens[index, :real] = torch.tensor([*row.tokens, *row.drafts], dtype=torch.int32)
        inputs.starts[index], inputs.lengths[index], inputs.accepted[index] = row.start, real, right
        inputs.sources[index], inputs.lanes[index] = _source(row, num_lanes), row.lane
        _fill_table(inputs.table[index], row)
        for commit in row.commits:
            inputs.commit_at[used], inputs.commit_to[used] = index, num_lanes + commit.slot
            inputs.commit_after[used] = commit.boundary - row.start + right
            used += 1
        if inputs.sampling is not None and row.sampling is not None:
            inputs.sampling[index, :real] = parameter_tensor([row.sampling.at(place) for place in range(real)])
    return inputs


def draft_inputs(rows: Sequence[DraftRow], batch: int, bucket: int, drafts: int) -> DraftInputs:
    """The rows, then padded ones."""
    inputs = empty_draft(batch, bucket, drafts)
    for index, row in enumerate(rows):
        inputs.tokens[index, 0], inputs.starts[index], inputs.lanes[index] = row.token, row.start, row.lane
        inputs.wanted[index, : row.count], inputs.accepted[index] = 1, row.accepted
        needed = -(-row.reach // BLOCK_SIZE)
        inputs.table[index, :needed] = torch.tensor(row.blocks[:needed], dtype=torch.int32)
    return inputs


def draft_rows(requests: Sequence[DraftRequest], held: Mapping[int, int], max_model_len: int) -> list[DraftRow]:
    """What the graphs are to draft; less is asked of a request where its blocks or the maximum length end.

    Args:
        held: tokens by lane, those of its last row's drafts not counted.
    """
    rows = []
    for request in requests:
        accepted = len(request.tokens) - 1
        start = held[request.lane] + accepted
        count = request.room(start, max_model_len)
        rows.append(DraftRow(request.lane, request.tokens[-1], start, accepted, request.blocks, count))
    return rows


def verify_pieces(row: Row, accepted: int) -> tuple[list[Row], list[Row], list[Row]]:
    """A row as graphs run it: a token behind accepted drafts, tokens before others, a token before drafts.

    Args:
        accepted: drafts of its lane's last row that it takes in.
    Returns:
        What a verify graph runs, then a row for prefill or decode graphs, then what a verify graph runs, each a list of
        one row or empty.
    """
    first: list[Row] = []
    if accepted and len(row.tokens) > 1:
        head, row = split(row, row.start + 1)
        first = [head]
    if not row.drafts and (first or not accepted):
        return first, [row], []
    if len(row.tokens) == 1:
        return first, [], [row]
    head, row = split(row, row.end - 1)
    return first, [head], [row]


def prefill_pieces(row: Row, buckets: Buckets, commits: int) -> list[Row]:
    """The row cut, at block boundaries, into pieces that each fit a bucket and take `commits` checkpoints at most."""
    pieces: list[Row] = []
    while True:
        bucket = buckets.prefill_for(row.start, len(row.tokens))
        end = min(row.end, row.start - row.start % BLOCK_SIZE + bucket.active)
        taken = [commit for commit in row.commits if commit.boundary <= end]
        if len(taken) > commits:
            end = taken[commits - 1].boundary
        if end == row.end:
            return [*pieces, row]
        head, row = split(row, end)
        pieces.append(head)


def split(row: Row, end: int) -> tuple[Row, Row]:
    """The row up to position `end`, which gives nothing back, and the rest with its drafts, which goes on from it."""
    count = end - row.start
    before = tuple(commit for commit in row.commits if commit.boundary <= end)
    head = replace(row, tokens=row.tokens[:count], commits=before, output=Output.NOTHING, sampling=None, drafts=())
    rest = replace(row, tokens=row.tokens[count:], start=end, restore=None, commits=row.commits[len(before) :])
    return head, rest


def decode_groups(rows: Sequence[Row], batch: int, commits: int) -> list[list[Row]]:
    """Rows in calls of `batch` rows and `commits` checkpoints at most. A row of one certain token has one at most."""
    groups: list[list[Row]] = []
    for row in rows:
        last = groups[-1] if groups else None
        if last is None or len(last) == batch or sum(len(r.commits) for r in last) + len(row.commits) > commits:
            groups.append([row])
        else:
            last.append(row)
    return groups


def _source(row: Row, num_lanes: int) -> int:
    return row.lane if row.restore is None else num_lanes + row.restore


def _fill_table(table: torch.Tensor, row: Row) -> None:
    """The blocks that the row needs; a longer table may hold blocks that padding must not write to."""
    needed = -(-row.reach // BLOCK_SIZE)
    table[:needed] = torch.tensor(row.blocks[:needed], dtype=torch.int32)


def _fill_sampling(sampling: torch.Tensor | None, rows: Sequence[Row]) -> None:
    if sampling is not None:
        sampling[: len(rows)] = parameter_tensor([row.sampling for row in rows])


def _greedy(rows: int, sampling: bool) -> torch.Tensor | None:
    return parameter_tensor([None] * rows) if sampling else None


def _zeros(*shape: int) -> torch.Tensor:
    return torch.zeros(*shape, dtype=torch.int32)


def _ones(*shape: int) -> torch.Tensor:
    return torch.ones(*shape, dtype=torch.int32)
