"""The fused kernels of a decode step on a device: residual in, residual out, weights in the order of their use."""

from __future__ import annotations

from typing import NamedTuple

import torch

from nki_kernels.decode_attention import decode_attention
from nki_kernels.decode_attention_torch import PackedAttention
from nki_kernels.decode_delta_net import decode_delta_net
from nki_kernels.decode_head import decode_head
from nki_kernels.decode_mlp import decode_mlp
from nki_kernels.decode_mlp_projection import decode_mlp_projection
from nki_kernels.decode_mlp_projection_torch import pack_gamma_blocks
from nki_kernels.decode_mlp_torch import PackedMlp, pack_gamma
from nki_kernels.decode_projection import gated_norm_projection, norm_projection

from ..banks import Batch, row_entries, source_entries
from ..launch import Launch, summed_over
from .rows import PagedRows
from .sizes import TOKENS


class Searched(NamedTuple):
    """A rank's logits and the most likely tokens among them.

    Attributes:
        logits: fp32 [rows, vocab / ranks].
        values, ids: fp32 and int32 [rows, n], candidates' logits and tokens, counted from the rank's first. Of equal
            logits a chunk's lower tokens are among them first, so the first of the most likely ones is.
        bound: fp32 [rows, 1]: the logit of no token that is not among them is above it.
    """

    logits: torch.Tensor
    values: torch.Tensor
    ids: torch.Tensor
    bound: torch.Tensor


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


def feed_forward_and_input_nki(
    launch: Launch,
    x: torch.Tensor,
    gamma: torch.Tensor,
    weights: PackedMlp,
    next_gamma: torch.Tensor,
    into: torch.Tensor,
    scale: torch.Tensor | None,
    gates: torch.Tensor,
    ranks: int,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`feed_forward_nki`, and of its result what `delta_net_input_nki` gives.

    Args:
        x, gamma, weights: as in `feed_forward_nki`.
        next_gamma: fp32 [hidden], of the norm before the projections.
        into, scale, gates: of these, as in `delta_net_input_nki`, in the order of `pack_blocks`.
    """
    held = weights.gate_up, weights.down, pack_gamma_blocks(next_gamma), into
    scales = weights.gate_up_scale, weights.down_scale, scale
    how = {"few": gates, "has_few": True, "eps": eps, **summed_over(ranks)}
    parts = launch(decode_mlp_projection, x.flatten(0, 1), pack_gamma(gamma), *held, *scales, **how)
    y, qkvz, ba = (part.view(*x.shape[:2], -1) for part in parts)
    return y, qkvz, ba


def attention_nki(
    launch: Launch,
    x: torch.Tensor,
    gamma: torch.Tensor,
    weights: PackedAttention,
    rotary: tuple[torch.Tensor, torch.Tensor],
    rows: PagedRows,
    ranks: int,
    eps: float,
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """x + gated attention of the norm of x, summed over the ranks; new keys and values are in the cache then.

    Args:
        x: bfloat16 [batch, tokens, hidden]; at most `TOKENS` tokens in all.
        gamma: fp32 [hidden], the norm's full factor.
        weights: of this rank.
        rotary: (cos, sin) of the tokens' positions, [batch, tokens, 1, pairs].
    Returns:
        Of x's shape and type, and the cache, which is the one that was given.
    """
    blocks, block, heads, size = rows.cache[0].shape
    turns = (table.flatten(0, 2) for table in rotary)
    places = (memory.view(blocks * block, heads, size) for memory in rows.cache)
    held = weights.into, weights.out, weights.q_factor, weights.k_factor
    where = rows.table, rows.held.view(1, -1), rows.places
    args = (x.flatten(0, 1), pack_gamma(gamma), *held, *turns, *places, *where, weights.into_scale, weights.out_scale)
    y, keys, values = launch(decode_attention, *args, eps=eps, **summed_over(ranks))
    return y.view(x.shape), (keys.view(blocks, block, heads, size), values.view(blocks, block, heads, size))


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


class StepWeights(NamedTuple):
    """Of a DeltaNet mixer of one rank, but for its input projections.

    Attributes:
        taps: [channels, 4], the convolution's, of the graph's type.
        rates, biases: fp32 [heads], what decays are made with.
        factor: [128], of the gated norm.
        out, scale: in the order of `pack_rows`; scale with codes only.
    """

    taps: torch.Tensor
    rates: torch.Tensor
    biases: torch.Tensor
    factor: torch.Tensor
    out: torch.Tensor
    scale: torch.Tensor | None


def delta_net_step_nki(
    launch: Launch,
    x: torch.Tensor,
    qkvz: torch.Tensor,
    ba: torch.Tensor,
    banks: tuple[torch.Tensor, torch.Tensor],
    weights: StepWeights,
    batch: Batch,
    ranks: int,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x + a DeltaNet mixer of one token a row, summed over the ranks; windows and states are in the banks then.

    Args:
        x: bfloat16 [rows, 1, hidden], as many rows as `sequences_at_once` says at most.
        qkvz, ba: what is projected in, as `delta_net_input_nki` gives it.
        banks: of windows, [entries, 3, channels], and of states, fp32 [entries, heads, 128, 128].
    Returns:
        Of x's shape and type, and the banks, which are those that were given.
    """
    windows, states = banks
    where = source_entries(batch).view(1, -1), row_entries(states, batch)
    decays = torch.stack((weights.rates, weights.biases))
    held = weights.taps, decays, weights.factor.float().view(1, -1), weights.out
    args = (*(each.flatten(0, 1) for each in (x, qkvz, ba)), windows, states, *held, *where, weights.scale)
    y, windows, states = launch(decode_delta_net, *args, eps=eps, **summed_over(ranks))
    return y.view(x.shape), windows, states


def head_nki(
    launch: Launch, x: torch.Tensor, gamma: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor | None, eps: float
) -> Searched:
    """The head of the norm of x, and candidates of each part of its tokens.

    Args:
        x: bfloat16 [rows, hidden], any number of rows.
        gamma: fp32 [hidden], the norm's full factor.
        weight, scale: of this rank, in the order of `pack_head` and `pack_scale`; scale with codes only.
    """
    factor, parts = pack_gamma(gamma), []
    for rows in x.split(TOKENS):
        logits, values, ids, bounds = launch(decode_head, rows, factor, weight, scale, eps=eps)
        parts.append(Searched(logits, values, ids, bounds.amax(1, keepdim=True)))
    return parts[0] if len(parts) == 1 else Searched(*map(torch.cat, zip(*parts, strict=True)))
