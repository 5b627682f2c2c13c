"""How long one instruction occupies its engine, from the constants of ``cost_table``.

The formulas are the SDK 2.26 reference's latency tables scaled by the documented Trainium2 performance modes; N is
elements a partition. Nothing depends on the number of partitions, except DMA.
"""

from dataclasses import dataclass

from .context import Instr
from .cost_table import Costs
from .enums import Engine, MemoryRegion
from .tensor import Access

_PSUM = MemoryRegion.psum
_SBUF = MemoryRegion.sbuf
_SEARCH = ("max8", "nc_find_index8", "nc_match_replace8")
_GATHER = ("nc_n_gather", "tensor_partition_reduce", "nonzero_with_count", "sequence_bounds", "set_rng_seed")
DMA_OPS = ("dma_copy", "dma_transpose", "dma_compute", "sendrecv")


def clock(engine: Engine, c: Costs) -> float:
    """GHz of an engine (1 for queues, whose times are given in ns)."""
    return {
        Engine.tensor: c.tensor_ghz, Engine.vector: c.vector_ghz, Engine.scalar: c.scalar_ghz,
        Engine.gpsimd: c.gpsimd_ghz,
    }.get(engine, 1.0)  # fmt: skip


def _16bit(a: Access) -> bool:
    return a[1].itemsize == 2 and a[1].is_float


def _inner_stride(a: Access) -> int:
    for n, s in zip(reversed(a[3][1:]), reversed(a[4][1:]), strict=True):
        if n > 1:
            return abs(s)
    return a[1].itemsize


def _strided(accesses: tuple[Access, ...], c: Costs) -> bool:
    return any(_inner_stride(a) > c.strided_bytes for a in accesses)


def _contiguous(a: Access) -> bool:
    return _inner_stride(a) in (0, a[1].itemsize)


def instruction_ns(i: Instr, c: Costs) -> float:
    """Time for which instruction ``i`` occupies its engine (for DMA: its trigger queue)."""
    if i.op in DMA_OPS:
        return _issue_ns(i, c)
    if i.op == "core_barrier":
        return c.barrier_ns
    if i.op.endswith((".send", ".arrive")):
        return 0.0
    if i.engine is Engine.sync:
        return c.register_ns
    cycles = {
        Engine.tensor: _tensor, Engine.vector: _vector, Engine.scalar: _scalar, Engine.gpsimd: _gpsimd,
    }[i.engine](i, c)  # fmt: skip
    if i.engine is not Engine.tensor and _strided((*i.reads, *i.writes), c):
        cycles *= c.strided_factor
    return cycles / clock(i.engine, c)


def _issue_ns(i: Instr, c: Costs) -> float:
    if i.op == "sendrecv":
        return c.register_ns
    if i.attrs["indirect"] or i.attrs["dge"] == "swdge":
        return c.dma_swdge_issue_ns
    return c.dma_hwdge_issue_ns if i.attrs["dge"] == "hwdge" else 0.0


def _tensor(i: Instr, c: Costs) -> float:
    m, k = i.attrs["m"], i.attrs["k"]
    if i.op == "nc_transpose":
        passes = c.fp32_transpose_passes if i.reads[0][1].itemsize == 4 else 1
        return max(k, min(c.min_cycles, m)) * passes
    passes = 1.0
    if i.attrs["transpose"]:
        passes = c.fp32_transpose_passes if i.attrs["fp32"] else 1
    elif i.attrs["fp32"]:
        passes = c.fp32_onezero_passes if i.attrs["onezero"] else c.fp32_passes
    n = i.n
    return max(max(n, c.min_cycles) * passes, m * c.load_stationary_factor)


def _one_input(i: Instr, c: Costs) -> float:
    """tensor_copy and tensor_scalar on VectorE, with its 16-bit modes."""
    data = (i.reads[0], i.writes[0])
    if all(_16bit(a) for a in data):
        if any(a[0].buffer is _PSUM for a in data):
            rate = c.dve_16bit_psum if all(_contiguous(a) for a in data) else 1
        else:
            rate = c.dve_16bit_contiguous if all(_contiguous(a) for a in data) else c.dve_16bit_strided
    else:
        rate = c.dve_fp32
    return max(c.min_cycles, i.n / rate)


def _two_input(i: Instr, c: Costs) -> float:
    inputs = i.reads[:2]
    if i.op == "scalar_tensor_tensor":
        ops = (i.attrs["alu"], i.attrs["alu1"])
        fast = all(_16bit(a) for a in (*inputs, *i.writes)) and i.n % 2 == 0
        fast = fast and ops == ("subtract", "multiply")
    else:
        fast = any(a[0].buffer is _PSUM for a in inputs) or all(_16bit(a) for a in (*inputs, *i.writes))
    return max(c.min_cycles, i.n * (1 if fast else c.dve_two_input))


def _vector(i: Instr, c: Costs) -> float:
    op, n = i.op, i.n
    if op in ("tensor_copy", "tensor_scalar"):
        return _one_input(i, c)
    if op in ("tensor_tensor", "scalar_tensor_tensor"):
        return _two_input(i, c)
    if op == "tensor_tensor_scan":
        return max(c.min_cycles, n * c.dve_two_input)
    if op == "tensor_reduce":
        fast = i.attrs["alu"] in ("add", "maximum") and _16bit(i.reads[0]) and _16bit(i.writes[0])
        return max(c.min_cycles, n / 2 if fast else n)
    if op == "reciprocal":
        return max(c.min_cycles, n * c.dve_reciprocal)
    if op in _SEARCH:
        return n + c.dve_search_cycles
    if op == "bn_aggr":
        return max(c.min_cycles, 13 * n / 3)
    if op == "memset":
        return max(c.min_cycles, n / 2 if i.attrs["zero"] and _16bit(i.writes[0]) else n)
    if op == "tensor_copy_predicated":
        both = i.attrs["both_sbuf"] and all(a[0].buffer is _SBUF for a in i.reads)
        return max(c.min_cycles, n * (c.dve_two_input if both else 1))
    return max(c.min_cycles, n) + (c.dve_readout_cycles if i.attrs.get("reduce") else 0)


def _scalar(i: Instr, c: Costs) -> float:
    return max(c.min_cycles, i.n) + (c.act_readout_cycles if i.attrs.get("reduce") else 0)


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
    return max(c.min_cycles, n)


@dataclass(frozen=True)
class Transfer:
    """What a DMA instruction moves.

    Attributes:
        ns: Time it keeps each DMA engine that it uses.
        engines: First and last+1 DMA engine.
        hbm_read, hbm_write, on_chip: Bytes by where they come from or go to (on_chip: SBUF to SBUF).
    """

    ns: float
    engines: tuple[int, int]
    hbm_read: int
    hbm_write: int
    on_chip: int


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


def transfer(i: Instr, c: Costs) -> Transfer:
    """Bytes and engine time of a DMA instruction."""
    src = i.reads[-1] if i.attrs.get("indirect") else i.reads[0]
    dst = i.writes[0]
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
    return Transfer(
        ns, engines, moved if from_hbm else 0, moved if to_hbm else 0, 0 if from_hbm or to_hbm else moved
    )  # fmt: skip
