"""Products of many rows, by the matrix library that suits this processor."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F

CPUINFO = Path("/proc/cpuinfo")


@lru_cache(maxsize=1)
def prefers_mkl() -> bool:
    """Whether this is an Intel processor with a torch that has MKL."""
    if not torch.backends.mkl.is_available() or not CPUINFO.exists():
        return False
    return "GenuineIntel" in CPUINFO.read_text(errors="replace")[:4096]


def linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x W^T of fp32 x [..., n] and W [m, n] as it was loaded."""
    if prefers_mkl() or not torch.backends.mkldnn.is_available():
        return F.linear(x, weight)
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
