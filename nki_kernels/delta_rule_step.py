"""One token of the gated delta rule on a state in SBUF: what is made of its q, k, v, g and beta, and what is done to S.

Vectors are columns, [d, T, heads]: what is not a product with a state is one instruction for all tokens. Functions are
called inside `gated_delta_rule_decode` and compile into it.
"""

from dataclasses import dataclass

import nki.isa as nisa
import nki.language as nl

from .delta_rule_tiles import BANK_COLUMNS, L2_EPS, TILE, Bank, sbuf, split, to_power, turn_into

SCALE = TILE**-0.5


@dataclass
class Tables(nl.NKIObject):
    """eye: [128, T], the first columns of the identity, of k's type. ones: fp32 [128, 128]."""

    eye: nl.ndarray
    ones: nl.ndarray


@dataclass
class Inputs(nl.NKIObject):
    """T counts sequences, then tokens of each. q, k: [T, HK, D], v: [T, H, D], g, beta: fp32 [128, T, H], every row the
    same."""

    q: nl.ndarray
    k: nl.ndarray
    v: nl.ndarray
    g: nl.ndarray
    beta: nl.ndarray


@dataclass
class Columns(nl.NKIObject):
    """What states and values are multiplied by; fp32 [d, T, heads], the same on every row where d is not named.

    Attributes:
        kq: [d, 2, T, HK], k / |k| and q. key: k / |k|^2, on d. norm: [128, 1, T, HK], 1 / |k|, then 1 / |q|.
        decay, erase: e^g and -beta e^g. match: beta (q . k), of normalised q and k.
        write, read: beta k and e^g (q - beta (q . k) k), of normalised q and k, on d.
        values: v / sqrt(D), on v instead of d.
    """

    kq: nl.ndarray
    key: nl.ndarray
    norm: nl.ndarray
    decay: nl.ndarray
    erase: nl.ndarray
    match: nl.ndarray
    write: nl.ndarray
    read: nl.ndarray
    values: nl.ndarray


@dataclass
class Update(nl.NKIObject):
    """Of one token, fp32. outer: [d, HK, d], k k^T. new: [d, H, v], beta k v^T at first, the new state in the end."""

    outer: nl.ndarray
    new: nl.ndarray


def make_inputs(tokens: int, key_heads: int, heads: int, dtype: nl.dtype) -> Inputs:
    """Room for them."""
    few, many, gates = (tokens, key_heads, TILE), (tokens, heads, TILE), (TILE, tokens, heads)
    return Inputs(
        q=sbuf(dtype, few), k=sbuf(dtype, few), v=sbuf(dtype, many), g=sbuf(nl.float32, gates),
        beta=sbuf(nl.float32, gates),
    )  # fmt: skip


def make_columns(tokens: int, key_heads: int, heads: int) -> Columns:
    """Room for them."""
    f32, few, many = nl.float32, (TILE, tokens, key_heads), (TILE, tokens, heads)
    return Columns(
        kq=sbuf(f32, (TILE, 2, tokens, key_heads)), key=sbuf(f32, few), norm=sbuf(f32, (TILE, 1, tokens, key_heads)),
        decay=sbuf(f32, many), erase=sbuf(f32, many), match=sbuf(f32, many), write=sbuf(f32, many),
        read=sbuf(f32, many), values=sbuf(f32, many),
    )  # fmt: skip


def make_update(key_heads: int, heads: int) -> Update:
    """Room for one."""
    return Update(outer=sbuf(nl.float32, (TILE, key_heads, TILE)), new=sbuf(nl.float32, (TILE, heads, TILE)))


