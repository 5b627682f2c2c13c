"""A drafter that was told what comes, and errs as often as it is asked to: it tries the verifying of drafts alone."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from vllm_integration.requests import RequestState
from vllm_integration.speculation.drafter import Drafter


class Foretold(Drafter):
    """Proposes `coming[prompt]` from where a request is, with a wrong token in one of `mistakes` places.

    Attributes:
        coming: by prompt, the tokens that will be given.
        mistakes: 0 for none, 1 for wrong ones alone.
        accepted: drafts that were right.
    """

    coming: dict[tuple[int, ...], list[int]]
    mistakes: int

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.coming, self.mistakes, self.accepted = {}, 3, 0
        self._chance = random.Random(0)

    def stepped(self, states: Sequence[RequestState], seconds: float) -> None:
        self.accepted += sum(state.given - 1 for state in states if state.drafts)

    def draft(self, states: Sequence[RequestState]) -> list[list[int]]:
        return [self._of(state) for state in states]

    def _of(self, state: RequestState) -> list[int]:
        done = len(state.output)
        following = self.coming.get(tuple(state.prompt), [])[done : done + self.limits.most]
        return [token if self._right() else (token + 1) % 1000 for token in following]

    def _right(self) -> bool:
        return not self.mistakes or self._chance.randrange(self.mistakes) > 0
