"""The part of the fused prefill that does not need the state: one tile of 128 tokens, all heads of a core.

Shapes are [partition, free...]. Indices: i and j tokens of the tile (j the earlier), d the key dimension. Products are
nc_matmul's stationary^T @ moving. Each function is one stage, short enough that the stages of other tiles, issued
between two of one tile, hide its latencies. PSUM is read by VectorE and ScalarE, each with about half of it; GpSimd
multiplies what is in SBUF.
"""

from dataclasses import dataclass

import nki.isa as nisa
import nki.language as nl

from .delta_rule_masks import Constants, drop_where, keep_where
from .delta_rule_tiles import (
    HALF,
    L2_EPS,
    LEVELS,
    TILE,
    Bank,
    half_columns,
    over_heads,
    sbuf,
    split,
    square_sums,
    to_power,
    turn_into,
)


@dataclass
class Tile(nl.NKIObject):
    """One tile of 128 tokens between its stages. HK key heads, H value heads.

    Attributes:
        rows: tokens that exist; the others are zeros.
        kq: [i, 2, HK, d], keys then queries, as they came. v: [i, H, d].
        gates: fp32 [i, 2, H], g then beta, zero on padding.
        norm: fp32 [i, 2, HK], r^2 of keys and rq of queries. length: fp32 [i, HK], 1 / r. c: fp32 [i, H], beta r^2.
        decay: fp32 [i, 4, H], e^(G_i), e^(sum of g from i to the end of its half of the tile) and, the same on every
            row, e^(sum of g over the first half) and over the second.
        between: fp32 [k, H, i], g_k where k <= i. e: fp32 [j, H, i], e^(G_i - G_j) for j <= i, else 0.
        turned: [d, 2, HK, i], k^T and q^T. kk: fp32 [j, H, i], times c_j.
        system: fp32 L^T [j, H, i]. lower, rest: the same rounded to the operands' type, and what that left over.
        t, t_t: T [i, H, j] and T^T [j, H, i].
        scores: fp32 [j, H, i]. u: v / r [j, H, d]. w: -W^T [d, H, i].
        grown_k: e^G k [j, H, d]. grown_q: (e^G q)^T [d, H, i]. faded_k: fp32, the second of `decay` times k, [j, H, d].
    """

    rows: int
    kq: nl.ndarray
    v: nl.ndarray
    gates: nl.ndarray
    norm: nl.ndarray
    length: nl.ndarray
    c: nl.ndarray
    decay: nl.ndarray
    between: nl.ndarray
    e: nl.ndarray
    turned: nl.ndarray
    kk: nl.ndarray
    system: nl.ndarray
    lower: nl.ndarray
    rest: nl.ndarray
    t: nl.ndarray
    t_t: nl.ndarray
    scores: nl.ndarray
    u: nl.ndarray
    w: nl.ndarray
    grown_k: nl.ndarray
    grown_q: nl.ndarray
    faded_k: nl.ndarray


def load(
    q: nl.ndarray, k: nl.ndarray, v: nl.ndarray, g: nl.ndarray, beta: nl.ndarray, keys: tuple, values: tuple, start: int
) -> Tile:
    """Tokens `start` on of key heads `keys` and value heads `values`, both (first, last + 1), from HBM."""
    rows = min(TILE, k.shape[0] - start)
    dt, f32 = k.dtype, nl.float32
    key_heads, heads = keys[1] - keys[0], values[1] - values[0]
    kq, v_sb, gates = sbuf(dt, (TILE, 2, key_heads, TILE)), sbuf(dt, (TILE, heads, TILE)), sbuf(f32, (TILE, 2, heads))
    if rows < TILE:
        nisa.memset(dst=kq, value=0.0, engine=nisa.engine.gpsimd)
        nisa.memset(dst=v_sb, value=0.0, engine=nisa.engine.gpsimd)
        nisa.memset(dst=gates, value=0.0, engine=nisa.engine.gpsimd)
    end = start + rows
    nisa.dma_copy(dst=kq[0:rows, 0:1], src=k[start:end, keys[0] : keys[1]])
    nisa.dma_copy(dst=kq[0:rows, 1:2], src=q[start:end, keys[0] : keys[1]])
    nisa.dma_copy(dst=gates[0:rows, 0:1], src=g[start:end, values[0] : values[1]])
    nisa.dma_copy(dst=gates[0:rows, 1:2], src=beta[start:end, values[0] : values[1]])
    nisa.dma_copy(dst=v_sb[0:rows], src=v[start:end, values[0] : values[1]])
    wide = (TILE, heads, TILE)
    return Tile(
        rows=rows, kq=kq, v=v_sb, gates=gates, norm=sbuf(f32, (TILE, 2, key_heads)),
        length=sbuf(f32, (TILE, key_heads)), c=sbuf(f32, (TILE, heads)), decay=sbuf(f32, (TILE, 4, heads)),
        between=sbuf(f32, wide), e=sbuf(f32, wide), turned=sbuf(dt, (TILE, 2, key_heads, TILE)), kk=sbuf(f32, wide),
        system=sbuf(f32, wide), lower=sbuf(dt, wide), rest=sbuf(dt, wide), t=sbuf(dt, wide), t_t=sbuf(dt, wide),
        scores=sbuf(f32, wide), u=sbuf(dt, wide), w=sbuf(dt, wide), grown_k=sbuf(dt, wide), grown_q=sbuf(dt, wide),
        faded_k=sbuf(f32, wide),
    )  # fmt: skip


