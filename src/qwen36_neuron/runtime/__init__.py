"""One step on a device: the step contract and the runtimes that keep it."""

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
]
