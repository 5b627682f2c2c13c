"""Paged attention on a device, by an NKI kernel."""

from __future__ import annotations

import torch

from nki_kernels.paged_attention import paged_attention

from ..launch import Launch


def paged_attention_nki(
    launch: Launch,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cache: tuple[torch.Tensor, torch.Tensor],
    table: torch.Tensor,
    held: torch.Tensor,
    dma_transposes: bool = True,
    begin: int = 0,
) -> torch.Tensor:
    """Tensors and `begin` as in `Kernels.attend`. dma_transposes: the DMA engines transpose, else TensorE."""
    # The kernel takes one block at least; of the scratch block no token is held.
    table = table if table.shape[1] else table.new_zeros(len(table), 1)
    how = {"turns_by_dma": dma_transposes, "begin": begin}
    out: torch.Tensor = launch(paged_attention, q, k, v, *cache, table, held.view(1, -1), **how)
    return out
