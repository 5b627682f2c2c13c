"""Partial rotary position embedding with three interleaved position axes (mRoPE).

Text uses one position for all three axes, where mRoPE equals plain RoPE. Images use (time, height, width).

An angle is a position times a frequency, of up to 1 radian a position. In fp32 that is wrong by up to 0.06 radians at a
million positions, so it is taken in fp64 on a CPU. A device has no fp64: there the product is taken in turns, in parts
that fp32 holds exactly (`rotary_turns`), and only what is left of a turn becomes an angle.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch

from ...rope import RopeConfig
from ..kept import may_keep

DIGIT_BITS = 11
"""Bits of each of the two parts that a position is taken in."""

TURN_BITS = 12
"""Bits of each part of a fraction of a turn: its product with a part of a position has no more than fp32's 24 bits."""

MOST_POSITIONS = 1 << 2 * DIGIT_BITS
"""Positions that `rotary_turns` reaches: 4,194,304."""


@lru_cache(maxsize=4)
def _kept_frequencies(rope: RopeConfig) -> torch.Tensor:
    with torch.inference_mode(False):
        return _frequencies(rope)


def _frequencies(rope: RopeConfig) -> torch.Tensor:
    """Radians a position, fp64 [dim / 2]."""
    return torch.tensor(rope.frequencies(), dtype=torch.float64)


def rotary_turns(rope: RopeConfig) -> torch.Tensor:
    """Turns of 1 and of 2^DIGIT_BITS positions, in parts.

    Returns:
        fp32 [6, dim / 2]. Of a fraction of a turn its first TURN_BITS bits, the next ones, and the rest: three rows of
        1 position, then three of 2^DIGIT_BITS.
    """
    rows = []
    for positions in (1, 1 << DIGIT_BITS):
        # Halves and doubles are exact, so this is the product in fp64 up to one rounding of each frequency.
        rest = [frequency / (2 * math.pi) * positions % 1.0 for frequency in rope.frequencies()]
        for part in (1, 2):
            unit = 2.0 ** (-TURN_BITS * part)
            rows.append([math.floor(turn / unit) * unit for turn in rest])
            rest = [turn - taken for turn, taken in zip(rest, rows[-1], strict=True)]
        rows.append(rest)
    return torch.tensor(rows, dtype=torch.float32)


def rotary_tables(
    positions: torch.Tensor, rope: RopeConfig, dtype: torch.dtype, turns: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of the rotation angles, times the attention factor of YaRN.

    Angle i of dim/2 is position * frequency i. Of the three axes, height takes angles 1, 4, 7, ... up to three
    times its section, width 2, 5, 8, ..., and time the others.

    Args:
        positions: int [batch, tokens] for text, or [3, batch, tokens].
        dtype: type of the tables. Before rounding to it they are within 1e-6 of exact ones, 1e-9 without `turns`.
        turns: of `rotary_turns`, where there is no fp64; positions are below MOST_POSITIONS then.
    Returns:
        (cos, sin), each [batch, tokens, 1, dim / 2]; the singleton is for heads.
    """
    angles = _angles(positions, rope) if turns is None else _reduced_angles(positions, turns)
    if angles.dim() == 4:
        merged = angles[0].clone()
        for axis in (1, 2):
            take = slice(axis, rope.mrope_section[axis] * 3, 3)
            merged[..., take] = angles[axis][..., take]
        angles = merged
    angles = angles.unsqueeze(-2)
    cos, sin = angles.cos(), angles.sin()
    if rope.attention_factor != 1:
        cos, sin = cos * rope.attention_factor, sin * rope.attention_factor
    return cos.to(dtype), sin.to(dtype)


def _angles(positions: torch.Tensor, rope: RopeConfig) -> torch.Tensor:
    """fp64 [..., dim / 2]."""
    frequencies = _kept_frequencies(rope) if may_keep(positions) else _frequencies(rope).to(positions.device)
    return positions.unsqueeze(-1).double() * frequencies


def _reduced_angles(positions: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """fp32 [..., dim / 2], from -pi to pi.

    Products with the first and second parts of a turn, and the sums of them, are exact; whole turns are dropped.
    """
    low = torch.bitwise_and(positions, (1 << DIGIT_BITS) - 1).unsqueeze(-1).float()
    high = torch.bitwise_right_shift(positions, DIGIT_BITS).unsqueeze(-1).float()
    first = _part_of_turn(_part_of_turn(low * turns[0]) + _part_of_turn(high * turns[3]))
    second = low * turns[1] + high * turns[4]
    return (_part_of_turn(first + second) + (low * turns[2] + high * turns[5])) * (2 * math.pi)


def _part_of_turn(turns: torch.Tensor) -> torch.Tensor:
    """What is left without whole turns, from -1/2 to 1/2."""
    return turns - torch.floor(turns + 0.5)


def apply_rotary(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate the first `dim` dimensions of every head, pairing dimension i with i + dim/2.

    Args:
        x: [batch, tokens, heads, head_dim].
        cos, sin: [batch, tokens, 1, dim / 2].
    """
    half = cos.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1)
