"""Torch reference of `decode_experts`, and the order in which it reads its weights."""

import torch
import torch.nn.functional as F

from .decode_experts_plan import TILE, ExpertRow, expert_row, inner_of
from .decode_projection_torch import values_of
from .decode_router_torch import decode_router_torch

Scales = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def pack_experts(
    gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor, scales: Scales | None = None
) -> torch.Tensor:
    """Experts of one rank, each a run a partition: [experts, 128, n], see `expert_row`.

    Args:
        gate, up: [experts, intermediate, hidden], bfloat16 or uint8 float8_e4m3 codes, as a checkpoint's shard has
            them.
        down: [experts, hidden, intermediate].
        scales: With codes, of gate, up and down: fp32 [experts, intermediate], the same, and [experts, hidden].

    Raises:
        ValueError: a size that does not divide, scales without codes, or codes without scales.
    """
    experts, inner, hidden = gate.shape
    if inner % 32 or (inner > TILE and inner % TILE) or hidden % TILE:
        raise ValueError(
            f"intermediate size {inner} must be a multiple of 32 up to {TILE}, or of {TILE}, hidden size {hidden} of "
            f"{TILE}: pad with zeros"
        )
    if (gate.dtype == torch.uint8) != (scales is not None):
        raise ValueError(f"weights are {gate.dtype}: uint8 codes have scales, bfloat16 weights have none")
    of = expert_row(inner, hidden // TILE, scales is not None)
    # [experts, blocks, width, 128, lines] -> [experts, 128, lines, blocks, width]
    sides = [w.reshape(experts, of.blocks, of.width, TILE, of.lines).permute(0, 3, 4, 1, 2) for w in (gate, up)]
    parts = [torch.cat(sides, dim=3).reshape(experts, TILE, -1)]
    if scales is not None:
        by_channel = [
            _on_partitions(s.float().reshape(experts, of.blocks, of.width).transpose(1, 2)) for s in scales[:2]
        ]
        by_line = scales[2].float().reshape(experts, TILE, of.lines)
        parts.append(torch.cat((*by_channel, by_line), dim=2).contiguous().view(torch.uint8))
    # [experts, 128, lines, blocks, width] -> [experts, width, blocks, lines, 128]
    back = down.reshape(experts, TILE, of.lines, of.blocks, of.width).permute(0, 4, 3, 2, 1)
    parts.append(_on_partitions(back.reshape(experts, of.width, -1)))
    return torch.cat(parts, dim=2).contiguous()


def pack_shared(
    gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor, cores: int, scales: Scales | None = None
) -> torch.Tensor:
    """The shared expert of one rank, [cores, 128, n]: each core its part of the channels, as `pack_experts` has one.

    Args:
        gate, up: [intermediate, hidden]; down: [hidden, intermediate]; scales: of [intermediate], [intermediate],
            [hidden].

    Raises:
        ValueError: as `pack_experts`, of a core's part.
    """
    if gate.shape[0] % cores:
        raise ValueError(f"intermediate size {gate.shape[0]} must be a multiple of {cores}: pad with zeros")
    back = down.reshape(down.shape[0], cores, -1).transpose(0, 1)
    by = None
    if scales is not None:
        by = (scales[0].reshape(cores, -1), scales[1].reshape(cores, -1), scales[2].expand(cores, -1))
    gate, up = (w.reshape(cores, -1, w.shape[1]) for w in (gate, up))
    return pack_experts(gate, up, back, by)


def unpack_experts(packed: torch.Tensor, lines: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """gate, up [experts, intermediate, hidden] and down [experts, hidden, intermediate] in fp32, scaled.

    Args:
        lines: hidden / 128.
    """
    experts, codes = len(packed), packed.dtype == torch.uint8
    of = expert_row(inner_of(packed.shape[2], lines, codes), lines, codes)
    values = values_of(packed)
    ahead = values[:, :, : 2 * of.inner * lines].reshape(experts, TILE, lines, 2, of.blocks, of.width)
    gate, up = ahead.permute(3, 0, 4, 5, 1, 2).reshape(2, experts, of.inner, lines * TILE)
    back = values[:, : of.width, of.down :].reshape(experts, of.width, of.blocks, lines, TILE)
    down = back.permute(0, 4, 3, 2, 1).reshape(experts, lines * TILE, of.inner)
    if not codes:
        return gate, up, down
    by_gate, by_up, by_line = _scales(packed, of)
    return gate * by_gate.unsqueeze(2), up * by_up.unsqueeze(2), down * by_line.unsqueeze(2)


def decode_experts_torch(
    x: torch.Tensor,
    gamma: torch.Tensor,
    router: torch.Tensor,
    experts: torch.Tensor,
    shared: torch.Tensor,
    shared_gate: torch.Tensor,
    top_k: int = 8,
    renormalise: bool = True,
    ranks: int = 1,
    eps: float = 1e-6,
) -> torch.Tensor:
    """See `decode_experts`: what this rank brings to the sum over ranks, fp32 [rows, hidden]."""
    wide, lines = x.float(), gamma.shape[1]
    normed = wide * gamma.reshape(-1) * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    normed = normed.to(torch.bfloat16).float()
    weights, chosen = decode_router_torch(x, gamma, router, top_k, renormalise, eps)
    gate, up, down = unpack_experts(experts, lines)
    out = wide / ranks
    for expert in chosen.unique().tolist():
        share = (weights * (chosen == expert)).sum(1, keepdim=True)
        out = out + _expert(normed, gate[expert], up[expert], down[expert], share)
    every = torch.sigmoid(normed @ shared_gate.float().reshape(-1, 1))
    for part in zip(*unpack_experts(shared, lines), strict=True):
        out = out + _expert(normed, *part, every)
    return out


def _expert(
    normed: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor, share: torch.Tensor
) -> torch.Tensor:
    h = F.silu(normed @ gate.T) * (normed @ up.T) * share
    return h.to(torch.bfloat16).float() @ down.T


def _on_partitions(part: torch.Tensor) -> torch.Tensor:
    """[experts, n, m] with zeros up to 128 of n."""
    return F.pad(part, (0, 0, 0, TILE - part.shape[1]))


def _scales(packed: torch.Tensor, of: ExpertRow) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of gate, up [experts, intermediate] and down [experts, hidden]."""
    factors = packed[:, :, of.down - of.factors : of.down].contiguous().view(torch.float32)
    gate, up = (
        factors[:, : of.width, n * of.blocks : (n + 1) * of.blocks].transpose(1, 2).flatten(1) for n in range(2)
    )
    return gate, up, factors[:, :, 2 * of.blocks :].flatten(1)
