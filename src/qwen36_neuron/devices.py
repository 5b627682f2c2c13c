"""What the model runs on, and by which form of its operations. Imports no torch, so that a launcher can check names."""

from __future__ import annotations

from typing import Literal, get_args

Device = Literal["cpu", "neuron"]

DType = Literal["float32", "bfloat16"]
"""Of weights, activations and convolution windows, and of KV unless it is FP8."""

KVCacheDType = Literal["auto", "fp8", "fp8_e4m3", "bfloat16", "float32"]
"""Of keys and values, by vLLM's names. `auto` is what the checkpoint declares, else the number format of the model."""

FP8_KV = ("fp8", "fp8_e4m3")
"""Names of FP8 keys and values."""

CpuKernels = Literal["torch", "fused", "interpreter"]
"""On a CPU: plain torch, the fused operations of `ops.numba`, or the NKI kernels in their interpreter."""

NeuronKernels = Literal["torch", "nki", "fused"]
"""On a Neuron device: plain torch, or NKI kernels compiled into the graphs, an operation each or several in one."""

GraphKernels = Literal["torch", "interpreter", "nki"]
"""The forms of `ops.kernels.Kernels`. The fused ones of a CPU are not among them: they have no banks."""

KernelChoice = Literal["torch", "fused", "interpreter", "nki"]

CHOICES: dict[str, tuple[str, ...]] = {"cpu": get_args(CpuKernels), "neuron": get_args(NeuronKernels)}
"""What runs on which device."""
