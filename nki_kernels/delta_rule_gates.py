"""What the fused prefill needs of gates and write strengths, for all tiles at once, in few exponentials.

Sums of gates over ranges of tokens are products with 0/1 tables, exact where a difference of running sums would cancel.
"""

from dataclasses import dataclass

import nki.isa as nisa
import nki.language as nl

from .delta_rule_masks import FADE, GROW, LEFT, LOCAL, TOTAL, Constants
from .delta_rule_tiles import BANK_COLUMNS, TILE, Bank, on_every_row, sbuf

LOWEST = -1e4
"""The least gate: its exponential is zero, and it fits in 16 bits."""


@dataclass
class Gates(nl.NKIObject):
    """Columns count tiles, then heads; rows are tokens i of a tile.

    Attributes:
        live: fp32 [i, T], zero on padding, else one.
        raw: fp32 [i, 2, T, H], g and beta as they came, then times `live`.
        power: fp32 [i, 7, T, H], e to the sums of `Constants.sums`. minus: fp32 [i, 1, T, H], minus e^GROW.
        minus_local, write_half, write_left: fp32 [i, T, H], minus e^LOCAL, beta times e^FADE and beta times e^LEFT.
        g, beta: [i, T, H], beta zero on padding. first: [i, T, H], -e^g times beta of the token before. These are of
            the type of operands.
    """

    live: nl.ndarray
    raw: nl.ndarray
    power: nl.ndarray
    minus: nl.ndarray
    minus_local: nl.ndarray
    g: nl.ndarray
    beta: nl.ndarray
    write_half: nl.ndarray
    write_left: nl.ndarray
    first: nl.ndarray


def load_gates(g: nl.ndarray, heads: tuple, unit: nl.dtype) -> Gates:
    """Gates of value heads (first, last + 1), from HBM; the rest is to come."""
    tokens, own, f32 = g.shape[0], heads[1] - heads[0], nl.float32
    count = (tokens + TILE - 1) // TILE
    raw, wide = sbuf(f32, (TILE, 2, count, own)), (TILE, count, own)
    if tokens % TILE > 0:
        nisa.memset(dst=raw, value=0.0, engine=nisa.engine.vector)
    _load(raw[:, 0:1], g, heads[0])
    return Gates(
        live=sbuf(f32, (TILE, count)), raw=raw, power=sbuf(f32, (TILE, TOTAL + 1, count, own)),
        minus=sbuf(f32, (TILE, 1, count, own)),
        minus_local=sbuf(f32, wide), g=sbuf(unit, wide), beta=sbuf(unit, wide), write_half=sbuf(f32, wide),
        write_left=sbuf(f32, wide), first=sbuf(unit, wide),
    )  # fmt: skip


def load_beta(gates: Gates, beta: nl.ndarray, first: int) -> None:
    """Write strengths of the heads from `first` on, from HBM."""
    _load(gates.raw[:, 1:2], beta, first)


def round_gates(gates: Gates) -> None:
    """`g`. Padding keeps its own: no range between two real tokens has any of it."""
    nisa.tensor_scalar(
        dst=gates.g, data=gates.raw[:, 0:1], op0=nl.maximum, operand0=LOWEST, op1=nl.minimum, operand1=0.0,
        engine=nisa.engine.vector,
    )  # fmt: skip


def mask_gates(gates: Gates, valid: nl.ndarray, position: nl.ndarray, bank: Bank) -> None:
    """`live`, `raw` and `beta`. `valid`: int32 [1, 2] in SBUF. `position`: fp32 [i, T], tokens."""
    count, own, live = gates.g.shape[1], gates.g.shape[2], gates.live
    row = sbuf(nl.float32, (1, 2))
    nisa.tensor_copy(dst=row, src=valid, engine=nisa.engine.vector)
    bounds = on_every_row(row, bank)
    nisa.tensor_scalar(dst=live, data=position, op0=nl.less, operand0=bounds[:, 1:2], engine=nisa.engine.vector)
    nisa.scalar_tensor_tensor(
        dst=live, data=position, op0=nl.greater_equal, operand0=bounds[:, 0:1], op1=nl.multiply, operand1=live
    )
    nisa.tensor_tensor(
        dst=gates.raw, data1=gates.raw, data2=live.ap(pattern=[[count, TILE], [0, 2], [1, count], [0, own]]),
        op=nl.multiply, engine=nisa.engine.vector,
    )  # fmt: skip
    nisa.tensor_copy(dst=gates.beta, src=gates.raw[:, 1:2], engine=nisa.engine.vector)


