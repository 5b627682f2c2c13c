"""A step's memory in a compiled graph: static shapes, everything found by index and given back.

Where things are is decided here; what is done there is an operation of `ops.kernels`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from ..config import BLOCK_SIZE
from ..model.state import Mixing, select_tokens
from ..ops.attention import block_of, offset_of, whole_blocks, write_blocks, write_tokens
from ..ops.banks import Batch, Span, Verify, write_pending
from ..ops.fused import PagedRows
from ..ops.kernels import Kernels
from ..ops.torch_kernels import read_states, write_states
from .inputs import DecodeInputs, DraftInputs, PrefillInputs, VerifyInputs
from .memory import StepMemory


@dataclass(slots=True)
class GraphPrefill(Mixing):
    """One row of many tokens, laid out by whole blocks: `lead` padded tokens, the row's own, padding."""

    memory: StepMemory
    step: PrefillInputs
    kernels: Kernels

    @property
    def lead(self) -> torch.Tensor:
        """[1], padding before the row's own tokens."""
        return offset_of(self.step.starts)

    @property
    def positions(self) -> torch.Tensor:
        """[1, active], of every place of the layout."""
        active = self.step.tokens.shape[1]
        return self.step.starts - self.lead + torch.arange(active, device=self.step.tokens.device).view(1, -1)

    @property
    def last(self) -> torch.Tensor:
        """[1], place of the row's last token."""
        return self.lead + self.step.lengths - 1

    @property
    def span(self) -> Span:
        """Where the row's tokens are and its states are kept."""
        step = self.step
        return Span(
            self.lead, self.last + 1, step.starts == 0, step.sources, step.lanes, step.commit_at, step.commit_to
        )

    def convolve(self, layer: int, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        y, self.memory.window[layer] = self.kernels.conv_prefill(x, weight, self.memory.window[layer], self.span)
        return y

    def delta_rule(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, g: torch.Tensor, beta: torch.Tensor
    ) -> torch.Tensor:
        bank = self.memory.recurrent[layer]
        out, self.memory.recurrent[layer] = self.kernels.delta_rule_prefill(q, k, v, g, beta, bank, self.span)
        return out

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        own_keys, own_values = self._write(layer, k, v)
        table, cache = self.step.table, self.memory.kv[layer]
        if q.shape[1] == 1:  # the last token alone: like a decoded one, it finds all others in the cache
            own = select_tokens(k, self.last), select_tokens(v, self.last)
            return self.kernels.attend(q, *own, cache, table, self.step.starts + self.step.lengths - 1)
        before = table[:, : table.shape[1] - own_keys.shape[0] // BLOCK_SIZE]
        first = self.step.starts - self.lead
        return self.kernels.attend(q, own_keys.unsqueeze(0), own_values.unsqueeze(0), cache, before, first)

    def store(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> None:
        self._write(layer, k, v)

    def _write(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Write keys and values, and give them as whole blocks, [active, kv_heads, head_dim].

        They are written first and read after, so that a graph never needs the old cache beside the new one.
        """
        table, active = self.step.table, self.step.tokens.shape[1] // BLOCK_SIZE
        keys, values = self.memory.kv[layer]
        run = block_of(self.step.starts) + torch.arange(active, device=table.device)
        blocks = table[0].index_select(0, run)
        own_keys, own_values = (whole_blocks(cache, x[0], blocks, self.lead) for cache, x in ((keys, k), (values, v)))
        self.memory.kv[layer] = write_blocks(keys, own_keys, blocks), write_blocks(values, own_values, blocks)
        return own_keys, own_values

    def hidden_before(self, layer: int, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states before those of the layout's places, [1, active, hidden], of draft layer `layer`."""
        first = read_states(self.memory.hidden[layer], self.step.sources, self.step.starts == 0).unsqueeze(1)
        places = torch.arange(hidden.shape[1], device=hidden.device).view(1, -1, 1)
        shifted = torch.cat((first, hidden[:, :-1]), dim=1)
        return torch.where(places == self.lead.view(-1, 1, 1), first, shifted)

    def keep_hidden(self, layer: int, hidden: torch.Tensor) -> None:
        """Keep what the next row goes on from, and what those do that restore a checkpoint."""
        at = torch.cat((self.last, self.step.commit_at * BLOCK_SIZE - 1))
        bank = self.memory.hidden[layer]
        self.memory.hidden[layer] = write_states(bank, self.span, hidden[0].index_select(0, at))


@dataclass(slots=True)
class GraphDecode(Mixing):
    """Rows of one token: tensors are [batch, 1, ...]. A padded row starts at 0 and belongs to nobody."""

    memory: StepMemory
    step: DecodeInputs
    kernels: Kernels

    @property
    def positions(self) -> torch.Tensor:
        """[batch, 1]."""
        return self.step.starts.view(-1, 1)

    @property
    def batch(self) -> Batch:
        """Where the rows' states are kept."""
        step = self.step
        return Batch(step.starts == 0, step.sources, step.lanes, step.commit_at, step.commit_to)

    def convolve(self, layer: int, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        y, self.memory.window[layer] = self.kernels.conv_decode(x, weight, self.memory.window[layer], self.batch)
        return y

    def delta_rule(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, g: torch.Tensor, beta: torch.Tensor
    ) -> torch.Tensor:
        bank = self.memory.recurrent[layer]
        out, self.memory.recurrent[layer] = self.kernels.delta_rule_decode(q, k, v, g, beta, bank, self.batch)
        return out

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        self.store(layer, k, v)
        return self.kernels.attend(q, k, v, self.memory.kv[layer], self.step.table, self.step.starts)

    def paged(self, layer: int) -> PagedRows:
        """Of attention layer `layer`, for a kernel that has all of it."""
        own = positions_in_cache(self.step.table, self.positions)
        return _paged(self.memory.kv[layer], self.step, own, self.step.lanes.view(-1, 1) != 0)

    def store(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> None:
        keys, values = self.memory.kv[layer]
        index = positions_in_cache(self.step.table, self.positions).view(-1)
        self.memory.kv[layer] = write_tokens(keys, k[:, 0], index), write_tokens(values, v[:, 0], index)

    def hidden_before(self, layer: int, hidden: torch.Tensor) -> torch.Tensor:
        """As in `GraphPrefill`, [batch, 1, hidden]."""
        return read_states(self.memory.hidden[layer], self.step.sources, self.step.starts == 0).unsqueeze(1)

    def keep_hidden(self, layer: int, hidden: torch.Tensor) -> None:
        """As in `GraphPrefill`."""
        left = hidden[:, 0]
        written = torch.cat((left, left.index_select(0, self.step.commit_at)))
        self.memory.hidden[layer] = write_states(self.memory.hidden[layer], self.batch, written)


@dataclass(slots=True)
class GraphVerify(Mixing):
    """Rows of a certain token and drafts: tensors are [batch, 1 + drafts, ...]. What is padding goes to scratch.

    The states that the lanes are left with hold the certain tokens; drafts change nothing but what is pending.

    Attributes:
        rows: where the rows' states are kept, and which drafts they take in; one object for all layers.
    """

    memory: StepMemory
    step: VerifyInputs
    kernels: Kernels
    rows: Verify = field(init=False)

    def __post_init__(self) -> None:
        step = self.step
        self.rows = Verify(
            step.starts == 0,
            step.sources,
            step.lanes,
            step.accepted,
            step.commit_at,
            step.commit_after,
            step.commit_to,
        )

    @property
    def places(self) -> torch.Tensor:
        """int32 [1, 1 + drafts]."""
        tokens = self.step.tokens
        return torch.arange(tokens.shape[1], dtype=torch.int32, device=tokens.device).view(1, -1)

    @property
    def positions(self) -> torch.Tensor:
        """[batch, 1 + drafts]."""
        return self.step.starts.view(-1, 1) + self.places

    def convolve(self, layer: int, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        memory = self.memory
        y, memory.window[layer], memory.inputs[layer] = self.kernels.conv_verify(
            x, weight, memory.window[layer], memory.inputs[layer], self.rows
        )
        return y

    def delta_rule(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, g: torch.Tensor, beta: torch.Tensor
    ) -> torch.Tensor:
        memory = self.memory
        out, memory.recurrent[layer], memory.factors[layer] = self.kernels.delta_rule_verify(
            q, k, v, g, beta, memory.recurrent[layer], memory.factors[layer], self.rows
        )
        return out

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        self.store(layer, k, v)
        return self.kernels.attend(q, k, v, self.memory.kv[layer], self.step.table, self.step.starts)

    def paged(self, layer: int) -> PagedRows:
        """As in `GraphDecode`."""
        own = positions_in_cache(self.step.table, self.positions)
        return _paged(self.memory.kv[layer], self.step, own, self.places < self.step.lengths.view(-1, 1))

    def store(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> None:
        keys, values = self.memory.kv[layer]
        real = self.places < self.step.lengths.view(-1, 1)
        index = positions_in_cache(self.step.table, self.positions).masked_fill(~real, 0).view(-1)
        self.memory.kv[layer] = (
            write_tokens(keys, k.flatten(0, 1), index),
            write_tokens(values, v.flatten(0, 1), index),
        )

    def hidden_before(self, layer: int, hidden: torch.Tensor) -> torch.Tensor:
        """As in `GraphPrefill`, [batch, 1 + drafts, hidden]: a row's first token follows its last accepted draft."""
        step, memory = self.step, self.memory
        held = read_states(memory.hidden[layer], step.sources, step.starts == 0).unsqueeze(1)
        known = torch.cat((held, memory.beyond[layer].index_select(0, step.lanes)), dim=1)
        return torch.cat((select_tokens(known, step.accepted), hidden[:, :-1]), dim=1)

    def keep_hidden(self, layer: int, hidden: torch.Tensor) -> None:
        """As in `GraphPrefill`, and those of the drafts, one of which the next row may go on from."""
        step, memory = self.step, self.memory
        lanes, accepted = (rows.index_select(0, step.commit_at) for rows in (step.lanes, step.accepted))
        beyond, after = memory.beyond[layer].index_select(0, lanes), step.commit_after - 1
        crossed = select_tokens(beyond, after.clamp(max=beyond.shape[1] - 1))[:, 0]
        own = hidden[:, 0].index_select(0, step.commit_at)
        committed = torch.where((after == accepted).view(-1, 1), own, crossed)
        written = torch.cat((hidden[:, 0], committed))
        memory.hidden[layer] = write_states(memory.hidden[layer], self.rows, written)
        memory.beyond[layer] = write_pending(memory.beyond[layer], step.lanes, hidden[:, 1:])


@dataclass(slots=True)
class GraphDraft(Mixing):
    """Rows from which the draft layer drafts: tensors are [batch, 1, ...].

    Attributes:
        place: of the draft that is made now. Its entry is `place` positions beyond the token's.
    """

    memory: StepMemory
    step: DraftInputs
    kernels: Kernels
    place: int = 0

    @property
    def positions(self) -> torch.Tensor:
        """[batch, 1], of the entry that is written now."""
        return self.step.starts.view(-1, 1) + self.place

    def hidden_before(self, layer: int) -> torch.Tensor:
        """The hidden state before each row's token, [batch, 1, hidden]."""
        lanes, memory = self.step.lanes, self.memory
        held = memory.hidden[layer].index_select(0, lanes).unsqueeze(1)
        return select_tokens(torch.cat((held, memory.beyond[layer].index_select(0, lanes)), dim=1), self.step.accepted)

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        keys, values = self.memory.kv[layer]
        wanted = self.step.wanted[:, self.place : self.place + 1] != 0
        index = positions_in_cache(self.step.table, self.positions).masked_fill(~wanted, 0).view(-1)
        cache = write_tokens(keys, k[:, 0], index), write_tokens(values, v[:, 0], index)
        self.memory.kv[layer] = cache
        held = self.positions[:, 0].masked_fill(~wanted[:, 0], 0)
        return self.kernels.attend(q, k, v, cache, self.step.table, held, begin=1)


def _paged(
    cache: tuple[torch.Tensor, torch.Tensor], step: DecodeInputs | VerifyInputs, own: torch.Tensor, real: torch.Tensor
) -> PagedRows:
    """own: int [batch, tokens], places of new tokens; real: bool, of its shape or [batch, 1], those that are kept."""
    past = cache[0].shape[0] * BLOCK_SIZE
    return PagedRows(cache, step.table, step.starts, own.masked_fill(~real, past).view(-1, 1))


def positions_in_cache(table: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Where positions are, counted through the blocks; int [batch, n] both. Those past the table are anywhere in it."""
    block = table.gather(1, block_of(positions).clamp(max=table.shape[1] - 1).long())
    return block * BLOCK_SIZE + offset_of(positions)
