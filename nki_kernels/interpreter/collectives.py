"""``nki.collectives``: what the ranks of a group sum, gather or scatter together.

Each of a rank's cores makes the call. A tile in SBUF, or a tensor in private HBM, is one core's own: core 0 meets the
other ranks' cores 0, core 1 their cores 1. A tensor in shared HBM is the rank's: both cores meet those of the others,
and what either wrote is in it once the two have met at a ``core_barrier``.

Sums are taken in float32, in the order of the group's list, and rounded to the tensors' type once; every rank gets the
same bits. The device's order, and whether a ring rounds at every hop, are not published.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import context
from .alu import Op
from .context import Core, refuse
from .dtypes import round_to, to_f32
from .enums import Engine, MemoryRegion
from .errors import NotSimulatedError, fail
from .isa.dma_common import side, store
from .operands import SBUF, operand
from .races import check_read
from .registers import Register
from .replica_group import ReplicaGroup
from .tensor import Tensor
from .undefined import defined

_FOLDS: dict[str, Callable[..., np.ndarray]] = {"add": np.add, "minimum": np.minimum, "maximum": np.maximum}


@dataclass
class _Brought:
    """What a rank's core brings: values and which are defined, a pair a tensor; ``taken``: its results are written."""

    parts: list[tuple[np.ndarray, np.ndarray | None]]
    taken: bool = False


def all_reduce(
    srcs: Sequence[Tensor],
    dsts: Sequence[Tensor],
    replica_group: ReplicaGroup,
    op: Op,
    priority: int | None = None,
    name: str | None = None,
) -> None:
    """Each tensor of ``dsts`` = the sum (``nl.add``), minimum or maximum of its source over the ranks of the group."""
    fold = _fold("all_reduce", op)
    _run("all_reduce", srcs, dsts, replica_group, priority, name, (1, 1, 0), lambda parts, _: fold(parts))


def all_gather(
    srcs: Sequence[Tensor],
    dsts: Sequence[Tensor],
    replica_group: ReplicaGroup,
    collective_dim: int,
    priority: int | None = None,
    name: str | None = None,
) -> None:
    """Each tensor of ``dsts`` = its source of every rank, one after the other along ``collective_dim``."""
    _dim("all_gather", srcs, collective_dim, (0, 1))

    def join(parts: list[np.ndarray], _: int) -> np.ndarray:
        return np.concatenate(parts, axis=collective_dim)

    _run("all_gather", srcs, dsts, replica_group, priority, name, (1, 0, collective_dim), join)


def reduce_scatter(
    srcs: Sequence[Tensor],
    dsts: Sequence[Tensor],
    replica_group: ReplicaGroup,
    collective_dim: int,
    op: Op,
    priority: int | None = None,
    name: str | None = None,
) -> None:
    """Each tensor of ``dsts`` = the rank's part, along dimension 0, of its source's sum over the ranks of the group."""
    _dim("reduce_scatter", srcs, collective_dim, (0,))
    fold = _fold("reduce_scatter", op)

    def part(parts: list[np.ndarray], at: int) -> np.ndarray:
        size = parts[0].shape[0] // len(parts)
        return fold([p[at * size : (at + 1) * size] for p in parts])

    _run("reduce_scatter", srcs, dsts, replica_group, priority, name, (0, 1, 0), part)


def rank_id() -> Register:
    """This rank, in a register: it may be a ``scalar_offset``; Python arithmetic on it does not compile."""
    core = context.current("rank_id")
    if core.launch.alike and core.launch.ranks > 1:
        raise NotSimulatedError("rank_id", "", "the ranks are computed as one; give each its arguments with ranks()")
    return Register(core.rank)


def _fold(ins: str, op: Any) -> Callable[[list[np.ndarray]], np.ndarray]:
    name = getattr(op, "name", None)
    if name not in _FOLDS:
        fail(ins, "op", f"must be nl.add, nl.minimum or nl.maximum, not {op!r}")

    def fold(parts: list[np.ndarray]) -> np.ndarray:
        if parts[0].dtype == np.bool_:
            return np.logical_and.reduce(parts)
        wide = [p.astype(np.int64) if p.dtype.kind in "iu" else to_f32(p) for p in parts]
        out = wide[0]
        for part in wide[1:]:
            out = _FOLDS[name](out, part)
        return out

    return fold


