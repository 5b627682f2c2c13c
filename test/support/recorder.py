"""Keeps what a runtime was asked and what it answered."""

from __future__ import annotations

from typing import Any

import torch

from qwen36_neuron.runtime import Row, Runtime, Step, StepResult


class Recorder:
    """Stands before a runtime. `rows` and `logits` are by request: the rows run, and the logits after known lengths."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.rows: dict[str, list[Row]] = {}
        self.logits: dict[str, dict[int, torch.Tensor]] = {}

    def run(self, step: Step) -> StepResult:
        result = self.runtime.run(step)
        for row, answer in zip(step.rows, result.rows, strict=True):
            self.rows.setdefault(row.request_id, []).append(row)
            if answer.logits is not None:
                self.logits.setdefault(row.request_id, {})[row.end] = answer.logits[-1].clone()
        return result

    def __getattr__(self, name: str) -> Any:
        return getattr(self.runtime, name)
