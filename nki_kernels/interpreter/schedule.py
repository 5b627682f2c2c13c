"""Placing instructions in time: in program order on each engine, and reordered by a list scheduler.

Model. An engine runs one instruction at a time (TensorE: one per 32x32 cell of its array, so that products on disjoint
cells overlap, as far as ``tensor_tile_share`` lets the next one start). An instruction starts when its engine is free
and every producer's result is ready: on the same engine after ``Timing.ready`` (not between TensorE instructions, which
add up in PSUM in order), on another a semaphore hop later. Only what reads a result waits for it to be ready on the
same engine; what overwrites follows in order. An engine that is set up for something else is set up first.

A DMA is issued on the core's one issue resource, or, with descriptors made by hardware on request, also on its trigger
queue in order, or, with descriptors made by GpSimd, on GpSimd alone. It then takes the DMA engines of the partitions it
touches, fills gaps between other transfers, and shares HBM bandwidth; its consumers wait until it has notified them.

An exchange between cores or ranks begins when all have come, holds the queue that triggers it, and takes no DMA engine
of the core: whether weights stream as fast beside it was not measured.
"""

import bisect
import heapq
from collections.abc import Hashable
from dataclasses import dataclass, field

from .context import Core, Instr
from .cost import COLLECTIVES, DMA_OPS, EXCHANGES, Timing, Transfer, exchange_ns, static, timing, transfer
from .cost_table import Costs
from .enums import Engine, MemoryRegion
from .footprint import Tracker

_CHOICE = 8
"""Ready instructions among which the list scheduler chooses."""


@dataclass
class Node:
    """An instruction with what the schedule needs.

    Attributes:
        core: Core it runs on.
        instr: The instruction.
        timing: Engine times.
        transfer: DMA part, if any.
        deps: Producers, as (node index, latency in ns from its finish).
        queued: It holds its engine or trigger queue; static DMA does not.
        start, finish: Placed times, ns: of its own work, without the setup before it; a transfer's end is its notice.
        setup_ns: Setup that was placed before it.
        held_by: Node that set ``start`` (-1: nothing), and whether it did so by holding the engine.
    """

    core: int
    instr: Instr
    timing: Timing
    transfer: Transfer | None
    deps: list[tuple[int, float]]
    queued: bool = True
    start: float = 0.0
    finish: float = 0.0
    setup_ns: float = 0.0
    held_by: int = -1
    held_by_engine: bool = False

    @property
    def ns(self) -> float:
        """Engine time."""
        return self.timing.hold if self.queued else 0.0


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
    """All programs' instructions, each rendezvous after the arrivals of all that meet there."""
    if len(cores) == 1:
        return [(0, i) for i in cores[0].trace]
    out: list[tuple[int, Instr]] = []
    at = [0] * len(cores)
    arrived: dict[Hashable, int] = {}
    me, stuck = 0, 0
    while stuck < len(cores):
        trace, begin = cores[me].trace, at[me]
        while at[me] < len(trace):
            i = trace[at[me]]
            meet = i.attrs.get("meet")
            if meet is not None:
                if arrives(i):
                    arrived[meet] = arrived.get(meet, 0) + 1
                elif arrived.get(meet, 0) < i.attrs["members"]:
                    break
            out.append((me, i))
            at[me] += 1
        stuck = 0 if at[me] > begin else stuck + 1
        me = (me + 1) % len(cores)
    return out


def arrives(i: Instr) -> bool:
    """Whether an instruction says that its program has come to a rendezvous, and not what happens there."""
    return i.op.endswith((".send", ".arrive"))


def build(cores: list[Core], costs: Costs) -> list[Node]:
    """Nodes with their dependencies and times."""
    tracker = Tracker()
    nodes: list[Node] = []
    arrivals: dict[Hashable, list[int]] = {}
    written: dict[int, int] = {}
    for core, instr in merged_order(cores):
        index = len(nodes)
        deps = tracker.add(index, instr.reads, instr.writes)
        meet = instr.attrs.get("meet")
        if meet is not None and arrives(instr):
            arrivals.setdefault(meet, []).append(index)
        elif meet is not None:
            # What both cores of a rank write together neither writes after the other.
            deps = {d: flow for d, flow in deps.items() if nodes[d].instr.attrs.get("meet") != meet}
            deps |= dict.fromkeys(arrivals.get(meet, ()), False)
        linked = [(d, _latency(nodes[d], instr, core, flow, costs)) for d, flow in deps.items()]
        if instr.op in COLLECTIVES:
            # Whoever comes last, the others hear of it across a semaphore; of ranks that are alike one is here.
            linked = [(d, max(lag, costs.semaphore_ns)) for d, lag in linked]
        move = transfer(instr, costs) if instr.op in DMA_OPS and instr.op != "sendrecv" else None
        times = timing(instr, costs, written.get(instr.reads[0][0].uid, 0) if instr.reads else 0)
        nodes.append(Node(core, instr, times, move, linked, queued=move is None or not static(instr)))
        for access in instr.writes:
            written[access[0].uid] = written.get(access[0].uid, 0) + 1
    return nodes


