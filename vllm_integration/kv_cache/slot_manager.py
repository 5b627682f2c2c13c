"""The scheduler-side manager of the recurrent state: which boundaries get a checkpoint, and what a prefix can reuse.

A request's row in this group has an entry a full block: the id of the slot that keeps the state at the block's end, or
0 where none is kept. The entry is appended when the block's last token is first scheduled, so the worker learns it in
the very step that must write it, and reads it again never; its own request goes on in a lane.

A hash is published when the step that writes its state is scheduled, as vLLM does for KV, and nothing that a step
writes is read by another request in that same step: a request that would is held back for one step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from vllm.utils.math_utils import cdiv
from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.kv_cache_utils import BlockHash, BlockHashList, KVCacheBlock, make_block_hash_with_group_id
from vllm.v1.core.single_type_kv_cache_manager import SingleTypeKVCacheManager
from vllm.v1.kv_cache_interface import KVCacheSpec
from vllm.v1.request import Request

from qwen36_neuron.apc import BoundaryPlanner, Checkpoint, DropReason, Kind, Plan, SeenPrefixes, SlotPool

from ..settings import NAMED
from .covered import CoveredBlocks
from .events import SlotEvents
from .spec import LaneSpec

NOT_THIS_STEP = 1 << 40
"""More blocks than any pool has: the answer that makes vLLM's scheduler try a waiting request again next step."""

_MANAGERS: WeakKeyDictionary[BlockPool, SlotManager] = WeakKeyDictionary()
"""vLLM looks prefixes up through a class method that is handed the KV block pool; this finds the manager again."""


@dataclass(slots=True)
class RequestCheckpoints:
    """The checkpoints of one request that runs: which it is to have, and those that it has.

    Attributes:
        plan: which boundaries.
        reserved: checkpoints whose tokens are not certain yet, ascending.
        written: checkpoints that the step being scheduled writes.
        turn_end: the last checkpoint made while decoding.
    """

    plan: Plan
    reserved: list[Checkpoint] = field(default_factory=list)
    written: list[Checkpoint] = field(default_factory=list)
    turn_end: Checkpoint | None = None


@dataclass(slots=True)
class CheckpointStatistics:
    """What happened to checkpoints since the start.

    Attributes:
        state_bytes: bytes of one copy.
        hits: requests that went on from one, by why it was kept.
        drops: those given up, by why.
        tokens_reused: tokens of those prefixes, the same way.
        writes: states copied into slots.
    """

    state_bytes: int
    hits: Counter[Kind] = field(default_factory=Counter)
    drops: Counter[DropReason] = field(default_factory=Counter)
    tokens_reused: Counter[Kind] = field(default_factory=Counter)
    writes: int = 0

    def totals(self) -> dict[tuple[str, str], int]:
        """The same as metrics.TOTALS names them."""
        copies = {"write": self.writes, "restore": self.hits.total()}
        return {
            **{("checkpoint_hits", kind.value): count for kind, count in self.hits.items()},
            **{("checkpoint_drops", reason.value): count for reason, count in self.drops.items()},
            **{("checkpoint_copies", way): count for way, count in copies.items()},
            **{("checkpoint_copied_bytes", way): count * self.state_bytes for way, count in copies.items()},
            **{("prefix_tokens_reused", kind.value): count for kind, count in self.tokens_reused.items()},
        }


