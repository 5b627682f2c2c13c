"""Does it fit? SBUF bytes and PSUM banks in use, from the first to the last instruction that touches each tensor."""

from . import rules
from .context import Core
from .enums import MemoryRegion
from .errors import CapacityError
from .hardware import HW
from .rules import RULES, raise_broken
from .storage import StorageInfo


def on_chip_tensors(core: Core) -> list[StorageInfo]:
    """Every on-chip allocation that the core's trace touches."""
    seen: dict[int, StorageInfo] = {}
    for instr in core.trace:
        for group in (instr.reads, instr.writes):
            for access in group:
                info = access[0]
                if info.buffer is MemoryRegion.sbuf or info.buffer is MemoryRegion.psum:
                    seen[info.uid] = info
    return list(seen.values())


def peak(tensors: list[StorageInfo], buffer: MemoryRegion) -> tuple[int, int, list[StorageInfo]]:
    """(peak use, position in the trace, tensors live there), in bytes a partition for SBUF, in banks for PSUM.

    Tensors that the kernel placed itself count as the highest byte they reach, all together, since the compiler can put
    nothing else among them without knowing their lifetimes; the others count while live.
    """
    placed = 0
    events: list[tuple[int, int, int]] = []
    autos: list[StorageInfo] = []
    for t in tensors:
        if t.buffer is not buffer:
            continue
        size = t.row_bytes if buffer is MemoryRegion.sbuf else -(-t.row_bytes // HW.psum_bank_bytes)
        if t.address is not None:
            top = t.address + t.row_bytes
            placed = max(placed, top if buffer is MemoryRegion.sbuf else -(-top // HW.psum_bank_bytes))
            continue
        autos.append(t)
        events.append((t.first if t.first >= 0 else 0, 0, size))
        events.append((t.last, 1, -size))
    live = best = at = 0
    for when, _, change in sorted(events):
        live += change
        if live > best:
            best, at = live, when
    holders = [t for t in autos if (t.first if t.first >= 0 else 0) <= at <= t.last]
    return placed + best, at, holders


def broken(core: Core, rule_id: str, what: str, operand: str, detail: str) -> None:
    """A rule is broken by the whole program: raise, if the launch enforces it."""
    if rule_id in core.rules:
        raise_broken(RULES[rule_id], core.target, what, operand, detail)


def _check_placement(core: Core, tensors: list[StorageInfo], buffer: MemoryRegion) -> None:
    here = [t for t in tensors if t.buffer is buffer]
    placed = next((t.name for t in here if t.address is not None), None)
    automatic = next((t.name for t in here if t.address is None), None)
    if placed is not None and automatic is not None:
        broken(core, "mixed-placement", buffer.value, "", f"'{placed}' has an address and '{automatic}' has none")


def check_length(core: Core) -> None:
    """Refuse a program of more instructions than the compiler takes."""
    if len(core.trace) > rules.MAX_INSTRUCTIONS:
        broken(core, "instruction-count", "launch", "", f"{len(core.trace)} instructions")


def check_capacity(core: Core) -> None:
    """Refuse a program whose live tensors do not fit.

    Raises:
        CapacityError: naming the instruction at the peak and the largest tensors live there.
    """
    tensors = on_chip_tensors(core)
    for buffer, limit, unit in (
        (MemoryRegion.sbuf, HW.sbuf_bytes, "bytes a partition"),
        (MemoryRegion.psum, core.target.psum_banks, "banks"),
    ):
        _check_placement(core, tensors, buffer)
        used, at, holders = peak(tensors, buffer)
        if buffer is MemoryRegion.sbuf and limit - HW.dma_scratch_bytes < used <= limit and core.dynamic_dma:
            free = f"{limit - used} bytes a partition are free of {limit}, and {core.dynamic_dma} has a dynamic address"
            broken(core, "dma-scratch", buffer.value, "", free)
        if used > limit:
            largest = sorted(holders, key=lambda t: -t.row_bytes)[:6]
            names = ", ".join(f"{t.name} ({t.row_bytes} B)" for t in largest)
            raise CapacityError(
                buffer.value, "",
                f"over capacity on core {core.program_id}: {used} {unit} live at instruction {at} "
                f"({core.trace[at].op}), there are {limit}; {len(holders)} tensors live, the largest: {names}",
            )  # fmt: skip
