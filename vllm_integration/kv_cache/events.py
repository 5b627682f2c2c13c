"""KV events of checkpoints, so that a prefix-aware router sees both halves of what a hit needs."""

from __future__ import annotations

from vllm.distributed.kv_events import MEDIUM_GPU, BlockRemoved, BlockStored
from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.kv_cache_utils import BlockHash, generate_block_hash_extra_keys, maybe_convert_block_hash
from vllm.v1.request import Request

from qwen36_neuron.apc import Checkpoint


class SlotEvents:
    """Puts events into the block pool's queue, which vLLM publishes after each step.

    A checkpoint is announced as one stored block, the last of its prefix, in the lane group.
    """

    def __init__(self, block_pool: BlockPool, group: int, block_size: int) -> None:
        self._pool = block_pool
        self._group = group
        self._block_size = block_size

    def stored(self, request: Request, blocks: int) -> None:
        """The state after `blocks` blocks of `request` can be reused from the next step on."""
        if not self._pool.enable_kv_cache_events:
            return
        start, end = (blocks - 1) * self._block_size, blocks * self._block_size
        hashes = request.block_hashes
        extra_keys, _ = generate_block_hash_extra_keys(request, start, end, 0)
        self._pool.kv_event_queue.append(
            BlockStored(
                block_hashes=[maybe_convert_block_hash(hashes[blocks - 1])],
                parent_block_hash=maybe_convert_block_hash(hashes[blocks - 2]) if blocks > 1 else None,
                token_ids=list(request.all_token_ids[start:end]),
                block_size=self._block_size,
                lora_id=None,
                medium=MEDIUM_GPU,
                lora_name=None,
                extra_keys=[extra_keys],
                group_idx=self._group,
            )
        )

    def removed(self, checkpoint: Checkpoint) -> None:
        """The state is given up."""
        if not self._pool.enable_kv_cache_events:
            return
        key = checkpoint.key
        assert isinstance(key, bytes)
        self._pool.kv_event_queue.append(
            BlockRemoved(
                block_hashes=[maybe_convert_block_hash(BlockHash(key))], medium=MEDIUM_GPU, group_idx=self._group
            )
        )
