"""Speculation on the real engine and network: text, tokens and log-probabilities are those of an engine without."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from engine import Engine
from foretold import Foretold
from recorder import Recorder
from vllm import SamplingParams
from vllm.sampling_params import StructuredOutputsParams

COUNT = 40
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}

Make = Callable[..., Engine]


@pytest.fixture
def speculating(engine: Make, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Makes an engine whose drafts are foretold; `coming` is filled by the test."""
    monkeypatch.setattr("vllm_integration.worker.Drafter", Foretold)

    def make(k: int, **arguments: Any) -> Engine:
        return engine(speculative_config={"method": "ngram", "num_speculative_tokens": k}, **arguments)

    return make


def text(length: int, seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(1000) for _ in range(length)]


def params(**more: Any) -> SamplingParams:
    return SamplingParams(**{"temperature": 0.0, "max_tokens": COUNT, "ignore_eos": True, **more})


def regex(pattern: str) -> StructuredOutputsParams:
    return StructuredOutputsParams(regex=pattern)


def compare(
    plain: Engine, other: Engine, jobs: Sequence[tuple[list[int], SamplingParams]], mistakes: Sequence[int] = (0, 3)
) -> None:
    """Run all jobs on the plain engine, and together on the other one, told what comes."""
    expected = [plain.outputs([prompt], how)[0] for prompt, how in jobs]
    drafter = other.worker.runner.drafter
    assert isinstance(drafter, Foretold)
    for often in mistakes:
        drafter.mistakes, before = often, drafter.accepted
        for (prompt, _), output in zip(jobs, expected, strict=True):
            drafter.coming[tuple(prompt)] = list(output.outputs[0].token_ids)
        for index, (prompt, how) in enumerate(jobs):
            other.add(f"{often}-{index}", prompt, how)
        other.drain()
        for index, (_, how) in enumerate(jobs):
            same(other.finished[f"{often}-{index}"], expected[index], how)
        assert drafter.accepted > before


def same(found: Any, expected: Any, how: SamplingParams) -> None:
    one, other = found.outputs[0], expected.outputs[0]
    assert list(one.token_ids) == list(other.token_ids), how
    assert (one.text, one.finish_reason, one.stop_reason) == (other.text, other.finish_reason, other.stop_reason), how
    assert (one.logprobs is None) == (other.logprobs is None)
    for here, there in zip(one.logprobs or (), other.logprobs or (), strict=True):
        assert {token: entry.rank for token, entry in here.items()} == {t: e.rank for t, e in there.items()}
        for token, entry in here.items():
            # fp32 rounding of other batch shapes: logits of some 10 are within 1e-5 of each other
            assert entry.logprob == pytest.approx(there[token].logprob, abs=5e-5)


@pytest.mark.parametrize(("k", "budget"), [(1, 128), (2, 512), (3, 4096), (4, 512), (16, 512)])
def test_lengths_and_budgets(engine: Make, speculating: Make, k: int, budget: int) -> None:
    sizes = {"max_num_batched_tokens": budget, "num_gpu_blocks_override": 200}
    jobs = [
        (text(length, length), params(seed=length, temperature=length % 2))
        for length in (1, 2, 23, 24, 25, 63, 64, 65, 127, 128, 129, 300)
    ]
    compare(engine(**sizes), speculating(k, **sizes), jobs)


def test_what_is_asked_of_tokens(engine: Make, speculating: Make) -> None:
    sizes = {"max_num_batched_tokens": 512, "num_gpu_blocks_override": 200, "max_logprobs": 20}
    plain = engine(**sizes)
    said = plain.outputs([text(50, 5)], params())[0].outputs[0]
    stops = [said.text[20:24], said.text[40:43]]
    prompt = text(50, 5)
    jobs = [
        (prompt, params(stop=stops)),
        ([*prompt, 3], params(stop=["a", "e"], min_tokens=7)),
        (prompt, params(stop=stops, include_stop_str_in_output=True, logprobs=2)),
        (prompt, params(stop_token_ids=[said.token_ids[17]])),
        (prompt, params(stop_token_ids=[said.token_ids[17]], stop=[said.text[60:62]])),
        (prompt, params(ignore_eos=False, logit_bias={said.token_ids[9]: -100.0})),
        (text(61, 6), params(logprobs=5, prompt_logprobs=1)),
        (text(62, 7), params(seed=1, temperature=1.0, logprobs=1)),
        (text(63, 8), params(repetition_penalty=1.5, bad_words=["the", "an"])),
        (text(64, 9), params(seed=2, temperature=1.5, presence_penalty=1.0, min_p=0.02)),
        (text(65, 10), params(seed=3, temperature=1.0, top_k=20, top_p=0.9, max_tokens=3)),
    ]
    compare(plain, speculating(4, **sizes), jobs)


