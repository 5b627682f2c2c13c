"""Depthwise causal convolution of four taps with SiLU: a prompt with its carried window, and a few tokens a sequence.

TensorE does the taps: with inputs turned to channels on partitions, a product with diag(w_d) scales and turns back, and
the four taps add up in PSUM.
"""

from dataclasses import dataclass

import nki
import nki.isa as nisa
import nki.language as nl
import numpy as np

from .delta_rule_tiles import TILE, make_banks, split

TAPS = 4
PAST = TAPS - 1
NOWHERE = float(1 << 20)
IDENTITY = np.eye(TILE, dtype=np.float32)
WINDOWS = TILE // PAST
OFFSETS = np.tile(np.arange(-PAST, 0, dtype=np.float32), WINDOWS).reshape(-1, 1)


@nki.jit
def causal_conv1d(x: nl.ndarray, window: nl.ndarray, weight: nl.ndarray, valid: nl.ndarray, ends: nl.ndarray) -> tuple:
    """silu(sum_d weight[c, d] x[t - 3 + d, c]) over one sequence, and the windows after given numbers of tokens.

    Dimensions:
        N: tokens, padding counted
        C: channels, a multiple of 128; with two cores each takes half

    Args:
        x (nl.ndarray): [N, C], float32 or bfloat16; finite on padding
        window (nl.ndarray): [3, C], of x's type, the inputs before the first token, oldest first
        weight (nl.ndarray): [C, 4], of x's type, the last column for the token itself
        valid (nl.ndarray): [1, 2], int32, first and last + 1 of the tokens that are not padding; the first is below 125
        ends (nl.ndarray): [1, n], int32, n at most 42: positions in x, from valid[0] to valid[1], to give windows for

    Returns:
        y (nl.ndarray): [N, C], of x's type; padding means nothing
        windows (nl.ndarray): [n, 3, C], of x's type: the three inputs before each position of `ends`

    Pseudocode:
        joined = window, then x[valid[0]:]
        y[t] = silu(sum_d weight[:, d] joined[t - 3 + d])
        windows[j] = joined[ends[j] - 3 : ends[j]]
    """
    tokens, channels = x.shape
    cores = nl.num_programs()
    assert channels % (TILE * cores) == 0, f"{channels} channels are not a multiple of {TILE} for each of {cores} cores"
    own = channels // cores
    first = nl.program_id(0) * own if cores > 1 else 0
    last, blocks, dt = first + own, own // TILE, x.dtype
    y = nl.ndarray((tokens, channels), dtype=dt, buffer=nl.shared_hbm)
    windows = nl.ndarray((ends.shape[1], PAST, channels), dtype=dt, buffer=nl.shared_hbm)

    psum = make_banks()
    eye, bounds = _sbuf(dt, (TILE, TILE)), _sbuf(nl.float32, (TILE, 2))
    nisa.dma_copy(dst=eye, src=nl.shared_constant(IDENTITY))
    nisa.dma_copy(dst=bounds, src=valid.ap(pattern=[[0, TILE], [1, 2]]))
    taps = _taps(weight, eye, first, blocks)
    old = _sbuf(dt, (PAST, own))
    nisa.dma_copy(dst=old, src=window[:, first:last])
    # The window lies right before the first real token: column e of the turned inputs is token e - 3.
    place, distance = _sbuf(dt, (PAST, TILE + PAST)), _sbuf(nl.float32, (PAST, TILE + PAST))
    nisa.iota(dst=distance, pattern=[[1, TILE + PAST]], channel_multiplier=-1)
    nisa.tensor_scalar(dst=place, data=distance, op0=nl.equal, operand0=bounds[0:PAST, 0:1])

    tiles: list = []
    for start in range(0, tokens, TILE):
        rows = min(TILE, tokens - start)
        seen = _sbuf(dt, (TILE, own))
        if rows < TILE:
            nisa.memset(dst=seen, value=0.0)
        nisa.dma_copy(dst=seen[0:rows], src=x[start : start + rows, first:last])
        keep = _live_diagonal(eye, bounds, start)
        turned = _sbuf(dt, (TILE, blocks, TILE + PAST))
        for part in split(blocks, 3):
            n = part[1] - part[0]
            width = TILE + PAST if start == 0 else TILE
            bank = psum.take()
            for c in range(n):
                at, channel = c * width + width - TILE, (part[0] + c) * TILE
                if start == 0:
                    # [d, c] x [d, e] -> [c, e]
                    nisa.nc_matmul(
                        dst=bank[:, c * width : (c + 1) * width], stationary=old[:, channel : channel + TILE],
                        moving=place, accumulate=False,
                    )  # fmt: skip
                # [t, c] x [t, e] -> [c, e]
                nisa.nc_matmul(
                    dst=bank[:, at : at + TILE], stationary=seen[:, channel : channel + TILE], moving=keep,
                    accumulate=start == 0,
                )  # fmt: skip
            nisa.tensor_copy(
                dst=turned[:, part[0] : part[1], TILE + PAST - width : TILE + PAST], src=bank[:, 0 : n * width],
                engine=nisa.engine.vector,
            )  # fmt: skip
        if start > 0:
            past = tiles[len(tiles) - 1][:, :, TILE : TILE + PAST]
            nisa.tensor_copy(dst=turned[:, :, 0:PAST], src=past, engine=nisa.engine.gpsimd)
        tiles.append(turned)
        out = _sbuf(dt, (TILE, own))
        for part in split(blocks, 4):
            bank = psum.take()
            for c in range(part[0], part[1]):
                at = (c - part[0]) * TILE
                for d in range(TAPS):
                    # [c, t] x [c, c'] -> [t, c']
                    nisa.nc_matmul(
                        dst=bank[:, at : at + TILE], stationary=turned[:, c : c + 1, d : d + TILE],
                        moving=taps[:, c : c + 1, d : d + 1], accumulate=d > 0,
                    )  # fmt: skip
            nisa.activation(
                dst=out[:, part[0] * TILE : part[1] * TILE], op=nl.silu,
                data=bank[:, 0 : (part[1] - part[0]) * TILE],
            )  # fmt: skip
        nisa.dma_copy(dst=y[start : start + rows, first:last], src=out[0:rows])
    _cut_windows(Cut(x=x, window=window, ends=ends, first=first, last=last), bounds, windows)
    return y, windows


