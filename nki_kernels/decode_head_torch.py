"""Torch reference of `decode_head`, and the order in which it reads its weights."""

import torch

from .decode_head_plan import RUN, TOGETHER, runs_of_chunks
from .decode_projection_torch import TILE, values_of

EIGHT = 8


def tokens_of_chunks(own: int) -> list[torch.Tensor]:
    """A core's tokens chunk by chunk, int64, counted from the core's first."""
    counts = runs_of_chunks(own)
    return [
        ((torch.arange(count) * len(counts) + chunk).unsqueeze(1) * RUN + torch.arange(RUN)).flatten()
        for chunk, count in enumerate(counts)
    ]


def pack_head(weight: torch.Tensor, cores: int) -> torch.Tensor:
    """A rank's [tokens, hidden] as `decode_head` reads it: [cores, 128, hidden / 128 * tokens / cores].

    Raises:
        ValueError: a size that does not divide.
    """
    tokens, hidden = weight.shape
    if tokens % (RUN * cores) or tokens < RUN * TOGETHER * cores or hidden % TILE:
        raise ValueError(
            f"{tokens} tokens must be {RUN * TOGETHER * cores} at least and a multiple of {RUN * cores}, hidden size "
            f"{hidden} a multiple of {TILE}"
        )
    chunks = tokens_of_chunks(tokens // cores)
    parts = []
    for core in weight.reshape(cores, tokens // cores, TILE, -1):
        # Four chunks at a time: [tokens, 128, lines] -> [128, lines, tokens]
        blocks = [torch.cat(chunks[n : n + TOGETHER]) for n in range(0, len(chunks), TOGETHER)]
        parts.append(torch.cat([core[block].permute(1, 2, 0).reshape(TILE, -1) for block in blocks], dim=1))
    return torch.stack(parts)


def pack_scale(scale: torch.Tensor, cores: int) -> torch.Tensor:
    """A rank's scales [tokens] as `decode_head` reads them: fp32 [cores, tokens / cores]."""
    order = torch.cat(tokens_of_chunks(len(scale) // cores))
    return scale.float().reshape(cores, -1)[:, order].contiguous()


def decode_head_torch(
    x: torch.Tensor,
    gamma: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor | None = None,
    rounds: int = 2,
    eps: float = 1e-6,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """See `decode_head`."""
    wide, lines, cores = x.float(), gamma.shape[1], weight.shape[0]
    normed = wide * gamma.reshape(-1) * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    normed = normed.to(torch.bfloat16).float().reshape(len(x), TILE, lines)
    own = weight.shape[2] // lines
    chunks = tokens_of_chunks(own)
    logits = torch.empty(len(x), cores, own)
    for core in range(cores):
        at, first = 0, 0
        for n in range(0, len(chunks), TOGETHER):
            block = torch.cat(chunks[n : n + TOGETHER])
            part = values_of(weight[core, :, at : at + lines * len(block)]).reshape(TILE, lines, -1)
            made = torch.einsum("rpn,pnt->rt", normed, part)
            logits[:, core, block] = made if scale is None else made * scale[core, first : first + len(block)]
            at, first = at + lines * len(block), first + len(block)
    values, ids, bounds = [], [], []
    for core in range(cores):
        for chunk in chunks:
            # Of equal logits the lower token first: chunks are in ascending order.
            found, places = torch.sort(logits[:, core, chunk], dim=1, descending=True, stable=True)
            values.append(found[:, : EIGHT * rounds])
            ids.append(chunk[places[:, : EIGHT * rounds]] + core * own)
            bounds.append(values[-1][:, -1])
    least = torch.stack(bounds, dim=1).reshape(len(x), cores, -1, TOGETHER).amax(2)
    groups = TOGETHER if len(x) <= 32 else TOGETHER // 2
    least = least.reshape(len(x), cores, -1, groups).amax(2)
    candidates, tokens = torch.cat(values, dim=1), torch.cat(ids, dim=1).int()
    return logits.reshape(len(x), -1), candidates, tokens, least.reshape(len(x), -1)
