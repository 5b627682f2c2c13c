"""The sequential part of the fused prefill: one tile after the other through the state, all heads of a core."""

from dataclasses import dataclass

import nki.isa as nisa
import nki.language as nl

from .delta_rule_gates import Gates
from .delta_rule_masks import EARLY, GROW, LATE, TOTAL
from .delta_rule_system import Tile, over_columns
from .delta_rule_tiles import HALF, TILE, Bank, sbuf, split


@dataclass
class Scan(nl.NKIObject):
    """The state between tiles, and what one tile holds between the two stages of its scan.

    Attributes:
        state: fp32 [d, H, v]. operand: the same in the type of the values.
        middle: fp32 [d, H, v], the state 64 tokens into the tile, where that was asked for.
        read: `operand` before the tile. new: [i, H, v], T Z of the tile, in the type of the values.
    """

    state: nl.ndarray
    operand: nl.ndarray
    middle: nl.ndarray
    read: nl.ndarray
    new: nl.ndarray


def make_scan(heads: int, dtype: nl.dtype) -> Scan:
    """Room for the state of so many value heads."""
    state, operand = sbuf(nl.float32, (TILE, heads, TILE)), sbuf(dtype, (TILE, heads, TILE))
    return Scan(state=state, operand=operand, middle=state, read=operand, new=operand)


def load_state(scan: Scan, state: nl.ndarray, first: int) -> None:
    """The value heads from `first` on of [H, d, v] in HBM."""
    pattern = [[TILE, TILE], [TILE * TILE, scan.state.shape[1]], [1, TILE]]
    nisa.dma_copy(dst=scan.state, src=state.ap(pattern=pattern, offset=first * TILE * TILE))


def make_operand(scan: Scan) -> None:
    """The state in the type of the operands."""
    if scan.operand.dtype == nl.float32:
        scan.operand = scan.state
        return
    scan.operand = sbuf(scan.operand.dtype, scan.state.shape)
    for part in split(scan.state.shape[1], 4):
        nisa.tensor_copy(
            dst=scan.operand[:, part[0] : part[1]], src=scan.state[:, part[0] : part[1]], engine=nisa.engine.gpsimd
        )


def groups(tile: Tile) -> list:
    """(key head, first value head, last + 1): heads that share a stationary operand and fit a bank."""
    key_heads = tile.kq.shape[2]
    share, out = tile.v.shape[1] // key_heads, []
    for of in range(key_heads):
        for part in split(share, 4):
            out.append((of, of * share + part[0], of * share + part[1]))
    return out


def column(table: nl.ndarray, kind: int, place: int, head: int) -> nl.ndarray:
    """One value a row of [128, kinds, T, H], as [128, 1]."""
    return table[:, kind : kind + 1, place : place + 1, head : head + 1].reshape((TILE, 1))


def scan_read(tile: Tile, scan: Scan, gates: Gates, bank: Bank) -> None:
    """Leaves Z = v - e^G k S, [i, H, v]."""
    z = sbuf(tile.t.dtype, tile.value.shape)
    for part in groups(tile):
        psum, of, first, last = bank.take(), part[0], part[1], part[2]
        # [d, i] x [d, (h, v)] -> [i, (h, v)]
        nisa.nc_matmul(
            dst=psum[:, 0 : (last - first) * TILE], stationary=tile.turned[:, 0:1, of : of + 1],
            moving=scan.operand[:, first:last], accumulate=False,
        )  # fmt: skip
        for h in range(first, last):
            nisa.scalar_tensor_tensor(
                dst=z[:, h : h + 1], data=psum[:, (h - first) * TILE : (h - first + 1) * TILE], op0=nl.multiply,
                operand0=column(gates.minus, 0, tile.place, h), op1=nl.add, operand1=tile.value[:, h : h + 1],
            )  # fmt: skip
    tile.held = z


