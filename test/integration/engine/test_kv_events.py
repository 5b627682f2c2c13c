"""KV events carry both halves of a hit: a router that follows them knows what can be reused."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from engine import greedy
from vllm.distributed.kv_events import BlockRemoved, BlockStored

from qwen36_neuron.apc import DropReason


def text(length: int, seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(512) for _ in range(length)]


class Index:
    """Follows the events alone, as a router does, and says how much of a prompt the replica can reuse.

    It counts: vLLM does not merge equal blocks, so a hash may be stored twice and removed once.
    """

    def __init__(self, engine) -> None:
        self.held: dict[int, Counter] = {0: Counter(), 1: Counter()}
        self.hashes: dict[tuple, object] = {}
        """Of a block, by the hash before it and its tokens."""
        self.stored: list[BlockStored] = []
        engine.scheduler.kv_event_publisher.publish = self.publish

    def publish(self, batch) -> None:
        for event in batch.events:
            if isinstance(event, BlockStored):
                assert event.block_size == 64
                assert len(event.token_ids) == 64 * len(event.block_hashes)
                self.stored.append(event)
                self.held[event.group_idx].update(event.block_hashes)
                parent = event.parent_block_hash
                for place, key in enumerate(event.block_hashes):
                    block = parent, tuple(event.token_ids[64 * place : 64 * place + 64])
                    assert self.hashes.setdefault(block, key) == key
                    parent = key
            elif isinstance(event, BlockRemoved):
                self.held[event.group_idx].subtract(event.block_hashes)

    def reusable(self, prompt: list[int]) -> tuple[int, int]:
        """Tokens of the deepest checkpoint that KV reaches; and tokens that KV alone would promise."""
        key, tokens, deepest = None, 0, 0
        while tokens + 64 < len(prompt):
            key = self.hashes.get((key, tuple(prompt[tokens : tokens + 64])))
            if key is None or not self.held[0][key]:
                break
            tokens += 64
            if self.held[1][key]:
                deepest = tokens
        return deepest, tokens


@pytest.mark.parametrize(("blocks", "slots"), [(24, 4), (20, 12), (64, 16)], ids=["slots", "kv", "branches"])
def test_an_index_of_the_events_predicts_every_hit(fake_engine, blocks, slots):
    """Prompts leave each other at any token, most of them where no checkpoint is."""
    engine = fake_engine(
        enable_prefix_caching=True,
        max_num_batched_tokens=256,
        num_gpu_blocks_override=blocks,
        max_model_len=1024,
        additional_config={"num_slots": slots},
        kv_events_config={"enable_kv_cache_events": True, "publisher": "null"},
    )
    index, rng = Index(engine), random.Random(blocks)
    known = [text(rng.randrange(300, 640), seed) for seed in range(4)]
    hits = promised = 0
    for turn in range(60):
        prompt = rng.choice(known)
        if turn % 3:
            prompt = prompt[: rng.randrange(100, len(prompt))] + text(rng.randrange(1, 200), 100 + turn)
            known[rng.randrange(len(known))] = prompt
        expected, by_kv = index.reusable(prompt)
        (output,) = engine.outputs([prompt], greedy(rng.choice([1, 2, 70])))
        assert output.num_cached_tokens == expected, turn
        hits += expected > 0
        promised += by_kv > expected
    assert hits > 15
    drops = engine.scheduler.slot_manager.statistics.drops
    removed = {DropReason.CAPACITY: slots == 4, DropReason.KV: blocks == 20}
    assert all(drops[reason] for reason, wanted in removed.items() if wanted), drops
    assert promised or blocks != 64, "no branch point at which KV alone would have promised too much"
    held = engine.scheduler.slot_manager.slots
    assert index.held[1].total() == len(held.by_key)
    assert {event.kv_cache_spec_kind for event in index.stored if event.group_idx == 1} == {"mamba"}
    assert {event.kv_cache_spec_kind for event in index.stored if event.group_idx == 0} == {"full_attention"}


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