def measure(tile: Tile, const: Constants, bank: Bank, live: nl.ndarray) -> None:
    """Norms, decays, and g on triangles. `live`: fp32 [i, 1], 0 on padding."""
    key_heads, heads = tile.turned.shape[2], tile.v.shape[1]
    share = heads // key_heads
    total = sbuf(nl.float32, (TILE, 2, key_heads))
    square_sums(total.reshape((TILE, 2 * key_heads)), tile.kq.reshape((TILE, 2 * key_heads, TILE)))
    to_power(tile.length, total[:, 0:1], L2_EPS, 0.5)
    to_power(tile.norm[:, 0:1], total[:, 0:1], L2_EPS, -1.0)
    nisa.tensor_scalar(
        dst=total[:, 1:2], data=total[:, 1:2], op0=nl.multiply, operand0=float(TILE), engine=nisa.engine.vector
    )
    to_power(tile.norm[:, 1:2], total[:, 1:2], TILE * L2_EPS, -0.5)
    nisa.tensor_scalar(dst=tile.gates, data=tile.gates, op0=nl.multiply, operand0=live)
    for h in range(key_heads):
        nisa.tensor_scalar(
            dst=tile.c[:, h * share : (h + 1) * share], data=tile.gates[:, 1:2, h * share : (h + 1) * share],
            op0=nl.multiply, operand0=column(tile.norm, 0, h),
        )  # fmt: skip
    for h in range(heads):
        nisa.activation(
            dst=tile.between[:, h : h + 1], op=nl.copy, data=const.upto,
            scale=column(tile.gates, 0, h),
        )  # fmt: skip
    # [k, i] x [k, h] -> [i, h]: sums of g over k <= i, over k > i in i's half, over the first half, over the second
    sums = bank.take()
    sum_gates(sums, 0, const.upto, tile)
    sum_gates(sums, 1, const.near, tile)
    sum_gates(sums, 2, const.early, tile)
    sum_gates(sums, 3, const.late, tile)
    nisa.activation(dst=tile.decay, op=nl.exp, data=sums[:, 0 : 4 * heads])


def sum_gates(sums: nl.ndarray, place: int, over: nl.ndarray, tile: Tile) -> None:
    """Sums of g over the tokens k that `over` [k, i] marks."""
    heads = tile.v.shape[1]
    nisa.nc_matmul(
        dst=sums[:, place * heads : (place + 1) * heads], stationary=over, moving=tile.gates[:, 0:1],
        is_stationary_onezero=True, accumulate=False,
    )  # fmt: skip


def column(tile: nl.ndarray, row: int, at: int) -> nl.ndarray:
    """One value a partition of [128, rows, n], as [128, 1]."""
    return tile[:, row : row + 1, at : at + 1].reshape((TILE, 1))


def compare(tile: Tile, const: Constants, bank: Bank) -> None:
    """e^(G_i - G_j), k^T and q^T."""
    key_heads, heads = tile.turned.shape[2], tile.v.shape[1]
    flat, turned = tile.kq.reshape((TILE, 2 * key_heads, TILE)), tile.turned.reshape((TILE, 2 * key_heads, TILE))
    for part in split(2 * key_heads, 4):
        n = part[1] - part[0]
        psum = bank.take()[:, 0 : n * TILE]
        for h in range(n):
            data = flat[:, part[0] + h : part[0] + h + 1].reshape((TILE, TILE))
            turn_into(psum[:, h * TILE : (h + 1) * TILE], data, const.eye)
        nisa.tensor_copy(dst=turned[:, part[0] : part[1]], src=psum, engine=nisa.engine.vector)
    # The sum of g over j < k <= i is a product of triangles, exact where the difference G_i - G_j would cancel.
    # [k, j] x [k, (h, i)] -> [j, (h, i)]; where j > i it is 0, and is made 0 again after the exponential
    for part in split(heads, 4):
        n = part[1] - part[0]
        here, psum = tile.e[:, part[0] : part[1]], bank.take()[:, 0 : n * TILE]
        nisa.nc_matmul(
            dst=psum, stationary=const.after, moving=tile.between[:, part[0] : part[1]],
            is_stationary_onezero=True, accumulate=False,
        )  # fmt: skip
        nisa.activation(dst=here, op=nl.exp, data=psum)
        keep_where(here, [[0, n], [1, TILE]], -1, 0, 0.0)