@nki.jit
def causal_conv1d_step(
    x: nl.ndarray, lanes: nl.ndarray, weight: nl.ndarray, read: nl.ndarray, write: nl.ndarray
) -> tuple:
    """The convolution over M tokens of every sequence of a batch, windows in place by lane index.

    Dimensions:
        B: sequences
        M: tokens of each, 1 or, with drafts, one more than their number
        C: channels, a multiple of 128; with two cores each takes half

    Args:
        x (nl.ndarray): [B, M, C], float32 or bfloat16
        lanes (nl.ndarray): [lanes, 3, C], of x's type, windows; written in place
        weight (nl.ndarray): [C, 4], of x's type
        read (nl.ndarray): [1, B], int32, the lane that holds each sequence's window
        write (nl.ndarray): [1, B * M * W], int32, the W lanes for the window after each token: one, or a second one for
            a checkpoint; past the last lane: not kept

    Returns:
        y (nl.ndarray): [B, M, C], of x's type
        lanes (nl.ndarray): the argument

    Pseudocode:
        joined[b] = lanes[read[b]], then x[b]
        y[b, m] = silu(sum_d weight[:, d] joined[b, m + d])
        lanes[write[b, m, :]] = joined[b, m + 1 : m + 4]
    """
    batch, steps, channels = x.shape
    cores = nl.num_programs()
    assert channels % (TILE * cores) == 0, f"{channels} channels are not a multiple of {TILE} for each of {cores} cores"
    own = channels // cores
    first = nl.program_id(0) * own if cores > 1 else 0
    last, blocks, dt, length = first + own, own // TILE, x.dtype, PAST + steps
    assert length <= TILE, f"{steps} tokens a sequence, at most {TILE - PAST}"
    y = nl.ndarray((batch, steps, channels), dtype=dt, buffer=nl.shared_hbm)

    where_from = _sbuf(nl.int32, (1, batch))
    places = write.shape[1] // (batch * steps)
    where_to = _sbuf(nl.int32, (1, batch * steps * places))
    nisa.dma_copy(dst=where_from, src=read)
    nisa.dma_copy(dst=where_to, src=write)
    psum, eye = make_banks(), _sbuf(dt, (TILE, TILE))
    nisa.dma_copy(dst=eye, src=nl.shared_constant(IDENTITY))
    taps = _taps(weight, eye, first, blocks)
    group = TILE // length
    for begin in range(0, batch, group):
        n = min(group, batch - begin)
        joined = _sbuf(dt, (n * length, own))
        for b in range(n):
            row, at = b * length, begin + b
            src = lanes.ap(
                pattern=[[channels, PAST], [1, own]], offset=first, scalar_offset=where_from[0:1, at : at + 1],
                indirect_dim=0,
            )  # fmt: skip
            nisa.dma_copy(dst=joined[row : row + PAST], src=src)
            nisa.dma_copy(dst=joined[row + PAST : row + length], src=x[at, :, first:last])
        for b in range(n):
            for m in range(steps):
                row = b * length + m + 1
                for place in range(places):
                    at = ((begin + b) * steps + m) * places + place
                    dst = lanes.ap(
                        pattern=[[channels, PAST], [1, own]], offset=first, scalar_offset=where_to[0:1, at : at + 1],
                        indirect_dim=0,
                    )  # fmt: skip
                    nisa.dma_copy(dst=dst, src=joined[row : row + PAST], oob_mode=nisa.oob_mode.skip)
        out = _sbuf(dt, (n * steps, own))
        for part in split(blocks, 4):
            turned, bank, result = _sbuf(dt, (TILE, part[1] - part[0], n, length)), psum.take(), psum.take()
            pieces = bank.view(dt)
            for c in range(part[0], part[1]):
                at = (c - part[0]) * n * length
                nisa.nc_transpose(dst=pieces[:, at : at + n * length], data=joined[:, c * TILE : (c + 1) * TILE])
            nisa.tensor_copy(dst=turned, src=pieces[:, 0 : (part[1] - part[0]) * n * length], engine=nisa.engine.vector)
            for c in range(part[0], part[1]):
                at = (c - part[0]) * TILE
                for d in range(TAPS):
                    # [c, (b, m)] x [c, c'] -> [(b, m), c']
                    nisa.nc_matmul(
                        dst=result[0 : n * steps, at : at + TILE],
                        stationary=turned[:, c - part[0] : c - part[0] + 1, :, d : d + steps],
                        moving=taps[:, c : c + 1, d : d + 1], accumulate=d > 0,
                    )  # fmt: skip
            nisa.activation(
                dst=out[:, part[0] * TILE : part[1] * TILE], op=nl.silu,
                data=result[0 : n * steps, 0 : (part[1] - part[0]) * TILE],
            )  # fmt: skip
        nisa.dma_copy(dst=y[begin : begin + n, :, first:last], src=out)
    return y, lanes


