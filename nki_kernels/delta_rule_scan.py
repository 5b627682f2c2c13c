"""The sequential part of the fused prefill: one tile after the other through the state, all heads of a core."""

from dataclasses import dataclass

import nki.isa as nisa
import nki.language as nl

from .delta_rule_solve import Tile, column
from .delta_rule_tiles import HALF, TILE, Bank, sbuf, split


@dataclass
class Scan(nl.NKIObject):
    """The state between tiles, and what one tile holds between the two stages of its scan.

    Attributes:
        state: fp32 [d, H, v]. operand: the same in the type of the operands.
        before, read: the same two before the tile. new: fp32 [i, H, v], V' of the tile.
    """

    state: nl.ndarray
    operand: nl.ndarray
    before: nl.ndarray
    read: nl.ndarray
    new: nl.ndarray


def make_scan(state: nl.ndarray, heads: tuple, dtype: nl.dtype) -> Scan:
    """Load the state of value heads (first, last + 1) of [H, d, v]."""
    held = sbuf(nl.float32, (heads[1] - heads[0], TILE))
    nisa.dma_copy(dst=held, src=key_first(state, heads))
    operand = _operand(held, dtype)
    return Scan(state=held, operand=operand, before=held, read=operand, new=held)


def key_first(state: nl.ndarray, heads: tuple) -> nl.ndarray:
    """HBM [H, d, v] seen as [d, heads, v]."""
    pattern = [[TILE, TILE], [TILE * TILE, heads[1] - heads[0]], [1, TILE]]
    return state.ap(pattern=pattern, offset=heads[0] * TILE * TILE)


def _operand(state: nl.ndarray, dtype: nl.dtype) -> nl.ndarray:
    if dtype == nl.float32:
        return state
    operand = sbuf(dtype, (state.shape[1], TILE))
    for part in split(state.shape[1], 4):
        nisa.tensor_copy(dst=operand[:, part[0] : part[1]], src=state[:, part[0] : part[1]], engine=nisa.engine.gpsimd)
    return operand


def scan_state(tile: Tile, scan: Scan, bank: Bank) -> None:
    """V' = c (U - W S) and S <- e^(G_C) S + (e^(G_C - G) k)^T V'."""
    heads = tile.v.shape[1]
    parts = split(heads, 4)
    new, kept, state = sbuf(nl.float32, (heads, TILE)), sbuf(nl.float32, (heads, TILE)), sbuf(nl.float32, (heads, TILE))
    for part in parts:
        psum = bank.take()
        for own in range(part[0], part[1]):
            fresh = psum[:, (own - part[0]) * TILE : (own - part[0] + 1) * TILE]
            # [j, i] x [j, v] -> [i, v], then [d, i] x [d, v] -> [i, v]
            nisa.nc_matmul(
                dst=fresh, stationary=tile.t_t[:, own : own + 1], moving=tile.u[:, own : own + 1], accumulate=False
            )
            nisa.nc_matmul(
                dst=fresh, stationary=tile.w[:, own : own + 1], moving=scan.operand[:, own : own + 1], accumulate=True
            )
            nisa.activation(dst=new[:, own : own + 1], op=nl.copy, data=fresh, scale=tile.c[:, own : own + 1])
    for own in range(heads):
        nisa.activation(
            dst=kept[:, own : own + 1], op=nl.copy, data=scan.state[:, own : own + 1], scale=column(tile.decay, 2, own)
        )
    for part in parts:
        written = bank.take()[:, 0 : (part[1] - part[0]) * TILE]
        for own in range(part[0], part[1]):
            # [j, d] x [j, v] -> [d, v]
            nisa.nc_matmul(
                dst=written[:, (own - part[0]) * TILE : (own - part[0] + 1) * TILE],
                stationary=tile.faded_k[:, own : own + 1], moving=new[:, own : own + 1], accumulate=False,
            )  # fmt: skip
        nisa.tensor_tensor(
            dst=state[:, part[0] : part[1]], data1=kept[:, part[0] : part[1]], data2=written, op=nl.add,
            engine=nisa.engine.vector,
        )  # fmt: skip
    scan.before, scan.read, scan.new = scan.state, scan.operand, new
    scan.state, scan.operand = state, _operand(state, tile.v.dtype)


