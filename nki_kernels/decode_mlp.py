"""A decode step's feed-forward block on one rank: residual in, norm, SwiGLU, sum over cores and ranks, residual out."""

from dataclasses import dataclass

import nki
import nki.collectives as ncc
import nki.isa as nisa
import nki.language as nl

from .decode_mlp_plan import parts
from .decode_sums import leave, store_sum
from .delta_rule_tiles import BANK_COLUMNS, TILE, sbuf
from .weight_stream import WeightStream, columns_of, cut, group_width, multiply, normed_lines, open_stream

DOWN_BANKS = 3


@dataclass
class _Step(nl.NKIObject):
    """What the phases of the kernel share.

    Attributes:
        rows, group: Rows, and the columns of the array that a product of them takes.
        cores, core: Physical cores, and this one's number.
        normed: bfloat16 [128, lines, group].
        scale: fp32 [128, 2 * blocks] of gate and up, a part after the other; unused in bfloat16.
        scaled: Weights are FP8 codes.
        sums, turned: PSUM banks of gates and ups, and of their transposes.
        rowwise: Gates and ups of each part that is done, as they left PSUM.
        given: h of each part, as far as it is made: tiles of this core and, if there is one, of the other.
    """

    rows: int
    group: int
    cores: int
    core: int
    normed: nl.ndarray
    scale: nl.ndarray
    scaled: bool
    sums: tuple
    turned: tuple
    rowwise: list
    given: list