def correlate(tile: Tile, bank: Bank) -> None:
    """k k^T times c_j, and the scores q k^T o E: both products once a key head."""
    key_heads = tile.turned.shape[2]
    share = tile.v.shape[1] // key_heads
    for part in split(key_heads, 2):
        psum = bank.take()
        for h in range(part[0], part[1]):
            at = (h - part[0]) * 2 * TILE
            # [d, j] x [d, (k and q, i)] -> [j, (k and q, i)]
            nisa.nc_matmul(
                dst=psum[:, at : at + 2 * TILE], stationary=tile.turned[:, 0:1, h : h + 1],
                moving=tile.turned[:, :, h : h + 1], accumulate=False,
            )  # fmt: skip
            for own in range(h * share, (h + 1) * share):
                nisa.activation(
                    dst=tile.kk[:, own : own + 1], op=nl.copy, data=psum[:, at : at + TILE],
                    scale=tile.c[:, own : own + 1],
                )  # fmt: skip
            nisa.tensor_tensor(
                dst=tile.scores[:, h * share : (h + 1) * share], data1=over_heads(psum, at + TILE, TILE, share),
                data2=tile.e[:, h * share : (h + 1) * share], op=nl.multiply, engine=nisa.engine.vector,
            )  # fmt: skip


def make_system(tile: Tile) -> None:
    """L^T = I + kk o E^T in fp32."""
    heads = tile.v.shape[1]
    for part in split(heads, 4):
        n = part[1] - part[0]
        here = tile.system[:, part[0] : part[1]]
        nisa.tensor_tensor(
            dst=here, data1=tile.kk[:, part[0] : part[1]], data2=tile.e[:, part[0] : part[1]], op=nl.multiply,
            engine=nisa.engine.vector,
        )  # fmt: skip
        drop_where(here, [[0, n], [1, TILE]], -1, 0, 1.0)


def split_system(tile: Tile) -> None:
    """L^T rounded to the operands' type, and the rounding error: A's errors would add up over correlated keys."""
    heads = tile.v.shape[1]
    if tile.lower.dtype == nl.float32:
        tile.lower = tile.system
        return
    for part in split(heads, 4):
        nisa.tensor_copy(
            dst=tile.lower[:, part[0] : part[1]], src=tile.system[:, part[0] : part[1]], engine=nisa.engine.gpsimd
        )
    nisa.tensor_tensor(dst=tile.rest, data1=tile.system, data2=tile.lower, op=nl.subtract, engine=nisa.engine.vector)


def start_solve(tile: Tile, const: Constants, bank: Bank) -> None:
    """T = I - M_1 o L, the inverse of the diagonal blocks of width 2, and T^T."""
    heads = tile.v.shape[1]
    for part in split(heads, 4):
        n = part[1] - part[0]
        psum = bank.take()[:, 0 : n * TILE]
        for h in range(n):
            data = tile.lower[:, part[0] + h : part[0] + h + 1].reshape((TILE, TILE))
            turn_into(psum[:, h * TILE : (h + 1) * TILE], data, const.eye)
        nisa.tensor_tensor(
            dst=tile.t[:, part[0] : part[1]], data1=psum, data2=over_heads(const.first, 0, TILE, n),
            op=nl.multiply, engine=nisa.engine.vector,
        )  # fmt: skip
        nisa.tensor_tensor(
            dst=tile.t_t[:, part[0] : part[1]], data1=tile.lower[:, part[0] : part[1]],
            data2=over_heads(const.first_t, 0, TILE, n), op=nl.multiply, engine=nisa.engine.vector,
        )  # fmt: skip


def level_residual(tile: Tile, const: Constants, bank: Bank, level: int, turn: int) -> None:
    """P = I - M_w o (A T) on even columns: the diagonal of L T is exactly one, and where M_w picks, L T is A T."""
    heads, width = tile.v.shape[1], 2 << level
    p = const.p[level][turn % 2]
    for part in split(heads, 8):
        n = part[1] - part[0]
        psum = bank.take()[:, 0 : n * HALF]
        for h in range(n):
            own = part[0] + h
            moving, dst = half_columns(tile.t[:, own : own + 1], width, 0), psum[:, h * HALF : (h + 1) * HALF]
            # [j, i] x [j, c] -> [i, c]
            nisa.nc_matmul(dst=dst, stationary=tile.lower[:, own : own + 1], moving=moving, accumulate=False)
            if tile.t.dtype != nl.float32:
                nisa.nc_matmul(dst=dst, stationary=tile.rest[:, own : own + 1], moving=moving, accumulate=True)
        nisa.tensor_tensor(
            dst=half_columns(p[:, part[0] : part[1]], width, 0), data1=psum,
            data2=over_heads(const.levels.reshape((TILE, LEVELS * HALF)), level * HALF, HALF, n), op=nl.multiply,
            engine=nisa.engine.vector,
        )  # fmt: skip


