"""Tokens drawn in the graphs, against the CPU runtime with the same numbers; and what is fetched from the device."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from qwen36_neuron.errors import ConfigError
from qwen36_neuron.graph.sampling import parameter_tensor
from qwen36_neuron.ops.sampling import UNDECIDED, sample_all
from qwen36_neuron.runtime import Output, Row, RuntimeConfig, Sampling, Step, StepError, open_runtime

from .support import BLOCKS, logits, neuron

CANDIDATES = 32
BLOCKS_OF = {lane: range(1 + 8 * (lane - 1), 1 + 8 * lane) for lane in (1, 2, 3, 4)}
NARROW = [
    None,
    Sampling(1.0, 0.3, top_k=20, top_p=0.95),
    Sampling(0.7, 0.999, top_k=1),
    Sampling(2.0, 0.5, top_k=CANDIDATES),
    Sampling(1.0, 0.1, top_p=1e-6),
    Sampling(1e-4, 0.9),
]
"""Draws among few tokens, whose cut the rounding of logits does not change."""

WIDE = [
    *(Sampling(temperature, 0.8) for temperature in (0.02, 0.05, 0.1, 0.3, 5.0)),
    *(Sampling(temperature, 0.2, top_p=0.9) for temperature in (0.02, 0.05, 0.1, 5.0)),
    *(Sampling(temperature, 0.6, min_p=0.2) for temperature in (0.05, 0.1, 1.0)),
    Sampling(3.0, 0.7, top_k=200, top_p=0.99),
]
"""Draws of which 32 of 4,096 tokens decide some."""


@pytest.fixture
def cpu(tiny_checkpoint: Any) -> Any:
    sizes = {"max_model_len": 512, "num_lanes": 4, "num_blocks": 65, "num_slots": 4}
    return open_runtime(RuntimeConfig(model=tiny_checkpoint, kernels="torch", sampling_candidates=CANDIDATES, **sizes))


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows of logits each fetch took from the device."""
    from qwen36_neuron.graph.logits import Logits

    counts: list[int] = []
    fetch = Logits.fetch

    def counted(self: Logits) -> torch.Tensor:
        counts.append(len(self))
        return fetch(self)

    monkeypatch.setattr(Logits, "fetch", counted)
    return counts


@pytest.mark.parametrize("lazy", [True, False])
def test_the_same_numbers_give_the_tokens_of_the_cpu_runtime(
    load: Callable[..., Any], cpu: Any, tokens: list[int], fetched: list[int], lazy: bool
) -> None:
    """Prompts of several lengths, then 40 steps of one to four rows; greedy and drawn rows in one call."""
    runtime = neuron(load(sampling_candidates=CANDIDATES), lazy_logits=lazy)
    choice = random.Random(0)
    held = {1: 70, 2: 1, 3: 129, 4: 300}
    text = {lane: tokens[lane : lane + count] for lane, count in held.items()}
    drawn = 0
    for number in range(41):
        lanes = sorted(held) if not number else sorted(choice.sample(sorted(held), choice.randint(1, 4)))
        rows = []
        for lane in lanes:
            start = held[lane] if number else 0
            how = choice.choice(NARROW)
            how = how and replace(how, uniform=choice.random())
            rows.append(Row(str(lane), lane, text[lane][start:], start, BLOCKS_OF[lane], sampling=how))
        expected, actual = (side.run(Step(tuple(rows))).rows for side in (cpu, runtime))
        assert [result.tokens for result in actual] == [result.tokens for result in expected]
        for row, result in zip(rows, actual, strict=True):
            held[row.lane] = row.end
            text[row.lane] = [*text[row.lane], *result.tokens]
            drawn += row.sampling is not None
    assert drawn >= 60
    assert not fetched, "no logits come over"


def test_a_graph_gives_the_token_of_the_whole_vocabulary_or_none(load: Callable[..., Any], tokens: list[int]) -> None:
    """Against the definition on the very logits of the same call."""
    app = load(sampling_candidates=CANDIDATES).app
    choice = random.Random(1)
    for lane, blocks in BLOCKS_OF.items():
        app.prefill(Row("prompt", lane, tokens[lane : lane + 40], 0, blocks))
    decided, undecided = 0, 0
    for number in range(30):
        samplings = [replace(choice.choice(WIDE), uniform=choice.random()) for _ in BLOCKS_OF]
        rows = [
            Row(str(lane), lane, [choice.randrange(4000)], 40 + number, blocks, sampling=how)
            for (lane, blocks), how in zip(BLOCKS_OF.items(), samplings, strict=True)
        ]
        for how, answer in zip(samplings, app.decode(rows), strict=True):
            logits = answer.logits.fetch()
            whole = int(sample_all(logits, parameter_tensor([how]), logits.shape[1]))
            if answer.token == UNDECIDED:
                undecided += 1
            else:
                decided += 1
                assert answer.token == whole
    assert min(decided, undecided) >= 5