def key_columns(columns: Columns, inputs: Inputs, tables: Tables, bank: nl.ndarray) -> None:
    """What depends on k alone, and q turned; in the first 3 T HK columns of the bank."""
    few, vector = columns.key.shape, nisa.engine.vector
    count, k, squares = few[1] * few[2], sbuf(nl.float32, few), sbuf(nl.float32, few)
    nisa.tensor_copy(dst=k, src=turn(bank[:, 0:count], inputs.k, tables), engine=vector)
    nisa.tensor_tensor(dst=squares, data1=k, data2=k, op=nl.multiply, engine=vector)
    nisa.tensor_copy(dst=columns.kq[:, 1:2], src=turn(bank[:, count : 2 * count], inputs.q, tables), engine=vector)
    to_power(columns.norm, _sum_rows(bank[:, 2 * count : 3 * count], squares, tables), L2_EPS, -0.5)
    nisa.tensor_tensor(dst=columns.kq[:, 0:1], data1=k, data2=columns.norm, op=nl.multiply, engine=vector)
    nisa.tensor_tensor(dst=columns.key, data1=columns.kq[:, 0:1], data2=columns.norm, op=nl.multiply, engine=vector)


def query_columns(columns: Columns, inputs: Inputs, tables: Tables, bank: nl.ndarray) -> None:
    """The rest, with the next 2 T HK columns of the bank. In the order in which it is wanted, and what waits for the
    instruction before it as far behind it as that allows."""
    few, many, vector, f32 = columns.key.shape, columns.decay.shape, nisa.engine.vector, nl.float32
    count, share, decay, beta, read = few[1] * few[2], many[2] // few[2], columns.decay, inputs.beta, columns.read
    sums, gain, fade = sbuf(f32, columns.kq.shape), sbuf(f32, many), sbuf(f32, many)
    twice = columns.kq.ap(pattern=[[2 * count, TILE], [0, 2], [1, count]], offset=count)
    nisa.tensor_tensor(dst=sums, data1=columns.kq, data2=twice, op=nl.multiply, engine=vector)
    summed = _sum_rows(bank[:, 3 * count : 5 * count], sums, tables)
    dots = bank.ap(pattern=[[BANK_COLUMNS, TILE], [1, count], [0, share]], offset=3 * count)
    k, q = _over_heads(columns.kq, 0, share), _over_heads(columns.kq, 1, share)
    norm = _over_heads(columns.norm, 0, share)
    nisa.tensor_tensor(dst=columns.write, data1=k, data2=beta, op=nl.multiply, engine=vector)
    nisa.scalar_tensor_tensor(
        dst=columns.erase, data=decay, op0=nl.multiply, operand0=-1.0, op1=nl.multiply, operand1=beta
    )
    to_power(columns.norm, summed[:, count : 2 * count], L2_EPS, -0.5)
    nisa.tensor_tensor(dst=read, data1=dots, data2=columns.write, op=nl.multiply, engine=vector)
    nisa.tensor_tensor(dst=fade, data1=norm, data2=decay, op=nl.multiply, engine=vector)
    nisa.tensor_tensor(dst=read, data1=q, data2=read, op=nl.subtract, engine=vector)
    nisa.tensor_tensor(dst=gain, data1=norm, data2=beta, op=nl.multiply, engine=vector)
    nisa.tensor_tensor(dst=read, data1=read, data2=fade, op=nl.multiply, engine=vector)
    nisa.tensor_tensor(dst=columns.match, data1=dots, data2=gain, op=nl.multiply, engine=vector)


def _over_heads(columns: nl.ndarray, n: int, share: int) -> nl.ndarray:
    """The n-th of [128, N, T, HK] as [128, T * HK, share]: of every value head, its key head's."""
    count = columns.shape[2] * columns.shape[3]
    return columns.ap(pattern=[[columns.shape[1] * count, TILE], [1, count], [0, share]], offset=n * count)


def turn(dst: nl.ndarray, src: nl.ndarray, tables: Tables) -> nl.ndarray:
    """[T, n, 128] of SBUF to [128, T, n] of PSUM."""
    tokens, count = src.shape[0], src.shape[1]
    turned = dst.reshape((TILE, tokens, count))
    for n in range(count):
        turn_into(turned[:, :, n : n + 1], src[:, n : n + 1].reshape((tokens, TILE)), tables.eye)
    return turned


