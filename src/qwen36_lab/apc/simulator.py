"""Replays a trace through a prefix cache and counts what it reused.

Requests run one at a time, in order of arrival, so that every cache sees the same past. A cache holds KV blocks and
state checkpoints; a hit is a prefix for which it has both.
"""

from __future__ import annotations

import statistics
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from qwen36_neuron.apc.boundaries import BoundaryPlanner, Plan
from qwen36_neuron.apc.checkpoint import Checkpoint, DropReason
from qwen36_neuron.apc.cost import PrefillCost
from qwen36_neuron.apc.keys import Key, Path
from qwen36_neuron.apc.pool import SlotPool
from qwen36_neuron.apc.seen import SeenPrefixes
from qwen36_neuron.config import BLOCK_SIZE

from .traces import Request, Tokens


class Served(Protocol):
    """A call to a server: the prompt that arrived, and what the model then wrote."""

    @property
    def prompt(self) -> Tokens: ...
    @property
    def output(self) -> Tokens: ...


@dataclass(frozen=True, slots=True)
class KeyedRequest:
    """A request as a cache sees it.

    Attributes:
        request: the tokens.
        path: keys of the full blocks of all that is run: the prompt, and the output but for its last token.
        reusable: tokens that a cache which forgets nothing and cuts anywhere would reuse: the longest prefix shared
            with anything run before, the prompt's last token left out, since its logits are needed.
    """

    request: Served
    path: Path
    reusable: int

    @property
    def prompt_tokens(self) -> int:
        return len(self.request.prompt)

    @property
    def run_tokens(self) -> int:
        """Tokens that the request leaves in the cache: the last one written is never run."""
        return len(self.request.prompt) + len(self.request.output) - 1

    @property
    def prompt_path(self) -> Path:
        return self.path[: self.prompt_tokens // BLOCK_SIZE]


class PrefixCache(Protocol):
    """What can be replayed."""

    name: str

    @property
    def checkpoints(self) -> int:
        """State checkpoints held now."""
        ...

    def serve(self, keyed: KeyedRequest) -> int:
        """Run a request and return the tokens of its prompt that were reused."""
        ...


@dataclass(frozen=True, slots=True)
class Replay:
    """What a cache made of a trace. All counts are tokens unless the name says otherwise.

    Attributes:
        prompt: of all prompts.
        reusable: what a cache without limits would reuse.
        reused: what was reused, which is the prefill saved.
        flops_saved: share of the FLOPs of all prefills that reuse saved.
        peak_checkpoints: the most state checkpoints held after a request.
        microseconds: median time that the cache took for a request, on this machine, finding its KV included.
    """

    cache: str
    requests: int
    hits: int
    prompt: int
    reusable: int
    reused: int
    flops_saved: float
    peak_checkpoints: int
    microseconds: float = field(compare=False)

    @property
    def hit_rate(self) -> float:
        """Reused tokens of all prompt tokens."""
        return self.reused / self.prompt

    @property
    def of_reusable(self) -> float:
        """Reused tokens of those that could be."""
        return self.reused / self.reusable if self.reusable else 1.0


def key_requests(trace: Sequence[Request]) -> list[KeyedRequest]:
    """Give blocks their keys, equal only for equal prefixes, and find what each request could reuse."""
    known: dict[tuple[Key, Tokens], int] = {}
    seen: list[tuple[Tokens, list[Key]]] = []
    keyed_requests = []
    for request in trace:
        tokens = request.prompt + request.output[:-1]
        path: list[Key] = []
        for start in range(0, len(tokens) - BLOCK_SIZE + 1, BLOCK_SIZE):
            block = path[-1] if path else None, tokens[start : start + BLOCK_SIZE]
            path.append(known.setdefault(block, len(known)))
        reusable = max((_shared(tokens, path, *other) for other in seen), default=0)
        keyed_requests.append(KeyedRequest(request, path, min(reusable, len(request.prompt) - 1)))
        seen.append((tokens, path))
    return keyed_requests


def _shared(tokens: Tokens, path: list[Key], other_tokens: Tokens, other_path: list[Key]) -> int:
    """Tokens of the longest common prefix. Paths agree up to some block and nowhere after it."""
    low, high = 0, min(len(path), len(other_path))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if path[middle - 1] == other_path[middle - 1] else (low, middle - 1)
    length = low * BLOCK_SIZE
    for mine, other in zip(
        tokens[length : length + BLOCK_SIZE], other_tokens[length : length + BLOCK_SIZE], strict=False
    ):
        if mine != other:
            break
        length += 1
    return length


def replay(keyed_requests: Sequence[KeyedRequest], cache: PrefixCache, cost: PrefillCost) -> Replay:
    """Serve all requests in order.

    Raises:
        ValueError: the cache claims to have reused more than was ever run before.
    """
    reused = hits = peak = 0
    saved = total = 0.0
    times = []
    for keyed in keyed_requests:
        started = time.perf_counter()
        tokens = cache.serve(keyed)
        times.append(time.perf_counter() - started)
        if not 0 <= tokens <= keyed.reusable:
            raise ValueError(f"{cache.name} reused {tokens} tokens where {keyed.reusable} were seen before")
        reused += tokens
        hits += tokens > 0
        peak = max(peak, cache.checkpoints)
        saved += cost.prefix(tokens)
        total += cost.prefix(keyed.prompt_tokens)
    return Replay(
        cache=cache.name,
        requests=len(keyed_requests),
        hits=hits,
        prompt=sum(keyed.prompt_tokens for keyed in keyed_requests),
        reusable=sum(keyed.reusable for keyed in keyed_requests),
        reused=reused,
        flops_saved=saved / total,
        peak_checkpoints=peak,
        microseconds=1e6 * statistics.median(times) if times else 0.0,
    )


class KVBlocks:
    """KV blocks as vLLM's pool keeps them: freed blocks stay findable until the least recently used is needed.

    A sequence frees its last block first. A prefix that is recomputed is held twice until the older copy goes.

    Args:
        num_blocks: blocks of BLOCK_SIZE tokens.
        on_evict: called with the key of a prefix whose last copy is gone.
    """

    def __init__(self, num_blocks: int, on_evict: Callable[[Key], None]) -> None:
        self.on_evict = on_evict
        self._empty = num_blocks
        self._idle: OrderedDict[int, Key] = OrderedDict()
        self._copies: dict[Key, list[int]] = {}
        self._next_id = 0

    def match(self, path: Path, limit: int) -> int:
        """Blocks of the longest prefix of `path` that is held, at most `limit`."""
        for index, key in enumerate(path[:limit]):
            if key not in self._copies:
                return index
        return min(len(path), limit)

    def run(self, path: Path, reused: int, num_blocks: int) -> None:
        """Take and give back the blocks of a sequence whose first `reused` blocks are reused.

        Raises:
            ValueError: the sequence is longer than the memory.
        """
        held = [self._copies[key][0] for key in path[:reused]]
        for block in held:
            del self._idle[block]
        for _ in range(num_blocks - reused):
            self._take()
        for key in path[reused:]:
            block = self._next_id = self._next_id + 1
            self._copies.setdefault(key, []).append(block)
            held.append(block)
        self._empty += num_blocks - len(path)
        for block, key in zip(reversed(held), reversed(path), strict=True):
            self._idle[block] = key

    def _take(self) -> None:
        if self._empty:
            self._empty -= 1
            return
        if not self._idle:
            raise ValueError("a sequence does not fit into the KV blocks")
        block, key = self._idle.popitem(last=False)
        copies = self._copies[key]
        copies.remove(block)
        if not copies:
            del self._copies[key]
            self.on_evict(key)


class SlotCache:
    """KV blocks and a private pool of checkpoint slots, with KV given up as vLLM does, the least recently used first.

    Args:
        name: for the tables.
        planner: says which boundaries to keep.
        pool: says who has a slot.
        num_blocks: KV blocks.
        step_tokens: tokens of a prefill step.
    """

    def __init__(
        self, name: str, planner: BoundaryPlanner, pool: SlotPool, num_blocks: int, step_tokens: int = 2048
    ) -> None:
        self.name = name
        self.planner = planner
        self.pool = pool
        self.num_blocks = num_blocks
        self.step_tokens = step_tokens
        self.kv = KVBlocks(num_blocks, self._orphan)

    @property
    def checkpoints(self) -> int:
        return len(self.pool.by_slot)

    def serve(self, keyed: KeyedRequest) -> int:
        path, prompt = keyed.prompt_path, keyed.request.prompt
        matched = self._matched(path, (len(prompt) - 1) // BLOCK_SIZE)
        found = self.pool.lookup(path, matched * BLOCK_SIZE)
        restored = found.boundary if found else 0
        self.pool.new_step()
        self._take_kv(keyed, found)
        self.pool.admit(path, len(prompt) - 1, found)
        plan = self.planner.plan(
            prompt,
            restored,
            matched * BLOCK_SIZE,
            origin=found.kind if found else None,
            openings=self._openings(path, prompt, restored),
        )
        step_end = restored + self.step_tokens
        for boundary in plan.prompt:
            while boundary > step_end:
                self.pool.new_step()
                step_end += self.step_tokens
            checkpoint = self.pool.reserve(boundary, plan, path)
            if checkpoint:
                self.pool.publish(checkpoint, path)
        self._decode(keyed, plan, (len(prompt) // BLOCK_SIZE + 1) * BLOCK_SIZE)
        return restored

    def _matched(self, path: Path, limit: int) -> int:
        """Blocks of `path`, at most `limit`, up to which an earlier request is known to have gone."""
        return self.kv.match(path, limit)

    def _openings(self, path: Path, prompt: Tokens, restored: int) -> Iterator[int]:
        """Where text begins, after `restored` tokens, that was seen elsewhere before."""
        return iter(())

    def _take_kv(self, keyed: KeyedRequest, restored: Checkpoint | None) -> None:
        """Make the KV of a sequence fit."""
        reused = restored.blocks if restored else 0
        self.kv.run(keyed.path, reused, -(-keyed.run_tokens // BLOCK_SIZE))

    def _decode(self, keyed: KeyedRequest, plan: Plan, first: int) -> None:
        latest = None
        for boundary in range(first, keyed.run_tokens + 1, BLOCK_SIZE):
            self.pool.new_step()
            path = keyed.path[: boundary // BLOCK_SIZE]
            checkpoint = self.pool.reserve(boundary, plan, path, replaces=latest)
            if checkpoint and self.pool.publish(checkpoint, path):
                latest = checkpoint

    def _orphan(self, key: Key) -> None:
        checkpoint = self.pool.by_key.get(key)
        if checkpoint:
            self.pool.drop(checkpoint, DropReason.ORPHANED)


class CoveredCache(SlotCache):
    """The same with KV kept only where a checkpoint needs it, as the engine does: this project's cache."""

    def __init__(
        self, name: str, planner: BoundaryPlanner, pool: SlotPool, num_blocks: int, step_tokens: int = 2048
    ) -> None:
        super().__init__(name, planner, pool, num_blocks, step_tokens)
        self.seen = SeenPrefixes(num_blocks)

    def serve(self, keyed: KeyedRequest) -> int:
        restored = super().serve(keyed)
        self.seen.add(keyed.path, keyed.request.prompt + keyed.request.output)
        return restored

    def _matched(self, path: Path, limit: int) -> int:
        found = self.pool.lookup(path, limit * BLOCK_SIZE)
        return max(self.seen.match(path, limit), found.blocks if found else 0)

    def _openings(self, path: Path, prompt: Tokens, restored: int) -> Iterator[int]:
        return self.seen.openings(path, prompt, restored)

    def _take_kv(self, keyed: KeyedRequest, restored: Checkpoint | None) -> None:
        """Give checkpoints up until the new blocks fit beside those that the others need.

        Raises:
            ValueError: the sequence is longer than the memory.
        """
        new = -(-keyed.run_tokens // BLOCK_SIZE) - (restored.blocks if restored else 0)
        while len(self.pool.cover) + new > self.num_blocks:
            if not self.pool.give_up_kv(lambda checkpoint: checkpoint is not restored):
                raise ValueError("a sequence does not fit into the KV blocks")
