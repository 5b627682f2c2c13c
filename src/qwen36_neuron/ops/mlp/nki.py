"""The MLP on a device, by an NKI kernel that reads FP8 weights."""

from __future__ import annotations

import torch

from nki_kernels.fp8_mlp import COLUMNS, fp8_mlp

from ..launch import Launch

MLP_TOKENS = COLUMNS
"""Tokens that the kernel takes at most."""


def fp8_mlp_nki(
    launch: Launch, x: torch.Tensor, codes: tuple[torch.Tensor, ...], scales: tuple[torch.Tensor, ...]
) -> torch.Tensor:
    """SwiGLU MLP with FP8 weights, of one rank.

    Args:
        x: bfloat16 [tokens, hidden], at most MLP_TOKENS.
        codes, scales: of gate, up and down, as `nki_kernels.fp8_mlp` takes them.
    Returns:
        fp32 [tokens, hidden]: the sum of what the cores give.
    """
    parts: torch.Tensor = launch(fp8_mlp, x, *codes, *scales)
    return parts.sum(0)