def scan_solve(tile: Tile, scan: Scan, gates: Gates, bank: Bank, middle: bool) -> None:
    """`scan.new` = T Z; leaves beta e^G(left) T Z, where left is of the tile, or with `middle` of the half."""
    new, faded = sbuf(tile.t.dtype, tile.v.shape), sbuf(tile.t.dtype, tile.v.shape)
    write = gates.write_half if middle else gates.write_left
    for part in groups(tile):
        psum, first, last = bank.take(), part[1], part[2]
        for h in range(first, last):
            # [j, i] x [j, v] -> [i, v]
            nisa.nc_matmul(
                dst=psum[:, (h - first) * TILE : (h - first + 1) * TILE], stationary=tile.inverse[:, h : h + 1],
                moving=tile.held[:, h : h + 1], accumulate=False,
            )  # fmt: skip
        nisa.tensor_copy(dst=new[:, first:last], src=psum[:, 0 : (last - first) * TILE], engine=nisa.engine.scalar)
        nisa.tensor_tensor(
            dst=faded[:, first:last], data1=psum[:, 0 : (last - first) * TILE],
            data2=over_columns(write, tile.place, (first, last), (0, TILE), TILE), op=nl.multiply,
            engine=nisa.engine.vector,
        )  # fmt: skip
    scan.new = new
    tile.held = faded


def scan_write(tile: Tile, scan: Scan, gates: Gates, bank: Bank, middle: bool) -> None:
    """S <- e^(G of the tile) S + k^T times what `scan_solve` left.

    With `middle` the two halves of the tile go one after the other, which leaves the state between them at hand.
    """
    state = sbuf(nl.float32, scan.state.shape)
    if middle:
        between = sbuf(nl.float32, scan.state.shape)
        _absorb(between, scan.state, tile, gates, EARLY, (0, HALF), bank)
        _absorb(state, between, tile, gates, LATE, (HALF, TILE), bank)
        scan.middle = between
    else:
        _absorb(state, scan.state, tile, gates, TOTAL, (0, TILE), bank)
    scan.read = scan.operand
    scan.state = state
    make_operand(scan)


def _absorb(dst: nl.ndarray, state: nl.ndarray, tile: Tile, gates: Gates, kind: int, rows: tuple, bank: Bank) -> None:
    """dst = e^(the sum of g over the rows) state + k^T times what the tile holds, over the rows."""
    position = () if rows[1] - rows[0] == TILE else (rows[0], 0)
    size = () if rows[1] - rows[0] == TILE else (HALF, TILE)
    for part in groups(tile):
        psum = bank.take()
        of, first, last = part[0], part[1], part[2]
        # [j, d] x [j, (h, v)] -> [d, (h, v)]
        nisa.nc_matmul(
            dst=psum[:, 0 : (last - first) * TILE], stationary=tile.unit[rows[0] : rows[1], 0:1, of : of + 1],
            moving=tile.held[rows[0] : rows[1], first:last], accumulate=False, tile_position=position, tile_size=size,
        )  # fmt: skip
        for h in range(first, last):
            nisa.scalar_tensor_tensor(
                dst=dst[:, h : h + 1], data=state[:, h : h + 1], op0=nl.multiply,
                operand0=column(gates.power, kind, tile.place, h), op1=nl.add,
                operand1=psum[:, (h - first) * TILE : (h - first + 1) * TILE],
            )  # fmt: skip


def scan_output(tile: Tile, scan: Scan, gates: Gates, bank: Bank, o: nl.ndarray) -> None:
    """o = e^G q S + scores T Z to `o`, [rows, heads, v] in HBM; follows the tile's `scan_state`."""
    out = sbuf(nl.float32, (TILE, tile.v.shape[1], TILE))
    for part in groups(tile):
        inside, before = bank.take(), bank.take()
        of, first, last = part[0], part[1], part[2]
        for h in range(first, last):
            # [j, i] x [j, v] -> [i, v]
            nisa.nc_matmul(
                dst=inside[:, (h - first) * TILE : (h - first + 1) * TILE], stationary=tile.scores[:, h : h + 1],
                moving=scan.new[:, h : h + 1], accumulate=False,
            )  # fmt: skip
        nisa.tensor_copy(dst=out[:, first:last], src=inside[:, 0 : (last - first) * TILE], engine=nisa.engine.scalar)
        # [d, i] x [d, (h, v)] -> [i, (h, v)]
        nisa.nc_matmul(
            dst=before[:, 0 : (last - first) * TILE], stationary=tile.turned[:, 1:2, of : of + 1],
            moving=scan.read[:, first:last], accumulate=False,
        )  # fmt: skip
        for h in range(first, last):
            nisa.scalar_tensor_tensor(
                dst=out[:, h : h + 1], data=before[:, (h - first) * TILE : (h - first + 1) * TILE], op0=nl.multiply,
                operand0=column(gates.power, GROW, tile.place, h), op1=nl.add, operand1=out[:, h : h + 1],
            )  # fmt: skip
        nisa.dma_copy(dst=o[:, first:last], src=out[0 : tile.rows, first:last])
