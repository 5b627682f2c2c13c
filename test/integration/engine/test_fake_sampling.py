"""Sampling parameters on the fake runtime, whose logits after any tokens are known."""

from __future__ import annotations

import random
from typing import ClassVar

import numpy as np
import pytest
import torch
from engine import Engine, greedy
from fake_runtime import expected_logits, expected_tokens
from vllm import SamplingParams
from vllm.v1.core.sched.output import GrammarOutput
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

from qwen36_neuron.runtime import Output
from vllm_integration.requests import RequestState
from vllm_integration.sampling import apply_grammar, grammar_masks

COUNT = 8


def text(length: int, seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(512) for _ in range(length)]


def random_params(**more) -> SamplingParams:
    return SamplingParams(**{"max_tokens": COUNT, "ignore_eos": True, "detokenize": False, **more})


@pytest.fixture
def served(fake_engine):
    return fake_engine(max_num_batched_tokens=100, num_gpu_blocks_override=60, max_num_seqs=4, max_logprobs=512)


def mixed(engine: Engine, jobs: list[tuple[list[int], SamplingParams]]) -> list:
    """Run requests with different parameters together; their completions."""
    for i, (prompt, params) in enumerate(jobs):
        engine.add(f"m{i}", prompt, params)
    engine.drain()
    return [engine.finished[f"m{i}"] for i in range(len(jobs))]


def continuation(prompt: list[int], choose) -> list[int]:
    """COUNT tokens, each chosen from the logits and the output so far."""
    tokens: list[int] = []
    for _ in range(COUNT):
        tokens.append(int(choose(expected_logits(prompt + tokens), tokens)))
    return tokens


def test_plain_greedy_takes_tokens_and_nothing_else_does(served):
    jobs = [(text(30, 1), greedy(COUNT)), (text(40, 2), random_params(seed=1))]
    mixed(served, jobs)
    rows = [row for step in served.runtime.steps for row in step.rows]
    assert {row.output for row in rows if row.request_id.startswith("m0")} == {Output.TOKEN}
    assert {row.output for row in rows if row.request_id.startswith("m1")} == {Output.LOGITS}


def test_logprobs_belong_to_their_request_in_a_mixed_batch(served):
    prompts = [text(150, seed) for seed in range(4)]
    wanted = [None, 3, 0, 5]
    outputs = mixed(served, [(p, greedy(COUNT, logprobs=k)) for p, k in zip(prompts, wanted, strict=True)])
    for prompt, k, output in zip(prompts, wanted, outputs, strict=True):
        tokens = expected_tokens(prompt, COUNT)
        assert list(output.outputs[0].token_ids) == tokens
        if k is None:
            assert output.outputs[0].logprobs is None
            continue
        for i, found in enumerate(output.outputs[0].logprobs):
            expected = expected_logits(prompt + tokens[:i]).log_softmax(-1)
            best = expected.topk(max(k, 1))
            assert set(found) == set(best.indices.tolist())
            for token, entry in found.items():
                assert entry.logprob == pytest.approx(float(expected[token]), abs=1e-5)


@pytest.mark.parametrize("length", [1, 2, 99, 100, 101, 250])
def test_prompt_logprobs_over_chunks(served, length):
    prompt = text(length, length)
    outputs = mixed(served, [(text(70, 1), greedy(COUNT)), (prompt, greedy(2, prompt_logprobs=2))])
    table = outputs[1].prompt_logprobs
    assert len(table) == length
    assert table[0] is None
    for i in range(1, length):
        expected = expected_logits(prompt[:i]).log_softmax(-1)
        best = expected.topk(2).indices.tolist()
        assert set(table[i]) == {*best, prompt[i]}
        for token, entry in table[i].items():
            assert entry.logprob == pytest.approx(float(expected[token]), abs=1e-5)
            assert entry.rank == int((expected > expected[token]).sum()) + 1


