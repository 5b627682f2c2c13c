"""Rows with drafts give the tokens of rows without, whatever was proposed, and unconfirmed tokens leave no trace."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import pytest
import torch

from qwen36_neuron.errors import ConfigError
from qwen36_neuron.runtime import Commit, Output, Row, RuntimeConfig, Sampling, Step, open_runtime
from qwen36_neuron.runtime.cpu import CpuRuntime
from qwen36_neuron.runtime.interpreted import InterpretedRuntime

MOST = 4
VOCAB = 4000
COUNT = 24

Propose = Callable[[Sequence[int], int], tuple[int, ...]]
"""(the tokens that will follow, number of the step) -> drafts."""


INTERPRETED = pytest.param("interpreter", marks=pytest.mark.interpreter)


@pytest.fixture(scope="module", params=["torch", "fused", INTERPRETED])
def runtime(request: pytest.FixtureRequest, tiny_checkpoint: Path) -> CpuRuntime:
    if request.param == "fused":
        pytest.importorskip("numba")
    return opened(tiny_checkpoint, request.param)


def opened(folder: Path, kernels: str, **changes: object) -> CpuRuntime:
    settings: dict[str, object] = {
        "max_model_len": 512,
        "num_blocks": 65,
        "num_slots": 4,
        "num_lanes": 4,
        "max_drafts": MOST,
        "sampling_candidates": 64,
    }
    made = open_runtime(RuntimeConfig(model=folder, kernels=kernels, **(settings | changes)))  # type: ignore[arg-type]
    assert isinstance(made, CpuRuntime)
    return made


def ids(count: int, seed: int = 0) -> list[int]:
    return torch.randint(0, VOCAB, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def blocks_of(lane: int) -> tuple[int, ...]:
    return tuple(range(1 + 8 * (lane - 1), 1 + 8 * lane))


def number(position: int) -> float:
    """The number by which the token at a position is drawn."""
    return random.Random(position).random()


def how(drawn: bool, position: int, drafts: int) -> Sampling | None:
    if not drawn:
        return None
    return Sampling(1.0, number(position), top_k=30, later=tuple(number(position + 1 + i) for i in range(drafts)))


def next_row(lane: int, text: Sequence[int], start: int, drafts: tuple[int, ...], drawn: bool, **more: object) -> Row:
    sampling = how(drawn, len(text), len(drafts))
    return Row(str(lane), lane, list(text[start:]), start, blocks_of(lane), sampling=sampling, drafts=drafts, **more)  # type: ignore[arg-type]


def plain(runtime: CpuRuntime, prompt: Sequence[int], count: int, drawn: bool = False, lane: int = 1) -> list[int]:
    text, start = list(prompt), 0
    while len(text) < len(prompt) + count:
        result = runtime.run(Step((next_row(lane, text, start, (), drawn),))).rows[0]
        start = len(text)
        text += result.tokens
    runtime.run(Step((), released_lanes=(lane,)))
    return text[len(prompt) :]


@pytest.fixture(scope="module")
def expected(runtime: CpuRuntime, tiny_checkpoint: Path) -> Callable[[int, bool], list[int]]:
    """The tokens without drafts after a prompt of that length; those of interpreted kernels are plain torch's."""
    interpreted = runtime.config.kernels == "interpreter"
    plainest = opened(tiny_checkpoint, "torch") if interpreted else runtime
    return cache(lambda length, drawn: plain(plainest, ids(length, seed=length), COUNT, drawn))


def right(k: int) -> Propose:
    return lambda coming, step: tuple(coming[:k])


def wrong(k: int) -> Propose:
    return lambda coming, step: tuple((token + 1) % VOCAB for token in coming[:k])


def rejected_at_each_place(k: int) -> Propose:
    def propose(coming: Sequence[int], step: int) -> tuple[int, ...]:
        place = step % (k + 1)
        return tuple((token + (i == place)) % VOCAB for i, token in enumerate(coming[:k]))

    return propose


def of_any_number(coming: Sequence[int], step: int) -> tuple[int, ...]:
    chosen = random.Random(step)
    k = chosen.randint(0, MOST)
    return tuple((token + (chosen.random() < 0.3)) % VOCAB for token in coming[:k])


PROPOSALS = {
    **{f"right {k}": right(k) for k in (1, MOST)},
    f"wrong {MOST}": wrong(MOST),
    **{f"rejected at each place of {k}": rejected_at_each_place(k) for k in (1, 2, 3, MOST)},
    "of any number": of_any_number,
}


