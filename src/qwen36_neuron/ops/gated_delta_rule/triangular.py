"""Inverse of a unit lower triangular matrix that is safe on any input.

The inverse T = (I + A)^-1 that the delta rule needs is tame, but the powers of A are not: with correlated keys
|A^32| passes 1e8, so every method that forms them (Neumann series, repeated squaring) loses all its digits. Here only
products of parts of T with parts of A are formed.
"""

from __future__ import annotations

from functools import lru_cache

import torch

from ..kept import may_keep

LEAF = 16
"""Size up to which the recursion runs on whole tiles; above it, block by block."""


def _level_masks(n: int, device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """For w = 1, 2, 4 ... n/2: ones in the lower left w x w block of every diagonal 2w x 2w block of an n x n tile."""
    row, col = torch.arange(n, device=device)[:, None], torch.arange(n, device=device)[None, :]
    masks = []
    w = 1
    while w < n:
        same = torch.bitwise_xor(row, col) < 2 * w
        masks.append((same & (torch.bitwise_and(row, w) != 0) & (torch.bitwise_and(col, w) == 0)).to(dtype))
        w *= 2
    return tuple(masks)


@lru_cache(maxsize=32)
def _cpu_level_masks(n: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """`_level_masks`, made once. For CPU alone: kept while one graph is traced, they would be inputs of the next."""
    with torch.inference_mode(False):  # else whoever asks first decides whether autograd may save them
        return _level_masks(n, torch.device("cpu"), dtype)


def unit_lower_inverse(a: torch.Tensor) -> torch.Tensor:
    """(I + a)^-1 by the masked 2x2 recursion.

    With the diagonal blocks of size w inverted, the inverse of [[P, 0], [R, Q]] is [[P^-1, 0], [-Q^-1 R P^-1, Q^-1]]:
    on a whole tile, T <- T - T (M_w * a) T for w = 1, 2, 4 ..., M_w choosing every R at once.

    Args:
        a: [..., n, n], n a power of two of at least LEAF; only the part below the diagonal is read.
    Returns:
        [..., n, n] of a's type, unit lower triangular.
    """
    n, lead = a.shape[-1], a.shape[:-2]
    blocks = a.reshape(-1, n // LEAF, LEAF, n // LEAF, LEAF).diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2)
    inverse = _leaf_inverse(blocks.reshape(-1, LEAF, LEAF))
    w = LEAF
    flat = a.reshape(-1, n, n)
    while w < n:
        pairs = inverse.view(-1, 2, w, w)
        lower = flat.view(-1, n // (2 * w), 2, w, n // (2 * w), 2, w)[:, :, 1, :, :, 0].diagonal(dim1=1, dim2=3)
        lower = lower.permute(0, 3, 1, 2).reshape(-1, w, w)
        first, second = pairs[:, 0], pairs[:, 1]
        inverse = a.new_zeros(pairs.shape[0], 2 * w, 2 * w)
        inverse[:, :w, :w] = first
        inverse[:, w:, w:] = second
        inverse[:, w:, :w] = torch.bmm(second, torch.bmm(lower, first)).neg_()
        w *= 2
    return inverse.view(*lead, n, n)


def _leaf_inverse(a: torch.Tensor) -> torch.Tensor:
    """The recursion on whole tiles: [tiles, LEAF, LEAF] in and out. The first level needs no product: T is I there."""
    masks = _cpu_level_masks(LEAF, a.dtype) if may_keep(a) else _level_masks(LEAF, a.device, a.dtype)
    inverse = torch.eye(LEAF, device=a.device, dtype=a.dtype) - masks[0] * a
    for mask in masks[1:]:
        inverse = inverse - torch.bmm(inverse, torch.bmm(mask * a, inverse))
    return inverse
