"""What the model runs on, and by which form of its operations. Imports no torch, so that a launcher can check names."""

from __future__ import annotations

from typing import Literal, get_args

Device = Literal["cpu", "neuron"]

DType = Literal["float32", "bfloat16"]
"""Of weights, activations, KV and convolution windows."""

CpuKernels = Literal["torch", "fused", "interpreter"]
"""On a CPU: plain torch, the fused operations of `ops.numba`, or the NKI kernels in their interpreter."""

NeuronKernels = Literal["torch", "nki", "fused"]
"""On a Neuron device: plain torch, or NKI kernels compiled into the graphs, an operation each or several in one."""

GraphKernels = Literal["torch", "interpreter", "nki"]
"""The forms of `ops.kernels.Kernels`. The fused ones of a CPU are not among them: they have no banks."""

KernelChoice = Literal["torch", "fused", "interpreter", "nki"]

CHOICES: dict[str, tuple[str, ...]] = {"cpu": get_args(CpuKernels), "neuron": get_args(NeuronKernels)}
"""What runs on which device."""
