"""How big the hybrid cache is: one description for what is allocated and for what is planned."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch

from ..config import BLOCK_SIZE, ModelConfig
from ..ops.banks import factor_columns

FEWEST_SLOTS, MOST_SLOTS = 16, 256
STARVED = 4
"""Bytes of KV for a byte of slots from which on slots are too few for what KV could hold."""


def default_slots(kv_bytes: int, state_bytes: int) -> int:
    """Checkpoint slots beside `kv_bytes` of KV: half as many bytes, since a prefix takes both, within limits.

    A conversation of 4,700 tokens of the 27B has twice the bytes of its one checkpoint in KV; shorter prefixes have
    less. At least FEWEST_SLOTS, or a few shared beginnings fill them all, and at most MOST_SLOTS, since each request
    is compared with all of them.
    """
    return min(max(kv_bytes // (2 * state_bytes), FEWEST_SLOTS), MOST_SLOTS)


def slots_starve(num_slots: int, kv_bytes: int, state_bytes: int) -> bool:
    """Whether so few slots stand beside so much KV that most of it can never be part of a hit."""
    return 0 < num_slots < MOST_SLOTS and kv_bytes > STARVED * num_slots * state_bytes


@dataclass(frozen=True, slots=True)
class CacheSpec:
    """Shapes of the cache of one rank.

    A DeltaNet layer keeps all of its states in one bank of `entries`: entry 0 is scratch, lane n is entry n, and
    checkpoint slot s is entry num_lanes + s, so that restoring a checkpoint is reading another entry.

    Attributes:
        num_blocks: KV blocks of BLOCK_SIZE tokens; block 0 is scratch.
        num_lanes: running sequences, 1..num_lanes.
        num_slots: state checkpoints, 1..num_slots.
        dtype: of the convolution windows, and of KV unless `kv_dtype` says otherwise. The recurrent state is fp32.
        max_drafts: unconfirmed tokens of a lane whose factors are kept, for a step to absorb those that were right.
        draft_layer: keep KV of the multi-token-prediction layer too, and the last hidden state of each checkpoint.
        kv_dtype: of KV; None for `dtype`.
    """

    config: ModelConfig
    num_blocks: int
    num_lanes: int
    num_slots: int
    dtype: torch.dtype
    tp: int = 1
    max_drafts: int = 0
    draft_layer: bool = False
    kv_dtype: torch.dtype | None = None

    @property
    def kv_numbers(self) -> torch.dtype:
        """The type of keys and values."""
        return self.kv_dtype or self.dtype

    @property
    def kv_layers(self) -> tuple[int, ...]:
        """Indices of the layers that have keys and values; the draft layer's comes behind all others."""
        return (*self.config.attention_layers, *self.draft_layers)

    @property
    def draft_layers(self) -> tuple[int, ...]:
        """The index of the draft layer, if it is held."""
        return (self.config.num_layers,) if self.draft_layer else ()

    @property
    def kv_shape(self) -> tuple[int, int, int, int]:
        """Keys, or values, of one attention layer: [blocks, BLOCK_SIZE, kv heads, head_dim]."""
        return self.num_blocks, BLOCK_SIZE, self.config.rank(self.tp).num_kv_heads, self.config.head_dim

    @property
    def entries(self) -> int:
        """States of one DeltaNet layer: scratch, lanes and checkpoint slots."""
        return 1 + self.num_lanes + self.num_slots

    def slot_entry(self, slot: int) -> int:
        """The entry of a checkpoint slot, 1..num_slots."""
        return self.num_lanes + slot

    @property
    def recurrent_shape(self) -> tuple[int, int, int]:
        """State of one sequence in one DeltaNet layer: [value heads, dk, dv]."""
        return self.config.rank(self.tp).num_value_heads, self.config.key_head_dim, self.config.value_head_dim

    @property
    def window_shape(self) -> tuple[int, int]:
        """Convolution window of one sequence in one DeltaNet layer: [kernel - 1, channels]."""
        return self.config.conv_kernel - 1, self.config.rank(self.tp).conv_channels

    @property
    def block_bytes(self) -> int:
        """One KV block in all attention layers of this rank."""
        *_, heads, dim = self.kv_shape
        return len(self.kv_layers) * 2 * BLOCK_SIZE * heads * dim * self.kv_numbers.itemsize

    @property
    def lane_bytes(self) -> int:
        """One lane, or one checkpoint slot, in all DeltaNet layers of this rank."""
        return self.config.state_bytes_per_lane(self.tp, self.dtype.itemsize)

    @property
    def draft_bytes(self) -> int:
        """The factors of one unconfirmed token in all DeltaNet layers of this rank."""
        rank = self.config.rank(self.tp)
        inputs = 2 * rank.conv_channels * self.dtype.itemsize  # before the convolution, and keys and values after it
        queries = rank.num_key_heads * self.config.key_head_dim * self.dtype.itemsize
        return len(self.config.deltanet_layers) * (inputs - queries + 2 * rank.num_value_heads * 4)

    @property
    def pending_shapes(self) -> tuple[tuple[int, int, int], tuple[int, int, int, int]]:
        """What a graph keeps of one DeltaNet layer's drafts, by lane: convolution inputs and, in fp32, factors."""
        rank, rows = self.config.rank(self.tp), (1 + self.num_lanes, self.max_drafts)
        share = rank.num_value_heads // rank.num_key_heads
        columns = factor_columns(self.config.key_head_dim, self.config.value_head_dim, share)
        return (*rows, rank.conv_channels), (*rows, rank.num_key_heads, columns)

    @property
    def pending_bytes(self) -> int:
        """All of `pending_shapes` in all DeltaNet layers of this rank."""
        inputs, factors = (prod(shape) for shape in self.pending_shapes)
        return len(self.config.deltanet_layers) * (inputs * self.dtype.itemsize + factors * 4)

    @property
    def hidden_shapes(self) -> tuple[tuple[int, int], tuple[int, int, int]]:
        """What a graph keeps for the draft layer: the last hidden state of each entry, those of each lane's drafts."""
        size = self.config.hidden_size
        return (self.entries, size), (1 + self.num_lanes, self.max_drafts, size)

    @property
    def hidden_bytes(self) -> int:
        """All of `hidden_shapes`, which every rank holds whole; 0 without a draft layer."""
        return len(self.draft_layers) * sum(prod(shape) for shape in self.hidden_shapes) * self.dtype.itemsize

    @property
    def total_bytes(self) -> int:
        """All that `HybridCache` allocates."""
        drafts = (1 + self.num_lanes) * self.max_drafts * self.draft_bytes
        if self.draft_layer:
            drafts += (1 + self.num_slots) * self.config.hidden_size * self.dtype.itemsize
        return self.num_blocks * self.block_bytes + self.entries * self.lane_bytes + drafts
