"""What tokens are to each other, for `gated_delta_rule_verify`: who finds what of whom, and what comes of it, solved.

A token a row: new ones, pending drafts, those of checkpoints. New ones are at hand first, so what is among them is made
apart. Functions are called inside the kernel and compile into it.
"""

from dataclasses import dataclass

import nki.isa as nisa
import nki.language as nl

from .delta_rule_tiles import BANK_COLUMNS, L2_EPS, TILE, Bank, sbuf, split, square_sums, to_power

SCALE = TILE**-0.5


@dataclass
class Sizes(nl.NKIObject):
    """Counts: sequences, new tokens and pending drafts of each, checkpoints, this core's key and value heads, rows.

    Attributes:
        fresh, known: rows of new tokens; of these and of the sequences' drafts. width: columns of a record.
    """

    batch: int
    tokens: int
    drafts: int
    checks: int
    key_heads: int
    heads: int
    fresh: int
    known: int
    rows: int
    width: int


@dataclass
class Relations(nl.NKIObject):
    """The caller's table, fp32 [rows, columns], and where its parts begin; see `delta_rule_relations`."""

    table: nl.ndarray
    upto: int
    total: int
    block: int
    own: int
    same: int
    past: int
    until: int
    later: int


@dataclass
class Tokens(nl.NKIObject):
    """fp32, a token a row.

    Attributes:
        record: [rows, HK, width], of a key head its unit key, then the rows that its value heads write, then their
            gates: of drafts as they were kept, of new tokens v in the place of what they will write.
        query: [rows, HK, D], of new tokens, unit length over sqrt(D).
        gain: [rows, H], beta of new tokens, one for drafts.
    """

    record: nl.ndarray
    query: nl.ndarray
    gain: nl.ndarray


def make_sizes(batch: int, tokens: int, drafts: int, checks: int, key_heads: int, heads: int, rows: int) -> Sizes:
    """For one core's heads."""
    fresh, share = batch * tokens, heads // key_heads
    return Sizes(
        batch=batch, tokens=tokens, drafts=drafts, checks=checks, key_heads=key_heads, heads=heads, fresh=fresh,
        known=fresh + batch * drafts, rows=rows, width=TILE + share * (TILE + 1),
    )  # fmt: skip


def make_relations(table: nl.ndarray, of: Sizes) -> Relations:
    """The table's parts."""
    upto = 1 + of.drafts + of.tokens
    total = upto + of.tokens
    block = total + of.batch + of.checks
    own = block + of.batch
    same = own + of.tokens
    past = same + of.fresh
    until = past + of.batch
    later = until + of.fresh
    assert table.shape[0] == of.rows, f"relations have {table.shape[0]} rows"
    assert table.shape[1] == later + of.rows, f"relations have {table.shape[1]} columns, must have {later + of.rows}"
    return Relations(
        table=table, upto=upto, total=total, block=block, own=own, same=same, past=past, until=until, later=later
    )  # fmt: skip


def over(relations: Relations, first: int, pattern: list, rows: int) -> nl.ndarray:
    """Columns from `first` on by a pattern of (step, count), the same for what has step 0."""
    whole = [[relations.table.shape[1], rows]]
    for pair in pattern:
        whole.append(pair)
    return relations.table.ap(pattern=whole, offset=first)


def make_tokens(of: Sizes) -> Tokens:
    """Room for them; rows without a token are zero."""
    made = Tokens(
        record=sbuf(nl.float32, (of.rows, of.key_heads, of.width)),
        query=sbuf(nl.float32, (of.rows, of.key_heads, TILE)), gain=sbuf(nl.float32, (of.rows, of.heads)),
    )  # fmt: skip
    if of.rows > of.known + of.checks * of.drafts:
        nisa.memset(dst=made.record, value=0.0, engine=nisa.engine.vector)
    nisa.memset(dst=made.gain, value=1.0, engine=nisa.engine.vector)
    nisa.memset(dst=made.query, value=0.0, engine=nisa.engine.vector)
    return made


