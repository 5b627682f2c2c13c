"""The scheduler-side manager of the recurrent state: which boundaries get a checkpoint, and what a prefix can reuse.

A request's row in this group has an entry a full block: the id of the slot that keeps the state at the block's end, or
0 where none is kept. The entry is appended when the block's last token is first scheduled, so the worker learns it in
the very step that must write it, and reads it again never; its own request goes on in a lane.

A hash is published when the step that writes its state is scheduled, as vLLM does for KV, and nothing that a step
writes is read by another request in that same step: a request that would is held back for one step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from vllm.distributed.kv_events import MEDIUM_GPU, BlockRemoved, BlockStored
from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.kv_cache_utils import (
    BlockHash,
    BlockHashList,
    KVCacheBlock,
    generate_block_hash_extra_keys,
    make_block_hash_with_group_id,
    maybe_convert_block_hash,
)
from vllm.v1.core.single_type_kv_cache_manager import SingleTypeKVCacheManager
from vllm.v1.kv_cache_interface import KVCacheSpec
from vllm.v1.request import Request

from .policy import Boundaries, Policy
from .slot_pool import Checkpoint, SlotPool
from .spec import LaneSpec

NOT_THIS_STEP = 1 << 40
"""More blocks than any pool has: the answer that makes vLLM's scheduler try a waiting request again next step."""

_MANAGERS: WeakKeyDictionary[BlockPool, SlotManager] = WeakKeyDictionary()
"""vLLM looks prefixes up through a class method that is handed the KV block pool; this finds the manager again."""


