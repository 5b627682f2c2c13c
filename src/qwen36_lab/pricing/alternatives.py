"""The fused prefill with other triangular solves in it, for comparing prices and failures. Nothing else uses them.

Everything but the solve is the kernel's own, so that a difference is the solve's.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nki
import nki.isa as nisa
import nki.language as nl
import numpy as np

from nki_kernels.delta_rule_gates import first_gates, load_beta, load_gates, mask_gates, round_gates, sum_gates
from nki_kernels.delta_rule_masks import make_constants, make_sums
from nki_kernels.delta_rule_scan import (
    load_state,
    make_operand,
    make_scan,
    scan_output,
    scan_read,
    scan_solve,
    scan_write,
)
from nki_kernels.delta_rule_system import (
    clear_room,
    fade,
    load_rows,
    make_room,
    make_tile,
    mask_values,
    normalise,
    open_gates,
    score,
    system,
    triangle,
    turn,
)
from nki_kernels.delta_rule_tiles import HALF, TILE, make_banks, over_heads, sbuf, split, turn_into

LEAF = 32
Stage = Callable[..., None]


def _constant(array: np.ndarray) -> nl.ndarray:
    """An array in SBUF, as a kernel may have it that takes no further arguments: from a file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "constant.npy"
        np.save(path, array.astype(np.float32))
        tile = nl.ndarray(array.shape, dtype=nl.float32, buffer=nl.sbuf)
        nisa.dma_copy(dst=tile, src=nl.shared_constant(path))
    return tile


