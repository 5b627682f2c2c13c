"""A graph around a kernel that changes nothing: what is right alone must be right in it.

Kernels have been reported that are right by themselves and wrong, or never end, behind twenty matrix products and six
doublings in one graph. The products here are by a permutation and its inverse in turn, so that every value that comes
in goes out again, to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

PRODUCTS, DOUBLINGS = 20, 6
WIDE = 512
"""Above so many columns there are two products, not twenty."""

Call = Callable[..., Tensor]


def around(call: Call, other: Call, arguments: Sequence[Tensor], device: torch.device | None) -> tuple[Tensor, ...]:
    """`call(*arguments)` in the middle of a larger graph, with a second launch beside it.

    Args:
        call: launches the kernel.
        other: launches another kernel, on a float32 matrix.
        arguments: on the host.
        device: where the graph runs; None for the host.
    Returns:
        What the kernel gave, what the other one gave, and the arguments as the kernel saw them.
    """
    nothing = _on(torch.zeros(1, dtype=torch.int32), device)
    seen = tuple(_through(_on(argument, device), nothing, device) for argument in arguments)
    beside = other(_through(_on(torch.ones(128, 64), device), nothing, device))
    return (_through(call(*seen), nothing, device), _through(beside, nothing, device), *seen)


def _through(x: Tensor, nothing: Tensor, device: torch.device | None) -> Tensor:
    """`x` after products by a permutation and back, doublings and one division; whole numbers have 0 added to them."""
    if not x.is_floating_point():
        return x + nothing.to(x.dtype)
    columns = x.shape[-1]
    order = torch.randperm(columns, generator=torch.Generator().manual_seed(columns))
    there = _on(torch.eye(columns, dtype=x.dtype)[order], device)
    for _ in range((PRODUCTS if columns <= WIDE else 2) // 2):
        x = (x @ there) @ there.T
    for _ in range(DOUBLINGS):
        x = x + x
    return x * 2.0**-DOUBLINGS


def _on(x: Tensor, device: torch.device | None) -> Tensor:
    return x.clone() if device is None else x.to(device)
