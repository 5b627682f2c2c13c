"""What a client sees of prefix reuse: `usage.prompt_tokens_details.cached_tokens` where other engines report zero."""

from __future__ import annotations

import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

BLOCK = 64
VOCAB = 4000
SYSTEM = "You answer questions about the harbour and its ships, and say so when you do not know. " * 25

pytestmark = pytest.mark.http


def text(length: int, seed: int) -> list[int]:
    rng = random.Random(f"prefix reuse {seed}")
    return [rng.randrange(VOCAB) for _ in range(length)]


def whole(shared: int) -> int:
    """The most that can be reused of `shared` tokens in common: whole blocks, and one token is left to run."""
    return (shared - 1) // BLOCK * BLOCK


def cached(answer: Any) -> int:
    """Prompt tokens that were not run again. vLLM leaves the details out where there are none."""
    details = answer.usage.prompt_tokens_details
    return 0 if details is None else details.cached_tokens or 0


def reused(server: Any, prompt: Sequence[int], **options: Any) -> int:
    return cached(server.complete(list(prompt), max_tokens=1, **options))


@pytest.fixture(params=["server", "by_priority"])
def either(request: pytest.FixtureRequest) -> Any:
    """The server that other tests use, first come first served, and the one that schedules by priority."""
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("length", [64, 65, 128, 561, 1200])
def test_the_same_prompt_again(either, length):
    prompt = text(length, length)
    cold, warm, again = (either.complete(prompt, max_tokens=8) for _ in range(3))
    assert [cached(answer) for answer in (cold, warm, again)] == [0, whole(length), whole(length)]
    assert cold.choices[0].token_ids == warm.choices[0].token_ids == again.choices[0].token_ids


def test_561_tokens_and_then_more(either):
    prompt = text(561, 1)
    assert reused(either, prompt) == 0
    for seed in (2, 3):
        assert reused(either, prompt + text(70, seed)) == whole(561)


def test_unmarked_prefix_under_distinct_suffixes(by_priority):
    """Nothing marks where the suffixes begin: half is there at the second sighting, all of it at the third."""
    prefix = text(2000, 4)
    first, second, third, fourth = (reused(by_priority, prefix + text(150, seed)) for seed in (5, 6, 7, 8))
    assert first == 0
    assert second >= whole(2000) / 2
    assert third == fourth == whole(2000)


def test_named_prefix_under_distinct_suffixes(by_priority):
    prefix = text(2000, 9)
    named = {"extra": {"vllm_xargs": {"checkpoints": [2000]}}}
    assert reused(by_priority, prefix + text(150, 10), **named) == 0
    assert reused(by_priority, prefix + text(150, 11)) == whole(2000)


def test_a_system_prompt_is_marked_by_the_chat_template(either):
    """Distinct questions after one system prompt: the second sighting reuses all of it, to the block before its end."""
    chats = [
        [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question * 20}]
        for question in ("Which ship is the oldest one? ", "When does the tide turn? ")
    ]
    ids = [either.http.post("/tokenize", json={"model": "tiny", "messages": chat}).json()["tokens"] for chat in chats]
    shared = next(i for i, (one, other) in enumerate(zip(*ids, strict=False)) if one != other)
    assert shared > 4 * BLOCK
    cold, warm = (
        either.client.chat.completions.create(model="tiny", messages=chat, max_tokens=1, temperature=0)
        for chat in chats
    )
    assert cached(cold) == 0
    assert whole(shared) - BLOCK <= cached(warm) <= whole(shared)


def test_20_000_tokens_twice(by_priority):
    prompt = text(20_000, 12)
    cold, warm = (by_priority.complete(prompt, max_tokens=4) for _ in range(2))
    assert [cached(cold), cached(warm)] == [0, whole(20_000)]
    assert cold.choices[0].token_ids == warm.choices[0].token_ids


def test_hits_among_requests_of_other_priorities(by_priority):
    """Requests of rising urgency, more than run at once, share a prefix; each is answered as if alone."""
    prefix = text(700, 13)
    prompts = [prefix + text(90, 100 + i) for i in range(24)]
    reused(by_priority, prefix)

    def ask(index: int) -> Any:
        return by_priority.complete(prompts[index], max_tokens=12, extra={"priority": -index})

    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(ask, range(24)))
    assert min(map(cached, answers)) >= whole(700)
    for index in (0, 11, 23):
        assert answers[index].choices[0].token_ids == ask(index).choices[0].token_ids


def test_a_thousand_unrelated_prompts(by_priority):
    """None of them hits, none leaves anything behind, and the prefix that was in use before is still there."""
    prefix = text(1500, 14)
    for seed in (15, 16, 17):
        reused(by_priority, prefix + text(150, seed))
    rng = random.Random(18)
    prompts = [text(rng.randrange(1, 150), 1000 + i) for i in range(1000)]
    with ThreadPoolExecutor(8) as pool:
        assert not any(pool.map(lambda prompt: reused(by_priority, prompt), prompts))
    by_priority.wait_idle()
    assert reused(by_priority, prefix + text(150, 19)) == whole(1500)


def test_tenants_do_not_share(by_priority):
    prompt = text(300, 20)
    salts = ("one", "two", "one")
    assert [reused(by_priority, prompt, extra={"cache_salt": salt}) for salt in salts] == [0, 0, whole(300)]
