"""Float32 kernels of one core, rebuilt from what is published of those that were measured, to be priced.

They are as naive as those: nothing here is meant to be fast, and nothing of their text was taken.
"""

from __future__ import annotations

import nki
import nki.isa as nisa
import nki.language as nl

TILE, COLUMNS = 128, 512
"""Rows of a tile; columns of a product, one PSUM bank of float32."""


def _tile(rows: int, columns: int) -> nl.ndarray:
    return nl.ndarray((rows, columns), dtype=nl.float32, buffer=nl.sbuf)


def _bank(rows: int, columns: int) -> nl.ndarray:
    return nl.ndarray((rows, columns), dtype=nl.float32, buffer=nl.psum)


def _turned(source: nl.ndarray) -> nl.ndarray:
    """The transpose of a 128 x 128 tile, by TensorE, evicted by ScalarE."""
    turned, result = _bank(TILE, TILE), _tile(TILE, TILE)
    nisa.nc_transpose(dst=turned, data=source)
    nisa.tensor_copy(dst=result, src=turned, engine=nisa.engine.scalar)
    return result


@nki.jit
def product_128(a: nl.ndarray, b: nl.ndarray) -> nl.ndarray:
    """a @ b of 128 x 128: two loads, a transpose, a product, a copy, a store."""
    out = nl.ndarray((TILE, TILE), dtype=nl.float32, buffer=nl.shared_hbm)
    left, right, sums, result = _tile(TILE, TILE), _tile(TILE, TILE), _bank(TILE, TILE), _tile(TILE, TILE)
    nisa.dma_copy(dst=left, src=a)
    nisa.dma_copy(dst=right, src=b)
    nisa.nc_matmul(dst=sums, stationary=_turned(left), moving=right)
    nisa.tensor_copy(dst=result, src=sums, engine=nisa.engine.scalar)
    nisa.dma_copy(dst=out, src=result)
    return out


def _normed(x: nl.ndarray, weight: nl.ndarray, width: int) -> nl.ndarray:
    """x / sqrt(mean(x^2)) * weight over the free axis, an operation at a time."""
    squares, total, scale, result = _tile(TILE, width), _tile(TILE, 1), _tile(TILE, 1), _tile(TILE, width)
    nisa.activation(dst=squares, op=nl.square, data=x)
    nisa.tensor_reduce(dst=total, op=nl.add, data=squares, axis=1)
    nisa.tensor_scalar(dst=total, data=total, op0=nl.multiply, operand0=1.0 / width, op1=nl.add, operand1=1e-6)
    nisa.activation(dst=scale, op=nl.rsqrt, data=total)
    nisa.tensor_scalar(dst=result, data=x, op0=nl.multiply, operand0=scale)
    nisa.tensor_tensor(dst=result, data1=result, data2=weight, op=nl.multiply)
    return result


