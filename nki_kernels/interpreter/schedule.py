"""Placing instructions in time: in program order on each engine, and reordered by a list scheduler.

Model. An engine runs one instruction at a time (TensorE: one per 32x32 cell of its array, so that tiles on disjoint
cells overlap). An instruction starts when its engine is free and every producer has finished, plus ``dependent_cycles``
if the producer ran on the same engine (not between TensorE instructions) or a semaphore hop if on another. A DMA starts
``dma_start_ns`` after its producers, takes the DMA engines of the partitions it touches, fills gaps between other
transfers, and shares HBM bandwidth; its consumers wait for its completion only. A DMA with descriptors made by hardware
or GpSimd holds its trigger queue, in order; one with static descriptors (any whose addresses are known before the
launch, unless the kernel asks otherwise) holds none.
"""

import bisect
import heapq
from dataclasses import dataclass, field

from .context import Core, Instr
from .cost import DMA_OPS, Transfer, clock, instruction_ns, transfer
from .cost_table import Costs
from .enums import Engine
from .footprint import Tracker

_ARRIVE = {"sendrecv": "sendrecv.send", "core_barrier": "core_barrier.arrive"}


@dataclass
class Node:
    """An instruction with what the schedule needs.

    Attributes:
        core: Core it runs on.
        instr: The instruction.
        ns: Engine time.
        transfer: DMA part, if any.
        deps: Producers, as (node index, latency in ns from its finish).
        start, finish: Placed times, ns.
        held_by: Node that set ``start`` (-1: nothing), and whether it did so by holding the engine.
    """

    core: int
    instr: Instr
    ns: float
    transfer: Transfer | None
    deps: list[tuple[int, float]]
    start: float = 0.0
    finish: float = 0.0
    held_by: int = -1
    held_by_engine: bool = False


@dataclass
class _Gaps:
    """Busy intervals of one DMA engine; transfers go into the first gap that fits."""

    starts: list[float] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)

    def fit(self, ready: float, ns: float) -> float:
        at = bisect.bisect_right(self.ends, ready)
        while at < len(self.starts) and self.starts[at] < ready + ns:
            ready = max(ready, self.ends[at])
            at += 1
        return ready

    def take(self, start: float, ns: float) -> None:
        at = bisect.bisect_left(self.starts, start)
        if at > 0 and abs(self.ends[at - 1] - start) < 1e-9:
            self.ends[at - 1] = start + ns
            return
        self.starts.insert(at, start)
        self.ends.insert(at, start + ns)


def merged_order(cores: list[Core]) -> list[tuple[int, Instr]]:
    """Both programs' instructions, each rendezvous after both arrivals."""
    if len(cores) == 1:
        return [(0, i) for i in cores[0].trace]
    out: list[tuple[int, Instr]] = []
    at, arrived = [0, 0], [0, 0]
    me = 0
    while any(at[c] < len(cores[c].trace) for c in (0, 1)):
        moved = False
        while at[me] < len(cores[me].trace):
            i = cores[me].trace[at[me]]
            if i.op in _ARRIVE and arrived[1 - me] < arrived[me]:
                break
            arrived[me] += i.op in _ARRIVE.values()
            out.append((me, i))
            at[me] += 1
            moved = True
        me = 1 - me
        if not moved and at[me] >= len(cores[me].trace):
            break
    return out


def build(cores: list[Core], costs: Costs) -> list[Node]:
    """Nodes with their dependencies and times."""
    tracker = Tracker()
    nodes: list[Node] = []
    arrivals: list[list[int]] = [[], []]
    for core, instr in merged_order(cores):
        index = len(nodes)
        deps = tracker.add(index, instr.reads, instr.writes)
        if instr.op in _ARRIVE.values():
            arrivals[core].append(index)
        elif instr.op in _ARRIVE:
            deps.add(arrivals[1 - core][len(arrivals[core]) - 1])
            deps.add(arrivals[core][-1])
        linked = [(d, _latency(nodes[d], instr, core, costs)) for d in deps]
        move = transfer(instr, costs) if instr.op in DMA_OPS and instr.op != "sendrecv" else None
        nodes.append(Node(core, instr, instruction_ns(instr, costs), move, linked))
    return nodes


