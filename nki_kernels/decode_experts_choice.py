"""Which experts a decode step reads, a few at a time, and how much of each every row has. Compiles into kernels."""

from dataclasses import dataclass

import nki.isa as nisa
import nki.language as nl

from .decode_router import EIGHT, weigh
from .delta_rule_tiles import BANK_COLUMNS, TILE, sbuf

LEAST = -3.0e38
"""What the experts of a row are marked with: below any logit."""


@dataclass
class Chosen(nl.NKIObject):
    """The next experts of a core.

    Attributes:
        numbers: int32 (1, 1) tiles, each an expert, or none that exists where all have been given.
        shares: fp32 [128, n, rows], alike on all partitions: of each of these experts; zero of none.
    """

    numbers: list
    shares: nl.ndarray


@dataclass
class Choice(nl.NKIObject):
    """Every expert that some row chose, once, in the order of their numbers, eight in a round.

    Attributes:
        experts, rows, cores, core: Sizes, and whose experts are given: every `cores`-th.
        keys: fp32 [1, experts]: experts - number of one that was chosen and not yet given, else 0.
        own_keys: fp32 [128, parts]: the same of every expert, expert 128 n + p at [p, n].
        turned: fp32 [128, parts, rows]: the rows' weights in the same order.
        ones: fp32 [128, 128].
        bank: Of PSUM.
    """

    experts: int
    rows: int
    cores: int
    core: int
    keys: nl.ndarray
    own_keys: nl.ndarray
    turned: nl.ndarray
    ones: nl.ndarray
    bank: nl.ndarray

    def take(self) -> Chosen:
        """The next round."""
        vector, experts, rows = nisa.engine.vector, self.experts, self.rows
        found, rest, every = sbuf(nl.float32, (1, EIGHT)), sbuf(nl.float32, (1, experts)), sbuf(nl.int32, (1, EIGHT))
        nisa.max8(dst=found, src=self.keys)
        nisa.tensor_scalar(
            dst=every, data=found, op0=nl.multiply, operand0=-1.0, op1=nl.add, operand1=float(experts), engine=vector
        )
        numbers = own_numbers(every, self.core, self.cores, EIGHT // self.cores)
        nisa.nc_match_replace8(dst=rest, data=self.keys, vals=found, imm=0.0)
        self.keys = rest
        own = EIGHT // self.cores
        spread, mixed = self.bank[:, 0:EIGHT], self.bank[:, EIGHT : EIGHT + own * rows]
        # Their keys on every partition: [1, p] x [1, s] -> [p, s]
        nisa.nc_matmul(
            dst=spread, stationary=self.ones[0:1], moving=found, is_stationary_onezero=True, accumulate=False
        )
        for n in range(self.turned.shape[1]):
            size, picked = min(TILE, experts - n * TILE), sbuf(nl.float32, (TILE, own, rows))
            keys = self.bank.ap(pattern=[[BANK_COLUMNS, size], [self.cores, own], [0, rows]], offset=self.core)
            weights = self.turned.ap(
                pattern=[[self.turned.shape[1] * rows, size], [0, own], [1, rows]], offset=n * rows
            )
            nisa.scalar_tensor_tensor(
                dst=picked[0:size], data=keys, op0=nl.equal, operand0=self.own_keys[0:size, n : n + 1],
                op1=nl.multiply, operand1=weights,
            )  # fmt: skip
            # Of 128 experts one at most is not zero: [e, p] x [e, (s, r)] -> [p, (s, r)]
            nisa.nc_matmul(
                dst=mixed, stationary=self.ones[0:size], moving=picked[0:size], is_stationary_onezero=True,
                accumulate=n > 0,
            )  # fmt: skip
        shares = sbuf(nl.float32, (TILE, own, rows))
        nisa.tensor_copy(dst=shares, src=mixed, engine=vector)
        return Chosen(numbers=numbers, shares=shares)


def own_numbers(every: nl.ndarray, core: int, cores: int, count: int) -> list:
    """`count` of [1, n], every `cores`-th from `core` on, as tiles of one: an address is read from such only."""
    out = []
    for n in range(count):
        tile, at = sbuf(nl.int32, (1, 1)), core + n * cores
        engine = nisa.engine.vector if n % 2 == 0 else nisa.engine.gpsimd
        nisa.tensor_copy(dst=tile, src=every[:, at : at + 1], engine=engine)
        out.append(tile)
    return out


def own_weights(
    logits: nl.ndarray, best: nl.ndarray, top_k: int, renormalise: bool, core: int, cores: int, bank: nl.ndarray
) -> nl.ndarray:
    """Of a single row, fp32 [128, top_k / cores, 1], alike on all partitions: of the experts of `own_numbers`."""
    ones, spread = sbuf(nl.float32, (1, TILE)), sbuf(nl.float32, (TILE, top_k // cores, 1))
    nisa.memset(dst=ones, value=1.0, engine=nisa.engine.gpsimd)
    # [1, p] x [1, k] -> [p, k]
    nisa.nc_matmul(
        dst=bank[:, 0:top_k], stationary=ones, moving=weigh(logits, best, top_k, renormalise),
        is_stationary_onezero=True, accumulate=False,
    )  # fmt: skip
    own = bank.ap(pattern=[[BANK_COLUMNS, TILE], [cores, top_k // cores], [1, 1]], offset=core)
    nisa.tensor_copy(dst=spread, src=own, engine=nisa.engine.vector)
    return spread


def open_choice(logits: nl.ndarray, top_k: int, renormalise: bool, cores: int, core: int, bank: nl.ndarray) -> Choice:
    """The experts of several rows, fp32 [rows, experts]. A row of NaN chooses none, and has NaN of all."""
    rows, experts = logits.shape
    assert EIGHT + EIGHT // cores * rows <= BANK_COLUMNS, f"{rows} rows do not fit in a bank: give fewer"
    f32, vector, parts = nl.float32, nisa.engine.vector, (experts + TILE - 1) // TILE
    ramp, own_keys, ones = sbuf(f32, (1, experts)), sbuf(f32, (TILE, parts)), sbuf(f32, (TILE, TILE))
    nisa.iota(dst=ramp, pattern=[[-1, experts]], offset=experts)
    nisa.iota(dst=own_keys, pattern=[[-TILE, parts]], offset=experts, channel_multiplier=-1)
    nisa.memset(dst=ones, value=1.0, engine=nisa.engine.gpsimd)
    best, marked, mask = sbuf(f32, (rows, EIGHT)), sbuf(f32, (rows, experts)), sbuf(f32, (rows, experts))
    nisa.max8(dst=best, src=logits)
    less, total, share = sbuf(f32, (rows, 1)), sbuf(f32, (rows, 1)), sbuf(f32, (rows, 1))
    nisa.tensor_scalar(dst=less, data=best[:, 0:1], op0=nl.multiply, operand0=-1.0, engine=vector)
    if top_k < EIGHT:
        # No logit is as small: nothing is marked for it.
        nisa.memset(dst=best[:, top_k:EIGHT], value=LEAST, engine=vector)
    nisa.nc_match_replace8(dst=marked, data=logits, vals=best, imm=LEAST)
    nisa.tensor_scalar(dst=mask, data=marked, op0=nl.equal, operand0=LEAST, engine=vector)
    counted, keys = bank[0:1, 0:experts], sbuf(f32, (1, experts))
    # Rows that chose each: [r, 1] x [r, e] -> [1, e]
    nisa.nc_matmul(
        dst=counted, stationary=ones[0:rows, 0:1], moving=mask, is_stationary_onezero=True, is_moving_onezero=True,
        accumulate=False,
    )  # fmt: skip
    nisa.scalar_tensor_tensor(dst=keys, data=counted, op0=nl.greater, operand0=0.0, op1=nl.multiply, operand1=ramp)
    powers, kept = sbuf(f32, (rows, experts)), sbuf(f32, (rows, experts))
    nisa.activation(dst=powers, op=nl.exp, data=logits, bias=less)
    nisa.tensor_tensor(dst=kept, data1=powers, data2=mask, op=nl.multiply, engine=vector)
    nisa.tensor_reduce(dst=total, op=nl.add, data=kept if renormalise else powers, axis=1)
    nisa.reciprocal(dst=share, data=total)
    nisa.tensor_scalar(dst=kept, data=kept, op0=nl.multiply, operand0=share, engine=vector)
    turned = sbuf(f32, (TILE, parts, rows))
    for n in range(parts):
        size = min(TILE, experts - n * TILE)
        place = bank[0:size, n * rows : (n + 1) * rows]
        # [r, e] -> [e, r]
        nisa.nc_transpose(dst=place, data=kept[:, n * TILE : n * TILE + size])
        nisa.tensor_copy(dst=turned[0:size, n : n + 1], src=place, engine=vector)
    return Choice(
        experts=experts, rows=rows, cores=cores, core=core, keys=keys, own_keys=own_keys, turned=turned, ones=ones,
        bank=bank,
    )  # fmt: skip
