"""How states of `gated_delta_rule_verify` take in drafts and a first token. Functions compile into the kernel."""

from dataclasses import dataclass

import nki.isa as nisa
import nki.language as nl

from .delta_rule_tiles import BANK_COLUMNS, TILE, Bank, sbuf, split
from .delta_rule_verify import Columns, Decays, Relations, Sizes, Tokens, over, values_of


@dataclass
class Update(nl.NKIObject):
    """What is added to states, fp32.

    Attributes:
        keys: [rows, HK, D] for each state, the keys of the tokens that it is to hold, zero for the others.
        moves: [rows, H, D], what each row's token writes, faded; of new tokens the first alone.
        writes: [known, H, B], what a sequence's first token writes but for the state, of each row's values.
        finds: [d, H, B], minus the key of a sequence's first token, faded: what it finds in the state.
        turned: [v, H, fresh], zero but for what first tokens write.
    """

    keys: list
    moves: nl.ndarray
    writes: nl.ndarray
    finds: nl.ndarray
    turned: nl.ndarray


def make_update(of: Sizes) -> Update:
    """Room for it."""
    f32, turned = nl.float32, sbuf(nl.float32, (TILE, of.heads, of.fresh))
    nisa.memset(dst=turned, value=0.0, engine=nisa.engine.gpsimd)
    return Update(
        keys=[], moves=sbuf(f32, (of.rows, of.heads, TILE)), writes=sbuf(f32, (of.known, of.heads, of.batch)),
        finds=sbuf(f32, (TILE, of.heads, of.batch)), turned=turned,
    )  # fmt: skip


def first_writes(of: Sizes, relations: Relations, decays: Decays, products: list, update: Update) -> None:
    """`update.writes`: one of its own values, and minus the product of keys of what a draft wrote.

    products: of the keys of known rows with those of first tokens.
    """
    f32, vector, share, out = nl.float32, nisa.engine.vector, of.heads // of.key_heads, update.writes
    for found in products:
        n, first, last = found.last - found.first, found.first * share, found.last * share
        single = sbuf(f32, (of.known, n, of.batch))
        keys = found.bank.ap(pattern=[[BANK_COLUMNS, of.known], [found.wide, n], [1, of.batch]])
        past = over(relations, relations.past, [[0, n], [1, of.batch]], of.known)
        nisa.tensor_tensor(dst=single, data1=keys, data2=past, op=nl.multiply, engine=vector)
        spread = single.ap(pattern=[[n * of.batch, of.known], [of.batch, n], [0, share], [1, of.batch]])
        decay = decays.ahead.ap(
            pattern=[[of.heads * of.tokens, of.known], [of.tokens, last - first], [0, of.batch]],
            offset=first * of.tokens,
        )  # fmt: skip
        nisa.tensor_tensor(dst=out[:, first:last], data1=spread, data2=decay, op=nl.multiply, engine=vector)
    starts = over(relations, relations.same, [[0, of.heads], [of.tokens, of.batch]], of.known)
    nisa.tensor_tensor(dst=out, data1=out, data2=starts, op=nl.add, engine=vector)


def first_finds(of: Sizes, columns: Columns, decays: Decays, update: Update) -> None:
    """`update.finds`."""
    share = of.heads // of.key_heads
    key = columns.key.ap(
        pattern=[[of.key_heads * of.rows, TILE], [of.rows, of.key_heads], [0, share], [of.tokens, of.batch]]
    )  # fmt: skip
    nisa.scalar_tensor_tensor(
        dst=update.finds, data=decays.total[:, :, 0 : of.batch], op0=nl.multiply, operand0=-1.0, op1=nl.multiply,
        operand1=key,
    )  # fmt: skip


def fade_moves(of: Sizes, tokens: Tokens, decays: Decays, update: Update) -> None:
    """`update.moves` of drafts."""
    for h in range(of.heads):
        nisa.tensor_scalar(
            dst=update.moves[:, h : h + 1], data=values_of(of, tokens, h, of.rows), op0=nl.multiply,
            operand0=decays.ahead[:, h : h + 1, 0:1].reshape((of.rows, 1)), engine=nisa.engine.scalar,
        )  # fmt: skip