def scan_output(tile: Tile, scan: Scan, bank: Bank, o: nl.ndarray) -> None:
    """o = rq ((e^G q) S + scores V') to `o`, [rows, heads, v] in HBM; follows the tile's `scan_state`."""
    heads, key_heads = tile.v.shape[1], tile.turned.shape[2]
    share = heads // key_heads
    out = sbuf(nl.float32, (heads, TILE))
    for part in split(heads, 4):
        read = bank.take()
        for own in range(part[0], part[1]):
            dst = read[:, (own - part[0]) * TILE : (own - part[0] + 1) * TILE]
            # [d, i] x [d, v] -> [i, v], then [j, i] x [j, v] -> [i, v]
            nisa.nc_matmul(
                dst=dst, stationary=tile.grown_q[:, own : own + 1], moving=scan.read[:, own : own + 1],
                accumulate=False,
            )  # fmt: skip
            nisa.nc_matmul(
                dst=dst, stationary=tile.scores[:, own : own + 1], moving=scan.new[:, own : own + 1], accumulate=True
            )
        for of in range(key_heads):
            first, last = max(part[0], of * share), min(part[1], (of + 1) * share)
            if first < last:
                nisa.tensor_scalar(
                    dst=out[:, first:last], data=read[:, (first - part[0]) * TILE : (last - part[0]) * TILE],
                    op0=nl.multiply, operand0=column(tile.norm, 1, of), engine=nisa.engine.vector,
                )  # fmt: skip
    nisa.dma_copy(dst=o, src=out[0 : tile.rows])


def prepare_inside(tile: Tile, half: nl.ndarray, bank: Bank) -> None:
    """What `state_inside` needs that does not depend on the state; GpSimd has time for it.

    Sums run over all 128 rows with zeros on the last 64, as they do when a call ends there on a padded tile.

    Args:
        half: fp32 [k, 256], ones where j < k < 64, then ones where k < 64.
    """
    heads, key_heads = tile.v.shape[1], tile.turned.shape[2]
    share = heads // key_heads
    sums, decay, faded = bank.take(), sbuf(nl.float32, (2, heads)), sbuf(nl.float32, (heads, TILE))
    for n in range(2):
        # [k, j] x [k, h] -> [j, h]: sums of g over j < k < 64, and over k < 64
        nisa.nc_matmul(
            dst=sums[:, n * heads : (n + 1) * heads], stationary=half[:, n * TILE : (n + 1) * TILE],
            moving=tile.gates[:, 0:1], is_stationary_onezero=True, accumulate=False,
        )  # fmt: skip
    nisa.activation(dst=decay, op=nl.exp, data=sums[:, 0 : 2 * heads])
    nisa.tensor_scalar(
        dst=decay[:, 0:1], data=decay[:, 0:1], op0=nl.multiply, operand0=half[:, TILE : TILE + 1],
        engine=nisa.engine.vector,
    )  # fmt: skip
    nisa.tensor_tensor(
        dst=faded, data1=tile.kq.ap(pattern=[[2 * key_heads * TILE, TILE], [TILE, key_heads], [0, share], [1, TILE]]),
        data2=decay.ap(pattern=[[2 * heads, TILE], [1, heads], [0, TILE]]), op=nl.multiply,
        engine=nisa.engine.gpsimd,
    )  # fmt: skip
    tile.inside_decay, tile.inside_k = decay, faded


def state_inside(tile: Tile, scan: Scan, bank: Bank) -> nl.ndarray:
    """The state 64 tokens into the tile, fp32 [d, H, v]; follows the tile's `scan_state`."""
    heads = tile.v.shape[1]
    kept, state = sbuf(nl.float32, (heads, TILE)), sbuf(nl.float32, (heads, TILE))
    for own in range(heads):
        nisa.activation(
            dst=kept[:, own : own + 1], op=nl.copy, data=scan.before[:, own : own + 1],
            scale=column(tile.inside_decay, 1, own),
        )  # fmt: skip
    for part in split(heads, 4):
        written = bank.take()[:, 0 : (part[1] - part[0]) * TILE]
        for own in range(part[0], part[1]):
            # [j, d] x [j, v] -> [d, v]
            nisa.nc_matmul(
                dst=written[:, (own - part[0]) * TILE : (own - part[0] + 1) * TILE],
                stationary=tile.inside_k[:, own : own + 1], moving=scan.new[:, own : own + 1], accumulate=False,
            )  # fmt: skip
        nisa.tensor_tensor(
            dst=state[:, part[0] : part[1]], data1=kept[:, part[0] : part[1]], data2=written, op=nl.add,
            engine=nisa.engine.vector,
        )  # fmt: skip
    return state


def make_half(sums: nl.ndarray) -> nl.ndarray:
    """The triangles of `prepare_inside`, [128, 256], from the table of sums: AFTER and ONES cut at row 64."""
    half = sbuf(nl.float32, (2 * TILE,))
    nisa.affine_select(
        dst=half, pattern=[[0, 2 * TILE]], channel_multiplier=1, on_true_tile=sums[:, TILE : 3 * TILE],
        on_false_value=0.0, cmp_op=nl.less, offset=-HALF,
    )  # fmt: skip
    return half
