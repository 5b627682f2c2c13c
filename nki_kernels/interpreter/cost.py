"""How long one instruction holds its engine, and how long until what it wrote may be used, from ``cost_table``.

N is elements a partition. Nothing depends on the number of partitions, except DMA. An instruction's *service* is the
time in which its elements pass; it *holds* its engine for the service and what issuing it takes; its result is *ready*
for another instruction when the pipeline has drained.
"""

from collections.abc import Hashable
from dataclasses import dataclass

from .context import Instr
from .cost_table import ACT_PLAIN, ACT_SETS, Costs
from .enums import Engine, MemoryRegion
from .tensor import Access

_PSUM = MemoryRegion.psum
_SBUF = MemoryRegion.sbuf
_SEARCH = ("max8", "nc_find_index8", "nc_match_replace8")
_GATHER = ("nc_n_gather", "tensor_partition_reduce", "nonzero_with_count", "sequence_bounds", "set_rng_seed")
DMA_OPS = ("dma_copy", "dma_transpose", "dma_compute", "sendrecv")
COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter")
EXCHANGES = ("sendrecv", *COLLECTIVES)
"""What takes its own time after it has been issued, while the core's engines go on."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Times of one instruction in ns, from its start.

    Attributes:
        hold: It holds its engine.
        ready: An instruction that reads what it wrote may start on the same engine.
        setup: More time on the engine before it, unless the engine is in ``state`` already.
        state: What the engine is set up for afterwards: a table of functions, a stationary, a pair of quadrants.
        keeps: It leaves the engine's state as it is.
        ahead: The setup needs no operand, so it can be done while they are awaited.
    """

    hold: float
    ready: float
    setup: float = 0.0
    state: Hashable = None
    keeps: bool = True
    ahead: bool = False


def clock(engine: Engine, c: Costs) -> float:
    """GHz of an engine (1 for queues, whose times are given in ns)."""
    return {
        Engine.tensor: c.tensor_ghz, Engine.vector: c.vector_ghz, Engine.scalar: c.scalar_ghz,
        Engine.gpsimd: c.gpsimd_ghz,
    }.get(engine, 1.0)  # fmt: skip


def _16bit(a: Access) -> bool:
    return a[1].itemsize == 2 and a[1].is_float


def _step(a: Access) -> int:
    """Bytes from one element of a partition to the next."""
    for n, s in zip(reversed(a[3][1:]), reversed(a[4][1:]), strict=True):
        if n > 1:
            return abs(s)
    return a[1].itemsize


def step_factor(accesses: tuple[Access, ...], c: Costs) -> float:
    """How much slower elements pass VectorE, ScalarE or GpSimd for the widest step among the operands."""
    step = max((_step(a) for a in accesses), default=0)
    if step < c.step_bytes:
        return 1.0
    ramp = (step - c.wide_step_bytes) / (c.widest_step_bytes - c.wide_step_bytes)
    return c.step_factor + (c.wide_step_factor - c.step_factor) * min(max(ramp, 0.0), 1.0)


def _contiguous(a: Access) -> bool:
    return _step(a) in (0, a[1].itemsize)


def timing(i: Instr, c: Costs, written: int = 0) -> Timing:
    """Times of instruction ``i`` (for DMA: of its trigger queue).

    Args:
        written: How often the matmul's stationary had been written, which tells it from an earlier one in its place.
    """
    if i.op in DMA_OPS:
        ns = _issue_ns(i, c)
        return Timing(ns, ns)
    if i.op == "core_barrier":
        return Timing(c.barrier_ns, c.barrier_ns)
    if i.op in COLLECTIVES:
        return Timing(c.collective_trigger_ns, c.collective_trigger_ns)
    if i.op.endswith((".send", ".arrive")):
        return Timing(0.0, 0.0)
    if i.engine is Engine.sync:
        ns = {"loop_iteration": c.loop_ns, "register_move": c.register_ns}.get(i.op, c.register_load_ns)
        return Timing(ns, ns)
    if i.engine is Engine.tensor:
        return _tensor(i, c, written)
    factor = step_factor((*i.reads, *i.writes), c)
    if i.engine is Engine.vector:
        return _vector(i, c, factor)
    if i.engine is Engine.scalar:
        return _scalar(i, c, factor)
    service = _gpsimd(i, c) * factor / c.gpsimd_ghz
    return Timing(service, service + c.pool_ready_ns)