class SlotManager(SingleTypeKVCacheManager):
    """Manager of the lane group, registered for LaneSpec."""

    def __init__(self, kv_cache_spec: KVCacheSpec, block_pool: BlockPool, **kwargs: Any) -> None:
        super().__init__(kv_cache_spec, block_pool, **kwargs)
        assert isinstance(kv_cache_spec, LaneSpec)
        self.slots = SlotPool(kv_cache_spec.num_slots if self.enable_caching else 0)
        self.policy = Policy()
        self.requests: Mapping[str, Request] = {}
        """vLLM's requests by id; the scheduler puts its own mapping here."""
        self.attention_group = 1 - self.kv_cache_group_id
        self._blocks = [KVCacheBlock(slot) for slot in range(self.slots.num_slots + 1)]
        self._boundaries: dict[str, Boundaries] = {}
        self._fresh: set[BlockHash] = set()
        self._written: dict[str, list[Checkpoint]] = {}
        _MANAGERS[block_pool] = self

    # ---- what vLLM's coordinator calls, in the order of a step -------------------------------------------------------

    def new_step_starts(self) -> None:
        """The last step is settled: what it wrote can be read."""
        self.slots.new_step()
        self._fresh.clear()
        self._written.clear()

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
        for count in range(min(max_length // manager.block_size, len(block_hashes)), 0, -1):
            checkpoint = manager.slots.by_key.get(block_hashes[count - 1])
            if checkpoint is not None:
                row = [manager._null_block] * (count - 1) + [manager._blocks[checkpoint.slot]]
                return (row,), count * manager.block_size
        return ([],), 0

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
        """None of vLLM's pool, unless the prefix to reuse is still being written by this step."""
        reused = self.requests[request_id].block_hashes[: len(new_computed_blocks)] if new_computed_blocks else ()
        return NOT_THIS_STEP if self._fresh and not self._fresh.isdisjoint(reused) else 0

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
            self.slots.use(self.slots.by_slot[new_computed_blocks[-1].block_id])

    def allocate_external_computed_blocks(
        self, request_id: str, num_local_computed_tokens: int, num_external_computed_tokens: int
    ) -> None:
        """Never called: a KV connector is refused at start-up."""
        raise RuntimeError("checkpoint slots cannot be loaded through a KV connector")

    def allocate_new_blocks(self, request_id: str, num_tokens: int, num_tokens_main_model: int) -> list[KVCacheBlock]:
        """Append the entries of the blocks that the scheduled tokens complete; give slots to those worth keeping."""
        if not self.enable_caching:
            return []
        request = self.requests[request_id]
        row = self.req_to_blocks[request_id]
        before = len(row)
        for count in range(before + 1, num_tokens_main_model // self.block_size + 1):
            row.append(self._entry(request, count))
        return row[before:]

    def cache_blocks(self, request: Request, num_tokens: int, retention_interval: int | None = None) -> None:
        """What is scheduled for `request` is being written in this step, and may be read from the next one on."""
        full = num_tokens // self.block_size
        self._fresh.update(request.block_hashes[self.num_cached_block.get(request.request_id, 0) : full])
        self.num_cached_block[request.request_id] = full

    def pop_blocks_for_free(self, request_id: str) -> list[KVCacheBlock]:
        """The request ended or was preempted. Its checkpoints stay; none of them belongs to vLLM's pool."""
        self.req_to_blocks.pop(request_id, None)
        self.num_cached_block.pop(request_id, None)
        self._boundaries.pop(request_id, None)
        return []

    def get_num_common_prefix_blocks(self, running_request_id: str) -> int:
        """Nothing to share: no two sequences read a slot together."""
        return 0

    # ---- what our scheduler calls ------------------------------------------------------------------------------------

    def take_back(self, request: Request, num_computed_tokens: int) -> None:
        """Unpublish what this step was to write for `request` beyond `num_computed_tokens`, since it will not run."""
        for checkpoint in self._written.pop(request.request_id, ()):
            if checkpoint.boundary > num_computed_tokens and self.slots.by_slot.get(checkpoint.slot) is checkpoint:
                self._drop(checkpoint, "unwritten")

    def reset(self) -> None:
        """Forget every checkpoint, as when the weights change."""
        for checkpoint in list(self.slots.by_slot.values()):
            self._drop(checkpoint, "reset")

    # ---- inside ------------------------------------------------------------------------------------------------------

    def _entry(self, request: Request, count: int) -> KVCacheBlock:
        """The row's entry for the boundary after `count` blocks."""
        boundaries = self._boundaries.get(request.request_id)
        if boundaries is None:
            boundaries = self._boundaries[request.request_id] = self.policy.plan(request)
        boundary = count * self.block_size
        key = request.block_hashes[count - 1]
        if boundary not in boundaries or key in self.slots.by_key:
            return self._null_block
        superseded = boundaries.superseded_by(boundary)
        if superseded is not None and self.slots.holds(superseded) and not superseded.hits:
            self._drop(superseded, "superseded")
        if not self.slots.has_room and not self._make_room():
            return self._null_block
        checkpoint = self.slots.add(key, boundary)
        boundaries.kept(checkpoint)
        self._written.setdefault(request.request_id, []).append(checkpoint)
        block = self._blocks[checkpoint.slot]
        block.set_block_hash(make_block_hash_with_group_id(key, self.kv_cache_group_id), num_tokens=boundary)
        self._announce(request, count)
        return block

    def _make_room(self) -> bool:
        """Give up one checkpoint, first of all one whose KV is gone, since a hit needs both. False if all are busy."""
        idle = self.slots.idle()
        if not idle:
            return False
        orphans = [c for c in idle if self.block_pool.get_cached_block(c.key, [self.attention_group]) is None]
        if orphans:
            self._drop(orphans[0], "orphaned")
        else:
            self._drop(self.policy.victim(idle), "capacity")
        return True

    def _drop(self, checkpoint: Checkpoint, reason: str) -> None:
        self.slots.drop(checkpoint, reason)
        self._blocks[checkpoint.slot].reset_hash()
        if self.block_pool.enable_kv_cache_events:
            self.block_pool.kv_event_queue.append(
                BlockRemoved(
                    block_hashes=[maybe_convert_block_hash(checkpoint.key)],
                    medium=MEDIUM_GPU,
                    group_idx=self.kv_cache_group_id,
                )
            )

    def _announce(self, request: Request, count: int) -> None:
        """Tell routers that the state after `count` blocks of `request` can be reused here."""
        if not self.block_pool.enable_kv_cache_events:
            return
        start, end = (count - 1) * self.block_size, count * self.block_size
        hashes = request.block_hashes
        extra_keys, _ = generate_block_hash_extra_keys(request, start, end, 0)
        self.block_pool.kv_event_queue.append(
            BlockStored(
                block_hashes=[maybe_convert_block_hash(hashes[count - 1])],
                parent_block_hash=maybe_convert_block_hash(hashes[count - 2]) if count > 1 else None,
                token_ids=list(request.all_token_ids[start:end]),
                block_size=self.block_size,
                lora_id=None,
                medium=MEDIUM_GPU,
                lora_name=None,
                extra_keys=[extra_keys],
                group_idx=self.kv_cache_group_id,
            )
        )
