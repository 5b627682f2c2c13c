"""The fused kernels of a decode step on a device: residual in, residual out, weights in the order of their use."""

from __future__ import annotations

import torch

from nki_kernels.decode_mlp import decode_mlp
from nki_kernels.decode_mlp_torch import PackedMlp, pack_gamma
from nki_kernels.decode_projection import gated_norm_projection, norm_projection

from ..launch import Launch, summed_over


def feed_forward_nki(
    launch: Launch, x: torch.Tensor, gamma: torch.Tensor, weights: PackedMlp, ranks: int, eps: float
) -> torch.Tensor:
    """x + the feed-forward block of the norm of x, summed over the ranks.

    Args:
        x: bfloat16 [batch, tokens, hidden]; at most `TOKENS` tokens in all.
        gamma: fp32 [hidden], the norm's full factor.
        weights: of this rank.
    Returns:
        Of x's shape and type.
    """
    held = weights.gate_up, weights.down, weights.gate_up_scale, weights.down_scale
    y: torch.Tensor = launch(decode_mlp, x.flatten(0, 1), pack_gamma(gamma), *held, eps=eps, **summed_over(ranks))
    return y.view(x.shape)


def delta_net_input_nki(
    launch: Launch,
    x: torch.Tensor,
    gamma: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor | None,
    gates: torch.Tensor,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The norm of x times a DeltaNet mixer's input projections.

    Args:
        x, gamma: as in `feed_forward_nki`.
        weight, scale: of q, k, v, z, in the order of `pack_columns`; scale with codes only.
        gates: bfloat16, of b and a, likewise.
    Returns:
        bfloat16 [batch, tokens, channels], those of the weight and those of the gates.
    """
    beside = {"few": gates, "has_few": True}
    y, z = launch(norm_projection, x.flatten(0, 1), pack_gamma(gamma), weight, scale, eps=eps, **beside)
    return y.view(*x.shape[:2], -1), z.view(*x.shape[:2], -1)


def delta_net_output_nki(
    launch: Launch,
    x: torch.Tensor,
    mixed: torch.Tensor,
    gate: torch.Tensor,
    factor: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor | None,
    ranks: int,
    eps: float,
) -> torch.Tensor:
    """x + the gated norm of the delta rule's output, projected and summed over the ranks.

    Args:
        x: bfloat16 [batch, tokens, hidden].
        mixed: fp32 [batch, tokens, heads, 128]; gate: bfloat16, of its shape.
        factor: [128], of the gated norm.
        weight, scale: in the order of `pack_rows`; scale with codes only.
    Returns:
        Of x's shape and type.
    """
    heads = mixed.flatten(0, 1), gate.flatten(0, 1)
    held = factor.float().view(1, -1), weight, scale
    y: torch.Tensor = launch(gated_norm_projection, x.flatten(0, 1), *heads, *held, eps=eps, **summed_over(ranks))
    return y.view(x.shape)
