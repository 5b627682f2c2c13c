"""What new tokens of `gated_delta_rule_verify` write and give out. Functions compile into the kernel."""

from dataclasses import dataclass

import nki.isa as nisa
import nki.language as nl

from .delta_rule_tiles import BANK_COLUMNS, TILE, Bank, sbuf, split
from .delta_rule_verify import Decays, Relations, Sizes, Solution, Tokens, over, solve_turns, values_of


@dataclass
class Reads(nl.NKIObject):
    """By what new tokens write and give out, [.., H, 2, B, M], fp32: the solution in every sequence's own columns.

    Attributes:
        gain: [known, H, B], of the solution in each sequence's columns; fade: [fresh, H, B], minus that of keys.
        values: [known, ...], of each row's values. state: [d, ...], of the rows of a state.
        keys: [rows, ...], minus, faded, of each new key. queries: [rows, H, fresh], of each new query.
        steps: how many are done, of `values` and `keys`, then of `state` by key heads.
    """

    gain: nl.ndarray
    fade: nl.ndarray
    values: nl.ndarray
    state: nl.ndarray
    keys: nl.ndarray
    queries: nl.ndarray
    steps: int = 0


def make_reads(of: Sizes) -> Reads:
    """Room for them; rows without a new token are zero."""
    f32, heads, pool = nl.float32, of.heads, nisa.engine.gpsimd
    reads = Reads(
        gain=sbuf(f32, (of.known, heads, of.batch)), fade=sbuf(f32, (of.fresh, heads, of.batch)),
        values=sbuf(f32, (of.known, heads, 2, of.batch, of.tokens)),
        state=sbuf(f32, (TILE, heads, 2, of.batch, of.tokens)),
        keys=sbuf(f32, (of.rows, heads, 2, of.batch, of.tokens)), queries=sbuf(f32, (of.rows, heads, of.fresh)),
    )  # fmt: skip
    nisa.memset(dst=reads.keys, value=0.0, engine=pool)
    nisa.memset(dst=reads.queries, value=0.0, engine=pool)
    return reads


def begin_reads(of: Sizes, relations: Relations, tokens: Tokens, decays: Decays, reads: Reads) -> None:
    """What does not ask the solution: `gain`, `fade`, `queries`."""
    vector, numbers, fresh = nisa.engine.vector, relations.upto, of.fresh
    gain = tokens.gain.ap(pattern=[[of.heads, of.known], [1, of.heads], [0, of.batch]])
    block = over(relations, relations.block, [[0, of.heads], [1, of.batch]], of.known)
    nisa.tensor_tensor(dst=reads.gain, data1=gain, data2=block, op=nl.multiply, engine=vector)
    decay = decays.behind.ap(pattern=[[of.heads * numbers, fresh], [numbers, of.heads], [0, of.batch]])
    nisa.scalar_tensor_tensor(
        dst=reads.fade, data=reads.gain[0:fresh], op0=nl.multiply, operand0=-1.0, op1=nl.multiply, operand1=decay
    )
    decay = decays.behind.ap(pattern=[[of.heads * numbers, fresh], [numbers, of.heads], [0, fresh]])
    same = over(relations, relations.same, [[0, of.heads], [1, fresh]], fresh)
    nisa.tensor_tensor(dst=reads.queries[0:fresh], data1=same, data2=decay, op=nl.multiply, engine=vector)


def go_on(of: Sizes, tokens: Tokens, solution: Solution, reads: Reads, psum: Bank) -> None:
    """The next step on the way to outputs, if there is one: a turn of the solution, or what is made of it."""
    if solution.turns < of.tokens:
        solve_turns(of, solution, 1, psum)
    elif reads.steps == 0:
        _spread(of, reads.keys[0 : of.fresh], solution.found, reads.fade)
        _spread(of, reads.values, solution.found, reads.gain)
        reads.steps = 1
    elif reads.steps <= of.key_heads:
        _read_states(of, tokens, reads, reads.steps - 1, psum)
        reads.steps = reads.steps + 1


def finish(of: Sizes, tokens: Tokens, solution: Solution, reads: Reads, psum: Bank) -> None:
    """All steps that are left."""
    for _ in range(of.tokens + 1 + of.key_heads):
        go_on(of, tokens, solution, reads, psum)


def _spread(of: Sizes, dst: nl.ndarray, found: nl.ndarray, gain: nl.ndarray) -> None:
    """Every sequence's own columns [rows, H, 2, B, M] of [rows, H, 2, M], times a gain [rows, H, B]."""
    rows = dst.shape[0]
    columns = found.ap(
        pattern=[[2 * of.heads * of.tokens, rows], [of.tokens, 2 * of.heads], [0, of.batch], [1, of.tokens]]
    )  # fmt: skip
    gains = gain.ap(
        pattern=[[of.heads * of.batch, rows], [of.batch, of.heads], [0, 2], [1, of.batch], [0, of.tokens]]
    )  # fmt: skip
    nisa.tensor_tensor(dst=dst, data1=columns, data2=gains, op=nl.multiply, engine=nisa.engine.vector)


