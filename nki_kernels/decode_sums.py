"""Sums of a decode step's projections: how they leave PSUM, and how ranks add them up. Compiles into kernels."""

import nki.collectives as ncc
import nki.isa as nisa
import nki.language as nl

from .delta_rule_tiles import TILE, sbuf
from .weight_stream import WeightStream, columns_of, multiply


def project(
    stream: WeightStream,
    banks: tuple,
    lines: list,
    out: nl.ndarray,
    group: int,
    scaled: bool,
    channel: nl.ndarray,
    residual: nl.ndarray,
    ranks: int,
    beside: tuple = (),
    begin: int = 0,
    end: int = 0,
    tail: int = 1,
) -> None:
    """out [rows, own] = the sum of a stream's lines, each by its stationary [128, ..., count].

    Args:
        lines: Stationaries, one a line; `count` is the rows, or `group` columns of which the rest is zero.
        out, group, scaled, channel, residual, ranks: see `leave`.
        beside: (weights [128, lines, few], bank) that are multiplied as well, while a line's stationary is at hand.
        begin, end: Only lines of these numbers are multiplied by this call, those of whole pieces; 0: to the last.
        tail: Pieces at the stream's end that finish chunks two at a time: one where the last is waited for, more where
            all are there, so that the first chunks leave PSUM while TensorE is at the others.
    """
    columns, line, rows = columns_of(out.shape[1]), begin, out.shape[0]
    until = end if end > 0 else len(lines)
    while line < until:
        taken = [stream.take()]
        left = len(stream.pieces) - stream.used
        if 0 < left < tail:
            for _ in range(left):
                taken.append(stream.take())
        count = 0
        for weights in taken:
            count = count + weights.shape[1]
        last = line + count == len(lines)
        together = 2 if last else len(columns)
        for first in range(0, len(columns), together):
            past, at = min(first + together, len(columns)), line
            for weights in taken:
                for n in range(weights.shape[1]):
                    stationary = lines[at]
                    wide = group if stationary.shape[len(stationary.shape) - 1] == group else rows
                    for chunk in range(first, past):
                        part = weights[:, n : n + 1]
                        multiply(banks, chunk, columns[chunk], stationary, wide, part, group, at == 0)
                    if first == 0 and len(beside) > 0:
                        more = beside[0]
                        part = more[:, at : at + 1]
                        multiply((beside[1],), 0, (0, more.shape[2]), stationary, wide, part, group, at == 0)
                    at = at + 1
            if last:
                for chunk in range(first, past):
                    leave(banks, chunk, columns[chunk], out, group, scaled, channel, residual, ranks)
        line = line + count


def leave(
    banks: tuple,
    chunk: int,
    columns: tuple,
    out: nl.ndarray,
    group: int,
    scaled: bool,
    channel: nl.ndarray,
    residual: nl.ndarray,
    ranks: int,
) -> None:
    """A chunk of out [rows, own] = its sums times their channels' scales, plus a `ranks`-th of the residual.

    Args:
        scaled: There are scales, `channel` fp32 [rows, own].
        ranks: 0: there is no residual.
    """
    groups, first, last = TILE // group, columns[0], columns[0] + columns[1]
    place = (chunk % groups) * group
    sums, here = banks[chunk // groups][place : place + out.shape[0], 0 : columns[1]], out[:, first:last]
    vector = nisa.engine.vector
    if scaled:
        nisa.tensor_tensor(dst=here, data1=sums, data2=channel[:, first:last], op=nl.multiply, engine=vector)
        sums = here
    if ranks > 0:
        nisa.scalar_tensor_tensor(
            dst=here, data=residual[:, first:last], op0=nl.multiply, operand0=1.0 / ranks, op1=nl.add, operand1=sums
        )
    elif not scaled:
        nisa.tensor_copy(dst=here, src=sums, engine=vector)


def store_sum(y: nl.ndarray, partial: nl.ndarray, first: int, replica_group: ncc.ReplicaGroup, ranks: int) -> None:
    """Columns of y [rows, hidden] of HBM, from `first` on = the sum over ranks of fp32 partial [rows, own]."""
    rows, own = partial.shape
    out = partial
    if ranks > 1:
        out = sbuf(nl.float32, (rows, own))
        ncc.all_reduce(srcs=[partial], dsts=[out], replica_group=replica_group, op=nl.add)
    store(y, out, first)


def store(y: nl.ndarray, out: nl.ndarray, first: int) -> None:
    """Columns of y [rows, n] of HBM, from `first` on = fp32 out [rows, own], rounded on two engines."""
    rows, own = out.shape
    if y.dtype != nl.float32:
        rounded, half = sbuf(y.dtype, (rows, own)), (5 * own + 7) // 8
        nisa.tensor_copy(dst=rounded[:, 0:half], src=out[:, 0:half], engine=nisa.engine.vector)
        if own > half:
            nisa.tensor_copy(dst=rounded[:, half:own], src=out[:, half:own], engine=nisa.engine.scalar)
        out = rounded
    nisa.dma_copy(dst=y.ap(pattern=[[y.shape[1], rows], [1, own]], offset=first), src=out)