@nki.jit
def decode_mlp(
    x: nl.ndarray,
    gamma: nl.ndarray,
    gate_up: nl.ndarray,
    down: nl.ndarray,
    gate_up_scale: nl.ndarray = None,
    down_scale: nl.ndarray = None,
    replica_group: ncc.ReplicaGroup = None,
    ranks: int = 1,
    eps: float = 1e-6,
) -> nl.ndarray:
    """x + the MLP of the RMS norm of x, summed over the ranks: rows of one to five tokens of a few sequences.

    Every weight is read once, in runs of kilobytes, while TensorE multiplies what has landed (see `weight_stream`:
    rows are stationary, weights move). Cores divide gate and up by output channel and down by output channel: between
    them they exchange h, a part at a time, behind products that do not need it, and each has half of the sum over
    ranks. The residual goes into that sum, a `ranks`-th of it on every rank, so what comes out of it is the result.

    Dimensions:
        R: rows, at most 64
        H: hidden size, a multiple of 128 times the cores; L = H / 128 lines
        I: intermediate size of this rank and core, a multiple of 128
        C: physical cores, 1 or 2

    Args:
        x (nl.ndarray): [R, H], bfloat16 or float32, the residual
        gamma (nl.ndarray): [128, L], float32, the norm's full factor
        gate_up (nl.ndarray): [C, 128, L * 2 I], bfloat16, or uint8 float8_e4m3 codes (IEEE-like: largest 240)
        down (nl.ndarray): [C, 128, C * I / 128 * H / C], likewise
        gate_up_scale (nl.ndarray): [C, 128, 2 I / 128], float32, with codes only
        down_scale (nl.ndarray): [C, H / C], float32, with codes only
        replica_group (ncc.ReplicaGroup): the ranks that sum; not used by one rank
        ranks (int): how many they are, a power of two
        eps (float): added to the mean of squares

    All weights and scales in the order of `decode_mlp_torch.pack`.

    Returns:
        y (nl.ndarray): [R, H], of x's type

    Pseudocode:
        n = (x * gamma) * rsqrt(mean(x * x) + eps), rounded to bfloat16
        h = silu((n gate) * scale) * ((n up) * scale), rounded to bfloat16
        y = sum over ranks of (h down) * scale + x / ranks, in float32
    """
    rows, hidden = x.shape
    cores = nl.num_programs()
    core = nl.program_id(0) if cores > 1 else 0
    group, lines, own = group_width(rows), hidden // TILE, hidden // cores
    blocks = gate_up.shape[2] // (lines * 2 * TILE)
    scaled = gate_up.dtype == nl.uint8
    assert hidden % (TILE * cores) == 0, f"hidden size {hidden} is not a multiple of {TILE * cores}"
    assert own <= DOWN_BANKS * BANK_COLUMNS * (TILE // group), f"{own} channels a core do not fit: use two cores"
    assert gate_up.shape[0] == cores, f"weights are packed for {gate_up.shape[0]} cores, launched on {cores}"
    assert ranks in (1, 2, 4, 8, 16, 32, 64), f"{ranks} ranks: a power of two, so that a part of the residual is exact"

    itemsize, pieces, first = 1 if scaled else 2, [], 0
    plan = parts(blocks)
    for part in plan:
        width = 2 * part[0] * part[1] * TILE
        pieces.extend(cut(gate_up, first, lines, width, itemsize))
        first = first + lines * width
    pieces.extend(cut(down, 0, blocks * cores, own, itemsize))
    stream = open_stream(pieces, gate_up.dtype, core)

    banks = []
    for _ in range(4 + DOWN_BANKS):
        banks.append(nl.ndarray((TILE, BANK_COLUMNS), dtype=nl.float32, buffer=nl.psum))
    factor, scale = sbuf(nl.float32, (TILE, lines)), sbuf(nl.float32, (TILE, 2 * blocks))
    nisa.dma_copy(dst=factor, src=gamma)
    normed = normed_lines(x, factor, group, banks[2], eps)
    stream.fetch(2)
    if scaled:
        source = gate_up_scale.ap(pattern=[[2 * blocks, TILE], [1, 2 * blocks]], offset=core * TILE * 2 * blocks)
        nisa.dma_copy(dst=scale, src=source)
    step = _Step(
        rows=rows, group=group, cores=cores, core=core, normed=normed, scale=scale, scaled=scaled,
        sums=(banks[0], banks[1]), turned=(banks[2], banks[3]), rowwise=[], given=[],
    )  # fmt: skip
    for at in range(len(plan)):
        _gates_and_ups(step, stream, plan, at)
    residual = sbuf(x.dtype, (rows, own))
    nisa.dma_copy(dst=residual, src=x.ap(pattern=[[hidden, rows], [1, own]], offset=core * own))
    channel = sbuf(nl.float32, (rows, own))
    if scaled:
        nisa.dma_copy(dst=channel, src=down_scale.ap(pattern=[[0, rows], [1, own]], offset=core * own))
    partial = _down(step, stream, plan, tuple(banks[4:]), residual, channel, ranks)

    y = nl.ndarray((rows, hidden), dtype=x.dtype, buffer=nl.shared_hbm)
    store_sum(y, partial, core * own, replica_group, ranks)
    return y


def _gates_and_ups(step: _Step, stream: WeightStream, plan: list, at: int) -> None:
    """The products of part `at`, out of PSUM; behind the first of them, what is left to do of the part before."""
    chunks, width = plan[at]
    lines, line = step.normed.shape[1], 0
    columns = columns_of_chunks(2 * chunks, width * TILE)
    sums = _banks_of(step, at)
    while line < lines:
        weights = stream.take()
        for n in range(weights.shape[1]):
            for chunk in range(2 * chunks):
                multiply(
                    sums, chunk, columns[chunk], step.normed[:, line : line + 1], step.group, weights[:, n : n + 1],
                    step.group, line == 0,
                )  # fmt: skip
            line = line + 1
        if at > len(step.given):
            step.given.append(_activate(step, plan, at - 1))
    groups, out = TILE // step.group, []
    for bank in range((2 * chunks + groups - 1) // groups):
        used = min(groups, 2 * chunks - bank * groups) * step.group
        rowwise = sbuf(nl.float32, (used, width * TILE))
        engine = nisa.engine.vector if bank == 0 else nisa.engine.scalar
        nisa.tensor_copy(dst=rowwise, src=sums[bank][0:used, 0 : width * TILE], engine=engine)
        out.append(rowwise)
    step.rowwise.append(out)


def columns_of_chunks(count: int, width: int) -> list:
    """(first, columns) of `count` chunks of one width."""
    out = []
    for chunk in range(count):
        out.append((chunk * width, width))
    return out


def _banks_of(step: _Step, at: int) -> tuple:
    """A part's sums: one bank in turn where its four chunks fit, both where they do not."""
    if step.group == 32 and at % 2 == 1:
        return (step.sums[1], step.sums[0])
    return step.sums


def _activate(step: _Step, plan: list, at: int) -> list:
    """h of part `at` from its sums: bfloat16 [128, blocks * rows] of this core and, if there is one, of the other."""
    chunks, width = plan[at]
    rows, vector = step.rows, nisa.engine.vector
    count, held = chunks * width, step.rowwise[at]
    for bank in range(len(held)):
        used = held[bank].shape[0]
        for block in range(width):
            # [group and row, i] -> [i, group and row]
            place = block * TILE
            nisa.nc_transpose(dst=step.turned[bank][:, place : place + used], data=held[bank][:, place : place + TILE])
    gates, ups = _turned(step, chunks, width, 0), _turned(step, chunks, width, chunks)
    opened, h = sbuf(nl.float32, (TILE, width, chunks, rows)), sbuf(nl.bfloat16, (TILE, count * rows))
    result = h.reshape((TILE, width, chunks, rows))
    if step.scaled:
        raw, raised = sbuf(nl.float32, (TILE, width, chunks, rows)), sbuf(nl.float32, (TILE, width, chunks, rows))
        start = 0
        for before in range(at):
            start = start + 2 * plan[before][0] * plan[before][1]
        by_gate, by_up = _scales(step, chunks, width, start), _scales(step, chunks, width, start + count)
        nisa.tensor_tensor(dst=raw, data1=gates, data2=by_gate, op=nl.multiply, engine=vector)
        nisa.tensor_tensor(dst=raised, data1=ups, data2=by_up, op=nl.multiply, engine=vector)
        nisa.activation(dst=opened, op=nl.silu, data=raw)
        nisa.tensor_tensor(dst=result, data1=opened, data2=raised, op=nl.multiply, engine=vector)
    else:
        nisa.activation(dst=opened, op=nl.silu, data=gates)
        nisa.tensor_tensor(dst=result, data1=opened, data2=ups, op=nl.multiply, engine=vector)
    if step.cores == 1:
        return [h]
    theirs, other = sbuf(nl.bfloat16, (TILE, count * rows)), 1 - step.core
    nisa.sendrecv(src=h, dst=theirs, send_to_rank=other, recv_from_rank=other, pipe_id=0)
    return [h, theirs]


def _turned(step: _Step, chunks: int, width: int, first: int) -> nl.ndarray:
    """The transposes of `chunks` chunks from `first` on: [128, blocks of a chunk, chunks, rows]."""
    groups = TILE // step.group
    return step.turned[first // groups].ap(
        pattern=[[BANK_COLUMNS, TILE], [TILE, width], [step.group, chunks], [1, step.rows]],
        offset=(first % groups) * step.group,
    )


def _scales(step: _Step, chunks: int, width: int, start: int) -> nl.ndarray:
    """Scales of as many blocks from `start` on, the same for every row: [128, blocks of a chunk, chunks, rows]."""
    return step.scale.ap(
        pattern=[[step.scale.shape[1], TILE], [chunks, width], [1, chunks], [0, step.rows]], offset=start
    )


def _down(
    step: _Step,
    stream: WeightStream,
    plan: list,
    banks: tuple,
    residual: nl.ndarray,
    channel: nl.ndarray,
    ranks: int,
) -> nl.ndarray:
    """What this rank and core bring to the sum: fp32 [rows, own channels]."""
    rows, own = residual.shape
    columns, total, line, piece = columns_of(own), 0, 0, 0
    for part in plan:
        total = total + part[0] * part[1] * step.cores
    partial = sbuf(nl.float32, (rows, own))
    while line < total:
        weights = stream.take()
        piece = piece + 1
        count, last = weights.shape[1], line + weights.shape[1] == total
        # The last piece finishes chunks two at a time, so that the first leave PSUM while TensorE is at the others.
        together = 2 if last else len(columns)
        for begin in range(0, len(columns), together):
            for n in range(count):
                while len(step.given) < len(plan) and line + n >= _lines_of(step, plan, len(step.given)):
                    step.given.append(_activate(step, plan, len(step.given)))
                stationary = _line_of(step, plan, line + n)
                for chunk in range(begin, min(begin + together, len(columns))):
                    multiply(
                        banks, chunk, columns[chunk], stationary, step.rows, weights[:, n : n + 1], step.group,
                        line + n == 0,
                    )  # fmt: skip
            if last:
                for chunk in range(begin, min(begin + together, len(columns))):
                    leave(banks, chunk, columns[chunk], partial, step.group, step.scaled, channel, residual, ranks)
        line = line + count
        if piece == 1 and len(step.given) < len(plan):
            step.given.append(_activate(step, plan, len(step.given)))
    return partial


def _lines_of(step: _Step, plan: list, parts_done: int) -> int:
    """Lines of `down` that the first parts take."""
    out = 0
    for at in range(parts_done):
        out = out + plan[at][0] * plan[at][1] * step.cores
    return out


def _line_of(step: _Step, plan: list, line: int) -> nl.ndarray:
    """h of a line: bfloat16 [128, rows]."""
    at = 0
    while line >= _lines_of(step, plan, at + 1):
        at = at + 1
    inside, own = line - _lines_of(step, plan, at), plan[at][0] * plan[at][1]
    tile, place = step.given[at][inside // own], (inside % own) * step.rows
    return tile[:, place : place + step.rows]
