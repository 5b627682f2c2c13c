"""A router that follows a server's KV events, and nothing else, knows what each prompt will find cached."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
import zmq
from vllm.distributed.kv_events import AllBlocksCleared, BlockRemoved, BlockStored, KVEventBatch

pytestmark = pytest.mark.http

BLOCK = 64
KV, STATE = "full_attention", "mamba"
END = (-1).to_bytes(8, "big", signed=True)


def text(length: int, seed: int) -> list[int]:
    return random.Random(f"events {seed}").choices(range(4000), k=length)


class Index:
    """What a replica holds, by its events: blocks by what they follow and by their tokens."""

    def __init__(self, port: int) -> None:
        self.socket = zmq.Context.instance().socket(zmq.DEALER)
        self.socket.connect(f"tcp://127.0.0.1:{port + 1}")
        self.socket.setsockopt(zmq.RCVTIMEO, 60_000)
        self.next = 0
        self.topics: set[bytes] = set()
        self.kinds: dict[int, str] = {}
        self.blocks: dict[tuple[Any, tuple[int, ...]], Any] = {}
        self.held: dict[str, Counter[Any]] = {KV: Counter(), STATE: Counter()}

    def close(self) -> None:
        self.socket.close(linger=0)

    def follow(self) -> None:
        """Ask for what came since the last time, until that brings nothing: it may be asked before it has gone out."""
        seen = -1
        while seen != self.next:
            seen = self.next
            time.sleep(0.05)
            self.socket.send_multipart([b"", self.next.to_bytes(8, "big")])
            while (frames := self.socket.recv_multipart())[2] != END:
                topic, number, payload = frames[1:]
                self.topics.add(topic)
                self.next = int.from_bytes(number, "big") + 1
                for event in msgspec.msgpack.decode(payload, type=KVEventBatch).events:
                    self.take(event)

    def take(self, event: BlockStored | BlockRemoved | AllBlocksCleared) -> None:
        if isinstance(event, BlockStored):
            self.kinds[event.group_idx] = event.kv_cache_spec_kind
            parent = event.parent_block_hash
            for n, key in enumerate(event.block_hashes):
                self.blocks[parent, tuple(event.token_ids[n * BLOCK : (n + 1) * BLOCK])] = parent = key
            self.held[event.kv_cache_spec_kind].update(event.block_hashes)
        elif isinstance(event, BlockRemoved):
            self.held[self.kinds[event.group_idx]].subtract(event.block_hashes)

    def reusable(self, prompt: Sequence[int]) -> int:
        """Tokens that will not be run: whole blocks whose KV is held, up to the last of them with a checkpoint."""
        parent, best = None, 0
        for n in range((len(prompt) - 1) // BLOCK):
            parent = self.blocks.get((parent, tuple(prompt[n * BLOCK : (n + 1) * BLOCK])))
            if parent is None or self.held[KV][parent] <= 0:
                break
            if self.held[STATE][parent] > 0:
                best = n + 1
        return best * BLOCK


def test_an_index_made_of_events_tells_every_hit(server):
    """Sequences that grow, that branch inside what another has cached, and that the checkpoints of others push out."""
    index = Index(server.events)
    try:
        first = text(561, 901)
        prompts = [first, first, first[:330] + text(150, 902), first[:330] + text(150, 903), first + text(90, 904)]
        for seed in range(905, 925):  # more than the server has slots
            prompts += [text(200, seed)]
        prompts += [first, first[:330] + text(90, 926), text(200, 924), text(200, 905)]
        hits = []
        for prompt in prompts:
            index.follow()
            expected = index.reusable(prompt)
            details = server.complete(prompt, max_tokens=2).usage.prompt_tokens_details
            hits.append((details.cached_tokens or 0) if details else 0)
            assert hits[-1] == expected, f"prompt {len(hits)}"
        assert {0, 512} < set(hits), "nothing was cached, or everything"
        assert any(0 < hit < 512 for hit in hits[2:4]), "no sequence branched"
        assert index.kinds == {0: KV, 1: STATE}
        assert index.topics == {f"kv@127.0.0.1:{server.url.rpartition(':')[2]}@tiny".encode()}
    finally:
        index.close()
