"""How an NKI kernel is called."""

from __future__ import annotations

from typing import Any, Protocol

import torch


class Launch(Protocol):
    """Runs a kernel at once, or puts it into the graph that is being traced."""

    def __call__(self, kernel: Any, *tensors: torch.Tensor | None, **constants: Any) -> Any: ...