def static(i: Instr) -> bool:
    """A DMA whose addresses are known before the launch, which holds no trigger queue unless the kernel asks."""
    return i.attrs.get("dge") not in ("hwdge", "swdge") and not i.attrs.get("indirect")


def _issue_ns(i: Instr, c: Costs) -> float:
    if i.op == "sendrecv":
        return c.register_ns
    if i.attrs["indirect"]:
        return c.dma_indirect_ns
    if i.attrs["dge"] == "swdge":
        return c.dma_swdge_ns + c.dma_swdge_row_ns * descriptors(i)
    return c.dma_issue_ns


def _tensor(i: Instr, c: Costs, written: int) -> Timing:
    """LoadStationary, unless the stationary is the one before's, then the moving columns."""
    attrs, stationary = i.attrs, i.reads[0]
    transpose = i.op == "nc_transpose" or attrs["transpose"]
    fp32 = stationary[1].itemsize == 4 if i.op == "nc_transpose" else attrs["fp32"]
    columns, passes, load = i.n, 1.0, c.tensor_load_cycles
    if i.op == "nc_transpose":
        columns = attrs["k"]  # the moving operand is an identity
    if transpose:
        passes = c.tensor_fp32_transpose_passes if fp32 else 1.0
    elif fp32:
        passes = c.tensor_fp32_onezero_passes if attrs["onezero"] else c.tensor_fp32_passes
        load = c.tensor_fp32_load_cycles
    if not transpose and attrs["k"] <= c.tensor_short_k:
        passes *= c.tensor_short_k_fp32 if fp32 else c.tensor_short_k_bf16
    if len(i.reads) > 1 and _step(i.reads[1]) >= c.step_bytes:
        passes *= c.tensor_step_factor
    moving = columns * passes / c.tensor_ghz * c.tensor_throttle
    loading = load / c.tensor_ghz * c.tensor_throttle
    hold = c.tensor_issue_ns + max(moving, c.tensor_min_cycles / c.tensor_ghz)
    drain = c.tensor_fp32_ready_factor if fp32 else c.tensor_ready_factor
    ready = max(c.tensor_ready_ns + drain * moving - loading, hold)
    state = (stationary[0].uid, written, *stationary[2:], attrs.get("tile"))
    return Timing(hold, ready, loading, state, keeps=False)


def _one_input(i: Instr, c: Costs) -> float:
    """Cycles an element of tensor_copy and tensor_scalar on VectorE."""
    source, result = i.reads[0], i.writes[0]
    narrow = _16bit(source) and _16bit(result)
    if source[0].buffer is _PSUM or result[0].buffer is _PSUM:
        return c.vector_psum_16bit if narrow and _contiguous(source) and _contiguous(result) else c.vector_psum
    if narrow:
        return c.vector_copy_16bit if _contiguous(source) and _contiguous(result) else c.vector_copy_16bit_step
    if source[1].is_int and result[1].is_int:
        return c.vector_copy_int
    return c.vector_copy_widen if source[1].itemsize < 4 else c.vector_copy_fp32


def _two_input(i: Instr, c: Costs) -> float:
    inputs = i.reads[:2]
    if any(a[0].buffer is _PSUM for a in inputs):
        return c.vector_psum
    if i.op == "scalar_tensor_tensor":
        return c.vector_scalar_tensor_tensor
    return c.vector_two_input_16bit if all(_16bit(a) for a in (*inputs, *i.writes)) else c.vector_two_input


