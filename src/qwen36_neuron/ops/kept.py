"""When a constant made for a tensor may be kept for the next one."""

from __future__ import annotations

import torch


def may_keep(x: torch.Tensor) -> bool:
    """Whether x is a CPU tensor that holds values.

    On a device a constant belongs to the graph being traced. A tracer's stand-ins say that they are on the CPU too:
    what is made while they are there holds no values either, and would be found by whoever asks after them.
    """
    return type(x) is torch.Tensor and x.device.type == "cpu"
