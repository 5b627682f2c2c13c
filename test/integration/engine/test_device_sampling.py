"""Tokens drawn by the runtime: which requests ask for it, and that a seed decides them alone."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from engine import Engine, greedy
from fake_runtime import expected_logits
from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind

from qwen36_neuron.graph.sampling import parameter_tensor
from qwen36_neuron.ops.sampling import sample_all
from qwen36_neuron.runtime import Output, Row, Sampling

COUNT = 8
CANDIDATES = 64


def text(length: int, seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(512) for _ in range(length)]


def params(**more: Any) -> SamplingParams:
    return SamplingParams(**{"max_tokens": COUNT, "ignore_eos": True, "detokenize": False, **more})


@pytest.fixture
def served(fake_engine: Callable[..., Engine]) -> Engine:
    return fake_engine(
        max_num_batched_tokens=100,
        num_gpu_blocks_override=60,
        max_num_seqs=4,
        max_logprobs=512,
        additional_config={"sampling_candidates": CANDIDATES},
    )


def mixed(engine: Engine, jobs: list[tuple[list[int], SamplingParams]]) -> list[list[int]]:
    """Run requests with different parameters together; their tokens."""
    for i, (prompt, how) in enumerate(jobs):
        engine.add(f"m{i}", prompt, how)
    engine.drain()
    return [list(engine.finished[f"m{i}"].outputs[0].token_ids) for i in range(len(jobs))]


def sampled_rows(engine: Engine, request: str) -> list[Row]:
    rows = [row for step in engine.runtime.steps for row in step.rows if row.request_id.startswith(request)]
    return [row for row in rows if row.output is not Output.NOTHING]


def by_definition(prompt: list[int], how: SamplingParams) -> list[int]:
    """The seed's own numbers, in order, each deciding one token."""
    generator = torch.Generator().manual_seed(how.seed or 0)
    tokens: list[int] = []
    for _ in range(COUNT):
        uniform = float(torch.rand(1, generator=generator))
        asked = Sampling(how.temperature, uniform, max(how.top_k, 0), how.top_p, how.min_p)
        logits = expected_logits(prompt + tokens)[None]
        tokens.append(int(sample_all(logits, parameter_tensor([asked]), logits.shape[1])))
    return tokens


def test_a_seed_gives_the_tokens_of_the_definition_alone_and_among_others(served: Engine) -> None:
    prompt = text(120, 3)
    how = params(seed=7, temperature=1.5, top_p=0.9, top_k=50, min_p=0.01)
    (alone,) = mixed(served, [(prompt, how)])
    others = [(text(30 + i, i), params(temperature=1.2)) for i in range(4)]
    together = mixed(served, [*others[:2], (text(50, 9), greedy(COUNT)), (prompt, how), *others[2:]])[3]
    assert alone == together == by_definition(prompt, how)


@pytest.mark.parametrize("cuts", [{}, {"top_k": -1}, {"top_k": 512}, {"top_p": 0.99}, {"min_p": 0.1}, {"top_k": 64}])
def test_drawn_on_the_device(served: Engine, cuts: dict[str, Any]) -> None:
    """Also where the candidates do not decide a draw: the runtime repeats it with all tokens."""
    prompt, how = text(40, 2), params(seed=1, temperature=2.0, **cuts)
    (tokens,) = mixed(served, [(prompt, how)])
    rows = sampled_rows(served, "m0")
    assert {row.output for row in rows} == {Output.TOKEN}
    assert all(row.sampling is not None for row in rows)
    assert len({row.sampling.uniform for row in rows if row.sampling}) == COUNT
    assert tokens == by_definition(prompt, how)
    assert {row.sampling.top_k for row in rows if row.sampling} == {64 if cuts.get("top_k") == 64 else 0}