def _sum_rows(dst: nl.ndarray, src: nl.ndarray, tables: Tables) -> nl.ndarray:
    """The sum over rows of each column, on every row; in PSUM."""
    # [d, m] x [d, n] -> [m, n]
    nisa.nc_matmul(dst=dst, stationary=tables.ones, moving=src, is_stationary_onezero=True, accumulate=False)
    return dst


def scale_rows(dst: nl.ndarray, src: nl.ndarray, columns: nl.ndarray, token: int, tables: Tables, psum: Bank) -> None:
    """dst [d, n, D] = a token's columns of [d, T, n] times its rows of src [T, n, D]."""
    tokens, count, wide = src.shape[0], src.shape[1], tables.eye.shape[1]
    pick = tables.eye.ap(pattern=[[wide, tokens], [0, TILE]], offset=token)
    for part in split(count, 4):
        spread = psum.take()[:, 0 : (part[1] - part[0]) * TILE]
        # [t, m] x [t, n] -> [m, n]: the token's rows on every row m
        nisa.nc_matmul(
            dst=spread, stationary=pick, moving=src[:, part[0] : part[1]], is_stationary_onezero=True, accumulate=False
        )
        for h in range(part[0], part[1]):
            nisa.tensor_scalar(
                dst=dst[:, h : h + 1], data=spread[:, (h - part[0]) * TILE : (h - part[0] + 1) * TILE],
                op0=nl.multiply, operand0=_column(columns, token, h), engine=nisa.engine.scalar,
            )  # fmt: skip


def read_state(out: nl.ndarray, columns: Columns, token: int, state: nl.ndarray, part: tuple) -> None:
    """out [v, H], in PSUM: what the token reads of heads [first, last) of the state."""
    for h in range(part[0], part[1]):
        # [d, v] x [d, 1] -> [v, 1]
        nisa.nc_matmul(
            dst=out[:, h : h + 1], stationary=state[:, h : h + 1], moving=_column(columns.read, token, h),
            accumulate=False,
        )  # fmt: skip


def erase(dst: nl.ndarray, update: Update, state: nl.ndarray, part: tuple) -> None:
    """dst, a bank: k k^T S of heads [first, last), at most four."""
    share = state.shape[1] // update.outer.shape[1]
    for h in range(part[0], part[1]):
        # [d', d] x [d', v] -> [d, v]
        at = (h - part[0]) * TILE
        nisa.nc_matmul(
            dst=dst[:, at : at + TILE], stationary=update.outer[:, h // share : h // share + 1],
            moving=state[:, h : h + 1], accumulate=False,
        )  # fmt: skip


def fade_state(update: Update, columns: Columns, token: int, state: nl.ndarray, part: tuple) -> None:
    """new = e^g S + new, heads [first, last)."""
    for h in range(part[0], part[1]):
        nisa.scalar_tensor_tensor(
            dst=update.new[:, h : h + 1], data=state[:, h : h + 1], op0=nl.multiply,
            operand0=_column(columns.decay, token, h), op1=nl.add, operand1=update.new[:, h : h + 1],
        )  # fmt: skip


def add_erased(update: Update, columns: Columns, token: int, erased: nl.ndarray, part: tuple) -> None:
    """new = new - beta e^g k k^T S, heads [first, last)."""
    for h in range(part[0], part[1]):
        at = (h - part[0]) * TILE
        nisa.scalar_tensor_tensor(
            dst=update.new[:, h : h + 1], data=erased[:, at : at + TILE], op0=nl.multiply,
            operand0=_column(columns.erase, token, h), op1=nl.add, operand1=update.new[:, h : h + 1],
        )  # fmt: skip


def _column(columns: nl.ndarray, token: int, head: int) -> nl.ndarray:
    """One of [128, T, heads] as [128, 1]."""
    return columns[:, token : token + 1, head : head + 1].reshape((TILE, 1))
