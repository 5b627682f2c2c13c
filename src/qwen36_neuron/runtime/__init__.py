"""One step on a device: the step contract and the runtimes that keep it."""

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
        from .cpu import CpuRuntime  # imported on use: reading a configuration must not load a model's code

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