def confine(nodes: list[Node], rooms: int, costs: Costs) -> None:
    """Let tensors in PSUM share ``rooms`` places, in turn: each waits until the one that had its place is done with.

    Only what is allocated anew for every use is held up; a kernel that reuses its tensors waits for them as it is.
    """
    uses: dict[int, list[int]] = {}
    for index, node in enumerate(nodes):
        for access in (*node.instr.writes, *node.instr.reads):
            if access[0].buffer is MemoryRegion.psum:
                uses.setdefault(access[0].uid, []).append(index)
    tensors = list(uses.values())
    for before, after in zip(tensors, tensors[rooms:], strict=False):
        first = nodes[after[0]]
        known = {d for d, _ in first.deps}
        first.deps.extend(
            (i, _latency(nodes[i], first.instr, first.core, False, costs))
            for i in dict.fromkeys(before)
            if i < after[0] and i not in known
        )


def _latency(producer: Node, consumer: Instr, core: int, flow: bool, c: Costs) -> float:
    """From the producer's finish until the consumer may start; ``flow``: it reads what the producer wrote."""
    if producer.transfer is not None or producer.instr.op in EXCHANGES:
        return 0.0
    drain = producer.timing.ready - producer.timing.hold
    if producer.instr.engine is not consumer.engine or producer.core != core or consumer.op in DMA_OPS:
        return drain + c.semaphore_ns
    if consumer.engine is Engine.tensor or not flow:
        return 0.0
    return drain


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
        self.state: dict[tuple[int, Engine], Hashable] = {}
        self.cells = [[0.0] * 16 for _ in range(count)]
        self.cell_holder = [[-1] * 16 for _ in range(count)]
        self.gaps = [[_Gaps() for _ in range(int(costs.dma_engines))] for _ in range(count)]
        self.hbm = [_Gaps() for _ in range(count)]
        self.issue = [_Gaps() for _ in range(count)]

    def engine_free(self, node: Node) -> tuple[float, int]:
        """(when the node's engine can take it, node that holds it until then)."""
        if not node.queued:
            return 0.0, -1
        key = (node.core, node.instr.engine)
        at, who = self.free.get(key, 0.0), self.holder.get(key, -1)
        if node.instr.engine is Engine.tensor:
            # In order: not before the previous one lets it; its cells must be free.
            for cell in cells(node.instr):
                if self.cells[node.core][cell] > at:
                    at, who = self.cells[node.core][cell], self.cell_holder[node.core][cell]
        return at, who

    def setup(self, node: Node) -> float:
        """Time to set the engine up for the node, as it is now."""
        same = self.state.get((node.core, node.instr.engine)) == node.timing.state
        return 0.0 if node.timing.keeps or same else node.timing.setup

    def place(self, index: int, node: Node, ready: float, cause: int) -> None:
        """Put the node at the earliest time not before ``ready``; ``cause`` is the producer that set ``ready``."""
        key = (node.core, node.instr.engine)
        free, who = self.engine_free(node)
        node.setup_ns = self.setup(node)
        if node.timing.ahead:
            free += node.setup_ns
        node.held_by, node.held_by_engine = (who, True) if free > ready else (cause, False)
        start = max(ready, free)
        if not node.timing.ahead:
            start += node.setup_ns
        if not node.timing.keeps:
            self.state[key] = node.timing.state
        node.start, node.finish = start, start + node.ns
        if node.transfer is not None:
            self._move(node, key)
        elif node.instr.engine is Engine.tensor:
            share = self.c.tensor_tile_share if node.instr.attrs.get("tile") else 1.0
            self.free[key], self.holder[key] = start + share * node.ns, index
            for cell in cells(node.instr):
                self.cells[node.core][cell] = node.finish
                self.cell_holder[node.core][cell] = index
        else:
            self.free[key] = node.finish
        if node.queued:
            self.holder[key] = index
        if node.instr.op in EXCHANGES:
            node.finish = start + exchange_ns(node.instr, self.c)

    def _move(self, node: Node, key: tuple[int, Engine]) -> None:
        move = node.transfer
        assert move is not None
        issued = node.finish
        if not (node.queued and node.instr.engine is Engine.gpsimd):
            begin = self.issue[node.core].fit(node.start, self.c.dma_issue_ns)
            self.issue[node.core].take(begin, self.c.dma_issue_ns)
            node.start, issued = begin, begin + self.c.dma_issue_ns
        if node.queued:
            self.free[key] = issued
        engines = self.gaps[node.core][move.engines[0] : move.engines[1]]
        at = issued + move.start_ns
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
        node.finish = done + move.notify_ns


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
        issue = node.ns if node.queued and node.instr.engine is Engine.gpsimd else c.dma_issue_ns
        return issue + node.transfer.start_ns + node.transfer.ns + node.transfer.notify_ns
    return exchange_ns(node.instr, c) if node.instr.op in EXCHANGES else node.ns


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
    work = [Node(n.core, n.instr, n.timing, n.transfer, n.deps, n.queued) for n in nodes]
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

    def take(key: tuple[int, Engine]) -> int:
        """Of the most urgent few, the one that is most urgent after setting the engine up for it."""
        heap = able[key]
        few = [heapq.heappop(heap) for _ in range(min(_CHOICE, len(heap)))]
        best = min(few, key=lambda entry: entry[0] + placer.setup(work[entry[1]]))
        for entry in few:
            if entry is not best:
                heapq.heappush(heap, entry)
        return best[1]

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
        index = take(key)
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