@pytest.mark.parametrize("drawn", [False, True], ids=["greedy", "drawn"])
@pytest.mark.parametrize("propose", PROPOSALS.values(), ids=PROPOSALS)
@pytest.mark.parametrize("length", [1, 62])
def test_tokens_are_those_without_drafts(
    runtime: CpuRuntime, expected: Callable[[int, bool], list[int]], propose: Propose, length: int, drawn: bool
) -> None:
    coming = expected(length, drawn)
    text, start, steps = ids(length, seed=length), 0, 0
    while len(text) < length + COUNT:
        done = len(text) - length
        drafts = propose(coming[done:], steps)[: max(0, COUNT - done - 1)]
        result = runtime.run(Step((next_row(1, text, start, drafts, drawn),))).rows[0]
        assert 1 <= len(result.tokens) <= 1 + len(drafts)
        text += result.tokens
        start, steps = len(text) - 1, steps + 1  # the last token has not run
    runtime.run(Step((), released_lanes=(1,)))
    assert text[length:] == coming


@pytest.mark.parametrize("drawn", [False, True], ids=["greedy", "drawn"])
def test_rows_of_mixed_acceptance_and_plain_ones_share_a_step(runtime: CpuRuntime, drawn: bool) -> None:
    lanes = (1, 2, 3, 4)
    prompts = {lane: ids(30 * lane + 3, seed=lane) for lane in lanes}
    expected = {lane: plain(runtime, prompts[lane], COUNT, drawn, lane) for lane in lanes}
    text, held = {lane: list(prompts[lane]) for lane in lanes}, dict.fromkeys(lanes, 0)
    choice, step = random.Random(5), 0
    while any(len(text[lane]) < len(prompts[lane]) + COUNT for lane in lanes):
        step += 1
        active = [lane for lane in lanes if len(text[lane]) < len(prompts[lane]) + COUNT]
        rows = []
        for lane in choice.sample(active, choice.randint(1, len(active))):
            done = len(text[lane]) - len(prompts[lane])
            drafts = of_any_number(expected[lane][done:], 10 * step + lane)[: max(0, COUNT - done - 1)]
            rows.append(next_row(lane, text[lane], held[lane], drafts, drawn))
        for row, result in zip(rows, runtime.run(Step(tuple(rows))).rows, strict=True):
            text[row.lane] += result.tokens
            held[row.lane] = len(text[row.lane]) - 1
    runtime.run(Step((), released_lanes=lanes))
    assert {lane: text[lane][len(prompts[lane]) :] for lane in lanes} == expected


def test_logits_are_of_the_last_token_and_of_every_draft(runtime: CpuRuntime) -> None:
    tokens = ids(75, seed=8)
    runtime.run(Step((Row("a", 1, tokens[:70], 0, blocks_of(1), output=Output.NOTHING),)))
    row = Row("a", 1, tokens[70:71], 70, blocks_of(1), output=Output.LOGITS, drafts=tuple(tokens[71:75]))
    actual = runtime.run(Step((row,))).rows[0].logits
    whole = Row("b", 2, tokens, 0, blocks_of(2), output=Output.ALL_LOGITS)
    expected = runtime.run(Step((whole,), released_lanes=(1,))).rows[0].logits
    runtime.run(Step((), released_lanes=(2,)))
    assert actual is not None
    assert expected is not None
    assert actual.shape == (5, runtime.vocab_size)
    assert (actual - expected[70:]).abs().max() <= 1e-5


@pytest.mark.parametrize("accepted", range(MOST + 1))
@pytest.mark.parametrize("lead", range(1, MOST + 2))
def test_a_boundary_that_accepted_drafts_cross_is_committed_by_the_row_that_confirms_them(
    runtime: CpuRuntime, lead: int, accepted: int
) -> None:
    """The 64th token is confirmed by a draft, or by the row's own token, or not yet."""
    start = 64 - lead
    tokens = ids(80, seed=lead)
    runtime.run(Step((Row("a", 1, tokens[:start], 0, blocks_of(1), output=Output.NOTHING),)))
    drafts = tuple((token + (i >= accepted)) % VOCAB for i, token in enumerate(tokens[start + 1 : start + 1 + MOST]))
    first = (Commit(64, 1),) if lead == 1 else ()
    runtime.run(Step((Row("a", 1, tokens[start : start + 1], start, blocks_of(1), commits=first, drafts=drafts),)))
    held = start + 1 + accepted
    commits = (Commit(64, 1),) if lead > 1 and held + 1 >= 64 else ()
    runtime.run(Step((Row("a", 1, tokens[held : held + 1], held, blocks_of(1), commits=commits),)))
    if first or commits:
        warm = Row("w", 2, tokens[64:], 64, (*blocks_of(1)[:1], 20), restore=1, output=Output.ALL_LOGITS)
        cold = Row("c", 3, tokens, 0, blocks_of(3), output=Output.ALL_LOGITS)
        actual, expected = (runtime.run(Step((row,))).rows[0].logits for row in (warm, cold))
        assert actual is not None
        assert expected is not None
        assert (actual - expected[64:]).abs().max() <= 1e-5
    runtime.run(Step((), released_lanes=(1, 2, 3)))