@pytest.mark.parametrize(
    "more",
    [
        {"top_k": 65},
        {"presence_penalty": 0.5},
        {"frequency_penalty": 0.5},
        {"repetition_penalty": 1.1},
        {"logit_bias": {3: 1.0}},
        {"allowed_token_ids": [1, 2, 3]},
        {"logprobs": 1},
        {"min_tokens": COUNT},
    ],
    ids=lambda more: next(iter(more)),
)
def test_sampled_on_the_host(served: Engine, more: dict[str, Any]) -> None:
    mixed(served, [(text(40, 2), params(seed=1, **more))])
    rows = sampled_rows(served, "m0")
    assert {row.output for row in rows} == {Output.LOGITS}
    assert all(row.sampling is None for row in rows)


def test_greedy_rows_carry_no_sampling(served: Engine) -> None:
    mixed(served, [(text(40, 2), greedy(COUNT)), (text(30, 1), params(seed=1))])
    assert all(row.sampling is None and row.output is Output.TOKEN for row in sampled_rows(served, "m0"))


def test_on_cpu_the_host_draws_unless_told_otherwise_and_gives_the_same_tokens(engine: Callable[..., Engine]) -> None:
    prompt = text(40, 2)
    how = params(seed=1, temperature=2.0)
    own = engine(additional_config={"sampling_candidates": CANDIDATES})
    default = engine()
    assert default.runtime.capacity.sampling_candidates == 0
    assert own.runtime.capacity.sampling_candidates == CANDIDATES
    first, second = (mixed(own, [(prompt, how)])[0] for _ in range(2))
    assert first == second == mixed(default, [(prompt, how)])[0]


def penalised(prompt: list[int], how: SamplingParams, seed: int, count: int) -> list[int]:
    """By the definition, with tables as wide as the vocabulary, counted anew for every token."""
    generator = torch.Generator().manual_seed(seed)
    tokens: list[int] = []
    for _ in range(count):
        logits = expected_logits(prompt + tokens)
        times = torch.bincount(torch.tensor(tokens, dtype=torch.int64), minlength=len(logits))
        occurs = torch.bincount(torch.tensor(prompt + tokens), minlength=len(logits)) > 0
        factor = torch.where(logits > 0, 1 / torch.tensor(how.repetition_penalty), torch.tensor(how.repetition_penalty))
        logits = torch.where(occurs, logits * factor, logits)
        logits = logits - how.frequency_penalty * times - how.presence_penalty * (times > 0)
        uniform = float(torch.rand(1, generator=generator))
        asked = Sampling(how.temperature, uniform, how.top_k, how.top_p, how.min_p)
        tokens.append(int(sample_all(logits[None], parameter_tensor([asked]))))
    return tokens


@pytest.mark.parametrize("protocol", ["0", "1"])
def test_penalties_count_rightly_after_preemption(
    fake_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    """Also of the completions of one request (n > 1), whose seeds are the request's and the ones that follow."""
    monkeypatch.setattr("vllm.config.vllm.HAS_TRITON", True)
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", protocol)
    engine = fake_engine(max_num_batched_tokens=256, num_gpu_blocks_override=14, max_model_len=768)
    more = {"presence_penalty": 1.5, "repetition_penalty": 1.2, "frequency_penalty": 0.2, "top_k": 20, "top_p": 0.8}
    how = params(seed=11, max_tokens=90, n=2, output_kind=RequestOutputKind.FINAL_ONLY, **more)
    prompts = [text(length, length) for length in (120, 250, 60, 180)]
    for i, prompt in enumerate(prompts):
        engine.add(f"n{i}", prompt, how)
    engine.drain()
    for i, prompt in enumerate(prompts):
        outputs = engine.finished[f"n{i}"].outputs
        assert len(outputs) == 2
        for output in outputs:
            assert list(output.token_ids) == penalised(prompt, how, 11 + output.index, 90)
    restarts = sum(row.start == 0 for step in engine.runtime.steps for row in step.rows)
    assert restarts > 2 * len(prompts), "nothing was preempted"
