"""What is remembered of sequences that have run."""

from qwen36_neuron.apc import SeenPrefixes
from qwen36_neuron.apc.openings import LENGTH, MEMORY, Openings
from qwen36_neuron.config import BLOCK_SIZE

TOKENS = tuple(range(4 * BLOCK_SIZE))


def test_the_longest_remembered_prefix_is_found_up_to_the_limit() -> None:
    seen = SeenPrefixes(100)
    seen.add(["a", "b", "c", "d"], TOKENS)
    assert [seen.match(path, 3) for path in (["a", "b", "c", "d"], ["a", "b", "x"], ["q"])] == [3, 2, 0]
    seen.clear()
    assert seen.match(["a"], 9) == 0


def test_memory_is_bounded_and_beginnings_of_late_sequences_stay() -> None:
    seen = SeenPrefixes(5)
    seen.add(["a", "b", "c"], TOKENS)
    seen.add(["x", "y", "z"], TOKENS)
    assert seen.match(["x", "y", "z"], 9) == 3
    assert seen.match(["a", "b", "c"], 9) == 2
    seen.add(["p"], TOKENS)
    assert seen.match(["a", "b", "c"], 9) == 1


def test_what_began_at_a_parting_is_found_behind_another_prefix() -> None:
    seen, first, second = SeenPrefixes(100), list(range(1000, 1200)), list(range(2000, 2200))
    shared = list(range(BLOCK_SIZE + 10))
    seen.add(["head", "first"], shared + first)
    assert list(seen.openings(["head", "second"], shared + second, 0)) == [BLOCK_SIZE + 10]
    prompt = list(range(500, 530)) + second + [7] + first
    assert list(seen.openings(["other"], prompt, 0)) == [30, 231]
    assert list(seen.openings(["other"], prompt, 31)) == [231]
    assert list(seen.openings(["other"], prompt[: 230 + LENGTH], 0)) == [30]
    assert not list(seen.openings(["other"], prompt, 0, tenant="another"))
    seen.clear()
    assert not list(seen.openings(["other"], prompt, 0))


def test_openings_are_bounded_and_the_latest_stay() -> None:
    openings = Openings()
    for index in range(MEMORY):
        openings.learn([0, *range(10 * index + 1, 10 * index + 10)], [0, 5, *range(LENGTH)])
    assert not list(openings.places(list(range(1, 1 + LENGTH)), 0))
    last = 10 * (MEMORY - 1) + 1
    assert list(openings.places(list(range(last, last + LENGTH)), 0)) == [0]
    openings.learn([0, 1, 2], [0, 1, 2])
    openings.learn([0, 70, 71], [0, 80, 81])
    assert not list(openings.places([70, 71] + [0] * LENGTH, 0))
