"""Hundreds of interleaved requests against an oracle that recomputes everything, on the fake runtime.

The fake runtime's tokens depend on every KV position, lane and slot that a real one would read, and it refuses a step
in which one row reads what another writes. `Engine.step` checks the accounts of lanes, slots and blocks, and what they
hold, after each step.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
from engine import Engine, greedy
from fake_runtime import expected_tokens
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st


@dataclass(frozen=True)
class Shape:
    """An engine configuration that puts something under pressure."""

    blocks: int
    slots: int
    budget: int
    lanes: int
    policy: str = "fcfs"


SHAPES = (
    Shape(blocks=40, slots=4, budget=128, lanes=4),
    Shape(blocks=40, slots=16, budget=256, lanes=8, policy="priority"),
    Shape(blocks=120, slots=2, budget=100, lanes=8),
    Shape(blocks=300, slots=40, budget=1024, lanes=6),
    Shape(blocks=28, slots=8, budget=512, lanes=8, policy="priority"),
)


@dataclass(frozen=True)
class Job:
    """A request: the trunk it shares, how much of it, its own tail, and what becomes of it."""

    trunk: int
    shared: int
    tail: int
    count: int
    arrival: int
    abort_after: int | None
    priority: int


jobs = st.lists(
    st.builds(
        Job,
        trunk=st.integers(0, 3),
        shared=st.one_of(st.integers(0, 900), st.sampled_from([63, 64, 65, 128, 640, 641])),
        tail=st.integers(1, 130),
        count=st.integers(1, 90),
        arrival=st.integers(0, 60),
        abort_after=st.one_of(st.none(), st.none(), st.none(), st.integers(0, 40)),
        priority=st.integers(0, 3),
    ),
    min_size=8,
    max_size=40,
)


DRAFTS = {"adaptive_drafts": False, "lookup_drafts": 5}
"""Every request has drafts in every step, of the draft layer or out of its own tokens."""


def make(fake_engine, shape: Shape, speculates: bool = False) -> Engine:
    return fake_engine(
        enable_prefix_caching=True,
        max_num_batched_tokens=shape.budget,
        num_gpu_blocks_override=shape.blocks,
        max_num_seqs=shape.lanes,
        max_model_len=1216,
        scheduling_policy=shape.policy,
        additional_config={"num_slots": shape.slots, **(DRAFTS if speculates else {})},
        speculative_config={"method": "mtp", "num_speculative_tokens": 3} if speculates else None,
    )


def prompt_of(job: Job, salt: int) -> list[int]:
    trunk = random.Random(job.trunk)
    tail = random.Random(salt * 1000 + job.tail)
    return [trunk.randrange(512) for _ in range(job.shared)] + [tail.randrange(512) for _ in range(job.tail)]


def play(engine: Engine, work: list[Job], run: int) -> int:
    """Run `work`, check every token, and return how many tokens were reused."""
    waiting = sorted(enumerate(work), key=lambda pair: pair[1].arrival)
    prompts, aborts, step = {}, {}, 0
    while waiting or engine.engine.has_unfinished_requests():
        while waiting and waiting[0][1].arrival <= step:
            index, job = waiting.pop(0)
            name = f"{run}-{index}"
            prompts[name] = (prompt_of(job, index % 3), job.count)
            engine.add(name, prompts[name][0], greedy(job.count), priority=job.priority)
            if job.abort_after is not None:
                aborts[name] = step + job.abort_after
        for name in [name for name, when in aborts.items() if when <= step]:
            del aborts[name]
            engine.abort(name)
        engine.step()
        step += 1
        assert step < 20_000
    engine.drain()
    reused = 0
    for name, (prompt, count) in prompts.items():
        if name in engine.finished:
            output = engine.finished[name]
            tokens = list(output.outputs[0].token_ids)
            wanted = expected_tokens(prompt, len(tokens))
            assert tokens == wanted, name
            assert output.outputs[0].finish_reason == "abort" or len(tokens) == count
            reused += output.num_cached_tokens or 0
    return reused


@pytest.mark.slow
@pytest.mark.parametrize("speculates", [False, True], ids=["plain", "speculating"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_interleaved_requests(fake_engine, shape, speculates):
    engine = make(fake_engine, shape, speculates)
    runs = [0]

    @settings(
        max_examples=20,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(jobs)
    def example(work: list[Job]) -> None:
        runs[0] += 1
        play(engine, work, runs[0])

    example()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("speculates", [False, True], ids=["plain", "speculating"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_many_requests_under_pressure(fake_engine, shape, speculates, seed):
    rng = random.Random(seed)
    work = [
        Job(
            trunk=rng.randrange(3),
            shared=rng.choice([0, 64, 300, 640, 900]),
            tail=rng.randrange(1, 130),
            count=rng.randrange(1, 120),
            arrival=rng.randrange(80),
            abort_after=rng.randrange(40) if rng.random() < 0.1 else None,
            priority=rng.randrange(3),
        )
        for _ in range(70)
    ]
    engine = make(fake_engine, shape, speculates)
    reused = play(engine, work, 0)
    assert reused > 0
