"""Numbers of eight bits as a Trn2 and a CPU both read them: E4M3 of at most 240.

Trn2 takes the E4M3 of IEEE style, where exponent field 15 means infinity or NaN; torch has the `fn` flavour, which uses
that field for numbers up to 448. All other codes mean the same in both.
"""

from __future__ import annotations

import torch

LARGEST = 240.0
"""Largest number of IEEE style: above it begins exponent field 15."""

STORAGE = torch.float8_e4m3fn


def rounded(x: torch.Tensor, rate: torch.Tensor) -> torch.Tensor:
    """x times a rate, computed in fp32, to the nearest number there is, halves to the even one: in x's dtype.

    Every such number is one of bfloat16 and of fp32. What is beyond the largest becomes the largest.

    Args:
        rate: fp32, of a shape that spreads over x's.
    """
    return (x.float() * rate).clamp(-LARGEST, LARGEST).to(STORAGE).to(x.dtype)


def replace_rows(memory: torch.Tensor, index: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """`memory.index_copy(0, index, rows)`, rows being cast to memory's dtype. torch has none of FP8 on a CPU."""
    rows = rows.to(memory.dtype)
    if memory.dtype != STORAGE or memory.device.type != "cpu":
        return memory.index_copy(0, index, rows)
    return memory.view(torch.uint8).index_copy(0, index, rows.view(torch.uint8)).view(STORAGE)


def replace_rows_in_place(memory: torch.Tensor, index: torch.Tensor, rows: torch.Tensor) -> None:
    """The same, written to memory."""
    rows = rows.to(memory.dtype)
    if memory.dtype == STORAGE and memory.device.type == "cpu":
        memory, rows = memory.view(torch.uint8), rows.view(torch.uint8)
    memory.index_copy_(0, index, rows)
