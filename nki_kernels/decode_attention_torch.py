"""Torch reference of `decode_attention`, and the order in which it reads its weights."""

from dataclasses import dataclass

import torch

from .decode_projection_torch import TILE, by_input, pack_columns, pack_rows, values_of
from .paged_attention_torch import paged_attention_torch

SIZE, BLOCK = 256, 64


@dataclass(frozen=True)
class PackedAttention:
    """Weights of one rank as `decode_attention` takes them.

    Attributes:
        into, out: bfloat16 or uint8 codes [cores, 128, n].
        q_factor, k_factor: fp32 [128, 2].
        into_scale, out_scale: fp32 [cores, channels / cores] and [cores, hidden / cores]; None without codes.
    """

    into: torch.Tensor
    out: torch.Tensor
    q_factor: torch.Tensor
    k_factor: torch.Tensor
    into_scale: torch.Tensor | None
    out_scale: torch.Tensor | None


def pack(
    into: torch.Tensor,
    out: torch.Tensor,
    q_norm: torch.Tensor,
    k_norm: torch.Tensor,
    cores: int,
    scales: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> PackedAttention:
    """Weights of one rank in the order of their use.

    Args:
        into: [(queries, gates, keys, values) * 256, hidden], bfloat16 or uint8 float8_e4m3 codes.
        out: [hidden, queries * 256].
        q_norm, k_norm: [256], the norms' full factors.
        cores: Physical cores that a rank has.
        scales: With codes, of `into` and `out`: fp32 [channels] and [hidden].

    Raises:
        ValueError: a size that does not divide, scales without codes, or codes without scales.
    """
    if (into.dtype == torch.uint8) != (scales is not None):
        raise ValueError(f"weights are {into.dtype}: uint8 codes have scales, bfloat16 weights have none")
    if into.shape[0] % (2 * SIZE) or q_norm.shape != (SIZE,) or k_norm.shape != (SIZE,):
        raise ValueError(f"{into.shape[0]} channels and norms of {q_norm.shape[0]}: heads have {SIZE} channels")
    of_into, of_out = (None, None) if scales is None else (s.float().reshape(cores, -1).contiguous() for s in scales)
    q_factor, k_factor = pack_factor(q_norm), pack_factor(k_norm)
    return PackedAttention(pack_columns(into, cores), pack_rows(out, cores), q_factor, k_factor, of_into, of_out)


def pack_factor(norm: torch.Tensor) -> torch.Tensor:
    """The full factor of a norm of queries or keys, [256], as fp32 [128, 2]: channel 128 n + p at [p, n]."""
    return norm.float().reshape(2, TILE).T.contiguous()


def decode_attention_torch(
    x: torch.Tensor,
    gamma: torch.Tensor,
    into: torch.Tensor,
    out: torch.Tensor,
    q_factor: torch.Tensor,
    k_factor: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    table: torch.Tensor,
    start: torch.Tensor,
    places: torch.Tensor,
    into_scale: torch.Tensor | None = None,
    out_scale: torch.Tensor | None = None,
    ranks: int = 1,
    eps: float = 1e-6,
    begin: int = 0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See `decode_attention`: what this rank brings to the sum over ranks, fp32 [rows, hidden], and new caches."""
    rows, batch, key_heads, dtype = len(x), len(table), k_cache.shape[1], k_cache.dtype
    normed = x.float() * gamma.reshape(-1) * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + eps)
    made = normed.to(torch.bfloat16).float() @ by_input(values_of(into), x.shape[1])
    made = (made * (1.0 if into_scale is None else into_scale.reshape(-1))).reshape(rows, -1, SIZE)
    heads = made.shape[1] // 2 - key_heads
    q, gate, k, v = made.split((heads, heads, key_heads, key_heads), dim=1)
    turns = cos.float().unsqueeze(1), sin.float().unsqueeze(1)
    q, k = (
        rotated(n * torch.rsqrt(n.square().mean(-1, keepdim=True) + eps) * f.T.reshape(-1), *turns).to(dtype)
        for n, f in ((q, q_factor), (k, k_factor))
    )
    v = v.to(dtype)
    old_k, old_v = (cache.reshape(-1, BLOCK, key_heads, SIZE) for cache in (k_cache, v_cache))
    new_q, new_k, new_v = (n.reshape(batch, rows // batch, -1, SIZE) for n in (q, k, v))
    mixed = paged_attention_torch(new_q.float(), new_k, new_v, old_k, old_v, table, start, begin)
    opened = (
        (mixed.reshape(rows, heads, SIZE) * torch.sigmoid(gate))
        .to(torch.bfloat16)
        .float()
        .reshape(rows, 2 * heads, TILE)
    )
    weight = by_input(values_of(out), heads * SIZE)
    y = opened.transpose(1, 2).reshape(rows, -1) @ weight * (1.0 if out_scale is None else out_scale.reshape(-1))
    kept = places[:, 0] < len(k_cache)
    where = places[kept, 0].long()
    return y + x.float() / ranks, k_cache.index_copy(0, where, k[kept]), v_cache.index_copy(0, where, v[kept])


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Channels i and i + N of [..., 256] turned together, i < N."""
    pairs = cos.shape[-1]
    first, second, rest = x.split((pairs, pairs, x.shape[-1] - 2 * pairs), dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1)
