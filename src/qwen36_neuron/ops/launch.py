"""How an NKI kernel is called."""

from __future__ import annotations

from typing import Any, Protocol

import torch


class Launch(Protocol):
    """Runs a kernel at once, or puts it into the graph that is being traced."""

    def __call__(self, kernel: Any, *tensors: torch.Tensor | None, **constants: Any) -> Any: ...


def summed_over(ranks: int) -> dict[str, Any]:
    """What a kernel that sums over ranks is told of them: all of a device's are one group."""
    from nki.collectives import ReplicaGroup  # imported on use, as the kernels are

    return {"replica_group": ReplicaGroup([list(range(ranks))]), "ranks": ranks} if ranks > 1 else {}
