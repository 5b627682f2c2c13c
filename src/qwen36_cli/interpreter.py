"""What models kernels needs the interpreter, which takes the place of AWS's own nki where that is not installed."""

from __future__ import annotations

from nki_kernels.interpreter.install import real_nki_present
from qwen36_neuron.errors import ConfigError


def require_interpreter(command: str) -> None:
    """Raises ConfigError where AWS's own nki is installed."""
    if real_nki_present():
        problem = "prices kernels in the interpreter, which is not there beside AWS's own nki"
        raise ConfigError("command", command, problem, "Run it on a machine without the SDK")
