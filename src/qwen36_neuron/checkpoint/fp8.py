"""FP8 weights as a Trn2 reads them: float8_e4m3 with 240 for its largest number, and fp32 scales beside it.

Trn2 takes the E4M3 of IEEE style, where exponent field 15 means infinity or NaN. Files and torch have the `fn` flavour,
which uses that field for numbers up to 448. The two give every other code the same value, so a payload without exponent
field 15 is the same bytes and the same numbers in both; that is the only kind written here.

A matrix [out, in] has either one scale for each output channel, [out, 1], or one for each block of 128 x 128,
[ceil(out / 128), ceil(in / 128)]; the matrix is payload times scale.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from functools import cache

import torch

from ..ops.fp8 import LARGEST, STORAGE

MAX = LARGEST
"""Largest number of the payload."""

BLOCK = 128
"""Side of a block of the published FP8 checkpoints."""

STORED = STORAGE
EXPONENT = 0x78  # bits of the exponent field, all set only in codes that must not be written


class Scales(StrEnum):
    """What has a scale of its own.

    CHANNEL is applied to the product, one multiplication an output. BLOCK has to be applied to the weight before the
    product, one multiplication a weight: 17.1 G a step for the MLPs of the 27B, which VectorE of all eight cores of a
    chip does in 4 ms (16-bit) to 17 ms (fp32), modelled, beside the 12.5 ms that reading the weights takes. BLOCK is
    there because the published checkpoints come in it and can be kept exact; CHANNEL is what decodes fast.
    """

    CHANNEL = "channel"
    BLOCK = "block"


@dataclass(slots=True)
class Error:
    """What became of the values of one matrix, added up over its rows.

    Attributes:
        values: matrix elements.
        inexact: elements that are not the source's exactly.
        signal, noise: sums of squares of the source and of the difference.
        absolute, magnitude: sums of absolute values of the difference and of the source.
        worst: largest difference, in parts of the largest magnitude in its row.
    """

    values: int = 0
    inexact: int = 0
    signal: float = 0.0
    noise: float = 0.0
    absolute: float = 0.0
    magnitude: float = 0.0
    worst: float = 0.0

    def add(self, source: torch.Tensor, stored: torch.Tensor) -> None:
        """Count rows. source, stored: fp32 [rows, in]."""
        difference = stored - source
        self.values += source.numel()
        self.inexact += int(torch.count_nonzero(difference))
        self.signal += float(torch.dot(source.flatten(), source.flatten()))
        self.noise += float(torch.dot(difference.flatten(), difference.flatten()))
        size, lost = source.abs(), difference.abs_()
        self.magnitude += float(size.sum())
        self.absolute += float(lost.sum())
        largest = size.amax(1).clamp_min_(torch.finfo(torch.float32).tiny)
        self.worst = max(self.worst, float((lost.amax(1) / largest).max()))

    @property
    def sqnr_db(self) -> float | None:
        """Signal to quantisation noise in dB; None where nothing was lost."""
        if not self.noise or not self.signal:
            return None
        return 10 * math.log10(self.signal / self.noise)

    @property
    def mean_relative(self) -> float:
        """Mean absolute difference over mean magnitude."""
        return self.absolute / self.magnitude if self.magnitude else 0.0

    def as_dict(self) -> dict[str, int | float | None]:
        """For JSON."""
        return {
            "values": self.values,
            "inexact": self.inexact,
            "sqnr_db": self.sqnr_db,
            "mean_relative": self.mean_relative,
            "max_of_channel": self.worst,
        }


def quantise_channels(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Payload and scales for fp32 [out, in], one scale an output channel: its largest magnitude over 240.

    Returns:
        float8 [out, in], fp32 [out, 1]. A channel of zeros has scale 1.
    Raises:
        ValueError: a value is infinite or not a number.
    """
    largest = weight.abs().amax(1, keepdim=True)
    if not torch.isfinite(largest).all():
        raise ValueError("holds values that are infinite or not numbers")
    scale = (largest / MAX).clamp_min_(torch.finfo(torch.float32).tiny).masked_fill_(largest == 0, 1.0)
    # Division can round just past 240; clamping after it keeps the code below exponent field 15.
    return (weight / scale).clamp_(-MAX, MAX).to(STORED), scale


def halve(payload: torch.Tensor) -> torch.Tensor:
    """Half of every number of a float8_e4m3fn tensor: at most 224, so that double the scale gives the same matrix.

    An exponent one lower is exact. Only odd multiples of 2^-9 below 2^-5 have no exact half; they go to the even one.

    Raises:
        ValueError: a value is not a number.
    """
    codes = payload.view(torch.uint8)
    if bool(((codes & 0x7F) == 0x7F).any()):
        raise ValueError("holds values that are not numbers")
    return _halves()[codes.int()].view(STORED)


@cache
def _halves() -> torch.Tensor:
    """uint8 [256]: the code of the half of every code."""
    return (torch.arange(256, dtype=torch.uint8).view(STORED).float() / 2).to(STORED).view(torch.uint8)


def block_shape(weight: tuple[int, ...], scale: tuple[int, ...]) -> tuple[int, int] | None:
    """Rows and columns that share a scale, from the shapes of a matrix and of its scales; None if they do not fit."""
    rows, columns = weight
    if scale == (rows, 1):
        return 1, columns
    if scale == (-(-rows // BLOCK), -(-columns // BLOCK)):
        return BLOCK, BLOCK
    return None


def dequantise(payload: torch.Tensor, scale: torch.Tensor, block: tuple[int, int] = (BLOCK, BLOCK)) -> torch.Tensor:
    """fp32 [out, in]. The first row and column of `payload` are the first of a block of `block` rows and columns."""
    spread = scale.float()
    for dim, size in enumerate(block):
        if spread.shape[dim] > 1:
            spread = spread.repeat_interleave(size, dim).narrow(dim, 0, payload.shape[dim])
    return payload.float() * spread


def is_neuron_range(payload: torch.Tensor) -> bool:
    """Whether no code has exponent field 15, so that Trn2 and the `fn` flavour read the same numbers."""
    return not bool(((payload.view(torch.uint8) & EXPONENT) == EXPONENT).any())
