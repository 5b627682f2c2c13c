"""The rows that logits processors keep their state by: a request keeps its row for as long as it is sampled."""

from __future__ import annotations

from collections.abc import Sequence

from vllm.v1.sample.logits_processor import BatchUpdate
from vllm.v1.sample.logits_processor.interface import MoveDirectionality
from vllm.v1.sample.logits_processor.state import BatchUpdateBuilder

from .requests import RequestState


class SampledRows:
    """Gives every request of a step its row, as vLLM's own batch does, and tells what changed since the last step.

    Those that are gone leave holes; new ones fill the holes from the lowest on, then follow at the end; holes that are
    left are filled from the end. What a logits processor has counted for a request is therefore never lost while the
    request is sampled step after step.
    """

    def __init__(self) -> None:
        self.states: list[RequestState] = []
        self._builder = BatchUpdateBuilder()

    def update(self, states: Sequence[RequestState]) -> BatchUpdate | None:
        """Take the requests of a step, each once, in any order; None if they are those of the last one."""
        builder = self._builder
        wanted = {id(state) for state in states}
        held = {id(state) for state in self.states}  # objects that are still held: an id cannot be another's
        for row, state in enumerate(self.states):
            if id(state) not in wanted:
                builder.removed_append(row)
        for state in states:
            if id(state) not in held:
                hole = builder.pop_removed()
                row = len(self.states) if hole is None else hole
                self.states[row : row + 1] = [state]
                builder.added.append((row, state.params, state.prompt, state.output))
        self._close_holes()
        return builder.get_and_reset(len(self.states))

    def _close_holes(self) -> None:
        builder = self._builder
        last = len(self.states) - 1
        while (hole := builder.peek_removed()) is not None:
            while last in builder.removed:
                last -= 1
            if hole >= last:
                break
            builder.pop_removed()
            builder.moved.append((last, hole, MoveDirectionality.UNIDIRECTIONAL))
            self.states[hole] = self.states[last]
            last -= 1
        del self.states[last + 1 :]