def test_a_seed_gives_the_same_tokens_alone_and_among_others(served):
    prompt = text(120, 3)
    params = random_params(seed=7, temperature=1.5, top_p=0.9, top_k=50, min_p=0.01)
    alone = mixed(served, [(prompt, params)])[0].outputs[0].token_ids
    others = [(text(30 + i, i), random_params(temperature=1.2)) for i in range(5)]
    together = mixed(served, [*others[:2], (prompt, params), *others[2:]])[2].outputs[0].token_ids
    assert list(alone) == list(together)
    assert list(alone) != expected_tokens(prompt, COUNT)


def test_samples_follow_the_distribution(served):
    prompt = text(50, 9)
    probabilities = (expected_logits(prompt) / 2).softmax(-1)
    drawn = mixed(served, [(prompt, random_params(temperature=2.0, max_tokens=1)) for _ in range(800)])
    counts = torch.zeros(512)
    for output in drawn:
        counts[output.outputs[0].token_ids[0]] += 1
    top = probabilities.topk(10).indices
    expected = probabilities[top] * 800
    assert ((counts[top] - expected).abs() < 5 * expected.sqrt() + 3).all()


def test_what_changes_the_most_likely_token(served):
    """Each against the definition, all in one batch."""
    prompts = [text(90, 20 + i) for i in range(6)]
    banned = [expected_tokens(prompt, 1)[0] for prompt in prompts]
    allowed = [3, 77, 401]

    def without(token):
        def choose(logits, _):
            return logits.index_fill(0, torch.tensor([token]), -torch.inf).argmax()

        return choose

    def repetition(prompt):
        def choose(logits, tokens):
            seen = torch.tensor(sorted({*prompt, *tokens}))
            values = logits[seen]
            return logits.index_put((seen,), torch.where(values > 0, values / 1.7, values * 1.7)).argmax()

        return choose

    def presence_and_frequency(logits, tokens):
        counts = torch.bincount(torch.tensor(tokens, dtype=torch.int64), minlength=512)
        return (logits - 1.5 * (counts > 0) - 0.5 * counts).argmax()

    jobs = [
        (greedy(COUNT, logit_bias={banned[0]: -100.0}), without(banned[0])),
        (greedy(COUNT, allowed_token_ids=allowed), lambda logits, _: allowed[int(logits[allowed].argmax())]),
        (greedy(COUNT, repetition_penalty=1.7), repetition(prompts[2])),
        (greedy(COUNT, presence_penalty=1.5, frequency_penalty=0.5), presence_and_frequency),
        (random_params(temperature=2.0, top_k=1), lambda logits, _: logits.argmax()),
        (greedy(COUNT), lambda logits, _: logits.argmax()),
    ]
    outputs = mixed(served, [(prompt, params) for prompt, (params, _) in zip(prompts, jobs, strict=True)])
    for prompt, (_, choose), output in zip(prompts, jobs, outputs, strict=True):
        assert list(output.outputs[0].token_ids) == continuation(prompt, choose)


def test_min_tokens_holds_a_stop_token_off(served):
    prompt = text(80, 31)
    stop = expected_tokens(prompt, 3)[2]
    early, late = mixed(
        served, [(prompt, greedy(20, stop_token_ids=[stop])), (prompt, greedy(20, stop_token_ids=[stop], min_tokens=6))]
    )
    assert len(early.outputs[0].token_ids) == 3
    assert stop not in late.outputs[0].token_ids[:6]
    assert list(late.outputs[0].token_ids[:2]) == list(early.outputs[0].token_ids[:2])


def test_grammar_rows_are_found_by_request():
    """The bitmask's rows are in the grammar's order, a row a draft and one more; some requests have no grammar."""
    states = [RequestState(name, SamplingParams(), [1]) for name in ["plain", "b", "other", "a"]]
    for state, count in zip(states, [3, 0, 0, 2], strict=True):
        state.schedule(1, 1 + count, restores=False, drafts=[5] * count)
    bitmask = np.array([[0b0110, 0], [0b1000, 0], [0, 0b10], [0, 0b1]], dtype=np.int32)
    masks = grammar_masks(states, GrammarOutput(["a", "b"], bitmask))
    assert {name: len(mask) for name, mask in masks.items()} == {"a": 3, "b": 1}
    logits = torch.zeros(4, 64)
    apply_grammar(logits, {3: masks["a"][1], 1: masks["b"][0]})
    allowed = [(row > -torch.inf).nonzero().flatten().tolist() for row in logits]
    assert allowed == [list(range(64)), [32], list(range(64)), [3]]


