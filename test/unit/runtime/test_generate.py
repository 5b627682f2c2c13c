"""Offline generation against transformers' own `generate`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from qwen36_neuron.errors import ConfigError
from qwen36_neuron.runtime import Runtime, RuntimeConfig, Step, StepResult, open_runtime
from qwen36_neuron.runtime.generate import Generation, generate


@pytest.fixture(scope="module")
def runtime(tiny_checkpoint: Path) -> Runtime:
    return open_runtime(RuntimeConfig(model=tiny_checkpoint, max_model_len=256, max_step_tokens=100, num_blocks=5))


def prompt(count: int) -> list[int]:
    return torch.randint(0, 4000, (count,), generator=torch.Generator().manual_seed(count)).tolist()


@pytest.mark.parametrize("length", [1, 64, 65, 150])
def test_greedy_tokens_equal_transformers(tiny_checkpoint: Path, runtime: Runtime, length: int) -> None:
    oracle = AutoModelForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32).eval()
    ids = prompt(length)
    expected = oracle.generate(torch.tensor([ids]), max_new_tokens=20, min_new_tokens=20, do_sample=False)
    assert list(generate(runtime, ids, Generation(max_tokens=20))) == expected[0, length:].tolist()


def test_ends_at_a_stop_token_at_the_count_and_at_the_model_length(runtime: Runtime) -> None:
    ids = prompt(40)
    tokens = list(generate(runtime, ids, Generation(max_tokens=10)))
    assert len(tokens) == 10
    stop = tokens[4]
    assert list(generate(runtime, ids, Generation(max_tokens=10, stop_tokens=(stop,)))) == tokens[: tokens.index(stop)]
    assert len(list(generate(runtime, prompt(250), Generation(max_tokens=50)))) == 6


def test_every_forward_pass_gives_a_token_or_fills_the_prompt(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last token is not run: a prompt of three steps and ten tokens are three steps and nine."""
    steps, run = [], runtime.run

    def noted(step: Step) -> StepResult:
        steps.extend(len(row.tokens) for row in step.rows)
        return run(step)

    monkeypatch.setattr(runtime, "run", noted)
    for length, count, expected in (
        (210, 10, [100, 100, 10] + [1] * 9),
        (100, 1, [100]),
        (250, 50, [100, 100, 50] + [1] * 5),  # ends at the model's length
    ):
        steps.clear()
        tokens = list(generate(runtime, prompt(length), Generation(max_tokens=count)))
        assert steps == expected
    steps.clear()
    list(generate(runtime, prompt(250), Generation(stop_tokens=(tokens[2],))))
    assert len(steps) == 3 + tokens.index(tokens[2])


def test_sampling_repeats_with_its_seed_and_narrows_to_greedy(runtime: Runtime) -> None:
    ids = prompt(30)

    def sampled(**changes: float) -> list[int]:
        return list(generate(runtime, ids, Generation(max_tokens=12, **changes)))  # type: ignore[arg-type]

    assert sampled(temperature=1.0, seed=1) == sampled(temperature=1.0, seed=1)
    assert sampled(temperature=1.0, seed=1) != sampled(temperature=1.0, seed=2)
    assert sampled(temperature=1.0, top_p=1e-6) == sampled()


def test_a_text_left_half_way_leaves_the_lane_free(runtime: Runtime) -> None:
    stream = generate(runtime, prompt(30), Generation(max_tokens=12))
    next(stream)
    stream.close()
    assert len(list(generate(runtime, prompt(30), Generation(max_tokens=12)))) == 12


@pytest.mark.parametrize(
    ("ids", "changes", "field"),
    [
        ([], {}, "prompt"),
        ([1] * 256, {}, "prompt"),
        ([1], {"max_tokens": 0}, "max_tokens"),
        ([1], {"temperature": -1.0}, "temperature"),
        ([1], {"top_p": 0.0}, "top_p"),
    ],
)
def test_bad_input_is_refused_by_name(runtime: Runtime, ids: list[int], changes: dict[str, float], field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        list(generate(runtime, ids, Generation(**changes)))  # type: ignore[arg-type]