def _sbuf(dtype: nl.dtype, shape: tuple) -> nl.ndarray:
    return nl.ndarray(shape, dtype=dtype, buffer=nl.sbuf)


def _taps(weight: nl.ndarray, eye: nl.ndarray, first: int, blocks: int) -> nl.ndarray:
    """diag(weight[:, d]) for every block of 128 channels and every tap: [c, blocks, 4, c']."""
    raw, columns = _sbuf(weight.dtype, (TILE, blocks, TAPS)), _sbuf(nl.float32, (TILE, blocks, TAPS))
    nisa.dma_copy(
        dst=raw,
        src=weight.ap(pattern=[[TAPS, TILE], [TILE * TAPS, blocks], [1, TAPS]], offset=first * TAPS),
    )
    nisa.tensor_copy(dst=columns, src=raw, engine=nisa.engine.vector)
    taps = _sbuf(eye.dtype, (TILE, blocks, TAPS, TILE))
    for c in range(blocks):
        for d in range(TAPS):
            nisa.tensor_scalar(
                dst=taps[:, c : c + 1, d : d + 1], data=eye, op0=nl.multiply,
                operand0=columns[:, c : c + 1, d : d + 1].reshape((TILE, 1)), engine=nisa.engine.vector,
            )  # fmt: skip
    return taps


