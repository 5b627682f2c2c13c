"""What INT8 weights would cost a decode step on a Trn2, beside FP8 and bfloat16: one core's share of a layer's MLP.

TensorE multiplies no integers, so codes have to become bfloat16 first: in the DMA that brings them, or on the engines.
Every way streams as many weights past the same rows, as `nki_kernels.weight_stream` does for the kernels that are
served; they differ in what is read and in who casts. Nothing here is served.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import nki
import nki.isa as nisa
import nki.language as nl
import numpy as np

from nki_kernels.delta_rule_tiles import BANK_COLUMNS, TILE, sbuf
from nki_kernels.interpreter import PriceList, profile
from nki_kernels.weight_stream import group_width, multiply

from .decode_layers import binds, figures

LINES, SLOTS = 16, 6
"""Lines of 512 weights a partition in a piece; pieces in flight."""
PIECES = 32
"""32 x 16 x 512 x 128 are 33.6 M weights: three matrices of 5,120 x 17,408 over eight cores are 33.4 M."""
SHARES = ("vector", 7), ("scalar", 5), ("gpsimd", 4)
"""Lines of a piece that each engine casts, by how fast it copies from 8 to 16 bits."""

WAYS = {
    "bfloat16": "read as they are multiplied",
    "FP8": "read as they are multiplied; scales of channels on the sums",
    "INT8, cast by DMA": "scales of channels on the sums",
    "INT8, cast by the engines": "VectorE, ScalarE and GpSimd share each piece; scales of channels on the sums",
    "INT8 in groups of 128, cast by DMA": "every line's product leaves PSUM by itself, times its scales",
}
"""Where weights become what is multiplied, by name."""


@nki.jit
def stream(x: nl.ndarray, weights: nl.ndarray, scales: nl.ndarray, way: str) -> nl.ndarray:
    """Rows times weights, 512 outputs: y = x^T weights, summed over all lines.

    Args:
        x: bfloat16 [128, rows], the same inputs for every line: what they are changes no price.
        weights: [128, n * 512], bfloat16, uint8 codes of FP8, or int8.
        scales: fp32 [n, 512], used by groups alone.
        way: of WAYS.

    Returns:
        fp32 [rows, 512].
    """
    rows = x.shape[1]
    group, groups = group_width(rows), way.startswith("INT8 in groups")
    inputs, out = sbuf(nl.bfloat16, (TILE, 1, group)), sbuf(nl.float32, (rows, BANK_COLUMNS))
    nisa.memset(dst=inputs, value=0.0)
    nisa.dma_copy(dst=inputs[:, 0, 0:rows], src=x)
    nisa.memset(dst=out, value=0.0)
    banks = []
    for _ in range(4):
        banks.append(nl.ndarray((TILE, BANK_COLUMNS), dtype=nl.float32, buffer=nl.psum))
    turns, size = TILE // group, LINES * BANK_COLUMNS
    landed = nl.bfloat16 if way.endswith("DMA") else weights.dtype
    slots, room = [], []
    for _ in range(SLOTS):
        slots.append(sbuf(landed, (TILE, LINES, BANK_COLUMNS)))
        room.append(sbuf(nl.bfloat16, (TILE, LINES, BANK_COLUMNS)) if way.endswith("engines") else slots[-1])
    count = weights.shape[1] // size
    for piece in range(count):
        slot, ready = slots[piece % SLOTS], room[piece % SLOTS]
        nisa.dma_copy(dst=slot, src=weights[:, piece * size : (piece + 1) * size].reshape((TILE, LINES, BANK_COLUMNS)))
        if way.endswith("engines"):
            _cast(ready, slot)
        tile = ready.view(nl.float8_e4m3) if ready.dtype == nl.uint8 else ready
        held = sbuf(nl.float32, (rows, LINES, BANK_COLUMNS))
        if groups:
            source = scales.ap(
                pattern=[[0, rows], [BANK_COLUMNS, LINES], [1, BANK_COLUMNS]], offset=piece * LINES * BANK_COLUMNS
            )
            nisa.dma_copy(dst=held, src=source)
        for line in range(LINES):
            chunk = line % turns
            first = groups or (piece == 0 and line < turns)
            bank = (banks[line % 4],) if groups else (banks[0],)
            multiply(
                bank, 0 if groups else chunk, (0, BANK_COLUMNS), inputs, group, tile[:, line : line + 1], group, first
            )  # fmt: skip
            if groups:
                nisa.tensor_tensor(
                    dst=held[:, line], data1=bank[0][0:rows], data2=held[:, line], op=nl.multiply,
                    engine=nisa.engine.vector,
                )  # fmt: skip
                nisa.tensor_tensor(dst=out, data1=out, data2=held[:, line], op=nl.add, engine=nisa.engine.vector)
    if not groups:
        for chunk in range(turns):
            place = chunk * group
            nisa.tensor_tensor(dst=out, data1=banks[0][place : place + rows], data2=out, op=nl.add)
    y = nl.ndarray((rows, BANK_COLUMNS), dtype=nl.float32, buffer=nl.shared_hbm)
    nisa.dma_copy(dst=y, src=out)
    return y


def _cast(dst: nl.ndarray, src: nl.ndarray) -> None:
    first = 0
    engines = {"vector": nisa.engine.vector, "scalar": nisa.engine.scalar, "gpsimd": nisa.engine.gpsimd}
    for name, lines in SHARES:
        part = slice(first, first + lines)
        nisa.tensor_copy(dst=dst[:, part], src=src[:, part], engine=engines[name])
        first = first + lines


def arguments(way: str, rows: int, pieces: int = PIECES) -> tuple[Any, ...]:
    """Arguments of `stream`: codes are small whole numbers, so that all ways compute the same."""
    random, lines = np.random.default_rng(0), pieces * LINES
    codes = random.integers(-7, 8, (TILE, lines * BANK_COLUMNS), dtype=np.int8)
    x = random.standard_normal((TILE, rows), dtype=np.float32).astype(ml_dtypes.bfloat16)
    weights: Any = codes
    if way == "bfloat16":
        weights = codes.astype(ml_dtypes.bfloat16)
    elif way == "FP8":
        weights = codes.astype(np.float32).astype(ml_dtypes.float8_e4m3).view(np.uint8)
    return x, weights, np.ones((lines, BANK_COLUMNS), np.float32), way


def price(way: str, rows: int, prices: PriceList, pieces: int = PIECES) -> dict[str, Any]:
    """us of all the weights, of HBM's bytes and of engines, and what binds. Modelled."""
    _, report = profile(stream, *arguments(way, rows, pieces), prices=prices)
    found = figures(report, prices)
    return {"way": way, "rows": rows} | found | {"binds": binds(found)}
