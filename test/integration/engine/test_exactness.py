"""Cold against warm in the real engine and network: reuse changes no token, and no bit where the cuts agree."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from engine import Engine, greedy
from recorder import Recorder
from vllm import SamplingParams

from qwen36_neuron.config import BLOCK_SIZE
from qwen36_neuron.runtime import Output, Row, RuntimeConfig, Step, open_runtime

VOCAB = 4000
COUNT = 6
SEEDED = SamplingParams(temperature=1.0, top_p=0.95, seed=11, max_tokens=COUNT, ignore_eos=True, detokenize=False)
GREEDY = greedy(COUNT)


def text(length: int, seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(VOCAB) for _ in range(length)]


def tokens_of(engine: Engine, prompts: Sequence[Sequence[int]], params: SamplingParams) -> list[list[int]]:
    return [list(output.outputs[0].token_ids) for output in engine.outputs(prompts, params)]


@pytest.fixture
def pair(engine):
    """A cold engine, which keeps no prefix, and a warm one, with the same chunk budget."""

    def make(budget: int, **more) -> tuple[Engine, Engine]:
        common = {
            "max_num_batched_tokens": budget,
            "num_gpu_blocks_override": 400,
            "max_model_len": 8192,
            "additional_config": {"num_slots": 24},
            **more,
        }
        return engine(**common), engine(enable_prefix_caching=True, **common)

    return make


def check(cold: Engine, warm: Engine, makers: list[list[int]], prompt: list[int], at_least: int) -> None:
    """Run `makers` on the warm engine, then `prompt` on both, greedily and with a seed."""
    for maker in makers:
        warm.generate([maker], greedy(1))
    for params in (GREEDY, SEEDED):
        (output,) = warm.outputs([prompt], params)
        assert output.num_cached_tokens >= at_least
        assert list(output.outputs[0].token_ids) == tokens_of(cold, [prompt], params)[0]


@pytest.mark.parametrize("budget", [128, 512, 4096])
def test_every_way_to_share(pair, budget):
    cold, warm = pair(budget)
    repeat = text(700, 1)
    check(cold, warm, [repeat], repeat, 640)
    system = text(500, 2)
    check(cold, warm, [system + text(90, 3), system + text(80, 4)], system + text(100, 5), 448)
    check(cold, warm, [], repeat[:400] + text(60, 6), 256)
    (turn,) = warm.generate([repeat], greedy(80))
    check(cold, warm, [], repeat + turn + text(30, 7), 704)


@pytest.mark.parametrize("blocks", [1, 2, 100])
@pytest.mark.parametrize("offset", [-1, 0, 1])
def test_lengths_around_a_boundary(pair, blocks, offset):
    cold, warm = pair(512)
    prompt = text(blocks * BLOCK_SIZE + offset, blocks)
    check(cold, warm, [prompt], prompt, (len(prompt) - 1) // BLOCK_SIZE * BLOCK_SIZE)


def test_batch_with_mixed_hits(pair):
    cold, warm = pair(512)
    trunk = text(600, 1)
    for maker in (trunk, trunk[:300] + text(40, 2)):
        warm.generate([maker], greedy(1))
    prompts = [
        trunk,
        trunk[:300] + text(200, 3),
        text(333, 4),
        trunk + text(65, 5),
        text(64, 6),
        trunk[:129],
        [5],
        trunk,
    ]
    for params in (GREEDY, SEEDED):
        assert tokens_of(warm, prompts, params) == tokens_of(cold, prompts, params)


def test_after_preemption(pair):
    cold, warm = pair(512, num_gpu_blocks_override=22, max_model_len=1024)
    prompts = [text(120 + 31 * i, i) for i in range(8)]
    long = {"max_tokens": 60}
    for params in (greedy(60), SamplingParams(temperature=1.0, seed=3, ignore_eos=True, detokenize=False, **long)):
        expected = [tokens_of(cold, [prompt], params)[0] for prompt in prompts]
        recorder = warm.worker.runner.runtime = Recorder(warm.runtime)
        assert tokens_of(warm, prompts, params) == expected
        starts = [[row for row in rows if row.start == 0 or row.restore] for rows in recorder.rows.values()]
        assert max(len(rows) for rows in starts) > 1, "nothing was preempted"


def test_after_eviction(pair):
    cold, warm = pair(512, num_gpu_blocks_override=40, max_model_len=1024, additional_config={"num_slots": 2})
    prompts = [text(400 + i, i) for i in range(6)]
    for prompt in [*prompts, *prompts[::-1], *prompts]:
        assert warm.generate([prompt], GREEDY) == tokens_of(cold, [prompt], GREEDY)


@pytest.mark.parametrize("budget", [128, 512])
@pytest.mark.parametrize("length", [129, 640, 1000])
def test_restoring_is_continuing_bit_for_bit(engine, tiny_checkpoint, budget, length):
    """Logits of a warm request equal a cold run's: with the same cuts in every bit, with other cuts to 1e-5."""
    warm = engine(
        enable_prefix_caching=True, max_num_batched_tokens=budget, num_gpu_blocks_override=40, max_model_len=1280
    )
    prompt = text(length, length)
    warm.generate([prompt], greedy(1))
    recorder = warm.worker.runner.runtime = Recorder(warm.runtime)
    (output,) = warm.outputs([prompt], greedy(4, logprobs=1))
    (rows,) = recorder.rows.values()
    (logits,) = recorder.logits.values()
    restored = output.num_cached_tokens
    assert restored == rows[0].start == (length - 1) // BLOCK_SIZE * BLOCK_SIZE
    tokens = prompt + list(output.outputs[0].token_ids)
    before = [*range(budget, restored, budget), restored]
    same = cold_logits(tiny_checkpoint, tokens, [*before, *(row.end for row in rows)])
    for end, found in logits.items():
        assert torch.equal(found, same[end]), f"after {end} tokens: {(found - same[end]).abs().max()}"
    other = cold_logits(
        tiny_checkpoint, tokens, [*range(97, length, 97), *(row.end for row in rows if row.end >= length)]
    )
    for end, found in logits.items():
        assert (found - other[end]).abs().max() <= 1e-5


def cold_logits(checkpoint, tokens: list[int], ends: list[int]) -> dict[int, torch.Tensor]:
    """Run `tokens` alone, cut at `ends`; the logits after each cut."""
    runtime = open_runtime(
        RuntimeConfig(checkpoint, max_model_len=1280, max_step_tokens=512, num_lanes=8, num_blocks=40)
    )
    row = Row("cold", 1, (), 0, list(range(1, 25)), output=Output.LOGITS)
    found = {}
    for start, end in zip([0, *ends], ends, strict=False):
        (result,) = runtime.run(Step((replace(row, tokens=tokens[start:end], start=start),))).rows
        assert result.logits is not None
        found[end] = result.logits[-1]
    return found