def states(runtime: CpuRuntime) -> list[torch.Tensor]:
    """The banks of states and of windows."""
    if isinstance(runtime, InterpretedRuntime):
        return [*runtime.memory.recurrent.values(), *runtime.memory.window.values()]
    return [state for bank in runtime.cache.banks.values() for state in (bank.recurrent, bank.window)]


def test_what_was_proposed_changes_no_bit_of_what_is_held(runtime: CpuRuntime) -> None:
    tokens, found = ids(70, seed=4), []
    for drafts in ((1, 2, 3), (7, 8, 9)):
        runtime.run(Step((Row("a", 1, tokens[:66], 0, blocks_of(1), output=Output.NOTHING),)))
        runtime.run(Step((Row("a", 1, tokens[66:67], 66, blocks_of(1), drafts=drafts),)))
        found.append([state[1].clone() for state in states(runtime)])
        row = Row("a", 1, tokens[67:68], 67, blocks_of(1), output=Output.LOGITS)
        found[-1].append(runtime.run(Step((row,))).rows[0].logits)
        runtime.run(Step((), released_lanes=(1,)))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_a_checkpoint_is_restored_and_drafts_verified_in_one_row(runtime: CpuRuntime) -> None:
    tokens = ids(64, seed=6)
    expected = plain(runtime, tokens, 6)
    runtime.run(Step((Row("a", 1, tokens, 0, blocks_of(1), commits=(Commit(64, 2),), output=Output.NOTHING),)))
    row = Row("b", 2, expected[:1], 64, (1, 30), restore=2, drafts=tuple(expected[1:4]))
    assert list(runtime.run(Step((row,), released_lanes=(1,))).rows[0].tokens) == expected[1:5]
    runtime.run(Step((), released_lanes=(2,)))


@pytest.mark.parametrize("ends", ["released", "reused"])
def test_a_lane_that_is_given_up_with_drafts_unconfirmed_is_clean(runtime: CpuRuntime, ends: str) -> None:
    """Preemption: the sequence runs again from its start, or another takes the lane."""
    prompt = ids(20, seed=7)
    expected = plain(runtime, prompt, 10)
    runtime.run(Step((next_row(1, prompt, 0, (5, 6, 7), False),)))
    runtime.run(Step((), released_lanes=(1,) if ends == "released" else ()))
    assert plain(runtime, prompt, 10) == expected


@pytest.mark.parametrize("kernels", ["torch", "fused"])
def test_without_drafts_nothing_is_held_for_them(tiny_checkpoint: Path, kernels: str) -> None:
    with_drafts, without = (opened(tiny_checkpoint, kernels, max_drafts=count).cache for count in (MOST, 0))

    def held(cache: object) -> int:
        return sum(
            getattr(factors, name).nbytes
            for factors in cache.drafts.values()  # type: ignore[attr-defined]
            for name in ("inputs", "k", "v", "g", "beta")
        )

    assert held(without) == 0
    assert held(with_drafts) == with_drafts.spec.total_bytes - without.spec.total_bytes


@pytest.mark.interpreter
def test_what_interpreted_kernels_keep_of_drafts_is_what_is_planned(tiny_checkpoint: Path) -> None:
    memories = [opened(tiny_checkpoint, "interpreter", max_drafts=count).memory for count in (MOST, 0)]  # type: ignore[attr-defined]
    with_drafts, without = (sum(state.nbytes for state in memory.outputs()) for memory in memories)
    spec = opened(tiny_checkpoint, "torch").cache.spec
    assert with_drafts - without == spec.pending_bytes > 0


@pytest.mark.interpreter
def test_what_interpreted_kernels_keep_for_the_draft_layer_is_what_is_planned(tiny_checkpoint: Path) -> None:
    """Its keys and values, which are a part of every block's bytes, and hidden states."""
    opening = {"max_drafts": MOST, "num_slots": 3}
    memories = [opened(tiny_checkpoint, "interpreter", max_proposals=n, **opening).memory for n in (2, 0)]  # type: ignore[attr-defined]
    with_layer, without = (sum(state.nbytes for state in memory.outputs()) for memory in memories)
    specs = [opened(tiny_checkpoint, "torch", max_proposals=n, **opening).cache.spec for n in (2, 0)]
    blocks = specs[0].num_blocks * (specs[0].block_bytes - specs[1].block_bytes)
    assert with_layer - without == specs[0].hidden_bytes + blocks
    assert specs[1].hidden_bytes == 0


def test_drafts_cross_one_boundary_at_most(tiny_checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match=r"max_drafts=64.*more than one boundary of 64 tokens"):
        RuntimeConfig(model=tiny_checkpoint, max_drafts=64)
