"""Which boundaries of a request get a checkpoint, and which checkpoint to give up."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from vllm.v1.request import Request

from qwen36_neuron.config import BLOCK_SIZE

from .slot_pool import Checkpoint


@dataclass(slots=True)
class Boundaries:
    """The plan for one request: boundaries inside the prompt, and one checkpoint that follows its decoding."""

    prompt: frozenset[int]
    prompt_end: int
    latest: Checkpoint | None = None

    def __contains__(self, boundary: int) -> bool:
        return boundary in self.prompt or boundary > self.prompt_end

    def superseded_by(self, boundary: int) -> Checkpoint | None:
        """The request's own checkpoint that one at `boundary` makes pointless: the last it made while decoding."""
        return self.latest if boundary > self.prompt_end else None

    def kept(self, checkpoint: Checkpoint) -> None:
        """`checkpoint` was made for the request."""
        if checkpoint.boundary > self.prompt_end:
            self.latest = checkpoint


class Policy:
    """Ends of prompts, branch points and ends of turns; the least recently used goes first."""

    def plan(self, request: Request) -> Boundaries:
        """What to keep of `request`, asked when it is admitted.

        The last full block serves a longer prompt, the one before the last token an exact repeat, whose last token is
        always run again; `shared_prefix_boundary` is where an earlier request's KV matched longer than any checkpoint.
        """
        end = request.num_prompt_tokens
        wanted = {end // BLOCK_SIZE, (end - 1) // BLOCK_SIZE, request.shared_prefix_boundary // BLOCK_SIZE}
        return Boundaries(frozenset(count * BLOCK_SIZE for count in wanted if count), end)

    def victim(self, candidates: Collection[Checkpoint]) -> Checkpoint:
        """Which of `candidates`, at least one, to give up."""
        return min(candidates, key=lambda checkpoint: (checkpoint.used_at, checkpoint.slot))
