"""The simulator on traces small enough to work out by hand."""

from __future__ import annotations

import pytest

from qwen36_lab.apc.baselines import EveryBlockPlanner, EveryBlockPool, LruPool, Marconi
from qwen36_lab.apc.simulator import CoveredCache, KVBlocks, SlotCache, key_requests, replay
from qwen36_lab.apc.traces import TRACES, Request, Tokens
from qwen36_neuron.apc import BoundaryPlanner, PolicyConfig, PrefillCost, SlotPool

POLICY = PolicyConfig(64)
STATE_BLOCKS = 36.7


def text(first: int, length: int) -> Tokens:
    return tuple(range(first, first + length))


def ours(cost: PrefillCost, slots: int = 64, blocks: int = 10_000) -> CoveredCache:
    policy = PolicyConfig(slots, frozenset({1}), frozenset({2}))
    return CoveredCache("ours", BoundaryPlanner(policy), SlotPool(slots, cost), blocks)


def reused(trace: list[Request], cache: SlotCache | Marconi) -> list[int]:
    return [cache.serve(keyed) for keyed in key_requests(trace)]


@pytest.mark.parametrize("blocks", [1, 2, 100])
@pytest.mark.parametrize("more", [-1, 0, 1])
def test_an_exact_repeat(cost: PrefillCost, blocks: int, more: int) -> None:
    prompt = text(100, blocks * 64 + more)
    request = Request(prompt, text(10_000, 5))
    assert reused([request] * 3, ours(cost)) == [0] + [(len(prompt) - 1) // 64 * 64] * 2


def test_a_marked_beginning_is_reused_at_once_and_an_unmarked_one_by_half_then_all(cost: PrefillCost) -> None:
    message = (1, *text(100, 1998), 2)
    marked = [Request((*message, *text(10_000 * i, 150)), (3,)) for i in range(1, 4)]
    assert reused(marked, ours(cost)) == [0, 1984, 1984]
    shared = text(100, 2000)
    unmarked = [Request((*shared, *text(10_000 * i, 150)), (3,)) for i in range(1, 5)]
    assert reused(unmarked, ours(cost)) == [0, 1792, 1984, 1984]


def test_a_conversation_goes_on_from_its_last_block(cost: PrefillCost) -> None:
    first = Request(text(100, 500), text(5000, 200))
    history = first.prompt + first.output
    second = Request(history + text(7000, 100), text(9000, 20))
    assert reused([first, second], ours(cost)) == [0, 640]


def test_both_halves_are_needed(cost: PrefillCost) -> None:
    request, other = Request(text(100, 1000), (3,)), Request(text(5000, 1000), (4,))
    assert reused([request, request], ours(cost, slots=0)) == [0, 0]
    # A request runs on 16 blocks. Of 20 the second leaves 4, which one checkpoint of the first can do with.
    small = ours(cost, blocks=20)
    assert reused([request, other, request], small) == [0, 0, 256]
    assert len(small.pool.cover) <= 20
    with pytest.raises(ValueError, match="does not fit"):
        reused([Request(text(9000, 1281), (3,))], small)


def test_kv_that_no_checkpoint_needs_makes_room_for_what_one_does(cost: PrefillCost) -> None:
    """A shared beginning, and tails that nobody sees again: least recently used loses the beginning's blocks."""
    policy, shared = PolicyConfig(2, frozenset({1}), frozenset({2}), slots_per_prompt=1), (1, *text(100, 638), 2)
    kept = Request((*shared, *text(5000, 64)), (3,))
    noise = [Request(text(10_000 * i, 640), (3,)) for i in range(1, 4)]

    def last(cache: SlotCache) -> int:
        return reused([kept, kept, *noise, kept], cache)[-1]

    assert last(SlotCache("lru", BoundaryPlanner(policy), SlotPool(2, cost), 30)) < 640
    assert last(CoveredCache("ours", BoundaryPlanner(policy), SlotPool(2, cost), 30)) >= 640


def test_reusable_is_what_was_run_before() -> None:
    trace = [
        Request(text(100, 100), text(1000, 10)),
        Request(text(100, 100) + text(1000, 9) + (9999,), (3,)),
        Request(text(100, 100) + text(1000, 10) + (9999,), (3,)),
        Request(text(100, 70), (3,)),
        Request((7,), (3,)),
    ]
    # The last token of an output is never run; the last of a prompt always is.
    assert [keyed.reusable for keyed in key_requests(trace)] == [0, 109, 109, 69, 0]


def test_counts(cost: PrefillCost) -> None:
    request = Request(text(100, 640), (3,))
    result = replay(key_requests([request] * 4), ours(cost), cost)
    assert (result.requests, result.hits, result.prompt, result.reused) == (4, 3, 2560, 3 * 576)
    assert result.reusable == 3 * 639
    assert result.hit_rate == 3 * 576 / 2560
    assert result.of_reusable == 576 / 639
    assert result.flops_saved == pytest.approx(3 * cost.prefix(576) / (4 * cost.prefix(640)))


def test_kv_is_given_up_from_the_ends_of_the_least_recent_sequence() -> None:
    gone: list[object] = []
    kv = KVBlocks(10, gone.append)
    kv.run(["a", "b", "c", "d"], 0, 5)
    kv.run(["x", "y", "z"], 0, 3)
    assert kv.match(["a", "b", "c", "d"], 9) == 4
    kv.run(["a", "b", "e"], 2, 5)
    assert gone == []
    kv.run(["p", "q", "r", "s", "t"], 0, 5)
    assert gone == ["d", "c", "z"]
    assert kv.match(["a", "b", "c"], 9) == 2
    assert kv.match(["a", "b", "e"], 1) == 1
    with pytest.raises(ValueError, match="does not fit"):
        kv.run([str(i) for i in range(11)], 0, 11)


def test_a_recomputed_prefix_is_held_twice_and_gone_with_its_last_copy() -> None:
    gone: list[object] = []
    kv = KVBlocks(4, gone.append)
    kv.run(["a", "b"], 0, 2)
    kv.run(["a", "b"], 0, 2)
    kv.run(["x", "y"], 0, 2)
    assert gone == []
    kv.run(["p", "q"], 0, 2)
    assert gone == ["b", "a"]


def test_least_recently_used(cost: PrefillCost) -> None:
    policy = PolicyConfig(2, slots_per_prompt=1)
    cache = SlotCache("lru", BoundaryPlanner(policy), LruPool(2, cost), 1000)
    a, b, c = (Request(text(i, 130), (3,)) for i in (100, 1000, 2000))
    assert reused([a, b, a, c, a, b], cache) == [0, 0, 128, 0, 128, 0]


def test_every_block(cost: PrefillCost) -> None:
    cache = SlotCache("blocks", EveryBlockPlanner(POLICY), EveryBlockPool(8, cost), 1000)
    shared = text(100, 320)
    assert reused([Request(shared + text(10_000 * i, 70), (3,)) for i in (1, 2)], cache) == [0, 320]
    assert cache.checkpoints == 7


def test_marconi_keeps_ends_and_branches_and_frees_what_saves_least(cost: PrefillCost) -> None:
    cache = Marconi(1.0, 1000, STATE_BLOCKS, cost)
    shared = text(100, 640)
    requests = [Request(shared + text(10_000 * i, 640), (3,)) for i in range(1, 4)]
    assert reused(requests, cache) == [0, 0, 640]
    assert cache.checkpoints == 4
    assert cache.used == pytest.approx(10 + 3 * 10 + 4 * STATE_BLOCKS)
    repeat = Marconi(1.0, 1000, STATE_BLOCKS, cost)
    again = Request(shared, text(5000, 30))
    assert reused([again, Request(shared + text(5000, 29) + (7,), (3,))], repeat) == [0, 640]
    tight = Marconi(0.0, 2 * STATE_BLOCKS + 25, STATE_BLOCKS, cost)
    a, b, c = (Request(text(i, 640), (3,)) for i in (100, 2000, 4000))
    assert reused([a, b, c], tight) == [0, 0, 0]
    assert tight.checkpoints == 2
    with pytest.raises(ValueError, match="does not fit"):
        reused([Request(text(9000, 6400), (3,))], tight)


@pytest.mark.parametrize("name", TRACES)
def test_traces_are_a_function_of_their_seed(name: str) -> None:
    assert TRACES[name](3) == TRACES[name](3)
    assert TRACES[name](3) != TRACES[name](4)
    assert len(TRACES[name](3)) == (480 if name == "mix" else 240)


def test_the_first_two_traces_lose_next_to_nothing(cost: PrefillCost) -> None:
    for name in ("system", "dialogue"):
        result = replay(key_requests(TRACES[name](7)), ours(cost, 64, 5200), cost)
        assert result.of_reusable >= 0.99
        again = replay(key_requests(TRACES[name](7)), ours(cost, 64, 5200), cost)
        assert result == again