def _latency(producer: Node, consumer: Instr, core: int, c: Costs) -> float:
    if producer.transfer is not None or producer.instr.op == "sendrecv":
        return 0.0
    if consumer.op in DMA_OPS:
        return 0.0
    if producer.instr.engine is not consumer.engine or producer.core != core:
        return c.semaphore_ns
    if consumer.engine is Engine.tensor:
        return 0.0
    return c.dependent_cycles / clock(consumer.engine, c)


def cells(instr: Instr) -> range | list[int]:
    tile = instr.attrs.get("tile")
    if not tile:
        return range(16)
    row, col, rows, cols = (t // 32 for t in tile)
    return [r * 4 + k for r in range(row, row + rows) for k in range(col, col + cols)]


class Placer:
    """Resources of the cores, filled as instructions are placed."""

    def __init__(self, count: int, costs: Costs) -> None:
        self.c = costs
        self.free: dict[tuple[int, Engine], float] = {}
        self.holder: dict[tuple[int, Engine], int] = {}
        self.cells = [[0.0] * 16 for _ in range(count)]
        self.cell_holder = [[-1] * 16 for _ in range(count)]
        self.gaps = [[_Gaps() for _ in range(int(costs.dma_engines))] for _ in range(count)]
        self.hbm = [_Gaps() for _ in range(count)]

    def engine_free(self, node: Node) -> tuple[float, int]:
        """(when the node's engine can take it, node that holds it until then)."""
        if node.transfer is not None and node.ns == 0:
            return 0.0, -1
        key = (node.core, node.instr.engine)
        at, who = self.free.get(key, 0.0), self.holder.get(key, -1)
        if node.instr.engine is Engine.tensor:
            # In order: not before the previous one started; its cells must be free.
            for cell in cells(node.instr):
                if self.cells[node.core][cell] > at:
                    at, who = self.cells[node.core][cell], self.cell_holder[node.core][cell]
        return at, who

    def place(self, index: int, node: Node, ready: float, cause: int) -> None:
        """Put the node at the earliest time not before ``ready``; ``cause`` is the producer that set ``ready``."""
        key = (node.core, node.instr.engine)
        free, who = self.engine_free(node)
        start = max(ready, free)
        node.held_by, node.held_by_engine = (who, True) if free > ready else (cause, False)
        node.start, node.finish = start, start + node.ns
        if node.transfer is not None and node.ns == 0:
            pass
        elif node.instr.engine is Engine.tensor:
            self.free[key], self.holder[key] = start, index
            for cell in cells(node.instr):
                self.cells[node.core][cell] = node.finish
                self.cell_holder[node.core][cell] = index
        else:
            self.free[key], self.holder[key] = node.finish, index
        if node.instr.op == "sendrecv":
            node.finish = start + self.c.sendrecv_ns
        if node.transfer is not None:
            self._move(node)

    def _move(self, node: Node) -> None:
        move = node.transfer
        assert move is not None
        engines = self.gaps[node.core][move.engines[0] : move.engines[1]]
        at = node.finish + self.c.dma_start_ns
        hbm_ns = (move.hbm_read + move.hbm_write) / self.c.hbm_bytes_ns
        for _ in range(64):
            first = at
            for e in engines:
                at = e.fit(at, move.ns)
            if at == first:
                break
        for e in engines:
            e.take(at, move.ns)
        done = at + move.ns
        if hbm_ns:
            begin = self.hbm[node.core].fit(at, hbm_ns)
            self.hbm[node.core].take(begin, hbm_ns)
            done = max(done, begin + hbm_ns)
        node.finish = done


def program_order(nodes: list[Node], cores: int, costs: Costs) -> float:
    """Place every node in program order on its engine; returns the total time in ns."""
    placer = Placer(cores, costs)
    end = 0.0
    for index, node in enumerate(nodes):
        ready, cause = 0.0, -1
        for dep, lag in node.deps:
            at = nodes[dep].finish + lag
            if at > ready:
                ready, cause = at, dep
        placer.place(index, node, ready, cause)
        end = max(end, node.finish)
    return end


def critical_length(nodes: list[Node], costs: Costs) -> tuple[float, list[float]]:
    """Longest dependency chain with unlimited engines, in ns, and each node's distance to the end."""
    users: list[list[tuple[int, float]]] = [[] for _ in nodes]
    for index, node in enumerate(nodes):
        for dep, lag in node.deps:
            users[dep].append((index, lag))
    tail = [0.0] * len(nodes)
    for index in range(len(nodes) - 1, -1, -1):
        after = max((tail[u] + lag for u, lag in users[index]), default=0.0)
        tail[index] = _alone(nodes[index], costs) + after
    return max(tail, default=0.0), tail


def _alone(node: Node, c: Costs) -> float:
    if node.transfer is not None:
        return node.ns + c.dma_start_ns + node.transfer.ns
    return c.sendrecv_ns if node.instr.op == "sendrecv" else node.ns


def reordered(nodes: list[Node], cores: int, costs: Costs) -> float:
    """Total time in ns if each engine may take any ready instruction, longest remaining chain first.

    It ignores that reordering keeps more tensors live: what a scheduler could reach, not what one does.
    The nodes' placed times are left as they were.
    """
    _, tail = critical_length(nodes, costs)
    users: list[list[tuple[int, float]]] = [[] for _ in nodes]
    waiting = [len(n.deps) for n in nodes]
    ready = [0.0] * len(nodes)
    for index, node in enumerate(nodes):
        for dep, lag in node.deps:
            users[dep].append((index, lag))
    placer = Placer(cores, costs)
    pending: dict[tuple[int, Engine], list[tuple[float, int]]] = {}
    able: dict[tuple[int, Engine], list[tuple[float, int]]] = {}
    work = [Node(n.core, n.instr, n.ns, n.transfer, n.deps) for n in nodes]
    wake: list[tuple[float, int, tuple[int, Engine]]] = []
    planned: dict[tuple[int, Engine], float] = {}
    serial = 0

    def wake_at(when: float, key: tuple[int, Engine]) -> None:
        nonlocal serial
        if when < planned.get(key, float("inf")):
            planned[key] = when
            serial += 1
            heapq.heappush(wake, (when, serial, key))

    def release(index: int) -> None:
        key = (work[index].core, work[index].instr.engine)
        heapq.heappush(pending.setdefault(key, []), (ready[index], index))
        able.setdefault(key, [])
        wake_at(max(ready[index], placer.free.get(key, 0.0)), key)

    for index, count in enumerate(waiting):
        if not count:
            release(index)
    end = 0.0
    while wake:
        now, _, key = heapq.heappop(wake)
        if planned.get(key) != now:
            continue
        del planned[key]
        while pending[key] and pending[key][0][0] <= now + 1e-9:
            index = heapq.heappop(pending[key])[1]
            heapq.heappush(able[key], (-tail[index], index))
        if not able[key]:
            if pending[key]:
                wake_at(pending[key][0][0], key)
            continue
        free, _ = placer.engine_free(work[able[key][0][1]])
        if free > now + 1e-9:
            wake_at(free, key)
            continue
        index = heapq.heappop(able[key])[1]
        placer.place(index, work[index], now, -1)
        end = max(end, work[index].finish)
        for user, lag in users[index]:
            ready[user] = max(ready[user], work[index].finish + lag)
            waiting[user] -= 1
            if not waiting[user]:
                release(user)
        if able[key] or pending[key]:
            again = placer.free.get(key, 0.0) if able[key] else max(placer.free.get(key, 0.0), pending[key][0][0])
            wake_at(max(again, now), key)
    return end