def _dim(ins: str, srcs: Any, dim: Any, on_chip: tuple[int, ...]) -> None:
    sbuf = bool(srcs) and isinstance(srcs[0], Tensor) and srcs[0].on_chip
    allowed = on_chip if sbuf else (0,)
    if isinstance(dim, bool) or dim not in allowed:
        where = "SBUF" if sbuf else "HBM"
        fail(ins, "collective_dim", f"must be {' or '.join(map(str, allowed))} for tensors in {where}, not {dim!r}")


def _group_of(ins: str, core: Core, replica_group: Any) -> tuple[int, ...]:
    if not isinstance(replica_group, ReplicaGroup):
        fail(ins, "replica_group", f"must be a ReplicaGroup, not {type(replica_group).__name__}")
    world = core.launch.ranks
    outside = sorted(r for g in replica_group.groups for r in g if r >= world)
    if outside:
        fail(ins, "replica_group", f"names rank {outside[0]}, the launch has {world}: run it with ranks(kernel)(...)")
    for group in replica_group.groups:
        if core.rank in group:
            return group
    return fail(ins, "replica_group", f"{replica_group} does not name rank {core.rank}, which calls it")


def _tensor(ins: str, role: str, core: Core, t: Any) -> Tensor:
    t = side(ins, role, t)
    if t.is_indirect():
        fail(ins, role, f"'{t.name}' has a dynamic offset; the address of a collective is fixed")
    if t.on_chip:
        t = operand(ins, role, t, SBUF)
        if t.ndim != 2:
            fail(ins, role, f"'{t.name}' is {t.shape}: in SBUF a collective takes [partitions, elements]")
    elif t.storage.info.name == f"{t.buffer.value}.{t.storage.info.uid}":
        refuse("collective-name", ins, role, f"a tensor {t.shape} in {t.buffer.value} has no name")
    if not (t.whole_rows() if t.on_chip else t.is_contiguous()):
        refuse("collective-tile", ins, role, f"{t.get_pattern()} is a part of each row of '{t.name}'")
    if core.launch.is_argument(t.storage.info):
        refuse("collective-io", ins, role, f"'{t.name}' is an argument of the kernel")
    if not t.on_chip:
        core.collective[t.storage.info.uid] = (ins, role)
    return t


def _pairs(ins: str, core: Core, srcs: Any, dsts: Any) -> list[tuple[Tensor, Tensor]]:
    for role, given in (("srcs", srcs), ("dsts", dsts)):
        if not isinstance(given, (list, tuple)) or not given:
            fail(ins, role, f"must be a list of tensors, not {given!r}")
    if len(srcs) != len(dsts):
        fail(ins, "dsts", f"has {len(dsts)} tensors, srcs has {len(srcs)}")
    pairs = [(_tensor(ins, "srcs", core, s), _tensor(ins, "dsts", core, d)) for s, d in zip(srcs, dsts, strict=True)]
    if len({t.on_chip for pair in pairs for t in pair}) > 1:
        fail(ins, "dsts", "tensors in HBM and in SBUF are mixed; a collective takes one or the other")
    if pairs[0][0].on_chip and len(pairs) > 1:
        fail(ins, "srcs", f"{len(pairs)} tensors in SBUF: only tensors in HBM go together in one collective")
    for s, d in pairs:
        if s.dtype is not d.dtype:
            fail(ins, "dsts", f"'{d.name}' is {d.dtype}, '{s.name}' is {s.dtype}; they must agree")
    memory = [t.storage.info.uid for pair in pairs for t in pair]
    if len(set(memory)) < len(memory):
        fail(ins, "dsts", "a tensor is given twice, or is its own source: each needs memory of its own")
    _check_hbm(ins, core, pairs)
    return pairs


def _check_hbm(ins: str, core: Core, pairs: list[tuple[Tensor, Tensor]]) -> None:
    if pairs[0][0].on_chip:
        return
    for role, side_of in (("srcs", 0), ("dsts", 1)):
        kinds = {pair[side_of].buffer for pair in pairs}
        if len(kinds) > 1:
            refuse("collective-hbm", ins, role, "some are in private_hbm and some in shared_hbm")
        if core.num_programs == 1 and MemoryRegion.shared_hbm in kinds:
            refuse("collective-hbm", ins, role, "in shared_hbm, on a logical core of one")
    if core.num_programs == 2 and len({t.buffer for pair in pairs for t in pair}) > 1:
        raise NotSimulatedError(ins, "dsts", "from private to shared HBM, or back, on two cores")