def _full(tile: Any, kept: dict[Any, Any]) -> nl.ndarray:
    """L^T [j, H, i], from its diagonal blocks and what is between them."""
    heads, share = tile.v.shape[1], tile.v.shape[1] // tile.kq.shape[2]
    out = sbuf(tile.t.dtype, (TILE, heads, TILE))
    nisa.memset(dst=out, value=0.0)
    for half in range(2):
        rows = slice(half * HALF, (half + 1) * HALF)
        nisa.tensor_copy(dst=out[rows, :, rows], src=tile.lower[rows, 0:heads])
    for h in range(heads):
        nisa.tensor_tensor(
            dst=out[0:HALF, h : h + 1, HALF:TILE], data1=tile.cross[:, h // share : h // share + 1],
            data2=tile.decay[0:HALF, h : h + 1, 1:2], op=nl.multiply,
        )  # fmt: skip
    kept["full", tile.place] = out
    return out


def _each_head(psum: Any, heads: int, columns: int, product: Callable[..., None], done: Callable[..., None]) -> None:
    """product(destination, head) for every head, as many in a bank as fit; done(bank, first head, last + 1)."""
    for first, last in split(heads, 512 // columns):
        bank = psum.take()[:, 0 : (last - first) * columns]
        for h in range(first, last):
            product(bank[:, (h - first) * columns : (h - first + 1) * columns], h)
        done(bank, first, last)


def _matmuls(psum: Any, stationary: nl.ndarray, moving: nl.ndarray, done: Callable[..., None]) -> None:
    """stationary^T moving of [128, H, 128] each."""

    def product(dst: nl.ndarray, h: int) -> None:
        nisa.nc_matmul(dst=dst, stationary=stationary[:, h : h + 1], moving=moving[:, h : h + 1], accumulate=False)

    _each_head(psum, moving.shape[1], TILE, product, done)


def _copy_to(tile: Any) -> Callable[..., None]:
    return lambda bank, first, last: nisa.tensor_copy(dst=tile[:, first:last], src=bank, engine=nisa.engine.scalar)


def _turn_all(psum: Any, dst: nl.ndarray, src: nl.ndarray, eye: nl.ndarray) -> None:
    """[128, H, 128], every head turned."""

    def product(place: nl.ndarray, h: int) -> None:
        turn_into(place, src[:, h : h + 1].reshape((TILE, TILE)), eye)

    _each_head(psum, src.shape[1], TILE, product, _copy_to(dst))


class _Doubling:
    """32-leaf doubling: blocks of 32 by (I + N)(I + N^2) ... (I + N^16), N = -A, then two levels of the recursion."""

    def __init__(self) -> None:
        self.kept: dict[Any, Any] = {}

    def stages(self) -> list[Stage]:
        steps: list[Stage] = [self.start]
        for _ in range(4):
            steps += [self.square, self.multiply]
        for width in (32, 64):
            steps += [
                lambda tile, const, psum, width=width: self.residual(tile, psum, width),
                lambda tile, const, psum, width=width: self.update(tile, psum, width),
            ]
        return steps

    def start(self, tile: Any, const: Any, psum: Any) -> None:
        heads, dt = tile.v.shape[1], tile.t.dtype
        full = _full(tile, self.kept)
        power, power_t, t = (sbuf(dt, (TILE, heads, TILE)) for _ in range(3))
        row, column = np.arange(TILE)[:, None], np.arange(TILE)[None, :]
        leaf = _constant(-1.0 * ((row // LEAF == column // LEAF) & (row < column)))
        nisa.tensor_tensor(dst=power_t, data1=full, data2=over_heads(leaf, 0, TILE, heads), op=nl.multiply)
        _turn_all(psum, power, power_t, const.eye)
        eye = over_heads(const.eye, 0, TILE, heads)
        nisa.tensor_tensor(dst=t, data1=power, data2=eye, op=nl.add)
        nisa.tensor_tensor(dst=tile.inverse, data1=power_t, data2=eye, op=nl.add)
        self.kept[tile.place] = (power, power_t, t)

    def square(self, tile: Any, const: Any, psum: Any) -> None:
        power, power_t, t = self.kept[tile.place]
        new, new_t = sbuf(tile.t.dtype, power.shape), sbuf(tile.t.dtype, power.shape)
        _matmuls(psum, power_t, power, _copy_to(new))
        _matmuls(psum, power, power_t, _copy_to(new_t))
        self.kept[tile.place] = (new, new_t, t)

    def multiply(self, tile: Any, const: Any, psum: Any) -> None:
        power, _, t = self.kept[tile.place]

        def add_to(dst: nl.ndarray) -> Callable[..., None]:
            return lambda bank, first, last: nisa.tensor_tensor(
                dst=dst[:, first:last], data1=dst[:, first:last], data2=bank, op=nl.add
            )

        left = sbuf(tile.t.dtype, t.shape)
        _matmuls(psum, tile.inverse, power, _copy_to(left))
        _matmuls(psum, power, tile.inverse, add_to(tile.inverse))
        nisa.tensor_tensor(dst=t, data1=t, data2=left, op=nl.add)

    def residual(self, tile: Any, psum: Any, width: int) -> None:
        """P = M_w o (L T)."""
        row, column = np.arange(TILE)[:, None], np.arange(TILE)[None, :]
        lower = (row // (2 * width) == column // (2 * width)) & (row % (2 * width) >= width)
        mask = _constant(lower & (column % (2 * width) < width))
        _, _, t = self.kept[tile.place]
        p = sbuf(tile.t.dtype, t.shape)

        def keep(bank: nl.ndarray, first: int, last: int) -> None:
            part = over_heads(mask, 0, TILE, last - first)
            nisa.tensor_tensor(dst=p[:, first:last], data1=bank, data2=part, op=nl.multiply)

        _matmuls(psum, self.kept["full", tile.place], t, keep)
        self.kept["p", tile.place] = p

    def update(self, tile: Any, psum: Any, width: int) -> None:
        """T <- T - T P, and T^T."""
        _, _, t = self.kept[tile.place]
        p, step, step_t = self.kept["p", tile.place], sbuf(tile.t.dtype, t.shape), sbuf(tile.t.dtype, t.shape)
        _matmuls(psum, tile.inverse, p, _copy_to(step))
        _matmuls(psum, p, tile.inverse, _copy_to(step_t))
        nisa.tensor_tensor(dst=t, data1=t, data2=step, op=nl.subtract)
        nisa.tensor_tensor(dst=tile.inverse, data1=tile.inverse, data2=step_t, op=nl.subtract)


def _rows(tile: Any, const: Any, psum: Any, groups: list[tuple[int, int]]) -> None:
    """Row i of T is e_i - A[i] T, put in its place by a product with e_i; the heads of a group take turns."""
    heads, dt = tile.v.shape[1], tile.t.dtype
    full, t = _full(tile, {}), sbuf(dt, (TILE, heads, TILE))
    ones = _constant(np.eye(TILE).reshape(1, TILE, TILE))
    lines = nl.ndarray((1, TILE, TILE), dtype=dt, buffer=nl.sbuf)
    nisa.tensor_copy(dst=lines, src=ones)
    nisa.tensor_copy(dst=t, src=over_heads(const.eye, 0, TILE, heads))
    for first, last in groups:
        for i in range(1, TILE):
            for h in range(first, last):
                row, place = psum.take()[0:1, 0:TILE], psum.take()[:, 0:TILE]
                # [j, 1] x [j, c] -> [1, c], which is A[i] T + e_i
                nisa.nc_matmul(
                    dst=row, stationary=full[:, h : h + 1, i : i + 1], moving=t[:, h : h + 1], accumulate=False
                )
                line = nl.ndarray((1, TILE), dtype=dt, buffer=nl.sbuf)
                nisa.tensor_tensor(dst=line, data1=row, data2=lines[:, i : i + 1], op=nl.subtract)
                # [1, i'] x [1, c] -> [i', c]
                nisa.nc_matmul(dst=place, stationary=lines[:, i : i + 1], moving=line, accumulate=False)
                nisa.tensor_tensor(dst=t[:, h : h + 1], data1=t[:, h : h + 1], data2=place, op=nl.subtract)
    _turn_all(psum, tile.inverse, t, const.eye)


def _fused(
    q: nl.ndarray,
    k: nl.ndarray,
    v: nl.ndarray,
    g: nl.ndarray,
    beta: nl.ndarray,
    state: nl.ndarray,
    solve: list[Stage],
    skew: int,
) -> tuple[nl.ndarray, nl.ndarray]:
    """The prefill kernel without checkpoints."""
    tokens, key_heads, _ = k.shape
    heads = v.shape[1]
    o = nl.ndarray((tokens, heads, TILE), dtype=nl.float32, buffer=nl.shared_hbm)
    new_state = nl.ndarray((heads, TILE, TILE), dtype=nl.float32, buffer=nl.shared_hbm)
    count, unit = -(-tokens // TILE), nl.float32 if k.dtype == nl.float32 else nl.float16
    psum, const = make_banks(), make_constants(unit)
    position, valid = sbuf(nl.float32, (TILE, count)), nl.ndarray((1, 2), dtype=nl.int32, buffer=nl.sbuf)
    nisa.iota(dst=position, pattern=[[TILE, count]], channel_multiplier=1)
    nisa.memset(dst=valid[:, 0:1], value=0)
    nisa.memset(dst=valid[:, 1:2], value=tokens)
    tiles = []
    for n in range(count):
        tile = make_tile(k, v, (0, key_heads), (0, heads), n, make_room(unit, heads))
        clear_room(tile)
        for dst, src in ((tile.kq[:, 0:1], k), (tile.kq[:, 1:2], q), (tile.v, v)):
            load_rows(tile, dst, src, (0, src.shape[1]))
        tiles.append(tile)
    gates = load_gates(g, (0, heads), unit)
    load_beta(gates, beta, 0)
    round_gates(gates)
    mask_gates(gates, valid, position, psum)
    first_gates(gates, const, psum)
    make_sums(const)
    sum_gates(gates, const, psum)
    scan = make_scan(heads, unit)
    load_state(scan, state, 0)
    make_operand(scan)

    def prepare(tile: Any, const: Any, psum: Any) -> None:
        for side in range(2):
            normalise(tile, side)
        mask_values(tile, gates)
        open_gates(tile, gates)
        triangle(tile.close, gates.g, tile.place, const)
        triangle(tile.beta, gates.beta, tile.place, const)

    def write(tile: Any, const: Any, psum: Any) -> None:
        scan_solve(tile, scan, gates, psum, False)
        scan_write(tile, scan, gates, psum, False)
        start = tile.place * TILE
        scan_output(tile, scan, gates, psum, o[start : start + tile.rows])

    def turn_both(tile: Any, const: Any, psum: Any) -> None:
        turn(tile, 0, const, psum)
        turn(tile, 1, const, psum)

    def multiply(tile: Any, const: Any, psum: Any) -> None:
        system(tile, gates, const, psum)
        score(tile, psum)

    stages: list[Stage] = [
        prepare,
        turn_both,
        lambda tile, const, psum: fade(tile, gates, const, psum),
        multiply,
        *solve,
        lambda tile, const, psum: scan_read(tile, scan, gates, psum),
        write,
    ]
    for turn_number in range(len(stages) + skew * (count - 1)):
        for n in range(count):
            if 0 <= turn_number - n * skew < len(stages):
                stages[turn_number - n * skew](tiles[n], const, psum)
    nisa.dma_copy(dst=new_state.ap(pattern=[[TILE, TILE], [TILE * TILE, heads], [1, TILE]]), src=scan.state)
    return o, new_state


@nki.jit
def prefill_by_doubling(
    q: nl.ndarray, k: nl.ndarray, v: nl.ndarray, g: nl.ndarray, beta: nl.ndarray, state: nl.ndarray
) -> tuple[nl.ndarray, nl.ndarray]:
    """Fused, with 32-leaf doubling."""
    return _fused(q, k, v, g, beta, state, _Doubling().stages(), 2)


@nki.jit
def prefill_by_rows(
    q: nl.ndarray, k: nl.ndarray, v: nl.ndarray, g: nl.ndarray, beta: nl.ndarray, state: nl.ndarray
) -> tuple[nl.ndarray, nl.ndarray]:
    """Fused, with row-by-row substitution, one head after another."""
    heads = [(h, h + 1) for h in range(v.shape[1])]
    return _fused(q, k, v, g, beta, state, [lambda tile, const, psum: _rows(tile, const, psum, heads)], 1)


@nki.jit
def prefill_by_rows_together(
    q: nl.ndarray, k: nl.ndarray, v: nl.ndarray, g: nl.ndarray, beta: nl.ndarray, state: nl.ndarray
) -> tuple[nl.ndarray, nl.ndarray]:
    """Fused, with row-by-row substitution, all heads of a tile row by row together."""
    heads = [(0, v.shape[1])]
    return _fused(q, k, v, g, beta, state, [lambda tile, const, psum: _rows(tile, const, psum, heads)], 1)
