"""One step on a device: the step contract and the runtimes that keep it."""

from importlib.util import find_spec

from ..errors import ConfigError
from .config import RuntimeConfig
from .step import (
    Capacity,
    Commit,
    DeviceError,
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

__all__ = [
    "Capacity",
    "Commit",
    "DeviceError",
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
    "open_runtime",
]


NEURON_PACKAGES = ("neuronx_distributed", "neuronx_distributed_inference", "torch_neuronx", "torch_xla", "nki")
"""What device=neuron needs, and what a machine without a Neuron image lacks."""


def uses_fused(config: RuntimeConfig) -> bool:
    """Whether a CPU's operations are the fused ones: if asked for, or if nothing is asked for and they can be had.

    Raises:
        ConfigError: they are asked for where Numba, which compiles them, is not installed.
    """
    if config.kernels not in (None, "fused"):
        return False
    installed = find_spec("numba") is not None
    if config.kernels == "fused" and not installed:
        raise ConfigError("kernels", "fused", "needs Numba", "Run pip install 'qwen36-neuron[cpu]', or use kernels=torch")
    return installed and config.dtype == "float32"


def open_runtime(config: RuntimeConfig) -> Runtime:
    """Load a checkpoint onto its device.

    Raises:
        ConfigError: the configuration cannot run here.
        CheckpointError: the checkpoint does not hold what the model needs.
        DeviceError: the device could not be loaded.
    """
    if config.kernels == "interpreter":
        from .interpreted import InterpretedRuntime

        return InterpretedRuntime(config)
    if config.device == "cpu":
        # Imported on use: reading a configuration must not load a model's code.
        if uses_fused(config):
            from .fused import FusedRuntime

            return FusedRuntime(config)
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
