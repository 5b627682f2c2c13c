"""A mixture of experts through vLLM: transformers' greedy tokens, warm as cold, with drafts as without."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engine import Engine, greedy, greedy_of_transformers
from recorder import Recorder
from vllm import SamplingParams

COUNT = 8
LENGTHS = (1, 5, 63, 64, 65, 130, 200)
SEEDED = SamplingParams(temperature=1.0, top_p=0.95, seed=11, max_tokens=COUNT, ignore_eos=True, detokenize=False)

Make = Callable[..., Engine]


def text(length: int, seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(1000) for _ in range(length)]


PROMPTS = [text(length, length) for length in LENGTHS]


@pytest.fixture(scope="module")
def expected(tiny_mixture_checkpoint: Path) -> list[list[int]]:
    return greedy_of_transformers(tiny_mixture_checkpoint, PROMPTS, COUNT)


@pytest.fixture
def make(tiny_mixture_checkpoint: Path, engines: list[Any]) -> Make:
    """Makes an `Engine` on the mixture, from vLLM's arguments."""

    def made(**arguments: Any) -> Engine:
        engines.append(Engine(tiny_mixture_checkpoint, **{"num_gpu_blocks_override": 100, **arguments}))
        return engines[-1]

    return made


@pytest.mark.parametrize(("kernels", "budget"), [("torch", 512), ("fused", 100), ("fused", 512)])
def test_equals_transformers(make: Make, expected: list[list[int]], kernels: str, budget: int) -> None:
    served = make(max_num_batched_tokens=budget, additional_config={"kernels": kernels})
    assert [served.generate([prompt], greedy(COUNT))[0] for prompt in PROMPTS] == expected
    assert served.generate(PROMPTS, greedy(COUNT)) == expected


def test_preempted_and_restored(make: Make, expected: list[list[int]]) -> None:
    """Five blocks hold three prompts; the first two grow into blocks that are not there."""
    served = make(num_gpu_blocks_override=6, max_model_len=256, enable_prefix_caching=True)
    recorder = served.worker.runner.runtime = Recorder(served.runtime)
    tight = [LENGTHS.index(length) for length in (63, 64, 130)]
    assert served.generate([PROMPTS[i] for i in tight], greedy(COUNT)) == [expected[i] for i in tight]
    assert any(sum(row.start == 0 or row.restore is not None for row in rows) > 1 for rows in recorder.rows.values())


def test_warm_is_cold_with_drafts_and_without(make: Make) -> None:
    """Greedily and with a seed: reused prefixes, drafts of the model's own layer and of the request's own tokens."""
    once = text(90, 3)
    prompts = [*PROMPTS, once * 3, once, [*once, *text(40, 4)]]
    cold = make()
    plain = {name: [cold.generate([prompt], how)[0] for prompt in prompts] for name, how in CASES.items()}
    for speculation in (None, {"method": "mtp", "num_speculative_tokens": 3}):
        warm = make(
            enable_prefix_caching=True,
            speculative_config=speculation,
            additional_config={"num_slots": 24, **({"adaptive_drafts": False} if speculation else {})},
        )
        for name, how in CASES.items():
            for _ in range(2):
                outputs = warm.outputs(prompts, how)
                assert [list(output.outputs[0].token_ids) for output in outputs] == plain[name], (speculation, name)
            assert outputs[-3].num_cached_tokens == 256
        if speculation:
            assert warm.worker.runner.drafter is not None


CASES = {"greedy": greedy(COUNT), "seeded": SEEDED}
