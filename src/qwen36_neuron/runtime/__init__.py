"""One step on a device: the step contract and the runtimes that keep it."""

from importlib.util import find_spec

from ..devices import CpuKernels
from ..errors import ConfigError
from ..step import (
    Capacity,
    Commit,
    DeviceError,
    DraftRequest,
    Output,
    Row,
    RowResult,
    Runtime,
    Sampling,
    Step,
    StepChecker,
    StepError,
    StepResult,
)
from .config import RuntimeConfig

__all__ = [
    "Capacity",
    "Commit",
    "DeviceError",
    "DraftRequest",
    "Output",
    "Row",
    "RowResult",
    "Runtime",
    "RuntimeConfig",
    "Sampling",
    "Step",
    "StepChecker",
    "StepError",
    "StepResult",
    "cpu_kernels",
    "open_runtime",
]


NEURON_PACKAGES = ("neuronx_distributed", "neuronx_distributed_inference", "torch_neuronx", "torch_xla", "nki")
"""What device=neuron needs, and what a machine without a Neuron image lacks."""


def cpu_kernels(config: RuntimeConfig) -> CpuKernels:
    """What runs a CPU's operations: what is asked for, else the fused ones if they can be had.

    Raises:
        ConfigError: the fused ones are asked for where Numba, which compiles them, is not installed.
    """
    installed = find_spec("numba") is not None
    match config.kernels:
        case None:
            return "fused" if installed and config.dtype == "float32" else "torch"
        case "fused" if not installed:
            remedy = "Run pip install 'qwen36-neuron[cpu]', or use kernels=torch"
            raise ConfigError("kernels", "fused", "needs Numba, which is not installed", remedy)
        case "torch" | "fused" | "interpreter":
            return config.kernels
    raise AssertionError(config.kernels)  # refused by RuntimeConfig


def open_runtime(config: RuntimeConfig) -> Runtime:
    """Load a checkpoint onto its device.

    Raises:
        ConfigError: the configuration cannot run here.
        CheckpointError: the checkpoint does not hold what the model needs.
        DeviceError: the device could not be loaded.
    """
    # Imported on use: reading a configuration must not load a model's code.
    if config.device == "cpu":
        match cpu_kernels(config):
            case "interpreter":
                from .interpreted import InterpretedRuntime

                return InterpretedRuntime(config)
            case "fused":
                from .fused import FusedRuntime

                return FusedRuntime(config)
            case "torch":
                from .cpu import CpuRuntime

                return CpuRuntime(config)
    try:
        from .neuron import NeuronRuntime
    except ModuleNotFoundError as error:
        if not any(error.name == name or str(error.name).startswith(f"{name}.") for name in NEURON_PACKAGES):
            raise
        raise ConfigError(
            "device",
            config.device,
            f"the package {error.name} of AWS's Neuron SDK is not installed",
            "Use a Neuron image of AWS, or device=cpu",
        ) from error
    return NeuronRuntime.open(config)
