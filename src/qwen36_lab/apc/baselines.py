"""Other ways to keep checkpoints, to compare with: least recently used, every block, and Marconi's."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from qwen36_neuron.apc.boundaries import BoundaryPlanner, Kind, Plan
from qwen36_neuron.apc.checkpoint import Checkpoint, DropReason
from qwen36_neuron.apc.cost import PrefillCost
from qwen36_neuron.apc.keys import Key, Path
from qwen36_neuron.apc.pool import SlotPool
from qwen36_neuron.config import BLOCK_SIZE

from .simulator import KeyedRequest


class LruPool(SlotPool):
    """The same slots; the one not used for longest is given up, and nothing is refused."""

    def __init__(self, num_slots: int, cost: PrefillCost) -> None:
        super().__init__(num_slots, cost)
        self._touched: dict[Checkpoint, int] = {}
        self._touches = 0

    def admit(self, path: Path, max_tokens: int, restored: Checkpoint | None) -> None:
        super().admit(path, max_tokens, restored)
        if restored is not None:
            self._touch(restored)

    def publish(self, checkpoint: Checkpoint, path: Path) -> bool:
        self._touch(checkpoint)
        return super().publish(checkpoint, path)

    def priority(self, checkpoint: Checkpoint) -> float:
        return self._touched.get(checkpoint, math.inf)

    def drop(self, checkpoint: Checkpoint, reason: DropReason) -> None:
        self._touched.pop(checkpoint, None)
        super().drop(checkpoint, reason)

    def _touch(self, checkpoint: Checkpoint) -> None:
        self._touches += 1
        self._touched[checkpoint] = self._touches


class EveryBlockPool(LruPool):
    """Least recently used over the state of every block, as a cache made for KV alone would do."""

    def reserve(self, boundary: int, plan: Plan, path: Path, replaces: Checkpoint | None = None) -> Checkpoint | None:
        self.new_step()
        return super().reserve(boundary, plan, path)


class EveryBlockPlanner(BoundaryPlanner):
    """Keeps the state after every block of the prompt."""

    def plan(
        self,
        prompt: Sequence[int],
        restored: int = 0,
        branch: int = 0,
        named: Iterable[int] = (),
        origin: Kind | None = None,
        openings: Iterable[int] = (),
    ) -> Plan:
        boundaries = range(restored + BLOCK_SIZE, len(prompt) + 1, BLOCK_SIZE)
        return Plan(MappingProxyType(dict.fromkeys(boundaries, Kind.SPACED)), len(prompt), restored, origin)


@dataclass(slots=True, eq=False)
class Node:
    """A node of Marconi's radix tree: the blocks between its parent and itself, and maybe the state at its end."""

    keys: list[Key]
    parent: Node | None
    depth: int
    used_at: int
    has_state: bool = False
    children: dict[Key, Node] = field(default_factory=dict)