class SlotManager(SingleTypeKVCacheManager):
    """Manager of the lane group, registered for LaneSpec."""

    def __init__(self, kv_cache_spec: KVCacheSpec, block_pool: BlockPool, **kwargs: Any) -> None:
        super().__init__(kv_cache_spec, block_pool, **kwargs)
        assert isinstance(kv_cache_spec, LaneSpec)
        policy = kv_cache_spec.policy
        self.slots = SlotPool(policy.num_slots if self.enable_caching else 0, kv_cache_spec.cost, self._dropped)
        self.planner = BoundaryPlanner(policy)
        self.requests: Mapping[str, Request] = {}
        """vLLM's requests by id; the scheduler puts its own mapping here."""
        self.statistics = CheckpointStatistics(kv_cache_spec.state_bytes)
        self.seen = SeenPrefixes(block_pool.num_gpu_blocks)
        self._kv = CoveredBlocks(block_pool, 1 - self.kv_cache_group_id, self.slots)
        self._events = SlotEvents(block_pool, self.kv_cache_group_id, self.block_size)
        self._blocks = [KVCacheBlock(slot) for slot in range(self.slots.num_slots + 1)]
        self._by_request: dict[str, RequestCheckpoints] = {}
        self._fresh: set[BlockHash] = set()
        self._ended: list[BlockHash] = []
        """Keys of the blocks of requests that ended or were preempted, until they are given away."""
        self._taken = False
        """Whether KV blocks were given away since the last step."""
        _MANAGERS[block_pool] = self

    # ---- what vLLM's coordinator calls, in the order of a step -------------------------------------------------------

    def new_step_starts(self) -> None:
        """The last step is settled: what it wrote can be read. Slots and KV that are of no use any more are freed."""
        self.slots.new_step()
        self._fresh.clear()
        for own in self._by_request.values():
            own.written.clear()
        if self._taken:
            for checkpoint in list(self.slots.by_key.values()):
                if self._kv.find(checkpoint.key) is None:
                    self.slots.drop(checkpoint, DropReason.ORPHANED)
            self._taken = False
        self._discard()

    @classmethod
    def find_longest_cache_hit(
        cls,
        block_hashes: BlockHashList,
        max_length: int,
        kv_cache_group_ids: list[int],
        block_pool: BlockPool,
        kv_cache_spec: KVCacheSpec,
        drop_eagle_block: bool,
        alignment_tokens: int,
        dcp_world_size: int = 1,
        pcp_world_size: int = 1,
    ) -> tuple[tuple[list[KVCacheBlock], ...], int]:
        """The deepest boundary of at most `max_length` tokens, which is where KV ends, that has a checkpoint."""
        manager = _MANAGERS[block_pool]
        checkpoint = manager.slots.lookup(block_hashes, max_length)
        if checkpoint is None:
            return ([],), 0
        row = [manager._null_block] * (checkpoint.blocks - 1) + [manager._blocks[checkpoint.slot]]
        return (row,), checkpoint.boundary

    def get_num_blocks_to_allocate(
        self,
        request_id: str,
        num_tokens: int,
        new_computed_blocks: Sequence[KVCacheBlock],
        total_computed_tokens: int,
        num_local_computed_tokens: int,
        num_tokens_main_model: int,
        apply_admission_cap: bool = False,
    ) -> int:
        """None of vLLM's pool, unless the prefix to reuse is still being written by this step.

        The request's new tokens need KV blocks, and here is where room is made for them: after what a request preempted
        in this very step left behind is given away, and not at all where vLLM has too few blocks and will refuse.
        """
        if new_computed_blocks and self._fresh:
            reused = self.requests[request_id].block_hashes[: len(new_computed_blocks)]
            if not self._fresh.isdisjoint(reused):
                return NOT_THIS_STEP
        count = cdiv(num_tokens, self.block_size) - cdiv(total_computed_tokens, self.block_size)
        possible = not apply_admission_cap and count <= self.block_pool.get_num_free_blocks()
        if count and self.slots.num_slots and possible:
            self._discard()
            restored = self.slots.by_slot[new_computed_blocks[-1].block_id] if new_computed_blocks else None
            self._kv.make_room(count, restored)
            self._taken = True
        return 0

    def add_local_computed_blocks(
        self,
        request_id: str,
        new_computed_blocks: Sequence[KVCacheBlock],
        num_local_computed_tokens: int,
        num_external_computed_tokens: int,
    ) -> None:
        """The request is admitted with this prefix: its step restores the last slot of it."""
        self.req_to_blocks[request_id] = list(new_computed_blocks)
        self.num_cached_block[request_id] = len(new_computed_blocks)
        if new_computed_blocks:
            checkpoint = self.slots.by_slot[new_computed_blocks[-1].block_id]
            self.statistics.hits[checkpoint.kind] += 1
            self.statistics.tokens_reused[checkpoint.kind] += checkpoint.boundary

    def allocate_external_computed_blocks(
        self, request_id: str, num_local_computed_tokens: int, num_external_computed_tokens: int
    ) -> None:
        """Never called: a KV connector is refused at start-up."""
        raise RuntimeError("checkpoint slots cannot be loaded through a KV connector")

    def allocate_new_blocks(self, request_id: str, num_tokens: int, num_tokens_main_model: int) -> list[KVCacheBlock]:
        """Append the entries of the blocks that the scheduled tokens complete, with slots for those worth keeping."""
        if not self.slots.num_slots:
            return []
        request = self.requests[request_id]
        row = self.req_to_blocks[request_id]
        before = len(row)
        own = self._by_request.get(request_id)
        if own is None:
            own = self._by_request[request_id] = self._admit(request, row)
        for count in range(before + 1, num_tokens_main_model // self.block_size + 1):
            boundary = count * self.block_size
            checkpoint = self.slots.reserve(boundary, own.plan, request.block_hashes, own.turn_end)
            if checkpoint is not None:
                own.reserved.append(checkpoint)
            row.append(self._null_block if checkpoint is None else self._blocks[checkpoint.slot])
        return row[before:]

    def cache_blocks(self, request: Request, num_tokens: int, retention_interval: int | None = None) -> None:
        """The first `num_tokens` tokens of `request` are certain, and computed when the step being scheduled ends."""
        full, before = num_tokens // self.block_size, self.num_cached_block.get(request.request_id, 0)
        if full == before:
            return
        self._fresh.update(request.block_hashes[before:full])
        self.num_cached_block[request.request_id] = full
        own = self._by_request.get(request.request_id)
        while own is not None and own.reserved and own.reserved[0].boundary <= num_tokens:
            self._publish(request, own, own.reserved.pop(0))

    def pop_blocks_for_free(self, request_id: str) -> list[KVCacheBlock]:
        """The request ended or was preempted. Its checkpoints stay; none of them belongs to vLLM's pool."""
        self.req_to_blocks.pop(request_id, None)
        blocks = self.num_cached_block.pop(request_id, 0)
        if self.slots.num_slots:
            request = self.requests[request_id]
            path = request.block_hashes[:blocks]
            self._ended += path
            # One that was preempted comes again, and would be taken for another one that leaves itself.
            if request.is_finished():
                self.seen.add(path, request.all_token_ids)
        own = self._by_request.pop(request_id, None)
        for checkpoint in own.reserved if own is not None else ():
            self.slots.drop(checkpoint, DropReason.UNWRITTEN)
        return []

    def get_num_common_prefix_blocks(self, running_request_id: str) -> int:
        """Nothing to share: no two sequences read a slot together."""
        return 0

    # ---- what our scheduler calls ------------------------------------------------------------------------------------

    def unpublish(self, request_id: str) -> None:
        """Unpublish what the step being scheduled was to write for a request, since it will not."""
        own = self._by_request.get(request_id)
        for checkpoint in own.written if own is not None else ():
            if self.slots.holds(checkpoint):
                self.slots.drop(checkpoint, DropReason.UNWRITTEN)

    def reset(self) -> None:
        """Forget everything, as when the weights change."""
        self.slots.clear()
        self.seen.clear()

    # ---- inside ------------------------------------------------------------------------------------------------------

    def _discard(self) -> None:
        """Have vLLM give away first what ended requests and given up checkpoints were the last to need."""
        self._kv.discard(self._ended + self.slots.take_uncovered())
        self._ended.clear()

    def _admit(self, request: Request, row: Sequence[KVCacheBlock]) -> RequestCheckpoints:
        restored = self.slots.by_slot[row[-1].block_id] if row else None
        self.slots.admit(request.block_hashes, request.num_tokens - 1, restored)
        limit = (request.num_tokens - 1) // self.block_size
        branch = max(request.shared_prefix_boundary, self.seen.match(request.block_hashes, limit) * self.block_size)
        params = request.sampling_params
        named = (params.extra_args or {}).get(NAMED, ()) if params is not None else ()
        prompt = request.prompt_token_ids or ()
        start = restored.boundary if restored is not None else 0
        plan = self.planner.plan(
            prompt,
            start,
            branch,
            named,
            restored.kind if restored is not None else None,
            self.seen.openings(request.block_hashes, prompt, start, request.cache_salt),
        )
        return RequestCheckpoints(plan)

    def _publish(self, request: Request, own: RequestCheckpoints, checkpoint: Checkpoint) -> None:
        if not self.slots.publish(checkpoint, request.block_hashes):
            return
        own.written.append(checkpoint)
        if checkpoint.kind is Kind.TURN_END:
            own.turn_end = checkpoint
        self.statistics.writes += 1
        key = make_block_hash_with_group_id(request.block_hashes[checkpoint.blocks - 1], self.kv_cache_group_id)
        self._blocks[checkpoint.slot].set_block_hash(key, num_tokens=checkpoint.boundary)
        self._events.stored(request, checkpoint.blocks)

    def _dropped(self, checkpoint: Checkpoint, reason: DropReason) -> None:
        self.statistics.drops[reason] += 1
        self._blocks[checkpoint.slot].reset_hash()
        self._events.removed(checkpoint)
