"""Where DeltaNet layers find and leave the states of a call's rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .scalar import Array


class Entries(NamedTuple):
    """A layer's bank of states, fp32: scratch, lanes and checkpoint slots.

    Attributes:
        windows: [entries, K - 1, channels], the convolution's last inputs.
        states: [entries, value_heads, dk, dv].
    """

    windows: Array
    states: Array


class StateRows(NamedTuple):
    """Where the rows of a call are.

    Attributes:
        lanes: int64 [batch], all different, the entries where the states are left.
        sources: int64 [batch], the entries that they are read from: a row's lane or a checkpoint slot.
        ends: int64 [batch], real tokens, the others being padding on the right.
        fresh: bool [batch], the row's state is zero, so that nothing is read of it.
        marks: int64 [n, 3], checkpoints as (row, tokens of the call, entry), at chunk boundaries.
    """

    lanes: Array
    sources: Array
    ends: Array
    fresh: Array
    marks: Array

    @classmethod
    def of(
        cls,
        lanes: Sequence[int],
        sources: Sequence[int],
        lengths: Sequence[int],
        fresh: Sequence[bool],
        marks: Sequence[tuple[int, int, int]] = (),
    ) -> StateRows:
        return cls(
            np.array(lanes, np.int64),
            np.array(sources, np.int64),
            np.array(lengths, np.int64),
            np.array(fresh, np.bool_),
            np.array(marks, np.int64).reshape(-1, 3),
        )
