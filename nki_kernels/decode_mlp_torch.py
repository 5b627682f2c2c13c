"""Torch reference of `decode_mlp`, and the order in which it reads its weights."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .decode_mlp_plan import TILE, parts
from .fp8_mlp_torch import decode_e4m3


@dataclass(frozen=True)
class PackedMlp:
    """Weights of one rank as `decode_mlp` takes them.

    Attributes:
        gate_up, down: bfloat16 or uint8 codes [cores, 128, n].
        gate_up_scale, down_scale: fp32 [cores, 128, n] and [cores, hidden / cores]; None without codes.
    """

    gate_up: torch.Tensor
    down: torch.Tensor
    gate_up_scale: torch.Tensor | None
    down_scale: torch.Tensor | None


def pack_gamma(weight: torch.Tensor) -> torch.Tensor:
    """A norm's full factor [hidden] as [128, hidden / 128]: channel p * lines + n on partition p of line n."""
    return weight.float().reshape(TILE, -1)


def pack(
    gate: torch.Tensor,
    up: torch.Tensor,
    down: torch.Tensor,
    cores: int,
    scales: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None,
) -> PackedMlp:
    """Weights of one rank in the order of their use: a partition's part of any piece is one run.

    Args:
        gate, up: [intermediate, hidden], bfloat16 or uint8 float8_e4m3 codes, as a checkpoint's shard has them.
        down: [hidden, intermediate].
        cores: Physical cores that a rank has.
        scales: With codes, of gate, up and down: fp32 [intermediate], [intermediate], [hidden].

    Raises:
        ValueError: a size that does not divide, scales without codes, or codes without scales.
    """
    inner, hidden = gate.shape
    if inner % (TILE * cores) or hidden % (TILE * cores):
        raise ValueError(
            f"intermediate size {inner} and hidden size {hidden} must be multiples of {TILE * cores}: pad with zeros"
        )
    if (gate.dtype == torch.uint8) != (scales is not None):
        raise ValueError(f"weights are {gate.dtype}: uint8 codes have scales, bfloat16 weights have none")
    lines, blocks = hidden // TILE, inner // TILE // cores
    gate_up, downs, factors = [], [], []
    for core in range(cores):
        pieces = []
        rows: list[torch.Tensor] = []
        factor: list[torch.Tensor] = []
        for order in _orders(blocks):
            mine = core * blocks + order
            # [blocks, 128, 128, lines] -> [128 of hidden, lines, channels], a chunk after the other
            sides = [w.reshape(-1, TILE, TILE, lines)[mine.T.reshape(-1)].permute(2, 3, 0, 1) for w in (gate, up)]
            pieces.append(torch.cat(sides, dim=2).reshape(TILE, -1))
            rows.extend((who * blocks + order).reshape(-1) for who in (core, 1 - core)[:cores])
            factor.extend(s.float().reshape(-1, TILE)[mine.reshape(-1)].T for s in (scales or ())[:2])
        gate_up.append(torch.cat(pieces, dim=1))
        # [own, blocks, 128] -> [128 of intermediate, blocks in order, own]
        own = down.reshape(cores, hidden // cores, -1, TILE)[core][:, torch.cat(rows)]
        downs.append(own.permute(2, 1, 0).reshape(TILE, -1))
        factors.extend([torch.cat(factor, dim=1)] if factor else [])
    return PackedMlp(
        torch.stack(gate_up),
        torch.stack(downs),
        torch.stack(factors) if factors else None,
        None if scales is None else scales[2].float().reshape(cores, -1).contiguous(),
    )


def _orders(blocks: int) -> list[torch.Tensor]:
    """Blocks of each part, [blocks a chunk, chunks]: row by row they are in the order of `down`."""
    out, start = [], 0
    for chunks, width in parts(blocks):
        out.append(start + torch.arange(chunks * width).reshape(chunks, width).T)
        start += chunks * width
    return out


def decode_mlp_torch(
    x: torch.Tensor,
    gamma: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    gate_up_scale: torch.Tensor | None = None,
    down_scale: torch.Tensor | None = None,
    ranks: int = 1,
    eps: float = 1e-6,
) -> torch.Tensor:
    """See `decode_mlp`: what this rank brings to the sum over ranks, fp32 [rows, hidden]."""
    wide = x.float()
    root = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    normed = (wide * gamma.reshape(-1) * root).to(torch.bfloat16).float()
    gate, up, back = unpack(PackedMlp(gate_up, down, gate_up_scale, down_scale), gamma.shape[1])
    h = (F.silu(normed @ gate.T) * (normed @ up.T)).to(torch.bfloat16).float()
    return h @ back.T + wide / ranks


def unpack(packed: PackedMlp, lines: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """gate, up [intermediate, hidden] and down [hidden, intermediate] in fp32 of what `pack` gives, scaled.

    Args:
        lines: hidden / 128.
    """
    values = decode_e4m3(torch.arange(256).to(torch.uint8))
    gate_up, down = (values[w.int()] if w.dtype == torch.uint8 else w.float() for w in (packed.gate_up, packed.down))
    cores, hidden = gate_up.shape[0], lines * TILE
    blocks = gate_up.shape[2] // (2 * TILE * lines)
    sides = [torch.empty(cores * blocks, TILE, hidden) for _ in range(2)]
    back = torch.empty(cores, hidden // cores, cores * blocks, TILE)
    for core in range(cores):
        at, line, factor = 0, 0, 0
        for order in _orders(blocks):
            count = order.numel()
            size = lines * 2 * count * TILE
            mine, part = core * blocks + order, gate_up[core, :, at : at + size].reshape(TILE, lines, 2, count, TILE)
            for side, weight in enumerate(sides):
                weight[mine.T.reshape(-1)] = part[:, :, side].permute(2, 3, 0, 1).reshape(count, TILE, hidden)
                if packed.gate_up_scale is not None:
                    scale = packed.gate_up_scale[core, :, factor : factor + count]
                    weight[mine.reshape(-1)] *= scale.T.unsqueeze(2)
                    factor += count
            at += size
            for who in (core, 1 - core)[:cores]:
                rows = down[core].reshape(TILE, cores * blocks, -1)[:, line : line + count]
                back[core][:, (who * blocks + order).reshape(-1)] = rows.permute(2, 1, 0)
                line += count
    whole = back.reshape(hidden, -1)
    if packed.down_scale is not None:
        whole = whole * packed.down_scale.reshape(-1, 1)
    return sides[0].reshape(-1, hidden), sides[1].reshape(-1, hidden), whole