def _read_states(of: Sizes, tokens: Tokens, reads: Reads, key: int, psum: Bank) -> None:
    """`state`, of a key head: a new token finds a state by the keys up to its own, and by its query."""
    share, wide = of.heads // of.key_heads, 2 * of.fresh
    for part in split(share, BANK_COLUMNS // wide):
        n, first = part[1] - part[0], key * share + part[0]
        bank = psum.take()[:, 0 : n * wide].reshape((TILE, n, 2, of.fresh))
        # [s, d] x [s, (h, i)] -> [d, (h, i)]
        nisa.nc_matmul(
            dst=bank, stationary=tokens.record[:, key : key + 1, 0:TILE], moving=reads.keys[:, first : first + n],
            accumulate=False,
        )  # fmt: skip
        nisa.nc_matmul(
            dst=bank[:, :, 1:2], stationary=tokens.query[:, key : key + 1], moving=reads.queries[:, first : first + n],
            accumulate=True,
        )  # fmt: skip
        nisa.tensor_copy(dst=reads.state[:, first : first + n], src=bank, engine=nisa.engine.scalar)


@dataclass
class Outcome(nl.NKIObject):
    """Of sequences [first, last), fp32.

    Attributes:
        turned: [v, H, 2, lower], what tokens write and give out, zero for those of later sequences; one for all.
        out: [128, H, D], outputs, from partition `lower` on. record: [fresh, HK, width], those of tokens.
    """

    first: int
    last: int
    turned: nl.ndarray
    out: nl.ndarray
    record: nl.ndarray


def make_outcomes(of: Sizes, tokens: Tokens, groups: list) -> list:
    """Room for one a group, with what of records is at hand."""
    f32, share, pool = nl.float32, of.heads // of.key_heads, nisa.engine.gpsimd
    turned, made = sbuf(f32, (TILE, of.heads, 2, _lower(of))), []
    nisa.memset(dst=turned, value=0.0, engine=pool)
    gates = tokens.record[0 : of.fresh, :, of.width - share : of.width]
    for group in groups:
        record = sbuf(f32, (of.fresh, of.key_heads, of.width))
        nisa.tensor_copy(dst=record[:, :, 0:TILE], src=tokens.record[0 : of.fresh, :, 0:TILE], engine=pool)
        nisa.tensor_copy(dst=record[:, :, of.width - share : of.width], src=gates, engine=pool)
        out = sbuf(f32, (TILE, of.heads, TILE))
        made.append(Outcome(first=group[0], last=group[1], turned=turned, out=out, record=record))
    return made


def give_out(of: Sizes, tokens: Tokens, reads: Reads, old: list, outcome: Outcome, psum: Bank) -> None:
    """`outcome.turned`, by values and old states."""
    first, last, n = outcome.first, outcome.last, outcome.last - outcome.first
    wide = 2 * n * of.tokens
    for part in split(of.heads, BANK_COLUMNS // wide):
        bank = psum.take()[:, 0 : (part[1] - part[0]) * wide].reshape((TILE, part[1] - part[0], 2, n, of.tokens))
        for h in range(part[0], part[1]):
            # [p, v] x [p, i] -> [v, i]
            nisa.nc_matmul(
                dst=bank[:, h - part[0] : h - part[0] + 1], stationary=values_of(of, tokens, h, of.known),
                moving=reads.values[:, h : h + 1, :, first:last], accumulate=False,
            )  # fmt: skip
        for b in range(first, last):
            for h in range(part[0], part[1]):
                # [d, v] x [d, i] -> [v, i]
                nisa.nc_matmul(
                    dst=bank[:, h - part[0] : h - part[0] + 1, :, b - first : b - first + 1],
                    stationary=old[b][:, h : h + 1], moving=reads.state[:, h : h + 1, :, b : b + 1], accumulate=True,
                )  # fmt: skip
        nisa.tensor_copy(
            dst=outcome.turned[:, part[0] : part[1], :, first * of.tokens : last * of.tokens], src=bank,
            engine=nisa.engine.vector,
        )  # fmt: skip


def turn_out(of: Sizes, relations: Relations, outcome: Outcome, moves: list, psum: Bank) -> None:
    """`outcome.out` and `outcome.record`; what first tokens write goes into each of `moves` [rows, H, D] too."""
    share, lower = of.heads // of.key_heads, _lower(of)
    for key in range(of.key_heads):
        for part in split(share, 4):
            first, last = key * share + part[0], key * share + part[1]
            rows = psum.take()[:, 0 : (last - first) * TILE]
            for h in range(first, last):
                at, data = (h - first) * TILE, outcome.turned[:, h : h + 1].reshape((TILE, 2 * lower))
                nisa.nc_transpose(dst=rows[0 : 2 * lower, at : at + TILE], data=data)
            for each in moves:
                nisa.tensor_scalar(
                    dst=each[0 : of.fresh, first:last], data=rows[0 : of.fresh], op0=nl.multiply,
                    operand0=relations.table[0 : of.fresh, relations.own : relations.own + 1],
                    engine=nisa.engine.scalar,
                )  # fmt: skip
            nisa.tensor_copy(
                dst=outcome.out[lower : lower + of.fresh, first:last], src=rows[lower : lower + of.fresh],
                engine=nisa.engine.vector,
            )  # fmt: skip
            if of.tokens > 1:
                written = outcome.record[:, key : key + 1, TILE * (1 + part[0]) : TILE * (1 + part[1])]
                nisa.tensor_copy(dst=written, src=rows[0 : of.fresh], engine=nisa.engine.scalar)


def outputs_of(of: Sizes, outcome: Outcome) -> nl.ndarray:
    """[tokens, H, D], of the outcome's sequences."""
    begin = _lower(of) + outcome.first * of.tokens
    return outcome.out[begin : begin + (outcome.last - outcome.first) * of.tokens]


def _lower(of: Sizes) -> int:
    """The partition where outputs lie, when what tokens write and give out is turned together."""
    return 32 if of.fresh <= 32 else TILE // 2
