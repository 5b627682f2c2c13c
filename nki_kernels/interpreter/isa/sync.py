"""Communication of the two cores of an LNC2 launch, and questions about the device."""

from typing import Any

from .. import context
from ..context import refuse
from ..enums import DmaEngine, Engine, NcVersion, require_enum
from ..errors import fail
from ..operands import SBUF, operand, read_raw, write
from ..tensor import Tensor
from ..undefined import defined

_GPSIMD_DMA_BYTES = {4: 1024, 2: 512, 1: 256}


def sendrecv(
    src: Tensor,
    dst: Tensor,
    send_to_rank: int,
    recv_from_rank: int,
    pipe_id: int,
    dma_engine: Any = DmaEngine.dma,
    name: str | None = None,
) -> None:
    """Exchange tiles with the other core: ``src`` goes to its ``dst``, its ``src`` comes to ours.

    Both cores call it with the same ``pipe_id``, shapes and types. Note that src comes first.
    """
    ins = "sendrecv"
    core = context.current(ins)
    kind = require_enum(ins, "dma_engine", dma_engine, DmaEngine)
    src, dst = operand(ins, "src", src, SBUF), operand(ins, "dst", dst, SBUF)
    if src.dtype is not dst.dtype or src.P != dst.P or src.N != dst.N:
        fail(ins, "dst", f"is {dst.shape} {dst.dtype}, src is {src.shape} {src.dtype}; they must agree")
    if core.num_programs == 1:
        fail(ins, "", "needs an LNC2 launch: kernel[2](...)")
    other = 1 - core.program_id
    if (send_to_rank, recv_from_rank) != (other, other) and ({send_to_rank, recv_from_rank} - {0, 1}):
        fail(ins, "send_to_rank", f"ranks are 0 and 1, got {send_to_rank} and {recv_from_rank}")
    if kind is DmaEngine.gpsimd_dma and src.N * src.dtype.itemsize > _GPSIMD_DMA_BYTES[src.dtype.itemsize]:
        limit = _GPSIMD_DMA_BYTES[src.dtype.itemsize]
        fail(ins, "src", f"{src.N * src.dtype.itemsize} bytes a partition, gpsimd_dma carries {limit}")
    for role, t in (("src", src), ("dst", dst)):
        if not t.whole_rows():
            refuse("sendrecv-tile", ins, role, f"{t.get_pattern()} is a part of each partition of '{t.name}'")
    if src.P % 16:
        refuse("sendrecv-partitions", ins, "src", f"has {src.P} partitions")
    fine = defined(ins, dst, "src", src)
    alone = {"meet": ("alone", core.index, len(core.trace)), "members": 1}
    place = core.launch.place(core) if recv_from_rank == other else alone
    core.record("sendrecv.send", Engine.sync, src.N, (src.access(),), (), place, name)
    key = ("sendrecv", pipe_id, src.P, src.N, str(src.dtype))
    mine = (read_raw(src).copy(), None if fine is None else fine.copy(), src.storage.origin or dst.storage.origin)
    values, theirs, origin = core.launch.rendezvous(core, key, mine) if recv_from_rank == other else mine
    dst.storage.origin = origin if theirs is not None else ""
    write(dst, values, theirs)
    core.record(
        ins, Engine.sync, dst.N, (src.access(),), (dst.access(),),
        {"bytes": dst.P * dst.N * dst.dtype.itemsize, **place}, name,
    )  # fmt: skip


def core_barrier(data: Tensor, cores: Any, engine: Any = Engine.gpsimd, name: str | None = None) -> None:
    """Wait until both cores are here; what each wrote to ``data`` (HBM) before is then visible to the other."""
    ins = "core_barrier"
    core = context.current(ins)
    require_enum(ins, "engine", engine, Engine)
    if type(data) is not Tensor or data.on_chip:
        fail(ins, "data", f"must be an HBM tensor, not {data!r}")
    if sorted(int(c) for c in cores) != [0, 1]:
        fail(ins, "cores", f"must be (0, 1), not {cores!r}")
    if core.num_programs == 1:
        return
    access = Tensor.whole(data.storage).access()
    place = core.launch.place(core)
    core.record("core_barrier.arrive", Engine.gpsimd, 1, (access,), (), place, name)
    core.launch.rendezvous(core, ("core_barrier",), None)
    core.record(ins, Engine.gpsimd, 1, (access,), (access,), place, name)


def get_nc_version() -> NcVersion:
    """gen3: Trainium2."""
    return NcVersion.gen3


def get_nc_sub_version() -> int:
    """Sub-version 0."""
    return 0
