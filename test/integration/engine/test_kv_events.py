"""KV events carry both halves of a hit: a router that follows them knows what can be reused."""

from __future__ import annotations

import random
from collections import Counter

from engine import greedy
from vllm.distributed.kv_events import BlockRemoved, BlockStored


def text(length: int, seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(512) for _ in range(length)]


class Router:
    """Follows the events and says how much of a chain of hashes this replica can reuse.

    It counts: vLLM does not merge equal blocks, so a hash may be stored twice and removed once.
    """

    def __init__(self, engine) -> None:
        self.held: dict[int, Counter] = {0: Counter(), 1: Counter()}
        self.stored: list[BlockStored] = []
        engine.scheduler.kv_event_publisher.publish = self.publish

    def publish(self, batch) -> None:
        for event in batch.events:
            if isinstance(event, BlockStored):
                self.held[event.group_idx].update(event.block_hashes)
                self.stored.append(event)
            elif isinstance(event, BlockRemoved):
                self.held[event.group_idx].subtract(event.block_hashes)

    def reusable(self, hashes: list) -> int:
        kv = next((i for i, key in enumerate(hashes) if not self.held[0][key]), len(hashes))
        return max((i + 1 for i in range(kv) if self.held[1][hashes[i]]), default=0) * 64


def test_a_router_can_tell_every_hit(fake_engine):
    engine = fake_engine(
        enable_prefix_caching=True,
        max_num_batched_tokens=256,
        num_gpu_blocks_override=24,
        max_model_len=1024,
        additional_config={"num_slots": 4},
        kv_events_config={"enable_kv_cache_events": True, "publisher": "null"},
    )
    router = Router(engine)
    chains: dict[int, list] = {}
    hits = 0
    for turn in range(40):
        seed = random.Random(turn).randrange(5)
        prompt = text(300 + 7 * seed, seed)
        expected = router.reusable(chains.get(seed, [])[: (len(prompt) - 1) // 64])
        before = len(router.stored)
        (output,) = engine.outputs([prompt], greedy(2))
        assert output.num_cached_tokens == expected
        hits += expected > 0
        if seed not in chains:
            chains[seed] = [key for e in router.stored[before:] if e.group_idx == 0 for key in e.block_hashes]
            assert len(chains[seed]) == len(prompt) // 64
    assert hits > 5
    for event in router.stored:
        assert event.block_size == 64
        assert event.kv_cache_spec_kind == ("full_attention", "mamba")[event.group_idx]
        if event.group_idx == 1:
            assert len(event.block_hashes) == 1
            assert len(event.token_ids) == 64
    slots = engine.scheduler.slot_manager.slots
    assert router.held[1].total() == len(slots.by_key)


def test_kv_given_up_for_want_of_a_checkpoint_is_no_access(fake_engine):
    """Blocks that no checkpoint needs go to the front of vLLM's queue, and residency metrics count no use."""
    engine = fake_engine(
        enable_prefix_caching=True,
        num_gpu_blocks_override=24,
        max_model_len=1024,
        additional_config={"num_slots": 1},
        kv_cache_metrics=True,
        kv_cache_metrics_sample=1.0,
    )
    pool = engine.scheduler.kv_cache_manager.block_pool
    collector = pool.metrics_collector
    assert collector is not None
    evicted = []
    for seed in range(3):
        engine.outputs([text(400, seed)], greedy(2))
        evicted += collector.drain_events()
    assert evicted
    assert all(event.idle_seconds >= event.lifetime_seconds for event in evicted), "a block was accessed before it went"
