"""Prefix reuse on the fake runtime: what is reused, and that reuse never changes a token."""

from __future__ import annotations

import random

import pytest
from engine import Engine, greedy
from fake_runtime import expected_tokens

from qwen36_neuron.apc import DropReason, Kind


def text(length: int, seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(512) for _ in range(length)]


def run(engine: Engine, prompt: list[int], count: int = 4) -> int:
    """Generate from `prompt` alone, check the tokens, and say how many of its tokens came from the cache."""
    (output,) = engine.outputs([prompt], greedy(count))
    assert list(output.outputs[0].token_ids) == expected_tokens(prompt, count)
    return output.num_cached_tokens


@pytest.fixture(params=[128, 512, 4096])
def cached(fake_engine, request):
    return fake_engine(
        enable_prefix_caching=True,
        max_num_batched_tokens=request.param,
        num_gpu_blocks_override=400,
        max_model_len=4096,
        additional_config={"num_slots": 32},
    )


@pytest.mark.parametrize("length", [65, 127, 128, 129, 639, 640, 641, 2000])
def test_exact_repeat_reuses_all_but_the_last_token(cached, length):
    prompt = text(length, 1)
    assert [run(cached, prompt) for _ in range(3)] == [0, (length - 1) // 64 * 64, (length - 1) // 64 * 64]


def test_longer_prompt_reuses_the_shorter_one(cached):
    assert run(cached, text(561, 2)) == 0
    assert run(cached, text(561, 2) + text(100, 3)) == 512
    assert run(cached, text(561, 2) + text(200, 4)) == 512


def test_branch_is_found_in_part_at_once_and_in_full_the_third_time(cached):
    trunk = text(2000, 5)
    first = run(cached, trunk + text(150, 6))
    second = run(cached, trunk + text(150, 7))
    third = run(cached, trunk + text(150, 8))
    assert first == 0
    assert second >= 1000
    assert third == 1984


def test_next_turn_reuses_the_answer(cached):
    prompt = text(500, 9)
    (output,) = cached.outputs([prompt], greedy(200))
    answer = list(output.outputs[0].token_ids)
    assert answer == expected_tokens(prompt, 200)
    assert run(cached, prompt + answer + text(40, 10)) == 640


def test_same_prompt_eight_times_at_once_is_run_once(cached):
    prompt = text(900, 11)
    outputs = cached.outputs([prompt] * 8, greedy(4))
    assert [list(o.outputs[0].token_ids) for o in outputs] == [expected_tokens(prompt, 4)] * 8
    assert sorted(o.num_cached_tokens for o in outputs) == [0] + [896] * 7


def test_reset_forgets(cached):
    prompt = text(900, 12)
    assert [run(cached, prompt), run(cached, prompt)] == [0, 896]
    assert cached.llm.reset_prefix_cache()
    assert cached.scheduler.counters().slots_in_use == 0
    assert run(cached, prompt) == 0


def test_named_prefix_is_kept(cached):
    prompt = text(900, 13)
    cached.outputs([prompt], greedy(1, extra_args={"checkpoints": [700]}))
    assert run(cached, prompt[:720] + text(100, 14)) == 640


def test_tenants_do_not_share(cached):
    prompt = text(300, 15)
    params = greedy(2)
    for name, salt in (("a", "one"), ("b", "two"), ("c", "one")):
        cached.engine.add_request(name, {"prompt_token_ids": prompt, "cache_salt": salt}, params)
        cached.drain()
    assert [cached.finished[name].num_cached_tokens for name in "abc"] == [0, 0, 256]


def test_prompt_longer_than_the_slots_still_runs(fake_engine):
    engine = fake_engine(
        enable_prefix_caching=True,
        max_num_batched_tokens=512,
        num_gpu_blocks_override=200,
        max_model_len=4096,
        additional_config={"num_slots": 1},
    )
    for seed in range(4):
        assert run(engine, text(1500, seed)) == 0
    assert run(engine, text(1500, 3)) in (0, 1472)


def test_kv_that_no_checkpoint_needs_goes_before_a_prefix_that_is_used(fake_engine):
    """Unrelated requests run through more blocks than there are; least recently used would give the prefix away."""
    engine = fake_engine(
        enable_prefix_caching=True, num_gpu_blocks_override=41, max_model_len=1280, additional_config={"num_slots": 4}
    )
    shared = text(1000, 60)
    run(engine, shared)
    reused = []
    for turn in range(6):
        reused.append(run(engine, shared + text(70, 100 + turn)))
        for index in range(8):
            run(engine, text(300, 200 + 8 * turn + index))
    assert min(reused[-3:]) >= 480


def test_where_a_request_left_another_is_known_after_the_kv_is_gone(fake_engine):
    engine = fake_engine(
        enable_prefix_caching=True, num_gpu_blocks_override=61, max_model_len=2048, additional_config={"num_slots": 1}
    )
    shared = text(1000, 90)
    run(engine, shared + text(100, 91))
    run(engine, text(1300, 92))  # takes the only slot, and with it all use of the first request's KV
    assert not engine.scheduler.slot_manager.statistics.hits
    assert run(engine, shared + text(100, 93)) == 0
    assert run(engine, shared + text(100, 94)) == 960
    assert engine.scheduler.slot_manager.statistics.hits == {Kind.BRANCH: 1}


def test_what_a_preempted_request_held_goes_before_any_prefix(fake_engine):
    """39 blocks: 4 of a finished prompt, 16 of each of two that run in chunks of 8; then the first has room for 7."""
    engine = fake_engine(
        enable_prefix_caching=True,
        max_num_batched_tokens=1024,
        long_prefill_token_threshold=512,
        num_gpu_blocks_override=40,
        max_model_len=2048,
        additional_config={"num_slots": 32, "slots_per_prompt": 1},
    )
    run(engine, text(260, 110))
    prompts = {"first": text(1920, 111), "second": text(1280, 112)}
    for name, prompt in prompts.items():
        engine.add(name, prompt, greedy(4))
    while not any(request.num_preemptions for request in engine.scheduler.requests.values()):
        assert engine.engine.has_unfinished_requests(), "nothing was preempted"
        engine.step()
    assert not engine.scheduler.slot_manager.statistics.drops[DropReason.KV]
    engine.drain()
    assert [list(engine.finished[name].outputs[0].token_ids) for name in prompts] == [
        expected_tokens(prompt, 4) for prompt in prompts.values()
    ]


def test_a_request_that_never_ran_is_no_sighting(fake_engine):
    engine = fake_engine(
        enable_prefix_caching=True, num_gpu_blocks_override=61, max_model_len=2048, additional_config={"num_slots": 1}
    )
    shared = text(1000, 120)
    engine.add("aborted", shared + text(100, 121), greedy(4))
    engine.abort("aborted")
    engine.drain()
    run(engine, shared + text(100, 122))
    assert run(engine, shared + text(100, 123)) == 0


def test_a_preempted_request_does_not_leave_itself(fake_engine):
    """What it runs again is no branch: nobody else went that way."""
    engine = fake_engine(
        enable_prefix_caching=True,
        max_num_batched_tokens=1024,
        long_prefill_token_threshold=512,
        num_gpu_blocks_override=40,
        max_model_len=2048,
        additional_config={"num_slots": 32, "slots_per_prompt": 2},
    )
    for name, length, seed in (("first", 1920, 130), ("second", 1300, 131)):
        engine.add(name, text(length, seed), greedy(4))
    while not any(request.num_preemptions for request in engine.scheduler.requests.values()):
        assert engine.engine.has_unfinished_requests(), "nothing was preempted"
        engine.step()
    engine.drain()
    slots = engine.scheduler.slot_manager.slots
    assert {checkpoint.kind for checkpoint in slots.by_key.values()} <= {Kind.PROMPT_END, Kind.SPACED, Kind.TURN_END}
