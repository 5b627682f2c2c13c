"""Where the rows of a call that verifies drafts are: each of any number of positions, one after the other."""

from __future__ import annotations

from typing import NamedTuple

from .scalar import Array


class Factors(NamedTuple):
    """`cache.DraftFactors` of a layer, fp32, by lane: what unconfirmed tokens are to change its state by.

    Attributes:
        inputs: [1 + lanes, most, channels], before the convolution.
        k: [1 + lanes, most, key_heads, dk]; v: [1 + lanes, most, value_heads, dv], after it.
        g, beta: [1 + lanes, most, value_heads].
    """

    inputs: Array
    k: Array
    v: Array
    g: Array
    beta: Array


class VerifyRows(NamedTuple):
    """The rows of a call: each has tokens of its own, and behind them drafts, or none.

    Attributes:
        lanes: int64 [rows], all different, the entries where the states are left.
        sources: int64 [rows], the entries that they are read from.
        fresh: bool [rows], rows whose state is zero, so that nothing is read of it.
        accepted: int64 [rows], how many of its lane's last drafts a row takes in before its own tokens.
        tokens: int64 [rows], those of its own; all behind them are drafts.
        first: int64 [rows + 1]: the positions of a row are first[row] .. first[row + 1] of all.
        starts: int64 [rows], tokens of the sequence before the row's first.
        tables: int32 [rows, n], the blocks of each sequence.
        marks: int64 [n, 3], checkpoints as (row, tokens taken in by then, accepted ones counted, entry).
    """

    lanes: Array
    sources: Array
    fresh: Array
    accepted: Array
    tokens: Array
    first: Array
    starts: Array
    tables: Array
    marks: Array
