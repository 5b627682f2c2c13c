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
    "Step",
    "StepChecker",
    "StepError",
    "StepResult",
    "open_runtime",
]


def open_runtime(config: RuntimeConfig) -> Runtime:
    """Load a checkpoint onto its device.

    Raises:
        ConfigError: the configuration cannot run here.
        CheckpointError: the checkpoint does not hold what the model needs.
    """
    if config.device == "cpu":
        from .cpu import CpuRuntime  # imported on use: reading a configuration must not load a model's code

        return CpuRuntime(config)
    raise ConfigError("device", config.device, "this version has no Neuron runtime", "Use device=cpu")
