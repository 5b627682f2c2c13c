"""Depthwise causal convolution of four taps with SiLU: a prompt with its carried window, and a few tokens a sequence.

Of a prompt TensorE does the taps: with inputs turned to channels on partitions, a product with diag(w_d) scales and
turns back, and the four taps add up in PSUM. Of few tokens the product that turns inputs picks those of every tap, and
VectorE adds them up.
"""

from dataclasses import dataclass

import nki
import nki.isa as nisa
import nki.language as nl

from .causal_conv1d_taps import PAST, TAPS, load_silu, load_taps, own_channels, store_silu, sum_taps
from .delta_rule_tiles import TILE, Bank, identity, index_tiles, make_banks, on_every_row, sbuf, split


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
        ends (nl.ndarray): [1, n], int32, n at most 128: positions in x, from valid[0] to valid[1], to give windows for

    Returns:
        y (nl.ndarray): [N, C], of x's type; padding means nothing
        windows (nl.ndarray): [n, 3, C], of x's type: the three inputs before each position of `ends`

    Pseudocode:
        joined = window, then x[valid[0]:]
        y[t] = silu(sum_d weight[:, d] joined[t - 3 + d])
        windows[j] = joined[ends[j] - 3 : ends[j]]
    """
    tokens, channels = x.shape
    first, own = own_channels(channels)
    last, blocks, dt = first + own, own // TILE, x.dtype
    y = nl.ndarray((tokens, channels), dtype=dt, buffer=nl.shared_hbm)
    windows = nl.ndarray((ends.shape[1], PAST, channels), dtype=dt, buffer=nl.shared_hbm)

    psum, eye = make_banks(), identity(dt)
    bounds = _bounds(valid, psum)
    old = sbuf(dt, (PAST, own))
    nisa.dma_copy(dst=old, src=window[:, first:last])
    # The window lies right before the first real token: column e of the turned inputs is token e - 3.
    place, distance = sbuf(dt, (PAST, TILE + PAST)), sbuf(nl.float32, (PAST, TILE + PAST))
    nisa.iota(dst=distance, pattern=[[1, TILE + PAST]], channel_multiplier=-1)
    nisa.tensor_scalar(dst=place, data=distance, op0=nl.equal, operand0=bounds[0:PAST, 0:1])

    row = sbuf(nl.float32, (TILE, 1))
    nisa.iota(dst=row, pattern=[[0, 1]], channel_multiplier=1)
    # A tile is turned while the one before is multiplied, and windows are gathered under all of it.
    cut = Cut(x=x, window=window, ends=ends, first=first, last=last)
    gathered: list = []
    turned: list = []
    for step in range((tokens + TILE - 1) // TILE + 1):
        start = step * TILE
        if start < tokens:
            turned.append(sbuf(dt, (TILE, blocks, TILE + PAST)))
            seen = _load(x, start, first, own)
            _turn(turned[step], seen, _live_diagonal(eye, row, bounds, start), old, place, psum, start == 0)
            if start > 0:
                past = turned[step - 1][:, :, TILE : TILE + PAST]
                nisa.tensor_copy(dst=turned[step][:, :, 0:PAST], src=past, engine=nisa.engine.gpsimd)
            if start + TILE >= tokens:
                gathered = _gather_windows(cut, bounds)
        if step == 1:
            taps = _taps(weight, eye, first, blocks)
        if step > 0:
            rows, out = min(TILE, tokens - start + TILE), sbuf(dt, (TILE, own))
            _multiply(out, turned[step - 1], taps, psum)
            nisa.dma_copy(dst=y[start - TILE : start - TILE + rows, first:last], src=out[0:rows])
    _join_windows(cut, gathered, windows)
    return y, windows


def _load(x: nl.ndarray, start: int, first: int, own: int) -> nl.ndarray:
    """Rows of a tile, zeros past the last."""
    rows, seen = min(TILE, x.shape[0] - start), sbuf(x.dtype, (TILE, own))
    if rows < TILE:
        nisa.memset(dst=seen, value=0.0)
    nisa.dma_copy(dst=seen[0:rows], src=x[start : start + rows, first : first + own])
    return seen


def _turn(
    turned: nl.ndarray,
    seen: nl.ndarray,
    keep: nl.ndarray,
    old: nl.ndarray,
    place: nl.ndarray,
    psum: Bank,
    is_first: bool,
) -> None:
    """Channels on partitions, from column 3 on, before which the first tile has the window."""
    width = TILE + PAST if is_first else TILE
    for part in split(turned.shape[1], 3):
        n = part[1] - part[0]
        bank = psum.take()
        for c in range(n):
            at, channel = c * width + width - TILE, (part[0] + c) * TILE
            if is_first:
                # [d, c] x [d, e] -> [c, e]
                nisa.nc_matmul(
                    dst=bank[:, c * width : (c + 1) * width], stationary=old[:, channel : channel + TILE],
                    moving=place, accumulate=False,
                )  # fmt: skip
            # [t, c] x [t, e] -> [c, e]
            nisa.nc_matmul(
                dst=bank[:, at : at + TILE], stationary=seen[:, channel : channel + TILE], moving=keep,
                accumulate=is_first,
            )  # fmt: skip
        nisa.tensor_copy(
            dst=turned[:, part[0] : part[1], TILE + PAST - width : TILE + PAST], src=bank[:, 0 : n * width],
            engine=nisa.engine.vector,
        )  # fmt: skip


def _multiply(out: nl.ndarray, turned: nl.ndarray, taps: nl.ndarray, psum: Bank) -> None:
    """All taps of a tile, and SiLU."""
    for part in split(turned.shape[1], 4):
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
            dst=out[:, part[0] * TILE : part[1] * TILE], op=nl.silu, data=bank[:, 0 : (part[1] - part[0]) * TILE]
        )


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
    first, own = own_channels(channels)
    dt, length = x.dtype, PAST + steps
    assert length <= TILE, f"{steps} tokens a sequence, at most {TILE - PAST}"
    y = nl.ndarray((batch, steps, channels), dtype=dt, buffer=nl.shared_hbm)

    places = write.shape[1] // (batch * steps)
    where_from = index_tiles(read, batch, nisa.engine.vector)
    where_to = index_tiles(write, batch * steps * places, nisa.engine.gpsimd)
    load_silu()
    psum, eye, pool = make_banks(), identity(dt), nisa.dge_mode.swdge
    taps = load_taps(weight, [(first, 1, 0, own)])
    group = TILE // length
    for begin in range(0, batch, group):
        n = min(group, batch - begin)
        joined = sbuf(dt, (n * length, own))
        for b in range(n):
            row, at = b * length, begin + b
            src = lanes.ap(
                pattern=[[channels, PAST], [1, own]], offset=first, scalar_offset=where_from[at], indirect_dim=0,
            )  # fmt: skip
            new = x.ap(pattern=[[channels, steps], [1, own]], offset=at * steps * channels + first)
            nisa.dma_copy(dst=joined[row : row + PAST], src=src)
            nisa.dma_copy(dst=joined[row + PAST : row + length], src=new, dge_mode=pool)
        for b in range(n):
            for m in range(steps):
                row = b * length + m + 1
                for place in range(places):
                    at = ((begin + b) * steps + m) * places + place
                    dst = lanes.ap(
                        pattern=[[channels, PAST], [1, own]], offset=first, scalar_offset=where_to[at], indirect_dim=0,
                    )  # fmt: skip
                    nisa.dma_copy(
                        dst=dst, src=joined[row : row + PAST], oob_mode=nisa.oob_mode.skip,
                        dge_mode=pool if at % 2 == 1 else nisa.dge_mode.unknown,
                    )  # fmt: skip
        # Column (b, m, d) of the identity's view has its one in row m + d of sequence b.
        picks = eye.ap(pattern=[[TILE, n * length], [length, n], [1, steps], [1, TAPS]])
        summed = sum_taps(joined, picks, taps, n * steps, psum)
        store_silu(y, summed, begin * steps, first, psum)
    return y, lanes


def _taps(weight: nl.ndarray, eye: nl.ndarray, first: int, blocks: int) -> nl.ndarray:
    """diag(weight[:, d]) for every block of 128 channels and every tap: [c, blocks, 4, c']."""
    columns, taps = load_taps(weight, [(first, 1, 0, blocks * TILE)]), sbuf(eye.dtype, (TILE, blocks, TAPS, TILE))
    for c in range(blocks):
        for d in range(TAPS):
            nisa.tensor_scalar(
                dst=taps[:, c : c + 1, d : d + 1], data=eye, op0=nl.multiply,
                operand0=columns[:, c : c + 1, d : d + 1].reshape((TILE, 1)), engine=nisa.engine.vector,
            )  # fmt: skip
    return taps


def _bounds(valid: nl.ndarray, psum: Bank) -> nl.ndarray:
    """int32 [1, 2] of HBM as fp32 [128, 2], every row the same."""
    given, row, bounds = sbuf(nl.int32, (1, 2)), sbuf(nl.float32, (1, 2)), sbuf(nl.float32, (TILE, 2))
    nisa.dma_copy(dst=given, src=valid)
    nisa.tensor_copy(dst=row, src=given, engine=nisa.engine.vector)
    nisa.tensor_copy(dst=bounds, src=on_every_row(row, psum), engine=nisa.engine.vector)
    return bounds


def _live_diagonal(eye: nl.ndarray, row: nl.ndarray, bounds: nl.ndarray, start: int) -> nl.ndarray:
    """The identity with zeros for padding: row p, whose number is in fp32 `row` [128, 1], is token start + p."""
    begun, going, keep = sbuf(nl.float32, (TILE, 1)), sbuf(nl.float32, (TILE, 1)), sbuf(eye.dtype, (TILE, TILE))
    nisa.tensor_scalar(
        dst=begun, data=row, op0=nl.add, operand0=float(start), op1=nl.greater_equal, operand1=bounds[:, 0:1],
        engine=nisa.engine.vector,
    )  # fmt: skip
    nisa.tensor_scalar(
        dst=going, data=row, op0=nl.add, operand0=float(start), op1=nl.less, operand1=bounds[:, 1:2],
        engine=nisa.engine.vector,
    )  # fmt: skip
    nisa.tensor_scalar(
        dst=keep, data=eye, op0=nl.multiply, operand0=begun, op1=nl.multiply, operand1=going,
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


@dataclass
class Gathered(nl.NKIObject):
    """A row before each end: new [n, channels] counts where `here`, past [n, channels] where `early`, fp32 [n, 1]."""

    new: nl.ndarray
    past: nl.ndarray
    here: nl.ndarray
    early: nl.ndarray


def _gather_windows(cut: Cut, bounds: nl.ndarray) -> list:
    """Three rows before each end: from x where they are tokens of it, from the old window where not.

    Both are gathered for every row, at the nearest place that there is.
    """
    n, tokens, channels = cut.ends.shape[1], cut.x.shape[0], cut.x.shape[1]
    assert n <= TILE, f"{n} windows, at most {TILE}"
    own, f32 = cut.last - cut.first, nl.float32
    given, end = sbuf(nl.int32, (n, 1)), sbuf(f32, (n, 1))
    nisa.dma_copy(dst=given, src=cut.ends.ap(pattern=[[1, n], [1, 1]]))
    nisa.tensor_copy(dst=end, src=given, engine=nisa.engine.vector)
    first, rows = bounds[0:n, 0:1], []
    pattern = [[channels, n], [1, own]]
    for row in range(PAST):
        at, there, old = sbuf(f32, (n, 1)), sbuf(nl.int32, (n, 1)), sbuf(nl.int32, (n, 1))
        here, early = sbuf(f32, (n, 1)), sbuf(f32, (n, 1))
        nisa.tensor_scalar(dst=at, data=end, op0=nl.add, operand0=float(row - PAST))
        nisa.tensor_scalar(dst=here, data=at, op0=nl.greater_equal, operand0=first)
        nisa.tensor_scalar(dst=early, data=at, op0=nl.less, operand0=first)
        # Row `at` of x, or row at - valid[0] + 3 of the window.
        nisa.tensor_scalar(dst=there, data=at, op0=nl.maximum, operand0=0.0, op1=nl.minimum, operand1=float(tokens - 1))
        nisa.tensor_scalar(dst=at, data=at, op0=nl.subtract, operand0=first, op1=nl.add, operand1=float(PAST))
        nisa.tensor_scalar(dst=old, data=at, op0=nl.maximum, operand0=0.0, op1=nl.minimum, operand1=float(PAST - 1))
        new, past = sbuf(cut.x.dtype, (n, own)), sbuf(cut.x.dtype, (n, own))
        nisa.dma_copy(dst=new, src=cut.x.ap(pattern=pattern, offset=cut.first, vector_offset=there))
        nisa.dma_copy(dst=past, src=cut.window.ap(pattern=pattern, offset=cut.first, vector_offset=old))
        rows.append(Gathered(new=new, past=past, here=here, early=early))
    return rows


def _join_windows(cut: Cut, rows: list, windows: nl.ndarray) -> None:
    """Of each pair of rows the wrong one is multiplied by zero."""
    n, own = windows.shape[0], cut.last - cut.first
    out = sbuf(cut.x.dtype, (n, PAST, own))
    for row in range(PAST):
        pair = rows[row]
        nisa.tensor_scalar(dst=pair.past, data=pair.past, op0=nl.multiply, operand0=pair.early)
        nisa.scalar_tensor_tensor(
            dst=out[:, row : row + 1], data=pair.new, op0=nl.multiply, operand0=pair.here, op1=nl.add,
            operand1=pair.past,
        )  # fmt: skip
    nisa.dma_copy(dst=windows[:, :, cut.first : cut.last], src=out)