def _project(x: nl.ndarray, w: nl.ndarray, weight: nl.ndarray, width: int, column: int) -> nl.ndarray:
    """x[128, width] @ w[:, 512 columns]; every 128 rows of the weight go through one and the same tile."""
    sums = _bank(TILE, COLUMNS)
    for k in nl.affine_range(width // TILE):
        rows = nl.ds(k * TILE, TILE)
        nisa.dma_copy(dst=weight, src=w[rows, nl.ds(column * COLUMNS, COLUMNS)])
        nisa.nc_matmul(dst=sums, stationary=_turned(x[:, rows]), moving=weight, accumulate=k > 0)
    result = _tile(TILE, COLUMNS)
    nisa.tensor_copy(dst=result, src=sums, engine=nisa.engine.scalar)
    return result


def _weights_of_norm(g: nl.ndarray, width: int) -> nl.ndarray:
    norm = _tile(TILE, width)
    nisa.dma_copy(dst=norm, src=g.ap([[0, TILE], [1, width]]))
    return norm


@nki.jit
def add_norm_project(x: nl.ndarray, z: nl.ndarray, g: nl.ndarray, w: nl.ndarray) -> nl.ndarray:
    """rmsnorm(x + z) * g, times w; a block of 128 rows after the other."""
    (tokens, width), columns = x.shape, w.shape[1]
    out = nl.ndarray((tokens, columns), dtype=nl.float32, buffer=nl.shared_hbm)
    norm, weight = _weights_of_norm(g, width), _tile(TILE, COLUMNS)
    for block in nl.affine_range(tokens // TILE):
        rows = nl.ds(block * TILE, TILE)
        held, other = _tile(TILE, width), _tile(TILE, width)
        nisa.dma_copy(dst=held, src=x[rows, :])
        nisa.dma_copy(dst=other, src=z[rows, :])
        nisa.tensor_tensor(dst=held, data1=held, data2=other, op=nl.add)
        normed = _normed(held, norm, width)
        for column in nl.affine_range(columns // COLUMNS):
            result = _project(normed, w, weight, width, column)
            nisa.dma_copy(dst=out[rows, nl.ds(column * COLUMNS, COLUMNS)], src=result)
    return out


@nki.jit
def project_add_norm(x: nl.ndarray, z: nl.ndarray, g: nl.ndarray, w: nl.ndarray) -> nl.ndarray:
    """rmsnorm(x @ w + z) * g; a block of 128 rows after the other."""
    (tokens, width), columns = x.shape, w.shape[1]
    out = nl.ndarray((tokens, columns), dtype=nl.float32, buffer=nl.shared_hbm)
    norm, weight = _weights_of_norm(g, columns), _tile(TILE, COLUMNS)
    for block in nl.affine_range(tokens // TILE):
        rows = nl.ds(block * TILE, TILE)
        held, other, product = _tile(TILE, width), _tile(TILE, columns), _tile(TILE, columns)
        nisa.dma_copy(dst=held, src=x[rows, :])
        for column in nl.affine_range(columns // COLUMNS):
            result = _project(held, w, weight, width, column)
            nisa.tensor_copy(dst=product[:, nl.ds(column * COLUMNS, COLUMNS)], src=result)
        nisa.dma_copy(dst=other, src=z[rows, :])
        nisa.tensor_tensor(dst=product, data1=product, data2=other, op=nl.add)
        nisa.dma_copy(dst=out[rows, :], src=_normed(product, norm, columns))
    return out


@nki.jit
def swiglu(x: nl.ndarray, gate: nl.ndarray, up: nl.ndarray, down: nl.ndarray) -> nl.ndarray:
    """(silu(x @ gate) * (x @ up)) @ down for 512 tokens at a time.

    The weights are stationary, 128 columns at a time, and stay in SBUF; silu is made of an exponential, an addition, a
    reciprocal and a product; the products of both halves go to HBM and come back, as in the kernel that was measured.
    """
    (tokens, width), inner = x.shape, gate.shape[1]
    out = nl.ndarray((tokens, width), dtype=nl.float32, buffer=nl.shared_hbm)
    spilled = nl.ndarray((inner, tokens), dtype=nl.float32, buffer=nl.hbm)
    parts, blocks = width // TILE, inner // TILE
    for half in nl.affine_range(3):
        third = nl.ds(half * (inner // 3), inner // 3)
        held = []
        for source in (gate, up):
            tile = nl.ndarray((TILE, parts, inner // 3), dtype=nl.float32, buffer=nl.sbuf)
            nisa.dma_copy(dst=tile, src=source.reshape((parts, TILE, inner)).permute((1, 0, 2))[:, :, third])
            held.append(tile)
        for token in nl.affine_range(tokens // COLUMNS):
            columns = nl.ds(token * COLUMNS, COLUMNS)
            pair = []
            for weights in held:
                turned = _block_turned(x, token, parts, width)
                made = nl.ndarray((TILE, blocks // 3, COLUMNS), dtype=nl.float32, buffer=nl.sbuf)
                for block in nl.affine_range(blocks // 3):
                    sums = _bank(TILE, COLUMNS)
                    for k in nl.affine_range(parts):
                        nisa.nc_matmul(
                            dst=sums, stationary=weights[:, k, nl.ds(block * TILE, TILE)], moving=turned[:, k, :],
                            accumulate=k > 0,
                        )  # fmt: skip
                    nisa.tensor_copy(dst=made[:, block, :], src=sums, engine=nisa.engine.scalar)
                pair.append(made)
            for block in nl.affine_range(blocks // 3):
                gated = _tile(TILE, COLUMNS)
                nisa.activation(dst=gated, op=nl.exp, data=pair[0][:, block, :], scale=-1.0)
                nisa.tensor_scalar(dst=gated, data=gated, op0=nl.add, operand0=1.0)
                nisa.reciprocal(dst=gated, data=gated)
                nisa.tensor_tensor(dst=gated, data1=gated, data2=pair[0][:, block, :], op=nl.multiply)
                nisa.tensor_tensor(dst=gated, data1=gated, data2=pair[1][:, block, :], op=nl.multiply)
                row = half * (inner // 3) + block * TILE
                nisa.dma_copy(dst=spilled[nl.ds(row, TILE), columns], src=gated)
    _down(out, spilled, down, tokens, width, blocks)
    return out


def _block_turned(x: nl.ndarray, token: int, parts: int, width: int) -> nl.ndarray:
    """512 tokens of x with the contraction on partitions: [128, width / 128, 512]."""
    turned = nl.ndarray((TILE, parts, COLUMNS), dtype=nl.float32, buffer=nl.sbuf)
    for four in nl.affine_range(4):
        rows = _tile(TILE, width)
        nisa.dma_copy(dst=rows, src=x[nl.ds(token * COLUMNS + four * TILE, TILE), :])
        for k in nl.affine_range(parts):
            bank = _bank(TILE, TILE)
            nisa.nc_transpose(dst=bank, data=rows[:, nl.ds(k * TILE, TILE)])
            nisa.tensor_copy(dst=turned[:, k, nl.ds(four * TILE, TILE)], src=bank, engine=nisa.engine.scalar)
    return turned


def _down(out: nl.ndarray, spilled: nl.ndarray, down: nl.ndarray, tokens: int, width: int, blocks: int) -> None:
    weights = nl.ndarray((TILE, blocks, width), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=weights, src=down.reshape((blocks, TILE, width)).permute((1, 0, 2)))
    for token in nl.affine_range(tokens // COLUMNS):
        back = nl.ndarray((TILE, blocks, COLUMNS), dtype=nl.float32, buffer=nl.sbuf)
        for block in nl.affine_range(blocks):
            nisa.dma_copy(
                dst=back[:, block, :], src=spilled[nl.ds(block * TILE, TILE), nl.ds(token * COLUMNS, COLUMNS)]
            )
        for four in nl.affine_range(4):
            result = _tile(TILE, width)
            for column in nl.affine_range(width // COLUMNS):
                sums = _bank(TILE, COLUMNS)
                for block in nl.affine_range(blocks):
                    nisa.nc_matmul(
                        dst=sums, stationary=back[:, block, nl.ds(four * TILE, TILE)],
                        moving=weights[:, block, nl.ds(column * COLUMNS, COLUMNS)], accumulate=block > 0,
                    )  # fmt: skip
                nisa.tensor_copy(dst=result[:, nl.ds(column * COLUMNS, COLUMNS)], src=sums, engine=nisa.engine.scalar)
            nisa.dma_copy(dst=out[nl.ds(token * COLUMNS + four * TILE, TILE), :], src=result)
