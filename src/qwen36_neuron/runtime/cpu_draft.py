"""The multi-token-prediction layer on CPU: what it remembers of each lane, and the drafts that it makes.

To the layer the hidden state at p - 1 and the token at p are one input, whose key and value are stored at p. What a
lane owes it is kept until drafts are wanted or a block is full, and then written in one call: a request that has no
drafts hardly pays for the layer, and a block that others may share is whole. A prompt's first token does not wait for
it either: of the last layer a prompt needs its last token alone, and the rest of that layer runs afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..cache import HybridCache
from ..config import BLOCK_SIZE
from ..model import Qwen36Model
from ..model.state import Mixing
from ..ops.attention import PagedRow, attend, write_kv
from ..step import Commit, DraftRequest, Row
from .draft_lanes import Lane, Segment, is_plain, of_one_length

MOST_OWED = 64 << 20
"""Bytes that prompts may wait with, all lanes together; more is not put off."""


@dataclass(slots=True)
class CpuDraftState(Mixing):
    """The draft layer's memory in one call: rows of `lengths` real tokens, padded on the right."""

    cache: HybridCache
    rows: Sequence[PagedRow]
    lengths: Sequence[int]

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        cache, out = self.cache.positions(layer), torch.zeros_like(q)
        for index, (row, length) in enumerate(zip(self.rows, self.lengths, strict=True)):
            write_kv(cache, k[index, :length], v[index, :length], row)
            count = min(length, q.shape[1])
            out[index, :count] = attend(q[index, :count], cache, row)
        return out

    def store(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> None:
        for index, (row, length) in enumerate(zip(self.rows, self.lengths, strict=True)):
            write_kv(self.cache.positions(layer), k[index, :length], v[index, :length], row)


@dataclass(slots=True)
class CpuLastLayer(Mixing):
    """The last layer's memory for rows whose keys and values it holds already."""

    cache: HybridCache
    rows: Sequence[PagedRow]

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        cache = self.cache.positions(layer)
        return torch.stack([attend(own, cache, row) for own, row in zip(q, self.rows, strict=True)])


class CpuDraftLayer:
    """Follows what the lanes run, and drafts for those that ask."""

    def __init__(self, model: Qwen36Model, cache: HybridCache, max_model_len: int) -> None:
        self.model, self.cache, self.max_model_len = model, cache, max_model_len
        self._lanes: dict[int, Lane] = {}
        self._waiting: dict[int, tuple[int, Commit]] = {}
        """Of checkpoint slots whose hidden state is not known yet: the lane that will have it."""
        self._owed = 0
        self._steps: list[tuple[Sequence[Row], torch.Tensor]] = []
        """Steps of plain decoding, all of the same lanes, that are not in these lanes' segments yet."""

    # ---- following the lanes -----------------------------------------------------------------------------------------

    def begin(self, rows: Sequence[Row], released: Sequence[int], accepted: Sequence[int]) -> None:
        """Before a step runs, while all memory is as the last one left it.

        Args:
            accepted: of each row, how many of its lane's last drafts were right.
        """
        if released or any(row.start == 0 or row.restore is not None for row in rows):
            self._take_in()
        for number in released:
            self._release(number)
        for row in rows:
            if row.restore is not None:
                self._complete_prefix(row)
        for row, count in zip(rows, accepted, strict=True):
            if row.start == 0 or row.restore is not None:
                self._release(row.lane)
                self._lanes[row.lane] = self._new(row)
            lane = self._lanes[row.lane]
            if lane.drafts is not None:
                lane.confirm(count)
            lane.blocks = row.blocks

    def prefilled(self, rows: Sequence[Row], inputs: torch.Tensor) -> None:
        """Rows of many tokens have run; inputs [rows, tokens, hidden] of the last layer, padded on the right."""
        self._take_in()
        for index, row in enumerate(rows):
            count = len(row.tokens)
            self._add(row, Segment(row.start, tuple(row.tokens), inputs[index, :count], False))
            self._owed += self._bytes(self._lanes[row.lane].segments[-1])
        if self._owed > MOST_OWED:
            self.catch_up([lane for lane, held in self._lanes.items() if not all(s.complete for s in held.segments)])

    def ran(self, rows: Sequence[Row], hidden: torch.Tensor) -> None:
        """Rows with or without drafts have run; hidden [rows, tokens + drafts or more, hidden] after the final norm.

        Nothing is due after most steps of plain decoding: they are kept as they are, and taken in together.
        """
        if self._steps and [row.lane for row in rows] != [row.lane for row in self._steps[-1][0]]:
            self._take_in()
        if all(is_plain(row, self._lanes[row.lane]) for row in rows):
            self._steps.append((rows, hidden))
            return
        self._take_in()
        full = []
        for index, row in enumerate(rows):
            count = len(row.tokens)
            lane = self._add(row, Segment(row.start, row.tokens, hidden[index, :count]))
            if row.drafts:
                drafts = hidden[index, count : count + len(row.drafts)]
                lane.drafts = Segment(row.end, row.drafts, drafts)
            if lane.written < lane.end // BLOCK_SIZE * BLOCK_SIZE:
                full.append(row.lane)
        if full:
            self.catch_up(full)

    def _take_in(self) -> None:
        """Put steps of plain decoding into their lanes' segments."""
        if not self._steps:
            return
        steps, self._steps = self._steps, []
        joined = torch.cat([hidden[:, :1] for _, hidden in steps], 1)
        for index, first in enumerate(steps[0][0]):
            tokens = [token for rows, _ in steps for token in rows[index].tokens]
            lane = self._lanes[first.lane]
            lane.segments.append(Segment(first.start, tokens, joined[index]))
            lane.end = first.start + len(tokens)

    def _add(self, row: Row, segment: Segment) -> Lane:
        lane = self._lanes[row.lane]
        lane.segments.append(segment)
        lane.end = row.end
        for commit in row.commits:
            self._commit(row.lane, lane, commit)
        return lane

    def _complete_prefix(self, row: Row) -> None:
        """Have written what a row is to go on from: its checkpoint's hidden state, and what others owe its blocks."""
        prefix = set(row.blocks[: row.start // BLOCK_SIZE])
        owing = {number for number, lane in self._lanes.items() if not prefix.isdisjoint(self._owed_blocks(lane))}
        if row.restore in self._waiting:
            owing.add(self._waiting[row.restore][0])
        if owing:
            self.catch_up(sorted(owing))

    @staticmethod
    def _owed_blocks(lane: Lane) -> Sequence[int]:
        """Blocks with positions that have run and have no entry yet."""
        return lane.blocks[lane.written // BLOCK_SIZE : -(-lane.end // BLOCK_SIZE)] if lane.written < lane.end else ()

    def _commit(self, number: int, lane: Lane, commit: Commit) -> None:
        self._waiting.pop(commit.slot, None)
        if lane.crossed is not None and lane.crossed[0] == commit.boundary:
            self.cache.last_hidden[commit.slot] = lane.crossed[1]
        for segment in lane.segments:
            if segment.start < commit.boundary <= segment.end:
                if segment.complete:
                    self.cache.last_hidden[commit.slot] = segment.hidden[commit.boundary - 1 - segment.start]
                else:
                    segment.commits.append(commit)
                    self._waiting[commit.slot] = number, commit

    def _new(self, row: Row) -> Lane:
        if row.restore is None:
            return Lane()
        # The token of that hidden state is not asked for: its own entry is there.
        hidden = self.cache.last_hidden[row.restore : row.restore + 1].clone()
        return Lane(row.start, row.start, [Segment(row.start - 1, (0,), hidden)])

    def _release(self, number: int) -> None:
        """A lane's sequence has ended; what others may go on from is written still."""
        lane = self._lanes.get(number)
        if lane is not None and self.cache.spec.num_slots:
            self.catch_up([number])
        if lane is not None:
            self._owed -= sum(self._bytes(segment) for segment in lane.segments if not segment.complete)
            del self._lanes[number]

    @staticmethod
    def _bytes(segment: Segment) -> int:
        return segment.hidden.numel() * segment.hidden.element_size()

    # ---- drafting ----------------------------------------------------------------------------------------------------

    def warm_up(self) -> None:
        """Draft once on the scratch lane, which has run a row of some tokens and one of one token."""
        self.draft([DraftRequest("warm-up", 0, (0,), [0], 2)])
        del self._lanes[0]

    def draft(self, requests: Sequence[DraftRequest]) -> tuple[tuple[int, ...], ...]:
        """See `Runtime.draft`."""
        self._take_in()
        drafts: list[list[int]] = [[] for _ in requests]
        for request in requests:
            lane = self._lanes[request.lane]
            lane.confirm(len(request.tokens) - 1)
            lane.blocks = request.blocks
        counts = [request.room(self._lanes[request.lane].end, self.max_model_len) for request in requests]
        chosen = [index for index, count in enumerate(counts) if count > 0]
        if not chosen:
            return tuple(tuple(found) for found in drafts)
        made = self._make([requests[index] for index in chosen], [counts[index] for index in chosen])
        for index, found in zip(chosen, made, strict=True):
            drafts[index] = found
        return tuple(tuple(found) for found in drafts)

    def _make(self, requests: Sequence[DraftRequest], counts: Sequence[int]) -> list[list[int]]:
        """So many drafts for each request, at least one, where there is room for them."""
        drafts: list[list[int]] = [[] for _ in requests]
        inputs = self._owed_by(requests)
        lanes = [self._lanes[request.lane] for request in requests]
        hidden, place = self._run(lanes, [own for own, _ in inputs], [own for _, own in inputs]), 0
        self._seen(requests)
        going = list(range(len(requests)))
        while True:
            best = self.model.logits(hidden[:, 0]).argmax(-1).tolist()
            for index, token in zip(going, best, strict=True):
                drafts[index].append(token)
            place += 1
            staying = [at for at, index in enumerate(going) if counts[index] > place]
            if not staying:
                return drafts
            going = [going[at] for at in staying]
            newest = [drafts[index][-1] for index in going]
            hidden = self._chain([requests[index] for index in going], newest, hidden[staying], place)

    def _owed_by(self, requests: Sequence[DraftRequest]) -> list[tuple[torch.Tensor, list[int]]]:
        """What each lane owes: hidden states from `written` - 1 on, and the tokens after them, the newest the last."""
        self._complete([request.lane for request in requests])
        lanes = [self._lanes[request.lane] for request in requests]
        return [
            (self._pending(lane), [*self._tokens(lane), request.tokens[-1]])
            for lane, request in zip(lanes, requests, strict=True)
        ]

    def _seen(self, requests: Sequence[DraftRequest]) -> None:
        """Nothing is owed by these any more: the entries of their next tokens are written too."""
        for request in requests:
            lane = self._lanes[request.lane]
            boundary = lane.end // BLOCK_SIZE * BLOCK_SIZE
            for segment in lane.segments:
                if segment.start < boundary <= segment.end:
                    lane.crossed = boundary, segment.hidden[boundary - 1 - segment.start].clone()
            lane.written = lane.end + 1
            lane.segments.clear()

    def catch_up(self, numbers: Sequence[int]) -> None:
        """Write what lanes owe; what their last tokens' hidden states go with is not known yet."""
        self._complete(numbers)
        lanes = [lane for number in numbers if (lane := self._lanes[number]).end > lane.written]
        if not lanes:
            return
        hidden = [self._pending(lane) for lane in lanes]
        self._write(lanes, [own[:-1] for own in hidden], [self._tokens(lane) for lane in lanes])
        for lane, own in zip(lanes, hidden, strict=True):
            last = lane.segments[-1]
            lane.segments[:] = [Segment(last.end - 1, last.tokens[-1:], own[-1:].clone())]
            lane.written = lane.end

    def _complete(self, numbers: Sequence[int]) -> None:
        """Run the rest of the last layer where it was put off, prompts of one length together."""
        waiting = [
            (number, segment) for number in numbers for segment in self._lanes[number].segments if not segment.complete
        ]
        for group in of_one_length(waiting):
            lanes, segments = [self._lanes[number] for number, _ in group], [segment for _, segment in group]
            self._owed -= sum(map(self._bytes, segments))
            rows = [PagedRow.of(lane.blocks, own.start, own.end) for lane, own in zip(lanes, segments, strict=True)]
            positions = torch.stack([torch.arange(own.start, own.end) for own in segments])
            inputs = torch.stack([own.hidden for own in segments])
            hidden = self.model.last_layer(inputs, positions, CpuLastLayer(self.cache, rows))
            for own, found in zip(segments, hidden, strict=True):
                own.hidden, own.complete = found, True
        for number in numbers:
            for segment in self._lanes[number].segments:
                for commit in segment.commits:
                    if self._waiting.get(commit.slot) == (number, commit):  # else the slot has another state by now
                        self.cache.last_hidden[commit.slot] = segment.hidden[commit.boundary - 1 - segment.start]
                        del self._waiting[commit.slot]
                segment.commits.clear()

    def _pending(self, lane: Lane) -> torch.Tensor:
        """Hidden states from position `written` - 1 on, [positions, hidden]."""
        joined = lane.segments[0].hidden if len(lane.segments) == 1 else torch.cat([s.hidden for s in lane.segments])
        return joined[lane.written - 1 - lane.segments[0].start :]

    def _tokens(self, lane: Lane) -> list[int]:
        """Tokens from position `written` on that have run."""
        every = [token for segment in lane.segments for token in segment.tokens]
        return every[lane.written - lane.segments[0].start :]

    def _write(self, lanes: Sequence[Lane], hidden: Sequence[torch.Tensor], tokens: Sequence[Sequence[int]]) -> None:
        """Write entries from `written` on, one a hidden state."""
        self.model.store_for_drafts(*self._inputs(lanes, hidden, tokens))

    def _run(
        self, lanes: Sequence[Lane], hidden: Sequence[torch.Tensor], tokens: Sequence[Sequence[int]]
    ) -> torch.Tensor:
        """Write entries from `written` on, one a hidden state; the layer's result at the last, [lanes, 1, hidden]."""
        last = torch.tensor([len(own) - 1 for own in tokens])
        return self.model.draft(*self._inputs(lanes, hidden, tokens), last)

    def _inputs(
        self, lanes: Sequence[Lane], hidden: Sequence[torch.Tensor], tokens: Sequence[Sequence[int]]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, CpuDraftState]:
        """Hidden states, tokens, positions and memory of one call, padded on the right."""
        lengths = [len(own) for own in tokens]
        padded = torch.nn.utils.rnn.pad_sequence(list(hidden), batch_first=True)
        ids = torch.zeros(padded.shape[:2], dtype=torch.int64)
        for index, own in enumerate(tokens):
            ids[index, : lengths[index]] = torch.tensor(own)
        starts = torch.tensor([lane.written for lane in lanes])
        rows = [
            PagedRow.of(lane.blocks, lane.written, lane.written + length).without_first()
            for lane, length in zip(lanes, lengths, strict=True)
        ]
        positions = starts[:, None] - 1 + torch.arange(padded.shape[1])
        return padded, ids, positions, CpuDraftState(self.cache, rows, lengths)

    def _chain(
        self, requests: Sequence[DraftRequest], tokens: Sequence[int], hidden: torch.Tensor, place: int
    ) -> torch.Tensor:
        """The layer's result of its own result and a draft, `place` positions beyond the next token's."""
        ends = [self._lanes[request.lane].end + place for request in requests]
        rows = [
            PagedRow.of(request.blocks, end, end + 1).without_first()
            for request, end in zip(requests, ends, strict=True)
        ]
        state = CpuDraftState(self.cache, rows, [1] * len(rows))
        return self.model.draft(hidden, torch.tensor(tokens)[:, None], torch.tensor(ends)[:, None] - 1, state)