def _live_diagonal(eye: nl.ndarray, bounds: nl.ndarray, start: int) -> nl.ndarray:
    """The identity with zeros for padding: rows are tokens `start` on."""
    position, begun, keep = _sbuf(nl.float32, (TILE, 1)), _sbuf(nl.float32, (TILE, 1)), _sbuf(eye.dtype, (TILE, TILE))
    nisa.iota(dst=position, pattern=[[0, 1]], offset=start, channel_multiplier=1)
    nisa.tensor_scalar(dst=begun, data=position, op0=nl.greater_equal, operand0=bounds[:, 0:1])
    nisa.tensor_scalar(dst=position, data=position, op0=nl.less, operand0=bounds[:, 1:2])
    nisa.tensor_scalar(
        dst=keep, data=eye, op0=nl.multiply, operand0=begun, op1=nl.multiply, operand1=position,
        engine=nisa.engine.vector,
    )  # fmt: skip
    return keep


@dataclass
class Cut(nl.NKIObject):
    """Where windows come from, channels [first, last) of each."""

    x: nl.ndarray
    window: nl.ndarray
    ends: nl.ndarray
    first: int
    last: int


def _cut_windows(cut: Cut, bounds: nl.ndarray, windows: nl.ndarray) -> None:
    """Three rows before each end: gathered from x where they are tokens of it, from the old window where not."""
    n, channels = cut.ends.shape[1], cut.x.shape[1]
    assert n <= WINDOWS, f"{n} windows, at most {WINDOWS}"
    rows, own = n * PAST, cut.last - cut.first
    at, early = _sbuf(nl.float32, (rows, 1)), _sbuf(nl.float32, (rows, 1))
    offset, index, index_old = _sbuf(nl.float32, (rows, 1)), _sbuf(nl.int32, (rows, 1)), _sbuf(nl.int32, (rows, 1))
    nisa.dma_copy(dst=at, src=cut.ends.ap(pattern=[[1, n], [0, PAST]]))
    nisa.dma_copy(dst=offset, src=nl.shared_constant(OFFSETS)[0:rows])
    nisa.tensor_tensor(dst=at, data1=at, data2=offset, op=nl.add)
    # Row `at` of x; where that lies before the first token, row at - valid[0] + 3 of the window, else both nowhere.
    nisa.tensor_scalar(
        dst=index_old, data=at, op0=nl.subtract, operand0=bounds[0:rows, 0:1], op1=nl.add, operand1=float(PAST)
    )
    nisa.tensor_scalar(dst=early, data=at, op0=nl.less, operand0=bounds[0:rows, 0:1], op1=nl.multiply, operand1=NOWHERE)
    nisa.tensor_tensor(dst=index, data1=at, data2=early, op=nl.add)
    out = _sbuf(cut.x.dtype, (rows, own))
    pattern = [[channels, rows], [1, own]]
    skip = nisa.oob_mode.skip
    nisa.dma_copy(dst=out, src=cut.x.ap(pattern=pattern, offset=cut.first, vector_offset=index), oob_mode=skip)
    nisa.dma_copy(dst=out, src=cut.window.ap(pattern=pattern, offset=cut.first, vector_offset=index_old), oob_mode=skip)
    nisa.dma_copy(dst=windows[:, :, cut.first : cut.last], src=out)