def values_of(of: Sizes, tokens: Tokens, head: int, rows: int) -> nl.ndarray:
    """Values of a head's tokens, or what drafts write, [rows, D]."""
    share = of.heads // of.key_heads
    first = TILE * (1 + head % share)
    return tokens.record[0:rows, head // share : head // share + 1, first : first + TILE].reshape((rows, TILE))


def norms(src: nl.ndarray) -> nl.ndarray:
    """fp32 [T, HK]: one over the lengths of [T, HK, D]."""
    norm = sbuf(nl.float32, (src.shape[0], src.shape[1]))
    square_sums(norm, src)
    to_power(norm, norm, L2_EPS, -0.5)
    return norm


def normalise(dst: nl.ndarray, src: nl.ndarray, norm: nl.ndarray, scale: float) -> None:
    """dst [T, HK, D] of unit length times a scale; src may be of another type."""
    for h in range(src.shape[1]):
        nisa.tensor_scalar(
            dst=dst[:, h : h + 1], data=src[:, h : h + 1], op0=nl.multiply, operand0=norm[:, h : h + 1],
            op1=nl.multiply, operand1=scale, engine=nisa.engine.vector,
        )  # fmt: skip


@dataclass
class Columns(nl.NKIObject):
    """fp32, turned: keys [d, HK, rows], queries [d, HK, fresh]."""

    key: nl.ndarray
    query: nl.ndarray


def make_columns(of: Sizes) -> Columns:
    """Room for them."""
    return Columns(
        key=sbuf(nl.float32, (TILE, of.key_heads, of.rows)), query=sbuf(nl.float32, (TILE, of.key_heads, of.fresh))
    )  # fmt: skip


def turn(dst: nl.ndarray, src: nl.ndarray, first: int, engine: nisa.engine, psum: Bank) -> None:
    """dst [d, HK, n]: rows [first, first + n) of src [rows, HK, d or more], which begin at row 0."""
    rows, last = src.shape[0], first + dst.shape[2]
    for part in split(src.shape[1], BANK_COLUMNS // rows):
        n = part[1] - part[0]
        bank = psum.take()[:, 0 : n * rows].reshape((TILE, n, rows))
        for h in range(n):
            data = src[:, part[0] + h : part[0] + h + 1, 0:TILE].reshape((rows, TILE))
            nisa.nc_transpose(dst=bank[:, h : h + 1], data=data)
        nisa.tensor_copy(dst=dst[:, part[0] : part[1]], src=bank[:, :, first:last], engine=engine)


@dataclass
class Decays(nl.NKIObject):
    """Products of e^g, fp32, whose exponents are sums: a difference of running sums would lose small ones.

    Attributes:
        near: [fresh, H, M], from behind a new token to each new one of its sequence, up to which `upto` counts.
        ahead: [rows, H, M], the same for every row.
        behind: [fresh, H, 1 + N + M], from behind each number to the row's token.
        total: [128, H, B + C], of all that a state is to hold, every row the same.
        first: [128, H, B], beta of the sequences' first new tokens, every row the same.
    """

    near: nl.ndarray
    ahead: nl.ndarray
    behind: nl.ndarray
    total: nl.ndarray
    first: nl.ndarray


def make_decays(of: Sizes) -> Decays:
    """Room for them."""
    f32 = nl.float32
    return Decays(
        near=sbuf(f32, (of.fresh, of.heads, of.tokens)), ahead=sbuf(f32, (of.rows, of.heads, of.tokens)),
        behind=sbuf(f32, (of.fresh, of.heads, 1 + of.drafts + of.tokens)),
        total=sbuf(f32, (TILE, of.heads, of.batch + of.checks)), first=sbuf(f32, (TILE, of.heads, of.batch)),
    )  # fmt: skip


def _counted(of: Sizes, relations: Relations, tokens: Tokens, rows: int, first: int, last: int) -> nl.ndarray:
    """[rows, H, columns]: gates where they count for columns [first, last) of the table."""
    share, wide = of.heads // of.key_heads, last - first
    out, record = sbuf(nl.float32, (rows, of.heads, wide)), of.key_heads * of.width
    gates = tokens.record.ap(
        pattern=[[record, rows], [of.width, of.key_heads], [1, share], [0, wide]], offset=of.width - share
    )  # fmt: skip
    counts = over(relations, first, [[0, of.heads], [1, wide]], rows)
    nisa.tensor_tensor(dst=out, data1=gates, data2=counts, op=nl.multiply, engine=nisa.engine.vector)
    return out


def _exponents(dst: nl.ndarray, counts: nl.ndarray, gates: nl.ndarray, psum: Bank) -> None:
    """e to the sums of the gates that count."""
    rows, wide = dst.shape[0], dst.shape[2]
    for part in split(dst.shape[1], BANK_COLUMNS // wide):
        out, heads = psum.take()[0:rows, 0 : (part[1] - part[0]) * wide], gates[:, part[0] : part[1]]
        # [k, x] x [k, (h, n)] -> [x, (h, n)]
        nisa.nc_matmul(dst=out, stationary=counts, moving=heads, is_stationary_onezero=True, accumulate=False)
        nisa.activation(dst=dst[:, part[0] : part[1]], op=nl.exp, data=out)


def near_decays(of: Sizes, relations: Relations, tokens: Tokens, decays: Decays, ones: nl.ndarray, psum: Bank) -> None:
    """What new tokens alone are asked for: `near`, `behind` for their numbers, `first`."""
    number, fresh = of.drafts + 1, of.fresh
    gates = _counted(of, relations, tokens, fresh, number, relations.total)
    later = relations.table[0:fresh, relations.later : relations.later + fresh]
    until = relations.table[0:fresh, relations.until : relations.until + fresh]
    _exponents(decays.behind[:, :, number:], until, gates[:, :, 0 : of.tokens], psum)
    _exponents(decays.near, later, gates[:, :, of.tokens :], psum)
    gain = sbuf(nl.float32, (fresh, of.heads, of.batch))
    beta = tokens.gain.ap(pattern=[[of.heads, fresh], [1, of.heads], [0, of.batch]])
    starts = over(relations, relations.same, [[0, of.heads], [of.tokens, of.batch]], fresh)
    nisa.tensor_tensor(dst=gain, data1=beta, data2=starts, op=nl.multiply, engine=nisa.engine.vector)
    spread = psum.take()[:, 0 : of.heads * of.batch]
    nisa.nc_matmul(dst=spread, stationary=ones[0:fresh], moving=gain, is_stationary_onezero=True, accumulate=False)
    nisa.tensor_copy(dst=decays.first, src=spread, engine=nisa.engine.scalar)


def far_decays(of: Sizes, relations: Relations, tokens: Tokens, decays: Decays, ones: nl.ndarray, psum: Bank) -> None:
    """The rest, when the records have come."""
    number, upto, total = of.drafts + 1, relations.upto, relations.total
    gates = _counted(of, relations, tokens, of.rows, 0, relations.block)
    until = relations.table[:, relations.until : relations.until + of.fresh]
    _exponents(decays.total, ones[0 : of.rows], gates[:, :, total : relations.block], psum)
    _exponents(decays.ahead, relations.table[:, relations.later :], gates[:, :, upto:total], psum)
    _exponents(decays.behind[:, :, 0:number], until, gates[:, :, 0:number], psum)


@dataclass
class Products(nl.NKIObject):
    """In PSUM: of rows with columns, for key heads [first, last), [rows, heads, wide]."""

    bank: nl.ndarray
    first: int
    last: int
    wide: int


def multiply(rows: nl.ndarray, columns: nl.ndarray, psum: Bank) -> list:
    """Products of [d, HK, rows] with [d, HK, ...], by key heads, as many in a bank as it takes."""
    count, wide, found = rows.shape[2], 1, []
    for n in range(2, len(columns.shape)):
        wide = wide * columns.shape[n]
    for part in split(rows.shape[1], BANK_COLUMNS // wide):
        bank = psum.take()
        for h in range(part[0], part[1]):
            at = (h - part[0]) * wide
            # [d, p] x [d, i] -> [p, i]
            nisa.nc_matmul(
                dst=bank[0:count, at : at + wide], stationary=rows[:, h : h + 1], moving=columns[:, h : h + 1],
                accumulate=False,
            )  # fmt: skip
        found.append(Products(bank=bank, first=part[0], last=part[1], wide=wide))
    return found


def make_given(of: Sizes, relations: Relations, rows: int) -> nl.ndarray:
    """fp32 [rows, H, 2, M]: the identity on new tokens, and room for scores."""
    out = sbuf(nl.float32, (rows, of.heads, 2, of.tokens))
    own = over(relations, relations.own, [[0, of.heads], [1, of.tokens]], rows)
    nisa.tensor_copy(dst=out[:, :, 0:1], src=own, engine=nisa.engine.gpsimd)
    return out


def score(of: Sizes, relations: Relations, ahead: nl.ndarray, products: list, out: nl.ndarray) -> None:
    """What each row gives to the output of its sequence's new tokens."""
    f32, vector, share, rows = nl.float32, nisa.engine.vector, of.heads // of.key_heads, out.shape[0]
    open_decays = sbuf(f32, (rows, of.heads, of.tokens))
    upto = over(relations, relations.upto, [[0, of.heads], [1, of.tokens]], rows)
    nisa.tensor_tensor(dst=open_decays, data1=ahead[0:rows], data2=upto, op=nl.multiply, engine=vector)
    for found in products:
        n, first, last = found.last - found.first, found.first * share, found.last * share
        single = found.bank.ap(
            pattern=[[BANK_COLUMNS, rows], [found.wide, n], [0, share], [1, of.tokens]]
        )  # fmt: skip
        if of.batch > 1:
            each, own = sbuf(f32, (rows, n, of.tokens, of.batch)), sbuf(f32, (rows, n, of.tokens))
            queries = found.bank.ap(
                pattern=[[BANK_COLUMNS, rows], [found.wide, n], [1, of.tokens], [of.tokens, of.batch]]
            )  # fmt: skip
            block = over(relations, relations.block, [[0, n], [0, of.tokens], [1, of.batch]], rows)
            nisa.tensor_tensor(dst=each, data1=queries, data2=block, op=nl.multiply, engine=vector)
            nisa.tensor_reduce(dst=own, op=nl.add, data=each, axis=3)
            single = own.ap(pattern=[[n * of.tokens, rows], [of.tokens, n], [0, share], [1, of.tokens]])
        nisa.tensor_tensor(
            dst=out[:, first:last, 1:2], data1=single, data2=open_decays[:, first:last], op=nl.multiply, engine=vector
        )


def make_system(of: Sizes) -> nl.ndarray:
    """Room for fp32 [fresh, H, known]: of a new token its beta times what it finds of each row before it."""
    return sbuf(nl.float32, (of.fresh, of.heads, of.known))


def fill_system(
    of: Sizes,
    relations: Relations,
    tokens: Tokens,
    decays: Decays,
    products: list,
    lower: nl.ndarray,
    begin: int,
    end: int,
) -> None:
    """Columns [begin, end) of the system: all new tokens, or all drafts."""
    f32, vector, share = nl.float32, nisa.engine.vector, of.heads // of.key_heads
    each, number, wide = (of.tokens, of.drafts + 1, end - begin) if begin == 0 else (of.drafts, 1, end - begin)
    faded = sbuf(f32, (of.fresh, of.heads, each))
    beta = tokens.gain.ap(pattern=[[of.heads, of.fresh], [1, of.heads], [0, each]])
    nisa.tensor_tensor(
        dst=faded, data1=decays.behind[:, :, number : number + each], data2=beta, op=nl.multiply, engine=vector
    )
    for found in products:
        n, first, last = found.last - found.first, found.first * share, found.last * share
        single = sbuf(f32, (of.fresh, n, wide))
        keys = found.bank.ap(pattern=[[BANK_COLUMNS, of.fresh], [found.wide, n], [1, wide]])
        later = over(relations, relations.later + begin, [[0, n], [1, wide]], of.fresh)
        nisa.tensor_tensor(dst=single, data1=keys, data2=later, op=nl.multiply, engine=vector)
        spread = single.ap(pattern=[[n * wide, of.fresh], [wide, n], [0, share], [1, wide]])
        decay = faded.ap(
            pattern=[[of.heads * each, of.fresh], [each, last - first], [0, of.batch], [1, each]], offset=first * each
        )
        nisa.tensor_tensor(
            dst=lower[:, first:last, begin:end], data1=spread, data2=decay, op=nl.multiply, engine=vector
        )


@dataclass
class Solution(nl.NKIObject):
    """X = gain (given - lower^T X), fp32 [known, H, 2, M]: what new tokens write, and give out, of each row's values.

    Every turn has one more token right: substitution, with nothing divided and no powers. The last adds the rows of
    drafts. A turn is short and waits for the one before, so other work is put between them.

    Attributes:
        lower: [fresh, H, known]. near, given: of new tokens, and of all rows. found: X over gain, so far; of all rows
            when `turns` are as many as new tokens.
    """

    lower: nl.ndarray
    near: nl.ndarray
    given: nl.ndarray
    found: nl.ndarray
    turns: int = 0


def solve_turns(of: Sizes, solution: Solution, count: int, psum: Bank) -> None:
    """Up to so many turns, while there are any; the last when `given` and `lower` are whole."""
    for _ in range(min(count, of.tokens - solution.turns)):
        solution.turns = solution.turns + 1
        given = solution.given if solution.turns == of.tokens else solution.near
        solution.found = _substitute(of, solution, given, psum)


def _substitute(of: Sizes, solution: Solution, given: nl.ndarray, psum: Bank) -> nl.ndarray:
    wide, rows, out = 2 * of.tokens, given.shape[0], sbuf(nl.float32, given.shape)
    for part in split(of.heads, BANK_COLUMNS // wide):
        bank = psum.take()[0:rows, 0 : (part[1] - part[0]) * wide]
        for h in range(part[0], part[1]):
            # [s, p] x [s, i] -> [p, i]
            at = (h - part[0]) * wide
            nisa.nc_matmul(
                dst=bank[:, at : at + wide], stationary=solution.lower[:, h : h + 1, 0:rows],
                moving=solution.found[0 : of.fresh, h : h + 1], accumulate=False,
            )  # fmt: skip
        nisa.tensor_tensor(
            dst=out[:, part[0] : part[1]], data1=given[:, part[0] : part[1]], data2=bank, op=nl.subtract,
            engine=nisa.engine.vector,
        )  # fmt: skip
    return out