def first_gates(gates: Gates, const: Constants, bank: Bank) -> None:
    """`first`."""
    count, own = gates.g.shape[1], gates.g.shape[2]
    power, most = sbuf(nl.float32, (TILE, count, own)), BANK_COLUMNS // own
    nisa.activation(dst=power, op=nl.exp, data=gates.raw[:, 0:1])
    for start in range(0, count, most):
        end = min(start + most, count)
        psum = bank.take()[:, 0 : (end - start) * own]
        # [k, i] x [k, (tile, head)] -> [i, (tile, head)]
        nisa.nc_matmul(
            dst=psum, stationary=const.before, moving=gates.raw[:, 1:2, start:end], is_stationary_onezero=True,
            accumulate=False,
        )  # fmt: skip
        nisa.scalar_tensor_tensor(
            dst=gates.first[:, start:end], data=psum, op0=nl.multiply, operand0=-1.0, op1=nl.multiply,
            operand1=power[:, start:end],
        )  # fmt: skip


def sum_gates(gates: Gates, const: Constants, bank: Bank) -> None:
    """Everything else."""
    count, own = gates.g.shape[1], gates.g.shape[2]
    most = BANK_COLUMNS // ((TOTAL + 1) * own)
    for start in range(0, count, most):
        _sum(gates, const, bank, start, min(start + most, count))
    _scale(gates.minus, gates, GROW, -1.0)
    _scale(gates.minus_local, gates, LOCAL, -1.0)
    _write(gates.write_half, gates, FADE)
    _write(gates.write_left, gates, LEFT)


def _scale(dst: nl.ndarray, out: Gates, kind: int, by: float) -> None:
    nisa.tensor_scalar(
        dst=dst, data=out.power[:, kind : kind + 1], op0=nl.multiply, operand0=by, engine=nisa.engine.vector
    )


def _write(dst: nl.ndarray, out: Gates, kind: int) -> None:
    nisa.tensor_tensor(
        dst=dst, data1=out.power[:, kind : kind + 1], data2=out.raw[:, 1:2], op=nl.multiply,
        engine=nisa.engine.vector,
    )  # fmt: skip


def _load(dst: nl.ndarray, src: nl.ndarray, first: int) -> None:
    """Heads `first` on of [N, heads] to [128, 1, T, H]."""
    tokens, heads = src.shape
    whole, rest, own = tokens // TILE, tokens % TILE, dst.shape[3]
    if whole > 0:
        rows = src.ap(pattern=[[heads, TILE], [TILE * heads, whole], [1, own]], offset=first)
        nisa.dma_copy(dst=dst[:, :, 0:whole], src=rows)
    if rest > 0:
        rows = src.ap(pattern=[[heads, rest], [1, own]], offset=whole * TILE * heads + first)
        nisa.dma_copy(dst=dst[0:rest, :, whole : whole + 1], src=rows)


def _sum(out: Gates, const: Constants, bank: Bank, start: int, end: int) -> None:
    """The exponentials of tiles start to end."""
    raw, sums = out.raw, bank.take()
    wide = (end - start) * raw.shape[3]
    for kind in range(TOTAL + 1):
        # [k, i] x [k, (tile, head)] -> [i, (tile, head)]
        nisa.nc_matmul(
            dst=sums[:, kind * wide : (kind + 1) * wide], stationary=const.sums[:, kind : kind + 1],
            moving=raw[:, 0:1, start:end], is_stationary_onezero=True, accumulate=False,
        )  # fmt: skip
    nisa.activation(dst=out.power[:, :, start:end], op=nl.exp, data=sums[:, 0 : (TOTAL + 1) * wide])