def _vector_rate(i: Instr, c: Costs) -> float:
    """Cycles an element."""
    op = i.op
    if op in ("tensor_copy", "tensor_scalar"):
        return _one_input(i, c)
    if op in ("tensor_tensor", "scalar_tensor_tensor"):
        return _two_input(i, c)
    if op == "tensor_reduce":
        narrow = i.attrs["alu"] in ("add", "maximum") and _16bit(i.reads[0]) and _16bit(i.writes[0])
        return c.vector_reduce_16bit if narrow else c.vector_reduce
    return {
        "tensor_tensor_scan": c.vector_scan, "reciprocal": c.vector_reciprocal, "bn_aggr": 13 / 3,
        "memset": c.vector_memset, "tensor_copy_predicated": c.vector_predicated,
    }.get(op, 1.0)  # fmt: skip


def _vector(i: Instr, c: Costs, factor: float) -> Timing:
    if i.op == "nc_transpose":
        a, b = (access[0].base_row + access[2] // max(access[0].row_bytes, 1) for access in (i.reads[0], i.writes[0]))
        pair = (a // 32, b // 32)
        ready = max(c.vector_transpose_ready_ns - c.vector_transpose_turn_ns, c.vector_transpose_ns)
        return Timing(c.vector_transpose_ns, ready, c.vector_transpose_turn_ns, pair, keeps=False)
    extra = 0.0
    if i.op in _SEARCH:
        extra = c.vector_search_cycles
    elif i.attrs.get("reduce"):
        extra = c.vector_readout_cycles
    service = (i.n * _vector_rate(i, c) * factor + extra) / c.vector_ghz
    hold = max(service, c.min_cycles / c.vector_ghz) + c.vector_issue_ns
    after = c.vector_memset_ready_ns if i.op == "memset" else c.vector_ready_ns
    if i.op == "tensor_tensor_scan" and len(i.reads) > 2:
        after += c.vector_scan_seed_ns
    elif i.op == "nc_stream_shuffle":
        after += c.vector_shuffle_mask_ns
    return Timing(hold, max(service + after, hold), keeps=False)


def _scalar(i: Instr, c: Costs, factor: float) -> Timing:
    psum = i.reads[0][0].buffer is _PSUM
    service = i.n * (c.scalar_psum if psum else 1.0) * factor / c.scalar_ghz
    hold = max(service, c.min_cycles / c.scalar_ghz) + c.scalar_issue_ns
    gain = c.scalar_psum_gain_ns if psum else 0.0
    function = i.attrs.get("act")
    if function is None:
        return Timing(hold, max(service + c.scalar_copy_ready_ns - gain, hold))
    after = c.scalar_affine_ready_ns if function == "copy" else c.scalar_function_ready_ns
    after += c.scalar_operand_ns * (len(i.reads) - 1)
    ready = service + after - gain
    if i.attrs.get("reduce"):
        hold = max(service + c.scalar_reduce_ns, hold) + c.scalar_readout_ns
        ready = max(ready, hold - c.scalar_readout_ns + c.scalar_readout_ready_ns)
    plain = function in ACT_PLAIN
    setup = c.scalar_plain_table_ns if plain else c.scalar_table_ns
    table = ACT_SETS.get(function, function)
    return Timing(hold, max(ready, hold), setup, table, keeps=plain and not setup, ahead=True)


def _gpsimd(i: Instr, c: Costs) -> float:
    op, n = i.op, i.n
    if op in ("iota", "affine_select"):
        return c.pool_fixed_cycles + n
    if op == "local_gather":
        valid, per, size, t = i.attrs["valid"], i.attrs["per_index"], i.attrs["itemsize"], 4
        rate = ((28 + t * per) / (t * per)) / min(4 / size, per)
        return c.pool_fixed_cycles + valid * per / rate
    if op in _GATHER:
        return c.pool_fixed_cycles + c.pool_gather * n
    if op == "tensor_scalar":
        return max(c.min_cycles, c.pool_rsqrt * n)
    if op == "tensor_tensor":
        return c.pool_fixed_cycles + c.pool_int * n
    return max(c.min_cycles, c.pool_element * n)


def exchange_ns(i: Instr, c: Costs) -> float:
    """Time of an exchange between cores or ranks, from when all have come until its results may be read."""
    if i.op == "sendrecv":
        return c.sendrecv_ns
    size = i.attrs["bytes"]
    more = max(0.0, size - c.collective_bytes) / c.collective_bytes_ns
    if i.op == "all_gather":
        part = min(size / c.collective_bytes, 1.0)
        return c.all_gather_least_ns + (c.all_gather_ns - c.all_gather_least_ns) * part + more
    # Nobody has measured a reduce_scatter: it is priced as the all-reduce of what each rank brings.
    return c.all_reduce_ns + more


@dataclass(frozen=True)
class Transfer:
    """What a DMA instruction moves.

    Attributes:
        ns: Time it keeps each DMA engine that it uses.
        engines: First and last+1 DMA engine.
        hbm_read, hbm_write, on_chip: Bytes by where they come from or go to (on_chip: SBUF to SBUF).
        start_ns, notify_ns: From its issue to its first byte; from its last byte until a dependent may start.
    """

    ns: float
    engines: tuple[int, int]
    hbm_read: int
    hbm_write: int
    on_chip: int
    start_ns: float
    notify_ns: float


def run_bytes(a: Access, on_chip: bool) -> int:
    """Contiguous bytes a descriptor element moves: the innermost contiguous run, inside one partition on chip."""
    size = a[1].itemsize
    expect = size
    dims = list(zip(a[3], a[4], strict=True))
    for n, s in reversed(dims[1:] if on_chip else dims):
        if n == 1:
            continue
        if s != expect:
            break
        expect *= n
    return expect


def _sides(i: Instr) -> tuple[Access, Access]:
    return (i.reads[-1] if i.attrs.get("indirect") else i.reads[0]), i.writes[0]


def descriptors(i: Instr) -> int:
    """Contiguous runs that a DMA instruction moves."""
    if not i.attrs["bytes"]:
        return 0
    runs = (run_bytes(a, a[0].buffer is _SBUF) for a in _sides(i))
    return max(1, i.attrs["bytes"] // max(1, min(runs)))


def transfer(i: Instr, c: Costs) -> Transfer:
    """Bytes and engine time of a DMA instruction; none of one whose address was out of bounds, which is only issued."""
    if not i.attrs["bytes"]:
        return Transfer(0.0, (0, 0), 0, 0, 0, 0.0, 0.0)
    src, dst = _sides(i)
    moved = i.attrs["bytes"]
    engines = (0, int(c.dma_engines))
    runs: list[int] = []
    spans: list[tuple[int, int]] = []
    for a in (src, dst):
        on_chip = a[0].buffer is _SBUF
        runs.append(run_bytes(a, on_chip))
        if on_chip:
            first = a[0].base_row + a[2] // max(a[0].row_bytes, 1)
            last = first + a[3][0] - 1
            spans.append((int(first // c.dma_partitions), int(last // c.dma_partitions) + 1))
    if spans:
        engines = max(spans, key=lambda s: s[1] - s[0])
    run = min(runs)
    if i.attrs.get("transpose"):
        hbm = src[0].buffer is not _SBUF
        efficiency = c.dma_transpose_hbm if hbm else c.dma_transpose_sbuf
        run = max(runs)
    else:
        efficiency = 1.0
    efficiency *= run / (run + c.dma_run_bytes)
    ns = moved / (engines[1] - engines[0]) / (c.dma_bytes_ns * efficiency)
    from_hbm, to_hbm = src[0].buffer is not _SBUF, dst[0].buffer is not _SBUF
    start, notify = c.dma_load_start_ns, c.dma_load_notify_ns
    if to_hbm and not from_hbm:
        start, notify = c.dma_store_start_ns, c.dma_store_notify_ns
    return Transfer(
        ns, engines, moved if from_hbm else 0, moved if to_hbm else 0, 0 if from_hbm or to_hbm else moved, start, notify
    )  # fmt: skip