@pytest.mark.parametrize("mode", ["raw_logprobs", "raw_logits", "processed_logprobs", "processed_logits"])
def test_a_neighbour_that_names_tokens_changes_nobody_else(fake_engine, mode):
    served = fake_engine(num_gpu_blocks_override=60, max_num_seqs=8, max_logprobs=512, logprobs_mode=mode)
    prompts = [text(90, seed) for seed in range(6)]
    wanted = [
        greedy(COUNT, logprobs=3),
        greedy(COUNT, logprob_token_ids=[7, 300, 2, 11, 12]),
        greedy(COUNT),
        greedy(COUNT, logprobs=0),
        greedy(COUNT, logprobs=1, logprob_token_ids=[511]),
        greedy(COUNT, logprobs=-1),
    ]
    jobs = list(zip(prompts, wanted, strict=True))
    together = mixed(served, jobs)
    for job, output in zip(jobs, together, strict=True):
        alone = mixed(served, [job])[0]
        found = output.outputs[0].logprobs
        assert found == alone.outputs[0].logprobs
        if job[1].num_logprobs is None:
            continue
        tokens = list(output.outputs[0].token_ids)
        for i, entries in enumerate(found):
            logits = expected_logits(job[0] + tokens[:i])
            expected = logits if mode.endswith("logits") else logits.log_softmax(-1)
            count = 512 if job[1].logprobs == -1 else max(job[1].logprobs or 0, 1)
            named = job[1].logprob_token_ids or expected.topk(count).indices.tolist()
            assert set(entries) == {tokens[i], *named}
            assert all(e.logprob == pytest.approx(float(expected[t]), abs=1e-5) for t, e in entries.items())


class CountdownProcessor(LogitsProcessor):
    """Forces the tokens 100, 101, 102, ... of a request, by a count that it keeps itself from the first on."""

    updates: ClassVar[list[BatchUpdate]] = []

    def __init__(self, *_) -> None:
        self.counts: dict[int, int] = {}
        self.updates.clear()

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        if batch_update is not None:
            self.updates.append(batch_update)
            for row in batch_update.removed:
                del self.counts[row]
            for row, _, _, output in batch_update.added:
                assert output == []
                self.counts[row] = 99
            for source, target, direction in batch_update.moved:
                assert direction is MoveDirectionality.UNIDIRECTIONAL
                self.counts[target] = self.counts.pop(source)
        for row in self.counts:
            self.counts[row] += 1

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        assert sorted(self.counts) == list(range(len(logits)))
        logits.fill_(-torch.inf)
        logits[range(len(logits)), [self.counts[row] for row in range(len(logits))]] = 0.0
        return logits


def test_a_stateful_processor_is_told_of_changes_only(fake_engine):
    """Requests come and go; none is announced twice, and each keeps the count that the processor keeps for it."""
    served = fake_engine(num_gpu_blocks_override=60, max_num_seqs=4, logits_processors=[CountdownProcessor])
    lengths = [3, 9, 1, 6, 2, 7, 5, 4, 8]
    outputs = mixed(served, [(text(20 + i, i), greedy(n, logprobs=0)) for i, n in enumerate(lengths)])
    for n, output in zip(lengths, outputs, strict=True):
        assert list(output.outputs[0].token_ids) == list(range(100, 100 + n))
        assert [list(entries) for entries in output.outputs[0].logprobs] == [[100 + i] for i in range(n)]
    assert sum(len(update.added) for update in CountdownProcessor.updates) == len(lengths)
    assert any(update.moved for update in CountdownProcessor.updates)
