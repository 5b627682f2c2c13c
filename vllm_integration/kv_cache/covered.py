"""Keeps KV where a checkpoint can use it: the blocks that none needs are the first that vLLM gives away.

vLLM's block pool hands out free blocks from the front of a queue, in which blocks without a hash come first and the
others by when they were last used. A block that no checkpoint needs can never be part of a hit, so it loses its hash
and goes to the front; and where those are too few for a request, a checkpoint is given up for its blocks.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import cast

from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.kv_cache_utils import BlockHash, KVCacheBlock, get_block_hash

from qwen36_neuron.apc import Checkpoint, Key, SlotPool


class CoveredBlocks:
    """The order in which KV blocks are given away.

    Everything here is advice: whatever is given away, a hit is looked up in what vLLM then still holds.

    Args:
        block_pool: vLLM's.
        group: index of the attention group.
        slots: the checkpoints.
    """

    def __init__(self, block_pool: BlockPool, group: int, slots: SlotPool) -> None:
        self._pool = block_pool
        self._groups = [group]
        self._slots = slots

    def find(self, key: Key) -> KVCacheBlock | None:
        """The block that holds the last tokens of the prefix `key`, if there is one."""
        found = self._pool.get_cached_block(cast(BlockHash, key), self._groups)
        return found[0] if found else None

    def discard(self, keys: Iterable[Key]) -> None:
        """Give the blocks of those `keys` that no checkpoint needs, and no request runs with, away first."""
        cover = self._slots.cover
        found = (self.find(key) for key in keys if key not in cover)
        blocks = {block.block_id: block for block in found if block is not None and not block.ref_cnt}
        if blocks:
            self._pool.evict_blocks(set(blocks))
            self._pool.touch(list(blocks.values()))
            self._pool.free_blocks(blocks.values())

    def make_room(self, count: int, restored: Checkpoint | None) -> None:
        """Give checkpoints up until the next `count` blocks to be given away are such as no checkpoint needs.

        Args:
            count: blocks.
            restored: the checkpoint that is about to be used.
        """
        while any(self._needed(block) for block in islice(self._pool.free_block_queue.iter_blocks_after(None), count)):
            if not self._slots.give_up_kv(lambda checkpoint: checkpoint is not restored and self._idle(checkpoint)):
                return
            self.discard(self._slots.take_uncovered())

    def _needed(self, block: KVCacheBlock) -> bool:
        """Whether a checkpoint needs it. Of a prefix that was computed twice the first copy is the one that counts."""
        if block.block_hash is None:
            return False
        key = get_block_hash(block.block_hash)
        return key in self._slots.cover and self.find(key) is block

    def _idle(self, checkpoint: Checkpoint) -> bool:
        block = self.find(checkpoint.key)
        return block is None or not block.ref_cnt
