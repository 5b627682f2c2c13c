"""What exchanges between cores and ranks take of a schedule: how long, and how much of it the engines stand still."""

from collections.abc import Iterable
from dataclasses import dataclass

from .cost import EXCHANGES
from .schedule import Node, arrives


@dataclass(frozen=True)
class Exchange:
    """All exchanges of one kind, on the core where they take longest. Times are in microseconds, and modelled.

    Attributes:
        op: ``sendrecv``, ``all_reduce``, ``all_gather`` or ``reduce_scatter``.
        ranks: Ranks of a group; 1 for ``sendrecv``, which is between the cores of one.
        count: How many.
        bytes: Of all of them, what they are priced by.
        us: From when all have come until the results may be read.
        waited_us: Before that, from when this core has come.
        idle_us: How much of both no engine and no DMA of the core does anything.
    """

    op: str
    ranks: int
    count: int
    bytes: int
    us: float
    waited_us: float
    idle_us: float

    def line(self) -> str:
        """The figures as text."""
        over = f"over {self.ranks} ranks, " if self.op != "sendrecv" else ""
        return (
            f"{self.count} {self.op} {over}{self.bytes / 1024:.1f} KiB: {self.us:.2f} us, after "
            f"{self.waited_us:.2f} of waiting for others; engines and DMA idle for {self.idle_us:.2f} of both"
        )


def exchanges(nodes: list[Node], cores: int) -> list[Exchange]:
    """Those of a placed schedule, by kind, the longest first."""
    found: dict[tuple[str, int], Exchange] = {}
    for core in range(cores):
        mine = [n for n in nodes if n.core == core]
        work = _union((begin, end) for begin, end in map(_working, mine) if end > begin)
        came = {n.instr.attrs["meet"]: n.finish for n in mine if "meet" in n.instr.attrs and arrives(n.instr)}
        kinds: dict[tuple[str, int], list[Node]] = {}
        for n in mine:
            if n.instr.op in EXCHANGES:
                kinds.setdefault((n.instr.op, n.instr.attrs.get("ranks", 1)), []).append(n)
        for kind, group in kinds.items():
            waits = [(came[n.instr.attrs["meet"]], n.start, n.finish) for n in group]
            spans = _union((begin, end) for begin, _, end in waits)
            entry = Exchange(
                *kind,
                count=len(group),
                bytes=sum(n.instr.attrs["bytes"] for n in group),
                us=sum(end - start for _, start, end in waits) / 1e3,
                waited_us=sum(start - begin for begin, start, _ in waits) / 1e3,
                idle_us=(_length(spans) - _common(spans, work)) / 1e3,
            )
            if kind not in found or entry.us + entry.waited_us > found[kind].us + found[kind].waited_us:
                found[kind] = entry
    return sorted(found.values(), key=lambda e: -e.us)


def _working(n: Node) -> tuple[float, float]:
    """When an instruction keeps an engine or the DMA busy."""
    if n.transfer is not None:
        end = n.finish - n.transfer.notify_ns
        return end - n.transfer.ns, end
    if n.instr.op in EXCHANGES or n.instr.engine.name == "sync":
        return 0.0, 0.0
    return n.start - n.setup_ns, n.start + n.ns


def _union(spans: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    out: list[tuple[float, float]] = []
    for begin, end in sorted(spans):
        if out and begin <= out[-1][1]:
            out[-1] = (out[-1][0], max(out[-1][1], end))
        else:
            out.append((begin, end))
    return out


def _length(spans: list[tuple[float, float]]) -> float:
    return sum(end - begin for begin, end in spans)


def _common(a: list[tuple[float, float]], b: list[tuple[float, float]]) -> float:
    """Length of what two lists of disjoint spans in order have in common."""
    total, i, j = 0.0, 0, 0
    while i < len(a) and j < len(b):
        total += max(0.0, min(a[i][1], b[j][1]) - max(a[i][0], b[j][0]))
        if a[i][1] < b[j][1]:
            i += 1
        else:
            j += 1
    return total
