"""Speculation on the fake runtime: the tokens are those without, whatever is proposed."""

from __future__ import annotations

import random
from typing import Any

import pytest
from engine import Engine, greedy
from fake_runtime import expected_tokens
from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind

COUNT = 40
FINAL = RequestOutputKind.FINAL_ONLY  # all of a request's choices in one


def text(length: int, seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(512) for _ in range(length)]


def asked(k: int, **more: Any) -> dict[str, Any]:
    extra = {"adaptive_drafts": False, "lookup_drafts": 0, **more}
    return {"speculative_config": {"method": "mtp", "num_speculative_tokens": k}, "additional_config": extra}


@pytest.mark.parametrize("k", [1, 2, 3, 4])
@pytest.mark.parametrize("mistakes", [0, 1, 2, 5])
def test_greedy_tokens(fake_engine, k: int, mistakes: int) -> None:
    engine: Engine = fake_engine(max_num_batched_tokens=128, num_gpu_blocks_override=80, **asked(k))
    engine.runtime.mistakes = mistakes
    prompts = [text(length, length) for length in (1, 24, 25, 63, 64, 65, 200)]
    assert engine.generate(prompts, greedy(COUNT)) == [expected_tokens(prompt, COUNT) for prompt in prompts]
    drafted = [len(row.drafts) for step in engine.runtime.steps for row in step.rows]
    assert max(drafted) == k


@pytest.mark.parametrize("budget", [128, 512, 4096])
@pytest.mark.parametrize("adaptive", [False, True])
def test_adapted_and_looked_up_drafts_change_no_token(fake_engine, budget: int, adaptive: bool) -> None:
    engine: Engine = fake_engine(
        max_num_batched_tokens=budget,
        num_gpu_blocks_override=120,
        max_num_seqs=4,
        **asked(3, adaptive_drafts=adaptive, lookup_drafts=16),
    )
    once = text(80, 1)
    prompts = [once * 3, text(100, 2), once[:40] * 6, text(640, 3), once]
    assert engine.generate(prompts, greedy(COUNT)) == [expected_tokens(prompt, COUNT) for prompt in prompts]


JOBS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 0.0, "logprobs": 3},
    {"temperature": 0.0, "logprob_token_ids": [5, 9, 300]},
    {"temperature": 0.0, "repetition_penalty": 1.6, "logprobs": 0},
    {"temperature": 0.0, "presence_penalty": 1.5, "frequency_penalty": 0.5},
    {"temperature": 0.0, "logit_bias": {7: 6.0, 300: -8.0}},
    {"temperature": 0.0, "allowed_token_ids": [3, 77, 401, 402], "logprobs": 2},
    {"temperature": 0.0, "min_tokens": 9, "stop_token_ids": list(range(0, 512, 9))},
    {"temperature": 0.0, "stop_token_ids": list(range(0, 512, 11))},
    {"seed": 1},
    {"seed": 2, "temperature": 2.0, "top_k": 30, "top_p": 0.9, "min_p": 0.02},
    {"seed": 3, "temperature": 1.3, "logprobs": 5},
    {"seed": 4, "frequency_penalty": 0.7, "top_p": 0.8},
    {"seed": 5, "logit_bias": {9: 3.0}, "min_p": 0.05},
    {"seed": 6, "prompt_logprobs": 1},
    {"seed": 7, "n": 4},
    {"temperature": 0.0, "max_tokens": 1},
    {"temperature": 0.0, "max_tokens": 2},
    {"temperature": 0.0, "bad_words_token_ids": None},
]


def answers(engine: Engine, *, seed: int) -> list[Any]:
    """What all jobs are given, some at a time: tokens, log-probabilities and why they ended."""
    order = list(range(len(JOBS)))
    random.Random(seed).shuffle(order)
    for index in order:
        asked_for = {key: value for key, value in JOBS[index].items() if key != "bad_words_token_ids"}
        fixed = {"max_tokens": COUNT, "ignore_eos": True, "detokenize": False, "output_kind": FINAL}
        params = SamplingParams(**{**fixed, **asked_for})
        if "bad_words_token_ids" in JOBS[index]:
            prompt = text(50 + index, index)
            params._bad_words_token_ids = [[expected_tokens(prompt, 6)[5]], expected_tokens(prompt, 4)[2:4]]
        engine.add(f"{seed}-{index}", text(50 + index, index), params)
    engine.drain()
    found = []
    for index in range(len(JOBS)):
        output = engine.finished[f"{seed}-{index}"]
        found.append(
            [
                (
                    list(one.token_ids),
                    one.finish_reason,
                    one.stop_reason,
                    one.logprobs and [{t: (e.logprob, e.rank) for t, e in at.items()} for at in one.logprobs],
                )
                for one in sorted(output.outputs, key=lambda one: one.index)
            ]
        )
    return found


@pytest.mark.parametrize("candidates", [0, 64])
@pytest.mark.parametrize(("k", "mistakes"), [(1, 2), (2, 0), (3, 3), (4, 5)])
def test_every_kind_of_request_is_answered_as_without(fake_engine, k: int, mistakes: int, candidates: int) -> None:
    sizes = {"max_num_batched_tokens": 256, "num_gpu_blocks_override": 90, "max_num_seqs": 6, "max_logprobs": 512}
    plain = answers(fake_engine(**sizes, additional_config={"sampling_candidates": candidates}), seed=1)
    engine = fake_engine(**sizes, **asked(k, sampling_candidates=candidates))
    engine.runtime.mistakes = mistakes
    for seed in (1, 2):
        for index, (one, other) in enumerate(zip(answers(engine, seed=seed), plain, strict=True)):
            assert one == other, JOBS[index]
