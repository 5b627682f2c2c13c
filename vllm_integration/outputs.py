"""What the runner hands to the scheduler: vLLM's output, and what only our scheduler reads."""

from __future__ import annotations

from dataclasses import dataclass

from vllm.v1.outputs import ModelRunnerOutput


@dataclass
class RunnerOutput(ModelRunnerOutput):
    """vLLM's output of a step, with what happened behind the step contract.

    Attributes:
        lanes_in_use: running-state lanes owned by sequences after the step.
        failure: why the step was refused; nothing was run then, and its requests must be failed.
    """

    lanes_in_use: int = 0
    failure: str | None = None
