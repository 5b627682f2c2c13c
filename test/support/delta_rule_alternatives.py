"""The fused prefill with other triangular solves in it, for comparing prices and failures. Nothing else uses them.

Everything but the solve is the kernel's own, so that a difference is the solve's.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

import nki
import nki.isa as nisa
import nki.language as nl
import numpy as np

from nki_kernels.delta_rule_masks import make_buffers, make_constants
from nki_kernels.delta_rule_scan import make_scan, scan_output, scan_state
from nki_kernels.delta_rule_solve import (
    apply_inverse,
    compare,
    correlate,
    level_residual,
    level_update,
    load,
    make_system,
    measure,
    scale_keys,
    scale_queries,
    split_system,
)
from nki_kernels.delta_rule_tiles import TILE, make_banks, over_heads, sbuf, split, turn_into

LEAF = 32
Stage = Callable[..., None]


def _constant(array: np.ndarray) -> nl.ndarray:
    """An array as a kernel may have it that takes no further arguments: from a file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "constant.npy"
        np.save(path, array)
        return nl.shared_constant(path)


def _leaf_mask() -> np.ndarray:
    """Minus one above the diagonal of every 32 x 32 block on it."""
    row, column = np.arange(TILE)[:, None], np.arange(TILE)[None, :]
    return -((row // LEAF == column // LEAF) & (row < column)).astype(np.float32)


class _Doubling:
    """32-leaf doubling: blocks of 32 by (I + N)(I + N^2) ... (I + N^16), N = -A, then two levels of the recursion."""

    def __init__(self) -> None:
        self.kept: dict[int, tuple] = {}

    def stages(self) -> list[Stage]:
        steps: list[Stage] = [self.start]
        for _ in range(4):
            steps += [self.square, self.multiply]
        for level in (4, 5):
            steps += [
                lambda tile, n, const, psum, level=level: level_residual(tile, const, psum, level, n),
                lambda tile, n, const, psum, level=level: level_update(tile, const, psum, level, n),
            ]
        return steps

    def start(self, tile, n, const, psum) -> None:
        heads, dt = tile.v.shape[1], tile.t.dtype
        mask, power, power_t = sbuf(dt, (TILE, TILE)), sbuf(dt, (TILE, heads, TILE)), sbuf(dt, (TILE, heads, TILE))
        nisa.dma_copy(dst=mask, src=_constant(_leaf_mask()))
        nisa.tensor_tensor(dst=power_t, data1=tile.lower, data2=over_heads(mask, 0, TILE, heads), op=nl.multiply)
        for first, last in split(heads, 4):
            bank = psum.take()[:, 0 : (last - first) * TILE]
            for h in range(first, last):
                data = power_t[:, h : h + 1].reshape((TILE, TILE))
                turn_into(bank[:, (h - first) * TILE : (h - first + 1) * TILE], data, const.eye)
            nisa.tensor_copy(dst=power[:, first:last], src=bank, engine=nisa.engine.scalar)
        eye = over_heads(const.eye, 0, TILE, heads)
        nisa.tensor_tensor(dst=tile.t, data1=power, data2=eye, op=nl.add)
        nisa.tensor_tensor(dst=tile.t_t, data1=power_t, data2=eye, op=nl.add)
        self.kept[n] = (power, power_t)

    def square(self, tile, n, const, psum) -> None:
        power, power_t = self.kept[n]
        heads, dt = tile.v.shape[1], tile.t.dtype
        new, new_t = sbuf(dt, (TILE, heads, TILE)), sbuf(dt, (TILE, heads, TILE))
        for dst, a, b, engine in (
            (new, power_t, power, nisa.engine.scalar), (new_t, power, power_t, nisa.engine.vector),
        ):  # fmt: skip
            for first, last in split(heads, 4):
                nisa.tensor_copy(dst=dst[:, first:last], src=_products(psum, a, b, first, last), engine=engine)
        self.kept[n] = (new, new_t)

    def multiply(self, tile, n, const, psum) -> None:
        power, _ = self.kept[n]
        heads = tile.v.shape[1]
        for first, last in split(heads, 4):
            left, right = (_products(psum, a, b, first, last) for a, b in ((tile.t_t, power), (power, tile.t_t)))
            for dst, update in ((tile.t, left), (tile.t_t, right)):
                nisa.tensor_tensor(dst=dst[:, first:last], data1=dst[:, first:last], data2=update, op=nl.add)


def _products(psum, stationary, moving, first: int, last: int):
    bank = psum.take()[:, 0 : (last - first) * TILE]
    for h in range(first, last):
        nisa.nc_matmul(
            dst=bank[:, (h - first) * TILE : (h - first + 1) * TILE], stationary=stationary[:, h : h + 1],
            moving=moving[:, h : h + 1], accumulate=False,
        )  # fmt: skip
    return bank


def _rows(tile, const, psum, groups: list[tuple[int, int]]) -> None:
    """Row i of T is e_i - A[i] T, put in its place by a product with e_i; the heads of a group take turns."""
    heads, dt = tile.v.shape[1], tile.t.dtype
    lines = nl.ndarray((1, TILE, TILE), dtype=dt, buffer=nl.sbuf)
    nisa.dma_copy(dst=lines, src=_constant(np.eye(TILE, dtype=np.float32)).reshape((1, TILE, TILE)))
    nisa.tensor_copy(dst=tile.t, src=over_heads(const.eye, 0, TILE, heads))
    for first, last in groups:
        for i in range(1, TILE):
            for h in range(first, last):
                row, place = psum.take()[0:1, 0:TILE], psum.take()[:, 0:TILE]
                # [j, 1] x [j, c] -> [1, c], which is A[i] T + e_i
                nisa.nc_matmul(
                    dst=row, stationary=tile.lower[:, h : h + 1, i : i + 1], moving=tile.t[:, h : h + 1],
                    accumulate=False,
                )  # fmt: skip
                line = nl.ndarray((1, TILE), dtype=dt, buffer=nl.sbuf)
                nisa.tensor_tensor(dst=line, data1=row, data2=lines[:, i : i + 1], op=nl.subtract)
                # [1, i'] x [1, c] -> [i', c]
                nisa.nc_matmul(dst=place, stationary=lines[:, i : i + 1], moving=line, accumulate=False)
                nisa.tensor_tensor(dst=tile.t[:, h : h + 1], data1=tile.t[:, h : h + 1], data2=place, op=nl.subtract)
    for first, last in split(heads, 4):
        bank = psum.take()[:, 0 : (last - first) * TILE]
        for h in range(first, last):
            data = tile.t[:, h : h + 1].reshape((TILE, TILE))
            turn_into(bank[:, (h - first) * TILE : (h - first + 1) * TILE], data, const.eye)
        nisa.tensor_copy(dst=tile.t_t[:, first:last], src=bank)


def _fused(q, k, v, g, beta, state, solve: list[Stage], skew: int):
    """The prefill kernel without checkpoints and padding."""
    tokens, key_heads, _ = k.shape
    heads = v.shape[1]
    o = nl.ndarray((tokens, heads, TILE), dtype=nl.float32, buffer=nl.shared_hbm)
    new_state = nl.ndarray((heads, TILE, TILE), dtype=nl.float32, buffer=nl.shared_hbm)
    count = -(-tokens // TILE)
    psum, const = make_banks(), make_constants(k.dtype)
    live = sbuf(nl.float32, (TILE, 1))
    nisa.memset(dst=live, value=1.0)
    tiles = [load(q, k, v, g, beta, (0, key_heads), (0, heads), n * TILE) for n in range(count)]
    scan = make_scan(state, (0, heads), k.dtype)
    make_buffers(const, heads)
    stages: list[Stage] = [
        lambda tile, n, const, psum: measure(tile, const, psum, live),
        lambda tile, n, const, psum: compare(tile, const, psum),
        lambda tile, n, const, psum: correlate(tile, psum),
        lambda tile, n, const, psum: (make_system(tile), split_system(tile)),
        lambda tile, n, const, psum: (scale_keys(tile), scale_queries(tile, const, psum)),
        *solve,
        lambda tile, n, const, psum: apply_inverse(tile, psum),
        lambda tile, n, const, psum: scan_state(tile, scan, psum),
        lambda tile, n, const, psum: scan_output(tile, scan, psum, o[n * TILE : n * TILE + tile.rows]),
    ]
    for turn in range(len(stages) + skew * (count - 1)):
        for n in range(count):
            if 0 <= turn - n * skew < len(stages):
                stages[turn - n * skew](tiles[n], n, const, psum)
    nisa.dma_copy(dst=new_state.ap(pattern=[[TILE, TILE], [TILE * TILE, heads], [1, TILE]]), src=scan.state)
    return o, new_state


@nki.jit
def prefill_by_doubling(q, k, v, g, beta, state):
    """Fused, with 32-leaf doubling."""
    return _fused(q, k, v, g, beta, state, _Doubling().stages(), 2)


@nki.jit
def prefill_by_rows(q, k, v, g, beta, state):
    """Fused, with row-by-row substitution, one head after another."""
    heads = [(h, h + 1) for h in range(v.shape[1])]
    return _fused(q, k, v, g, beta, state, [lambda tile, n, const, psum: _rows(tile, const, psum, heads)], 1)


@nki.jit
def prefill_by_rows_together(q, k, v, g, beta, state):
    """Fused, with row-by-row substitution, all heads of a tile row by row together."""
    heads = [(0, v.shape[1])]
    return _fused(q, k, v, g, beta, state, [lambda tile, n, const, psum: _rows(tile, const, psum, heads)], 1)