def test_what_a_graph_leaves_undecided_is_drawn_on_the_host(
    load: Callable[..., Any], tokens: list[int], fetched: list[int]
) -> None:
    """The runtime answers with a token all the same, and fetches the logits of those rows alone."""
    container = load(sampling_candidates=CANDIDATES)
    runtime = neuron(container)
    row = Row("a", 1, tokens[:50], 0, BLOCKS, sampling=Sampling(50.0, 0.99, top_p=0.999))
    (token,) = runtime.run(Step((row,))).rows[0].tokens
    assert fetched == [1]
    again = Row("b", 2, tokens[:50], 0, range(20, 28), output=Output.LOGITS)
    found = logits(runtime, again)
    assert row.sampling is not None
    assert token == int(sample_all(found, parameter_tensor([row.sampling]), found.shape[1]))


def test_a_greedy_row_is_the_argmax_beside_drawn_ones(load: Callable[..., Any], tokens: list[int]) -> None:
    runtime = neuron(load(sampling_candidates=CANDIDATES))
    rows = [
        Row(str(lane), lane, tokens[lane : lane + 3], 0, (lane,), output=Output.TOKEN, sampling=how)
        for lane, how in enumerate((None, NARROW[3], None, NARROW[1]), start=1)
    ]
    runtime.run(Step(tuple(rows)))
    rows = [Row(row.request_id, row.lane, [9], 3, row.blocks, sampling=row.sampling) for row in rows]
    found = [result.tokens for result in runtime.run(Step(tuple(rows))).rows]
    other = neuron(load(sampling_candidates=0))
    for lane in (1, 3):
        other.run(Step((Row("x", lane, tokens[lane : lane + 3], 0, (lane,)),)))
        alone = logits(other, Row("x", lane, [9], 3, (lane,), output=Output.LOGITS))
        assert found[lane - 1] == (int(alone.argmax()),)


def test_padding_rows_are_greedy_and_change_nothing(load: Callable[..., Any], tokens: list[int]) -> None:
    """A drawn row alone, whose call is padded with three, gives the token that it gives among three others."""
    row = Row("a", 2, tokens[:1], 0, (2,), sampling=NARROW[3])
    others = [Row(str(lane), lane, tokens[lane : lane + 1], 0, (lane,), sampling=WIDE[-1]) for lane in (1, 3, 4)]
    alone = neuron(load(sampling_candidates=CANDIDATES)).run(Step((row,))).rows[0]
    together = neuron(load(sampling_candidates=CANDIDATES)).run(Step((*others, row))).rows[-1]
    assert alone.tokens == together.tokens


def test_graphs_without_sampling_take_no_parameters(load: Callable[..., Any], tokens: list[int]) -> None:
    container = load(sampling_candidates=0)
    assert all(t.dtype is torch.int32 for w in container.app.models for e in w.input_generator() for t in e)
    with pytest.raises(StepError, match="draws no tokens"):
        neuron(container).run(Step((Row("a", 1, tokens[:5], 0, BLOCKS, sampling=NARROW[1]),)))


def test_sampling_can_be_left_to_the_host(load: Callable[..., Any]) -> None:
    container = load(sampling_candidates=CANDIDATES)
    assert neuron(container).capacity.sampling_candidates == CANDIDATES
    assert neuron(container, sampling_candidates=0).capacity.sampling_candidates == 0
    with pytest.raises(ConfigError, match="sampling_candidates is 32, asked for 64"):
        neuron(container, sampling_candidates=64)


def test_the_graph_says_when_candidates_do_not_decide(load: Callable[..., Any], tokens: list[int]) -> None:
    container = load(sampling_candidates=CANDIDATES)
    model = container.app.token_generation_model
    wide, narrow = Sampling(50.0, 0.99, top_p=0.999), Sampling(50.0, 0.99, top_k=5)
    found, _ = model([Row("a", 1, tokens[:1], 0, BLOCKS, sampling=wide), Row("b", 2, [5], 0, (9,), sampling=narrow)])
    assert found[0] == UNDECIDED
    assert found[1] != UNDECIDED


def test_the_engine_draws_on_the_device_what_it_draws_on_cpu(
    tiny_checkpoint: Any, artifact: Any, tokens: list[int]
) -> None:
    """vLLM's engine with seeds, on the rig and on the CPU runtime with as many candidates."""
    from engine import Engine
    from vllm import SamplingParams

    from .test_server import SIZES

    def served(**settings: Any) -> list[list[int]]:
        engine = Engine(tiny_checkpoint, **SIZES, additional_config={"num_slots": 4, **settings})
        try:
            for index, (prompt, top_k) in enumerate([(tokens[:300], 20), (tokens[50:113], 5), (tokens[9:10], 40)]):
                how = SamplingParams(
                    seed=index, temperature=1.2, top_k=top_k, top_p=0.95, max_tokens=10, ignore_eos=True
                )
                engine.add(f"m{index}", prompt, how)
            engine.drain()
            return [list(engine.finished[f"m{index}"].outputs[0].token_ids) for index in range(3)]
        finally:
            engine.close()

    assert served(device="neuron", artifact=str(artifact)) == served(sampling_candidates=256, kernels="torch")