class Marconi:
    """Checkpoints at branch points and at the ends of sequences; KV and states share one memory.

    After Pan et al., Marconi: Prefix Caching for the Era of Hybrid LLMs (MLSys 2025), sections 4.1 and 4.2: a radix
    tree; a state is admitted where a sequence leaves an earlier one and after its last token; among nodes with at most
    one child the least `recency + alpha * FLOPs saved over the parent a byte` goes, both scaled to 0..1, and only the
    node that is hit becomes recent. Boundaries are those of blocks.

    Args:
        alpha: weight of the efficiency. The paper tunes it on the running workload.
        capacity: of the memory, in blocks.
        state_blocks: size of a state, in blocks.
    """

    def __init__(self, alpha: float, capacity: float, state_blocks: float, cost: PrefillCost) -> None:
        self.name = "marconi"
        self.alpha = alpha
        self.capacity = capacity
        self.state_blocks = state_blocks
        self.cost = cost
        self.clock = 0
        self.used = 0.0
        self.root = Node([], None, 0, 0)

    @property
    def checkpoints(self) -> int:
        return sum(node.has_state for node in self._nodes(self.root))

    def serve(self, keyed: KeyedRequest) -> int:
        self.clock += 1
        limit = (keyed.prompt_tokens - 1) // BLOCK_SIZE
        on_path, last, matched = self._walk(keyed.path)
        hit = max((node for node in on_path if node.has_state and node.depth <= limit), key=_depth, default=None)
        reused = hit.depth if hit else 0
        if hit:
            hit.used_at = self.clock
        pinned = set(on_path)
        branch = last if matched == last.depth else self._split(last, matched)
        pinned |= {last, branch}
        if branch.depth > reused and (branch.children or branch.depth == len(keyed.path)):
            self._keep_state(branch, pinned)
        if branch.depth < len(keyed.path):
            tail = list(keyed.path[branch.depth :])
            self._make_room(len(tail), pinned)
            end = Node(tail, branch, len(keyed.path), self.clock)
            branch.children[tail[0]] = end
            pinned.add(end)
            self._keep_state(end, pinned)
        return reused * BLOCK_SIZE

    def _walk(self, path: Sequence[Key]) -> tuple[list[Node], Node, int]:
        """Nodes wholly on `path`, the last node whose blocks begin on it, and how many blocks match."""
        node = self.root
        on_path: list[Node] = []
        while node.depth < len(path) and (child := node.children.get(path[node.depth])):
            start = child.depth - len(child.keys)
            matched = next(
                (i for i in range(start, min(child.depth, len(path))) if child.keys[i - start] != path[i]), None
            )
            matched = min(child.depth, len(path)) if matched is None else matched
            if matched < child.depth:
                return on_path, child, matched
            on_path.append(child)
            node = child
        return on_path, node, node.depth

    def _split(self, node: Node, depth: int) -> Node:
        """Make a node in the middle of `node`'s blocks."""
        parent = node.parent
        assert parent is not None
        cut = depth - parent.depth
        upper = Node(node.keys[:cut], parent, depth, self.clock)
        parent.children[upper.keys[0]] = upper
        node.keys, node.parent = node.keys[cut:], upper
        upper.children[node.keys[0]] = node
        return upper

    def _keep_state(self, node: Node, pinned: set[Node]) -> None:
        if node is self.root or node.has_state:
            return
        self._make_room(self.state_blocks, pinned)
        node.has_state = True
        node.used_at = self.clock

    def _make_room(self, size: float, pinned: set[Node]) -> None:
        """Take `size` blocks of memory, and evict until they fit."""
        self.used += size
        while self.used > self.capacity:
            candidates = [n for n in self._nodes(self.root) if len(n.children) <= 1 and n not in pinned]
            if not candidates:
                raise ValueError("a sequence does not fit into the memory")
            recency = _scaled([node.used_at for node in candidates])
            efficiency = _scaled([self._efficiency(node) for node in candidates])
            score = {n: r + self.alpha * e for n, r, e in zip(candidates, recency, efficiency, strict=True)}
            self._evict(min(candidates, key=score.__getitem__))

    def _freed(self, node: Node) -> float:
        return self.state_blocks * node.has_state + (0 if node.children else len(node.keys))

    def _efficiency(self, node: Node) -> float:
        start = node.depth - len(node.keys)
        return self.cost.between(start * BLOCK_SIZE, node.depth * BLOCK_SIZE) / max(self._freed(node), 1.0)

    def _evict(self, node: Node) -> None:
        """A leaf goes with its KV; a node with one child gives up its state, and its blocks become its child's."""
        parent = node.parent
        assert parent is not None
        self.used -= self._freed(node)
        if node.children:
            (child,) = node.children.values()
            child.keys, child.parent = node.keys + child.keys, parent
            parent.children[child.keys[0]] = child
        else:
            del parent.children[node.keys[0]]

    def _nodes(self, node: Node) -> Iterator[Node]:
        """All nodes below `node`."""
        stack = list(node.children.values())
        while stack:
            below = stack.pop()
            yield below
            stack.extend(below.children.values())


def _depth(node: Node) -> int:
    return node.depth


def _scaled(values: Sequence[float]) -> list[float]:
    low, high = min(values), max(values)
    return [(value - low) / (high - low) if high > low else 1.0 for value in values]