def add_keys(of: Sizes, relations: Relations, tokens: Tokens, update: Update, states: tuple) -> None:
    """`update.keys` of states [first, last), in order."""
    for x in range(states[0], states[1]):
        keys, counts = sbuf(nl.float32, (of.rows, of.key_heads, TILE)), relations.total + x
        nisa.tensor_scalar(
            dst=keys, data=tokens.record[:, :, 0:TILE], op0=nl.multiply,
            operand0=relations.table[:, counts : counts + 1], engine=nisa.engine.scalar,
        )  # fmt: skip
        update.keys.append(keys)


def find_first(of: Sizes, tokens: Tokens, decays: Decays, update: Update, old: list, group: tuple, psum: Bank) -> None:
    """`update.turned`: what the first tokens of sequences [first, last) write, of the old states."""
    n = group[1] - group[0]
    for part in split(of.heads, BANK_COLUMNS // n):
        bank = psum.take()[:, 0 : (part[1] - part[0]) * n]
        for h in range(part[0], part[1]):
            at = (h - part[0]) * n
            # [p, v] x [p, b] -> [v, b]
            nisa.nc_matmul(
                dst=bank[:, at : at + n], stationary=values_of(of, tokens, h, of.known),
                moving=update.writes[:, h : h + 1, group[0] : group[1]], accumulate=False,
            )  # fmt: skip
        for b in range(group[0], group[1]):
            for h in range(part[0], part[1]):
                at = (h - part[0]) * n + b - group[0]
                # [d, v] x [d, 1] -> [v, 1]
                nisa.nc_matmul(
                    dst=bank[:, at : at + 1], stationary=old[b][:, h : h + 1],
                    moving=update.finds[:, h : h + 1, b : b + 1], accumulate=True,
                )  # fmt: skip
        firsts = update.turned.ap(
            pattern=[[of.heads * of.fresh, TILE], [of.fresh, part[1] - part[0]], [of.tokens, n]],
            offset=part[0] * of.fresh + group[0] * of.tokens,
        )  # fmt: skip
        nisa.tensor_tensor(
            dst=firsts, data1=bank, data2=decays.first[:, part[0] : part[1], group[0] : group[1]], op=nl.multiply,
            engine=nisa.engine.vector,
        )  # fmt: skip


def turn_first(of: Sizes, update: Update, psum: Bank) -> None:
    """That goes into their rows of `update.moves`."""
    for part in split(of.heads, 4):
        rows = psum.take()[0 : of.fresh, 0 : (part[1] - part[0]) * TILE]
        for h in range(part[0], part[1]):
            at, data = (h - part[0]) * TILE, update.turned[:, h : h + 1].reshape((TILE, of.fresh))
            nisa.nc_transpose(dst=rows[:, at : at + TILE], data=data)
        nisa.tensor_copy(dst=update.moves[0 : of.fresh, part[0] : part[1]], src=rows, engine=nisa.engine.scalar)


def add_moves(of: Sizes, update: Update, x: int, first: int, last: int, psum: Bank) -> nl.ndarray:
    """In PSUM, [d, (heads, v)]: what goes to heads [first, last), of one key head, of state x."""
    key, bank = first * of.key_heads // of.heads, psum.take()[:, 0 : (last - first) * TILE]
    # [p, d] x [p, (h, v)] -> [d, (h, v)]
    nisa.nc_matmul(
        dst=bank, stationary=update.keys[x][:, key : key + 1], moving=update.moves[:, first:last], accumulate=False
    )
    return bank


def fade_state(
    decays: Decays, new: nl.ndarray, old: nl.ndarray, x: int, first: int, last: int, add: nl.ndarray
) -> None:
    """new = e^g old + add, heads [first, last) of state x."""
    for h in range(first, last):
        nisa.scalar_tensor_tensor(
            dst=new[:, h : h + 1], data=old[:, h : h + 1], op0=nl.multiply,
            operand0=decays.total[:, h : h + 1, x : x + 1].reshape((TILE, 1)), op1=nl.add,
            operand1=add[:, (h - first) * TILE : (h - first + 1) * TILE],
        )  # fmt: skip
