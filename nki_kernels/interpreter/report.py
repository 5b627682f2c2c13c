"""What a kernel costs: engine times, critical path, bytes, rooflines, as data, as a table, as a timeline, as a plot."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .capacity import on_chip_tensors, peak
from .context import Core
from .cost import EXCHANGES
from .cost_table import Costs
from .enums import Engine, MemoryRegion
from .exchanges import Exchange, exchanges
from .launch import run, run_ranks
from .price_list import LEVELS, PriceList
from .schedule import Node, build, critical_length, program_order, reordered
from .schedule import cells as array_cells

_ENGINES = (Engine.tensor, Engine.vector, Engine.scalar, Engine.gpsimd)
_LANES = ("tensor", "vector", "scalar", "gpsimd", "dma")
_BOUNDS = (*_LANES, "issue")
_WHAT = {"time_us": "in program order", "reordered_us": "reordered", "critical_us": "by its dependency chain"}


@dataclass
class Report:
    """Modelled cost of one launch. Every time is in microseconds, and modelled, not measured.

    Times are at the centre of the price list unless said. They are of the kernel inside a graph; a launch of its own
    adds ``launch_ns`` of the list.

    Attributes:
        name: Kernel.
        prices: Name of the price list.
        lnc: Physical cores a rank; per-engine figures are of the busiest core.
        ranks: Ranks that ran; of ranks that are alike one runs, and all figures are its own.
        instructions: Instructions executed, all cores.
        time_us: End to end, each engine in program order.
        reordered_us: The same if each engine may take any ready instruction (a lower estimate).
        range_us: ``time_us`` with every price at its cheapest, and with every price at its dearest; also the other two.
        critical_us: Longest dependency chain with unlimited engines.
        roofline_us, roofline_by: Busy time of the busiest resource, and which that is.
        busy_us: Engine -> time it executes or is set up. ``dma`` is the busiest DMA engine, ``issue`` the resource that
            issues transfers.
        setup_us: What of that goes into setting engines up: ``tables`` of activation functions, ``stationary`` loads.
        tables: Activation tables loaded, all cores.
        path_us: Engine -> time on the chain of waits that made ``time_us``; ``exchange`` is between cores and ranks,
            ``wait`` is latency between instructions.
        exchanges: What exchanges between cores and ranks take, by kind.
        binds: The largest entry of ``path_us``.
        counts: Engine -> instructions.
        ops_us: Instruction name -> total engine time.
        hbm_read, hbm_write, dma_on_chip: Bytes.
        flops: Multiply-adds of nc_matmul times 2.
        sbuf_peak, psum_peak: Bytes a partition and banks, live at once, the larger of the cores.
        estimates: Constants of the price list that are neither measured nor documented.
    """

    name: str
    prices: str
    lnc: int
    instructions: int
    time_us: float
    reordered_us: float
    critical_us: float
    range_us: dict[str, tuple[float, float]]
    roofline_us: float
    roofline_by: str
    busy_us: dict[str, float]
    setup_us: dict[str, float]
    tables: int
    path_us: dict[str, float]
    binds: str
    counts: dict[str, int]
    ops_us: dict[str, float]
    hbm_read: int
    hbm_write: int
    dma_on_chip: int
    flops: int
    sbuf_peak: int
    psum_peak: int
    ranks: int = 1
    exchanges: list[Exchange] = field(default_factory=list)
    estimates: list[str] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the timeline, as plain data."""
        plain = {k: v for k, v in vars(self).items() if k != "nodes"}
        return plain | {"exchanges": [asdict(e) for e in self.exchanges], "modelled": True}

    def to_json(self, path: str | Path | None = None) -> str:
        """JSON text; also written to ``path`` if given."""
        text = json.dumps(self.to_dict(), indent=2, sort_keys=True)
        if path is not None:
            Path(path).write_text(text + "\n", encoding="utf-8")
        return text

    def to_chrome_trace(self, path: str | Path) -> None:
        """A timeline for Perfetto or chrome://tracing; a process a core, a track an engine."""
        events: list[dict[str, Any]] = []
        for core in range(self.lnc * self.ranks):
            label = (f"rank {core // self.lnc} " if self.ranks > 1 else "") + f"core {core % self.lnc} (modelled)"
            events.append({"ph": "M", "pid": core, "name": "process_name", "args": {"name": label}})
            for tid, lane in enumerate((*_LANES, "sync")):
                events.append({"ph": "M", "pid": core, "tid": tid, "name": "thread_name", "args": {"name": lane}})
        lanes = {lane: i for i, lane in enumerate((*_LANES, "sync"))}
        for node in self.nodes:
            i = node.instr
            lane = "dma" if node.transfer is not None else i.engine.name
            begin = node.finish - node.transfer.ns if node.transfer is not None else node.start
            out = ", ".join(f"{w[0].name}{list(w[3])} {w[1]}" for w in i.writes)
            events.append(
                {
                    "ph": "X", "pid": node.core, "tid": lanes[lane], "name": i.name or i.op, "cat": i.op,
                    "ts": begin / 1e3, "dur": max(node.finish - begin, 1) / 1e3, "args": {"writes": out, "n": i.n},
                }
            )  # fmt: skip
        Path(path).write_text(json.dumps({"traceEvents": events, "displayTimeUnit": "ns"}), encoding="utf-8")

    def table(self) -> str:
        """The figures as text."""
        rows = [
            f"{self.name}: modelled, {f'{self.ranks} ranks of ' if self.ranks > 1 else ''}"
            f"{self.lnc} physical core{'s' if self.lnc > 1 else ''}, "
            f"{self.instructions} instructions, prices: {self.prices}",
            "  between "
            + ", ".join(f"{low:.2f} and {high:.2f} us {_WHAT[k]}" for k, (low, high) in self.range_us.items()),
            f"  program order {self.time_us:10.2f} us   reordered {self.reordered_us:10.2f} us   "
            f"dependency chain {self.critical_us:.2f} us",
            f"  roofline      {self.roofline_us:10.2f} us   by {self.roofline_by}; the path is bound by {self.binds}",
            f"  {'engine':<8}{'instr':>8}{'busy us':>12}{'of time':>9}{'on path us':>12}{'of path':>9}",
        ]
        total = sum(self.path_us.values()) or 1.0
        for e in (*_LANES, "issue", "sync", "exchange", "wait"):
            busy, path = self.busy_us.get(e, 0.0), self.path_us.get(e, 0.0)
            if busy or path:
                rows.append(
                    f"  {e:<8}{self.counts.get(e, 0):>8}{busy:>12.2f}{busy / (self.time_us or 1):>9.1%}"
                    f"{path:>12.2f}{path / total:>9.1%}"
                )
        if self.tables:
            rows.append(
                f"  of which {self.setup_us['tables']:.2f} us load {self.tables} activation tables, "
                f"{self.setup_us['stationary']:.2f} us load stationaries"
            )
        rows.extend(f"  {e.line()}" for e in self.exchanges)
        rows.append(
            f"  HBM read {self.hbm_read / 1024:.1f} KiB, written {self.hbm_write / 1024:.1f} KiB; "
            f"SBUF {self.sbuf_peak} B a partition, PSUM {self.psum_peak} banks; "
            f"{self.flops / max(self.time_us, 1e-9) / 1e6:.2f} TFLOPS"
        )
        return "\n".join(rows)

    def plot(self, path: str | Path) -> None:
        """Bars: busy time of each engine and its share of the path, against total, reordered and roofline time."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 4))
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        names = [e for e in (*_LANES, "exchange", "wait") if self.busy_us.get(e) or self.path_us.get(e)]
        places = range(len(names))
        axes.barh([p + 0.2 for p in places], [self.busy_us.get(e, 0.0) for e in names], 0.38, label="busy")
        axes.barh([p - 0.2 for p in places], [self.path_us.get(e, 0.0) for e in names], 0.38, label="on the path")
        for at, label, style in (
            (self.time_us, "program order", "-"),
            (self.reordered_us, "reordered", "--"),
            (self.roofline_us, "roofline", ":"),
        ):
            axes.axvline(at, linestyle=style, color="black", label=f"{label} {at:.1f} us")
        axes.set_yticks(list(places), names)
        axes.invert_yaxis()
        axes.set_xlabel("us (modelled)")
        axes.set_title(f"{self.name}, {self.lnc} physical core{'s' if self.lnc > 1 else ''}")
        axes.legend(fontsize="small")
        figure.tight_layout()
        figure.savefig(path)


def _busy(nodes: list[Node], core: int, c: Costs) -> tuple[dict[str, float], dict[str, int]]:
    busy: dict[str, float] = {}
    counts: dict[str, int] = {}
    dma: dict[int, float] = {}
    cells: dict[int, float] = {}
    for n in nodes:
        if n.core != core:
            continue
        queue, lane = n.instr.engine.name, "dma" if n.transfer is not None else n.instr.engine.name
        counts[lane] = counts.get(lane, 0) + 1
        if n.transfer is not None:
            for e in range(*n.transfer.engines):
                dma[e] = dma.get(e, 0.0) + n.transfer.ns
            if n.instr.engine is not Engine.sync:
                busy[queue] = busy.get(queue, 0.0) + n.ns
            if not (n.queued and n.instr.engine is Engine.gpsimd):
                busy["issue"] = busy.get("issue", 0.0) + c.dma_issue_ns
        elif n.instr.attrs.get("tile"):
            busy[lane] = busy.get(lane, 0.0) + c.tensor_tile_share * n.ns + n.setup_ns
            for cell in array_cells(n.instr):
                cells[cell] = cells.get(cell, 0.0) + n.ns
        else:
            busy[lane] = busy.get(lane, 0.0) + n.ns + n.setup_ns
    if cells:
        busy["tensor"] = max(busy.get("tensor", 0.0), max(cells.values()))
    if dma:
        busy["dma"] = max(dma.values())
    return busy, counts


def _path(nodes: list[Node]) -> dict[str, float]:
    """Walk back from the last finish: time executing on each engine, and time waiting between instructions."""
    out: dict[str, float] = {}
    if not nodes:
        return out
    at = max(range(len(nodes)), key=lambda i: nodes[i].finish)
    upper = nodes[at].finish
    while at >= 0:
        n = nodes[at]
        begin = n.start
        lane = n.instr.engine.name
        if n.transfer is not None:
            moving = min(n.transfer.ns, upper - begin)
            out["dma"] = out.get("dma", 0.0) + moving
            out["wait"] = out.get("wait", 0.0) + max(upper - begin - moving, 0.0)
        elif n.instr.op in EXCHANGES:
            out["exchange"] = out.get("exchange", 0.0) + max(upper - begin, 0.0)
        else:
            run_ns = max(min(upper, begin + n.ns) - begin, 0.0)
            out[lane] = out.get(lane, 0.0) + run_ns
            out["wait"] = out.get("wait", 0.0) + max(upper - begin - run_ns, 0.0)
        upper = begin
        if n.setup_ns and (n.held_by_engine or not n.timing.ahead):
            out[lane] = out.get(lane, 0.0) + n.setup_ns
            upper -= n.setup_ns
        previous = n.held_by
        if previous >= 0 and not n.held_by_engine:
            lag = upper - nodes[previous].finish
            if lag > 0:
                out["wait"] = out.get("wait", 0.0) + lag
                upper = nodes[previous].finish
        at = previous
    if upper > 0:
        out["wait"] = out.get("wait", 0.0) + upper
    return out


def _placed(cores: list[Core], c: Costs) -> tuple[list[Node], dict[str, float]]:
    """Nodes placed in program order, and the times that the report gives a range of, in us."""
    nodes = build(cores, c)
    total = program_order(nodes, len(cores), c)
    best = min(reordered(nodes, len(cores), c), total)
    chain, _ = critical_length(nodes, c)
    return nodes, {"time_us": total / 1e3, "reordered_us": best / 1e3, "critical_us": chain / 1e3}


def make_report(name: str, cores: list[Core], prices: PriceList | None = None) -> Report:
    """Schedule the traces of a launch at the list's centre and at both of its ends, and add them up."""
    prices = prices or PriceList()
    c = prices.costs()
    nodes, times = _placed(cores, c)
    low, high = (_placed(cores, prices.costs(level))[1] for level in LEVELS if level != "centre")
    per_core = [_busy(nodes, i, c) for i in range(len(cores))]
    busy: dict[str, float] = {}
    counts: dict[str, int] = {}
    for b, k in per_core:
        for lane, ns in b.items():
            busy[lane] = max(busy.get(lane, 0.0), ns)
        for lane, number in k.items():
            counts[lane] = counts.get(lane, 0) + number
    moves = [n.transfer for n in nodes if n.transfer is not None]
    read, written = sum(m.hbm_read for m in moves), sum(m.hbm_write for m in moves)
    bounds = {k: v for k, v in busy.items() if k in _BOUNDS}
    bounds["hbm"] = (read + written) / (c.hbm_bytes_ns * len(cores))
    by = max(bounds, key=lambda k: bounds[k]) if nodes else "nothing"
    path = _path(nodes)
    ops: dict[str, float] = {}
    for n in nodes:
        ops[n.instr.op] = ops.get(n.instr.op, 0.0) + (n.transfer.ns if n.transfer is not None else n.ns)
    flops = sum(
        2 * n.instr.n * n.instr.attrs["m"] * n.instr.attrs["k"] * (2 if n.instr.attrs["double"] else 1)
        for n in nodes
        if n.instr.op == "nc_matmul" and not n.instr.attrs["transpose"]
    )
    tensors = [on_chip_tensors(core) for core in cores]
    setup = {"tables": Engine.scalar, "stationary": Engine.tensor}
    return Report(
        name=name,
        prices=prices.name,
        lnc=cores[0].num_programs,
        ranks=len(cores) // cores[0].num_programs,
        instructions=len(nodes),
        **times,
        # A cheaper instruction can lead to a longer schedule, so the ends need not be the two ends of the list.
        range_us={k: (min(low[k], v, high[k]), max(low[k], v, high[k])) for k, v in times.items()},
        # Loading tables and stationaries is part of an engine's time here, and another order may need less of it.
        roofline_us=min(bounds.get(by, 0.0) / 1e3, times["reordered_us"]),
        roofline_by=by,
        busy_us={k: v / 1e3 for k, v in busy.items()},
        setup_us={
            k: sum(n.setup_ns for n in nodes if n.instr.engine is e and not n.transfer) / 1e3 / len(cores)
            for k, e in setup.items()
        },
        tables=sum(n.setup_ns > 0 for n in nodes if n.instr.engine is Engine.scalar),
        path_us={k: v / 1e3 for k, v in path.items()},
        binds=max(path, key=lambda k: path[k]) if path else "nothing",
        counts=counts,
        ops_us={k: v / 1e3 for k, v in sorted(ops.items(), key=lambda kv: -kv[1])},
        hbm_read=read,
        hbm_write=written,
        dma_on_chip=sum(m.on_chip for m in moves),
        flops=flops,
        sbuf_peak=max(peak(t, MemoryRegion.sbuf)[0] for t in tensors),
        psum_peak=max(peak(t, MemoryRegion.psum)[0] for t in tensors),
        estimates=[k for k, v in prices.prices.items() if v.kind == "inferred"],
        nodes=nodes,
        exchanges=exchanges(nodes, len(cores)),
    )


def profile(
    kernel: Any, *args: Any, prices: PriceList | None = None, world: int = 1, **kwargs: Any
) -> tuple[Any, Report]:
    """Run ``kernel`` (``k``, ``k[2]`` or a plain function) and price it.

    Args:
        prices: The published prices unless given; a kernel's own argument cannot have this name, nor the next.
        world: Ranks that all have these arguments: one is computed and priced, and what it brings to a collective
            stands for what each brings.

    Returns:
        (the kernel's results, :class:`Report`)
    """
    results, launch = run(kernel, args, kwargs, ranks=world)
    return results, make_report(_name(kernel), launch.cores, prices)


def profile_ranks(
    kernel: Any, arguments: Sequence[Sequence[Any]], prices: PriceList | None = None, **same: Any
) -> tuple[list[Any], Report]:
    """Run ``kernel`` on ranks with arguments of their own (see :func:`~.launch.ranks`) and price all of them together.

    Returns:
        (each rank's results, :class:`Report`)
    """
    results, launch = run_ranks(kernel, arguments, same)
    return results, make_report(_name(kernel), launch.cores, prices)


def _name(kernel: Any) -> str:
    return str(getattr(kernel, "__name__", type(kernel).__name__))
