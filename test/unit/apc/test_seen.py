"""What is remembered of sequences that have run."""

from qwen36_neuron.apc import SeenPrefixes


def test_the_longest_remembered_prefix_is_found_up_to_the_limit() -> None:
    seen = SeenPrefixes(100)
    seen.add(["a", "b", "c", "d"])
    assert [seen.match(path, 3) for path in (["a", "b", "c", "d"], ["a", "b", "x"], ["q"])] == [3, 2, 0]
    seen.clear()
    assert seen.match(["a"], 9) == 0


def test_memory_is_bounded_and_beginnings_of_late_sequences_stay() -> None:
    seen = SeenPrefixes(5)
    seen.add(["a", "b", "c"])
    seen.add(["x", "y", "z"])
    assert seen.match(["x", "y", "z"], 9) == 3
    assert seen.match(["a", "b", "c"], 9) == 2
    seen.add(["p"])
    assert seen.match(["a", "b", "c"], 9) == 1
