"""The fused kernels of a decode step among those that are validated: one rank, whose sum over ranks is its own."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from .kernels import Case, D

ROWS, HIDDEN = 5, 512
BAR = 1e-2
"""Norms and gates are rounded to bfloat16; where the order of a sum turns a rounding, one factor is 2^-8 off."""


def decode_cases(cores: int, random: torch.Generator) -> Iterator[Case]:
    """Each kernel with bfloat16 weights and with FP8 codes."""
    from nki_kernels.decode_mlp import decode_mlp
    from nki_kernels.decode_mlp_torch import decode_mlp_torch, pack, pack_gamma
    from nki_kernels.decode_projection import gated_norm_projection, norm_projection
    from nki_kernels.decode_projection_torch import (
        gated_norm_projection_torch,
        norm_projection_torch,
        pack_columns,
        pack_rows,
    )

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random)

    def matrix(rows: int, columns: int, codes: bool) -> torch.Tensor:
        """bfloat16, or codes of float8_e4m3 below 16, either sign."""
        if not codes:
            return (0.06 * normal(rows, columns)).to(torch.bfloat16)
        magnitude = torch.randint(0, 0x58, (rows, columns), generator=random, dtype=torch.uint8)
        return magnitude | torch.randint(0, 2, (rows, columns), generator=random, dtype=torch.uint8) << 7

    heads, inner, channels = 3 * cores, 3 * D * cores, 300 * cores
    x, gamma = normal(ROWS, HIDDEN), pack_gamma(1 + 0.2 * normal(HIDDEN))
    mixed, gate, factor = normal(ROWS, heads, D), normal(ROWS, heads, D).to(torch.bfloat16), 1 + 0.2 * normal(1, D)
    for codes in (False, True):
        name = f"{ROWS} rows, {'float8' if codes else 'bfloat16'}"
        scales = [0.01 + 0.01 * normal(n).abs() for n in (inner, inner, HIDDEN, channels)] if codes else None
        of_columns, of_rows = (scales[n].view(cores, -1) if scales else None for n in (3, 2))
        weights = (matrix(inner, HIDDEN, codes), matrix(inner, HIDDEN, codes), matrix(HIDDEN, inner, codes))
        packed = pack(*weights, cores, None if scales is None else (scales[0], scales[1], scales[2]))
        held = packed.gate_up, packed.down, packed.gate_up_scale, packed.down_scale
        yield Case(name, decode_mlp, decode_mlp_torch, (x, gamma, *held), BAR)
        into = pack_columns(matrix(channels, HIDDEN, codes), cores)
        few = pack_columns(matrix(2 * heads, HIDDEN, False), cores)
        yield Case(name, norm_projection, norm_projection_torch, (x, gamma, into, of_columns), BAR)
        beside = (x, gamma, into, of_columns, 1e-6, few)
        yield Case(f"{name}, gates", norm_projection, norm_projection_torch, beside, BAR)
        out = pack_rows(matrix(HIDDEN, heads * D, codes), cores)
        args = (x, mixed, gate, factor, out, of_rows)
        yield Case(name, gated_norm_projection, gated_norm_projection_torch, args, BAR)