def level_update(tile: Tile, const: Constants, bank: Bank, level: int, turn: int) -> None:
    """T <- T P on even columns and T^T <- P^T T^T on odd ones; the others stay. The last level needs T^T only."""
    heads, width = tile.v.shape[1], 2 << level
    p = const.p[level][turn % 2]
    for part in split(heads, 8):
        n = part[1] - part[0]
        right = bank.take()[:, 0 : n * HALF]
        for h in range(n):
            own = part[0] + h
            # [i', i] x [i', c] -> [i, c]
            nisa.nc_matmul(
                dst=right[:, h * HALF : (h + 1) * HALF], stationary=p[:, own : own + 1],
                moving=half_columns(tile.t_t[:, own : own + 1], width, 1), accumulate=False,
            )  # fmt: skip
        if level + 1 < LEVELS:
            left = bank.take()[:, 0 : n * HALF]
            for h in range(n):
                own = part[0] + h
                # [i', i] x [i', c] -> [i, c]
                nisa.nc_matmul(
                    dst=left[:, h * HALF : (h + 1) * HALF], stationary=tile.t_t[:, own : own + 1],
                    moving=half_columns(p[:, own : own + 1], width, 0), accumulate=False,
                )  # fmt: skip
            nisa.tensor_copy(
                dst=half_columns(tile.t[:, part[0] : part[1]], width, 0), src=left, engine=nisa.engine.scalar
            )
        nisa.tensor_copy(
            dst=half_columns(tile.t_t[:, part[0] : part[1]], width, 1), src=right, engine=nisa.engine.scalar
        )


def scale_keys(tile: Tile) -> None:
    """e^G k, and k faded to the end of its half."""
    heads = tile.v.shape[1]
    share = heads // tile.turned.shape[2]
    for h in range(heads):
        key = tile.kq[:, 0:1, h // share : h // share + 1]
        nisa.tensor_scalar(
            dst=tile.grown_k[:, h : h + 1], data=key, op0=nl.multiply, operand0=column(tile.decay, 0, h),
            engine=nisa.engine.vector,
        )  # fmt: skip
        nisa.activation(dst=tile.faded_k[:, h : h + 1], op=nl.copy, data=key, scale=column(tile.decay, 1, h))


def scale_queries(tile: Tile, const: Constants, bank: Bank) -> None:
    """(e^G q)^T and v / r."""
    key_heads, heads, dt = tile.turned.shape[2], tile.v.shape[1], tile.v.dtype
    share = heads // key_heads
    grown = sbuf(dt, (TILE, heads, TILE))
    for h in range(heads):
        of = h // share
        nisa.tensor_scalar(
            dst=grown[:, h : h + 1], data=tile.kq[:, 1:2, of : of + 1], op0=nl.multiply,
            operand0=column(tile.decay, 0, h), engine=nisa.engine.vector,
        )  # fmt: skip
        nisa.activation(
            dst=tile.u[:, h : h + 1], op=nl.copy, data=tile.v[:, h : h + 1], scale=tile.length[:, of : of + 1]
        )
    for part in split(heads, 4):
        n = part[1] - part[0]
        psum = bank.take()[:, 0 : n * TILE]
        for h in range(n):
            data = grown[:, part[0] + h : part[0] + h + 1].reshape((TILE, TILE))
            turn_into(psum[:, h * TILE : (h + 1) * TILE], data, const.eye)
        nisa.tensor_copy(dst=tile.grown_q[:, part[0] : part[1]], src=psum, engine=nisa.engine.vector)


def apply_inverse(tile: Tile, bank: Bank) -> None:
    """-W^T = -(T (e^G k))^T: [j, d] x [j, i] -> [d, i]. U = T (v / r) waits for the scan: PSUM adds it there."""
    for part in split(tile.v.shape[1], 4):
        n = part[1] - part[0]
        psum = bank.take()[:, 0 : n * TILE]
        for h in range(n):
            own = part[0] + h
            nisa.nc_matmul(
                dst=psum[:, h * TILE : (h + 1) * TILE], stationary=tile.grown_k[:, own : own + 1],
                moving=tile.t_t[:, own : own + 1], accumulate=False,
            )  # fmt: skip
        nisa.activation(dst=tile.w[:, part[0] : part[1]], op=nl.copy, data=psum, scale=-1.0)