def test_grammars(engine: Make, speculating: Make) -> None:
    sizes = {"max_num_batched_tokens": 512, "num_gpu_blocks_override": 200}
    schema = StructuredOutputsParams(json=SCHEMA)
    jobs = [
        (text(40, 1), params(structured_outputs=schema, ignore_eos=False, max_tokens=80)),
        (text(41, 2), params(structured_outputs=schema, ignore_eos=False, max_tokens=80, temperature=1.0, seed=5)),
        (text(42, 3), params(structured_outputs=regex("[a-z]{3,30}( [a-z]+){4}"), ignore_eos=False)),
        (text(43, 4), params(structured_outputs=regex("(yes|no)"), ignore_eos=False, logprobs=1)),
        (text(44, 5), params(structured_outputs=regex("[0-9]{1,38}"), ignore_eos=False, seed=1, temperature=1.2)),
        (text(45, 6), params()),
        (text(46, 7), params(structured_outputs=StructuredOutputsParams(choice=["left", "right"]), ignore_eos=False)),
    ]
    other = speculating(4, **sizes)
    compare(engine(**sizes), other, jobs, mistakes=(0, 2, 3))
    assert set(json.loads(other.finished["0-0"].outputs[0].text)) == {"name", "age"}


def test_preemption(engine: Make, speculating: Make) -> None:
    """Fewer blocks than the requests grow to."""
    sizes = {"max_num_batched_tokens": 512, "num_gpu_blocks_override": 20, "max_model_len": 1024}
    other = speculating(3, **sizes, enable_prefix_caching=True, additional_config={"num_slots": 8})
    jobs = [(text(120 + 31 * i, i), params(max_tokens=70, seed=i, temperature=i % 2)) for i in range(8)]
    recorder = other.worker.runner.runtime = Recorder(other.runtime)
    compare(engine(**sizes), other, jobs)
    starts = [[row for row in rows if row.start == 0 or row.restore] for rows in recorder.rows.values()]
    assert max(len(rows) for rows in starts) > 1, "nothing was preempted"


def test_prefixes_that_end_where_drafts_crossed_a_boundary(engine: Make, speculating: Make) -> None:
    """The next turn goes on from a state that was written when the row after the drafts confirmed them."""
    sizes = {"max_num_batched_tokens": 512, "num_gpu_blocks_override": 200}
    plain = engine(**sizes)
    other = speculating(4, **sizes, enable_prefix_caching=True, additional_config={"num_slots": 32})
    for length in range(120, 129):
        prompt = text(length, length)
        compare(plain, other, [(prompt, params(max_tokens=20))], mistakes=(0,))
        turn = prompt + other.worker.runner.drafter.coming[tuple(prompt)] + text(9, length)
        compare(plain, other, [(turn, params(max_tokens=20))], mistakes=(0,))
        assert other.finished["0-0"].num_cached_tokens == 128


@pytest.mark.parametrize("kernels", ["torch", "fused"])
def test_drafts_of_the_checkpoints_own_layer(engine: Make, kernels: str) -> None:
    """And out of the requests' own tokens, in chunks, with reused prefixes; adapted, and as many as there are."""
    sizes = {"max_num_batched_tokens": 128, "num_gpu_blocks_override": 200}
    plain = engine(**sizes, additional_config={"kernels": kernels})
    once = text(90, 3)
    prompts = [text(length, length) for length in (1, 63, 64, 65, 300)] + [once * 3, once, once * 2]
    jobs = [(prompt, params(seed=index, temperature=index % 2)) for index, prompt in enumerate(prompts)]
    expected = [plain.outputs([prompt], how)[0] for prompt, how in jobs]
    for adaptive in (False, True):
        other = engine(
            **sizes,
            enable_prefix_caching=True,
            speculative_config={"method": "mtp", "num_speculative_tokens": 3},
            additional_config={"kernels": kernels, "adaptive_drafts": adaptive, "num_slots": 16},
        )
        for turn in range(2):
            for index, (prompt, how) in enumerate(jobs):
                other.add(f"{turn}-{index}", prompt, how)
            other.drain()
            for index, (_, how) in enumerate(jobs):
                same(other.finished[f"{turn}-{index}"], expected[index], how)
        assert other.finished["1-4"].num_cached_tokens == 256
