"""Drafting replayed over a known reply: against what it must count."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qwen36_lab.demo import drafting
from qwen36_lab.demo.drafting import Acceptance, acceptance
from qwen36_lab.demo.trainable import TrainableModel


@pytest.mark.parametrize(
    ("wrong", "steps"),
    [(set(), [4, 4, 1]), ({2}, [2, 4, 3]), (set(range(10)), [1] * 9)],
    ids=["all right", "one wrong", "all wrong"],
)
def test_counts_accepted_drafts_and_the_token_that_replaces_a_wrong_one(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, wrong: set[int], steps: list[int]
) -> None:
    model = TrainableModel.from_pretrained(tiny_checkpoint)
    network = model.assemble()
    prompt, reply = [1, 2, 3], list(range(10, 20))

    def guesses(_: object, hidden: torch.Tensor, tokens: list[int], count: int) -> list[int]:
        assert len(hidden) == len(tokens) - 1
        at = len(tokens) - len(prompt)
        return [-1 if i in wrong else (reply + [0] * count)[i] for i in range(at, at + count)]

    monkeypatch.setattr(drafting, "draft", guesses)
    assert acceptance(network, prompt, reply, 3) == Acceptance(len(steps), sum(steps))


def test_drafts_do_not_depend_on_padding(tiny_checkpoint: Path) -> None:
    model = TrainableModel.from_pretrained(tiny_checkpoint)
    network = model.assemble()
    tokens = torch.randint(0, model.config.vocab_size, (80,), generator=torch.Generator().manual_seed(6)).tolist()
    hidden = drafting._padded(network, tokens, None)
    for known in (63, 64, 65):
        drafts = drafting.draft(network, hidden[: known - 1], tokens[:known], 3)
        again = drafting.draft(network, hidden[: known - 1], tokens[:known], 2)
        assert drafts[:2] == again
        assert len(drafts) == 3
