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
        middle: fp32 [d, H, v], the state 64 tokens into the tile. read: `operand` before the tile.
        new: fp32 [i, H, v], V' of the tile.
    """

    state: nl.ndarray
    operand: nl.ndarray
    middle: nl.ndarray
    read: nl.ndarray
    new: nl.ndarray


def make_scan(state: nl.ndarray, heads: tuple, dtype: nl.dtype) -> Scan:
    """Load the state of value heads (first, last + 1) of [H, d, v]."""
    held = sbuf(nl.float32, (TILE, heads[1] - heads[0], TILE))
    nisa.dma_copy(dst=held, src=key_first(state, heads))
    operand = _operand(held, dtype)
    return Scan(state=held, operand=operand, middle=held, read=operand, new=held)


def key_first(state: nl.ndarray, heads: tuple) -> nl.ndarray:
    """HBM [H, d, v] seen as [d, heads, v]."""
    pattern = [[TILE, TILE], [TILE * TILE, heads[1] - heads[0]], [1, TILE]]
    return state.ap(pattern=pattern, offset=heads[0] * TILE * TILE)


def _operand(state: nl.ndarray, dtype: nl.dtype) -> nl.ndarray:
    if dtype == nl.float32:
        return state
    operand = sbuf(dtype, (TILE, state.shape[1], TILE))
    for part in split(state.shape[1], 4):
        nisa.tensor_copy(dst=operand[:, part[0] : part[1]], src=state[:, part[0] : part[1]], engine=nisa.engine.gpsimd)
    return operand


def scan_state(tile: Tile, scan: Scan, bank: Bank) -> None:
    """V' = c (U - W S), then for each half of the tile in turn S <- e^(G_h) S + (e^(G_h - G) k)^T V'.

    G_h is the sum of g over the half. The state is in hand where a chunk ends, and the product costs no more than one
    over the whole tile would.
    """
    heads = tile.v.shape[1]
    parts = split(heads, 4)
    f32, wide = nl.float32, (TILE, heads, TILE)
    new, kept, middle, state = sbuf(f32, wide), sbuf(f32, wide), sbuf(f32, wide), sbuf(f32, wide)
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
        columns = (part[1] - part[0]) * TILE
        written = (bank.take()[:, 0:columns], bank.take()[:, 0:columns])
        for own in range(part[0], part[1]):
            at = (own - part[0]) * TILE
            for half in range(2):
                rows = half * HALF
                # [j, d] x [j, v] -> [d, v]; the halves are on different rows of the array, which run at the same time
                nisa.nc_matmul(
                    dst=written[half][:, at : at + TILE], stationary=tile.faded_k[rows : rows + HALF, own : own + 1],
                    moving=new[rows : rows + HALF, own : own + 1], accumulate=False, tile_position=(rows, 0),
                    tile_size=(HALF, TILE),
                )  # fmt: skip
        nisa.tensor_tensor(
            dst=middle[:, part[0] : part[1]], data1=kept[:, part[0] : part[1]], data2=written[0], op=nl.add,
            engine=nisa.engine.vector,
        )  # fmt: skip
        for own in range(part[0], part[1]):
            at = (own - part[0]) * TILE
            nisa.scalar_tensor_tensor(
                dst=state[:, own : own + 1], data=middle[:, own : own + 1], op0=nl.multiply,
                operand0=column(tile.decay, 3, own), op1=nl.add, operand1=written[1][:, at : at + TILE],
            )  # fmt: skip
    scan.read = scan.operand
    scan.new = new
    scan.middle = middle
    scan.state = state
    scan.operand = _operand(state, tile.v.dtype)


def scan_output(tile: Tile, scan: Scan, bank: Bank, o: nl.ndarray) -> None:
    """o = rq ((e^G q) S + scores V') to `o`, [rows, heads, v] in HBM; follows the tile's `scan_state`."""
    heads, key_heads = tile.v.shape[1], tile.turned.shape[2]
    share = heads // key_heads
    out = sbuf(nl.float32, (TILE, heads, TILE))
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
