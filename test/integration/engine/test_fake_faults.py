"""What goes wrong must not leave anything behind: refused steps, a dead device, aborts, victims of their own step."""

from __future__ import annotations

import random

import pytest
from engine import greedy
from fake_runtime import expected_tokens

from qwen36_neuron.apc import DropReason
from qwen36_neuron.runtime import DeviceError, StepError


def text(length: int, seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(512) for _ in range(length)]


def test_victim_already_in_the_step_does_not_publish_what_it_will_not_write(fake_engine):
    """With policy=priority vLLM may preempt a request whose chunk it has just scheduled.

    The long prompt runs 128 tokens a step and fills the pool in the very step in which the urgent request, later in the
    list, needs its second block. On its return it must not be given the blocks and slots that it never wrote.
    """
    engine = fake_engine(
        enable_prefix_caching=True,
        scheduling_policy="priority",
        long_prefill_token_threshold=128,
        max_num_batched_tokens=512,
        num_gpu_blocks_override=12,
        max_model_len=704,
        additional_config={"num_slots": 64},
    )
    prompts = {"long": text(640, 1), "urgent": text(63, 2), "other": text(120, 3)}
    engine.add("long", prompts["long"], greedy(4, extra_args={"checkpoints": [448, 512]}), priority=5)
    engine.step()
    engine.add("urgent", prompts["urgent"], greedy(40), priority=0)
    engine.add("other", prompts["other"], greedy(8), priority=1)
    engine.drain()
    assert engine.scheduler.slot_manager.statistics.drops[DropReason.UNWRITTEN] > 0
    for name, prompt in prompts.items():
        tokens = list(engine.finished[name].outputs[0].token_ids)
        assert tokens == expected_tokens(prompt, len(tokens)), name
    longer = prompts["long"] + text(50, 4)
    assert engine.generate([longer], greedy(4)) == [expected_tokens(longer, 4)]


@pytest.mark.parametrize("caching", [False, True])
def test_refused_step_fails_its_requests_and_nothing_else(fake_engine, caching):
    engine = fake_engine(
        enable_prefix_caching=caching, max_num_batched_tokens=256, num_gpu_blocks_override=60, max_num_seqs=3
    )
    prompts = [text(200 + i, i) for i in range(6)]
    for i, prompt in enumerate(prompts):
        engine.add(f"{i}", prompt, greedy(12))
    for _ in range(4):
        engine.step()
    engine.runtime.fail_next = StepError("on purpose")
    engine.drain()
    failed = {name for name, output in engine.finished.items() if output.outputs[0].finish_reason == "error"}
    assert len(failed) == 3
    for i, prompt in enumerate(prompts):
        tokens = list(engine.finished[f"{i}"].outputs[0].token_ids)
        assert tokens == expected_tokens(prompt, len(tokens))
        assert len(tokens) == 12 or f"{i}" in failed
    assert engine.generate(prompts, greedy(12)) == [expected_tokens(prompt, 12) for prompt in prompts]


def test_refused_step_leaves_no_reusable_prefix(fake_engine):
    engine = fake_engine(enable_prefix_caching=True, max_num_batched_tokens=512, num_gpu_blocks_override=60)
    prompt = text(400, 1)
    engine.runtime.fail_next = StepError("on purpose")
    (failed,) = engine.outputs([prompt], greedy(4))
    assert failed.outputs[0].finish_reason == "error"
    assert engine.scheduler.counters().slots_in_use == 0
    (again,) = engine.outputs([prompt], greedy(4))
    assert again.num_cached_tokens == 0
    assert list(again.outputs[0].token_ids) == expected_tokens(prompt, 4)


def test_dead_device_ends_the_engine(fake_engine):
    engine = fake_engine(num_gpu_blocks_override=60)
    engine.runtime.fail_next = DeviceError("the device hangs")
    engine.add("0", text(100, 1), greedy(4))
    with pytest.raises(DeviceError):
        engine.step()


@pytest.mark.parametrize("steps", [0, 1, 2, 5])
def test_abort_gives_everything_back(fake_engine, steps):
    engine = fake_engine(enable_prefix_caching=True, max_num_batched_tokens=128, num_gpu_blocks_override=60)
    for i in range(12):
        engine.add(f"{i}", text(300, i % 5), greedy(50))
    for _ in range(steps):
        engine.step()
    for i in range(0, 12, 2):
        engine.abort(f"{i}")
    engine.drain()
    for i in range(1, 12, 2):
        assert list(engine.finished[f"{i}"].outputs[0].token_ids) == expected_tokens(text(300, i % 5), 50)


def test_reset_with_running_requests(fake_engine):
    engine = fake_engine(enable_prefix_caching=True, max_num_batched_tokens=256, num_gpu_blocks_override=60)
    for i in range(6):
        engine.add(f"{i}", text(300, i % 3), greedy(30))
    for _ in range(9):
        engine.step()
    assert engine.scheduler.reset_prefix_cache(reset_running_requests=True)
    assert engine.scheduler.counters().slots_in_use == 0
    engine.drain()
    for i in range(6):
        assert list(engine.finished[f"{i}"].outputs[0].token_ids) == expected_tokens(text(300, i % 3), 30)
