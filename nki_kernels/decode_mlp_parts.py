"""The phases of a decode step's feed-forward block, from normed rows to what a rank brings to the sum over ranks.

Functions are called inside kernels and compile into them.
"""

from dataclasses import dataclass

import nki.isa as nisa
import nki.language as nl

from .decode_mlp_plan import parts
from .decode_sums import leave
from .delta_rule_tiles import BANK_COLUMNS, TILE, sbuf
from .weight_stream import WeightStream, columns_of, cut, multiply

DOWN_BANKS = 3


@dataclass
class Step(nl.NKIObject):
    """What the phases share.

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


def pieces_of(gate_up: nl.ndarray, down: nl.ndarray, lines: int, blocks: int, own: int, cores: int) -> list:
    """Pieces of a core's weights in the order of their use, for `blocks` blocks of 128 intermediate channels a core."""
    itemsize, out, first = 1 if gate_up.dtype == nl.uint8 else 2, [], 0
    for part in parts(blocks):
        width = 2 * part[0] * part[1] * TILE
        out.extend(cut(gate_up, first, lines, width, itemsize))
        first = first + lines * width
    out.extend(cut(down, 0, blocks * cores, own, itemsize))
    return out


def feed_forward(
    normed: nl.ndarray,
    rows: int,
    stream: WeightStream,
    banks: list,
    scales: tuple,
    x: nl.ndarray,
    own: int,
    cores: int,
    core: int,
    ranks: int,
) -> nl.ndarray:
    """What this rank and core bring to the sum: fp32 [rows, own channels].

    Args:
        normed: bfloat16 [128, lines, group].
        stream: Comes to `pieces_of` next.
        banks: Four of PSUM, and `DOWN_BANKS` for the sums of `down`.
        scales: gate_up_scale and down_scale of HBM, the first [cores, 128, 2 * blocks], whatever they are without
            codes; then the count of blocks, and whether weights are codes.
        x: [rows, hidden] of HBM, the residual.
    """
    blocks, scaled = scales[2], scales[3]
    hidden, scale = x.shape[1], sbuf(nl.float32, (TILE, 2 * blocks))
    if scaled:
        source = scales[0].ap(pattern=[[2 * blocks, TILE], [1, 2 * blocks]], offset=core * TILE * 2 * blocks)
        nisa.dma_copy(dst=scale, src=source)
    step = Step(
        rows=rows, group=normed.shape[2], cores=cores, core=core, normed=normed, scale=scale, scaled=scaled,
        sums=(banks[0], banks[1]), turned=(banks[2], banks[3]), rowwise=[], given=[],
    )  # fmt: skip
    plan = parts(blocks)
    for at in range(len(plan)):
        _gates_and_ups(step, stream, plan, at)
    residual, channel = sbuf(x.dtype, (rows, own)), sbuf(nl.float32, (rows, own))
    nisa.dma_copy(dst=residual, src=x.ap(pattern=[[hidden, rows], [1, own]], offset=core * own))
    if scaled:
        nisa.dma_copy(dst=channel, src=scales[1].ap(pattern=[[0, rows], [1, own]], offset=core * own))
    return _down(step, stream, plan, tuple(banks[4:]), residual, channel, ranks)


def _gates_and_ups(step: Step, stream: WeightStream, plan: list, at: int) -> None:
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


def _banks_of(step: Step, at: int) -> tuple:
    """A part's sums: one bank in turn where its four chunks fit, both where they do not."""
    if step.group == 32 and at % 2 == 1:
        return (step.sums[1], step.sums[0])
    return step.sums


def _activate(step: Step, plan: list, at: int) -> list:
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


def _turned(step: Step, chunks: int, width: int, first: int) -> nl.ndarray:
    """The transposes of `chunks` chunks from `first` on: [128, blocks of a chunk, chunks, rows]."""
    groups = TILE // step.group
    return step.turned[first // groups].ap(
        pattern=[[BANK_COLUMNS, TILE], [TILE, width], [step.group, chunks], [1, step.rows]],
        offset=(first % groups) * step.group,
    )


def _scales(step: Step, chunks: int, width: int, start: int) -> nl.ndarray:
    """Scales of as many blocks from `start` on, the same for every row: [128, blocks of a chunk, chunks, rows]."""
    return step.scale.ap(
        pattern=[[step.scale.shape[1], TILE], [chunks, width], [1, chunks], [0, step.rows]], offset=start
    )


def _down(
    step: Step,
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


def _lines_of(step: Step, plan: list, parts_done: int) -> int:
    """Lines of `down` that the first parts take."""
    out = 0
    for at in range(parts_done):
        out = out + plan[at][0] * plan[at][1] * step.cores
    return out


def _line_of(step: Step, plan: list, line: int) -> nl.ndarray:
    """h of a line: bfloat16 [128, rows]."""
    at = 0
    while line >= _lines_of(step, plan, at + 1):
        at = at + 1
    inside, own = line - _lines_of(step, plan, at), plan[at][0] * plan[at][1]
    tile, place = step.given[at][inside // own], (inside % own) * step.rows
    return tile[:, place : place + step.rows]
