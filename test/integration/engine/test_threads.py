"""Threads of an engine: fewer while other processes keep cores busy, all again when it ends; or left as they are."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest
import torch
from engine import Engine, greedy
from fake_runtime import expected_tokens

from qwen36_neuron.runtime import threads
from qwen36_neuron.runtime.threads import CoreUse

PROMPT = [5, 6, 7]


@pytest.fixture(autouse=True)
def _two_busy_cores(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine of two cores of which others take one; torch's own threads and environment are put back."""
    before = torch.get_num_threads()
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(CoreUse, "others", lambda self, seconds: 1.0)
    monkeypatch.setattr(threads, "PERIOD", 0.0)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    yield
    torch.set_num_threads(before)


def test_a_thread_is_given_up_and_comes_back_at_the_end(fake_engine: Callable[..., Engine]) -> None:
    engine = fake_engine(additional_config={"threads": 2})
    assert torch.get_num_threads() == 2
    assert "GOMP_SPINCOUNT" in os.environ, "for what loads OpenMP from here on"
    assert engine.generate([PROMPT], greedy(4)) == [expected_tokens(PROMPT, 4)]
    assert torch.get_num_threads() == 1
    engine.worker.shutdown()
    assert torch.get_num_threads() == 2


def test_not_where_the_user_wants_every_thread_always(fake_engine: Callable[..., Engine]) -> None:
    engine = fake_engine(additional_config={"threads": 2, "share_cores": False})
    engine.generate([PROMPT], greedy(4))
    assert torch.get_num_threads() == 2