def _check_shapes(ins: str, pairs: list[tuple[Tensor, Tensor]], ranks: int, growth: tuple[int, int, int]) -> None:
    """``growth``: whether every rank brings a whole, whether every rank gets a sum, and the dimension that changes."""
    whole, summed, dim = growth
    for s, d in pairs:
        want = list(s.shape)
        if whole and not summed:
            want[dim] *= ranks
        elif not whole:
            if want[dim] % ranks:
                fail(ins, "srcs", f"'{s.name}' {s.shape}: dimension {dim} does not divide among {ranks} ranks")
            want[dim] //= ranks
        if d.shape != tuple(want):
            fail(ins, "dsts", f"'{d.name}' is {d.shape}, must be {tuple(want)}: {ranks} ranks bring {s.shape}")


def _run(
    ins: str,
    srcs: Any,
    dsts: Any,
    replica_group: Any,
    priority: Any,
    name: str | None,
    growth: tuple[int, int, int],
    join: Callable[[list[np.ndarray], int], np.ndarray],
) -> None:
    core = context.current(ins)
    if priority is not None:
        fail(ins, "priority", f"{priority!r}: priorities exist from NeuronCore-v4 on")
    group = _group_of(ins, core, replica_group)
    pairs = _pairs(ins, core, srcs, dsts)
    _check_shapes(ins, pairs, len(group), growth)
    shared = pairs[0][0].buffer is MemoryRegion.shared_hbm and core.num_programs == 2
    brought = _Brought([])
    for s, d in pairs:
        if shared:
            check_read(core, ins, "srcs", s)
        fine = defined(ins, d, "srcs", s)
        brought.parts.append((s.array.copy(), None if fine is None else fine.reshape(s.shape)))
    shapes = tuple((s.shape, str(s.dtype)) for s, _ in pairs)
    key = (ins, f"group {list(group)}", *shapes, growth[2])
    core.events.append(key)
    sources, targets = tuple(s.access() for s, _ in pairs), tuple(d.access() for _, d in pairs)
    place = core.launch.place(core, group, shared)
    core.record(f"{ins}.arrive", Engine.sync, 1, sources, (), place, name)
    all_brought: list[_Brought] = core.launch.gather(core, group, shared, key, brought)
    at = group.index(core.rank)
    mine = all_brought[at]
    if not mine.taken:
        mine.taken = True
        for i, (_, d) in enumerate(pairs):
            parts = [b.parts[i] for b in all_brought]
            store(d, round_to(join([p for p, _ in parts], at), d.dtype), _known(ins, d, parts, join, at))
    moved = sum(max(t.size * t.dtype.itemsize for t in pair) for pair in pairs)
    attrs = {"bytes": moved, "ranks": len(group), "on_chip": pairs[0][0].on_chip, **place}
    core.record(ins, Engine.sync, 1, sources, targets, attrs, name)


def _known(
    ins: str,
    d: Tensor,
    parts: list[tuple[np.ndarray, np.ndarray | None]],
    join: Callable[[list[np.ndarray], int], np.ndarray],
    at: int,
) -> np.ndarray | None:
    """Which elements of the result are defined: where all that they come of is."""
    if all(mask is None for _, mask in parts):
        return None
    if not d.storage.origin:
        d.storage.origin = f"{ins}: operand 'srcs' of another rank"
    return join([np.ones(v.shape, dtype=np.bool_) if mask is None else mask for v, mask in parts], at)


def _absent(name: str) -> Any:
    def not_simulated(*_: Any, **__: Any) -> None:
        raise NotSimulatedError(name, "", "is not simulated; all_reduce, all_gather and reduce_scatter are")

    return not_simulated


SURFACE: dict[str, Any] = {
    name: _absent(name)
    for name in (
        "all_to_all", "all_to_all_v", "all_gather_v", "collective_permute", "collective_permute_implicit",
        "collective_permute_implicit_reduce", "collective_permute_implicit_current_processing_rank_id",
    )
} | {
    "all_reduce": all_reduce, "all_gather": all_gather, "reduce_scatter": reduce_scatter, "rank_id": rank_id,
    "ReplicaGroup": ReplicaGroup,
}  # fmt: skip
