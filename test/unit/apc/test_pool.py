"""Who holds a slot: each rule by hand, then any sequence of calls against what must always hold."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from qwen36_neuron.apc import Checkpoint, DropReason, Kind, Plan, PrefillCost, SlotPool
from qwen36_neuron.apc.groups import Continued

COST = PrefillCost(per_token=5e10, per_pair=4e5)


def path_of(name: str, blocks: int, shared: int = 0) -> list[str]:
    """Keys of a sequence that has its first `shared` blocks in common with all others."""
    return [f"shared{i}" for i in range(shared)] + [f"{name}{i}" for i in range(shared, blocks)]


def plan_of(*boundaries: int, kind: Kind = Kind.PROMPT_END, origin: Kind | None = None) -> Plan:
    return Plan(dict.fromkeys(boundaries, kind), max(boundaries), 0, origin)


def put(pool: SlotPool, path: list[str], kind: Kind = Kind.PROMPT_END, admit: bool = True) -> Checkpoint | None:
    """Run a request in a step of its own that keeps its last block."""
    pool.new_step()
    if admit:
        pool.admit(path, len(path) * 64, None)
    checkpoint = pool.reserve(len(path) * 64, plan_of(len(path) * 64, kind=kind), path)
    if checkpoint:
        assert pool.publish(checkpoint, path)
    return checkpoint


def test_lookup_finds_the_deepest_that_is_published_and_short_enough() -> None:
    pool, path = SlotPool(4, COST), path_of("a", 10)
    for blocks in (2, 5, 8):
        put(pool, path[:blocks])
    reserved = pool.reserve(640, plan_of(640), path)
    assert reserved is not None
    for tokens, found in ((127, None), (128, 128), (319, 128), (320, 320), (321, 320), (640, 512), (5000, 512)):
        checkpoint = pool.lookup(path, tokens)
        assert (checkpoint.boundary if checkpoint else None) == found
    assert pool.lookup(path_of("b", 10), 640) is None
    pool.publish(reserved, path)
    assert pool.lookup(path, 640) is reserved


def test_a_boundary_outside_the_plan_or_held_already_takes_no_slot() -> None:
    pool, path = SlotPool(4, COST), path_of("a", 4)
    assert pool.reserve(64, plan_of(128), path) is None
    assert put(pool, path) is not None
    assert pool.reserve(256, plan_of(256), path_of("a", 4)) is None
    assert len(pool.by_slot) == 1


def test_without_slots_everything_is_refused() -> None:
    assert put(SlotPool(0, COST), path_of("a", 4)) is None


def test_the_least_saving_goes_and_less_than_that_is_refused() -> None:
    pool = SlotPool(2, COST)
    small, large = put(pool, path_of("a", 10)), put(pool, path_of("b", 100))
    middle = put(pool, path_of("c", 50))
    assert small is not None
    assert large is not None
    assert middle is not None
    assert (pool.holds(small), pool.holds(large)) == (False, True)
    assert put(pool, path_of("d", 5)) is None
    assert pool.holds(middle)


def test_a_checkpoint_above_another_saves_only_what_lies_between() -> None:
    pool, path = SlotPool(2, COST), path_of("a", 100)
    below, above = put(pool, path[:99]), put(pool, path)
    assert above is not None
    assert below is not None
    assert above.base == below.boundary
    # A hundred blocks in all, but only one of them is lost with `above`.
    assert put(pool, path_of("b", 10)) is not None
    assert not pool.holds(above)


def test_what_lay_above_a_dropped_one_counts_from_further_down() -> None:
    pool, path = SlotPool(4, COST), path_of("a", 9)
    top, low, middle = put(pool, path), put(pool, path[:3]), put(pool, path[:6])
    assert top is not None
    assert low is not None
    assert middle is not None
    assert (low.base, middle.base, top.base) == (0, 192, 384)
    pool.drop(middle, DropReason.ORPHANED)
    assert top.base == 192
    pool.drop(low, DropReason.ORPHANED)
    assert top.base == 0


def test_age_discounts_and_only_what_is_used_becomes_young() -> None:
    pool, path = SlotPool(4, COST), path_of("a", 20)
    low, top = put(pool, path[:10]), put(pool, path)
    assert low is not None
    assert top is not None
    worth = [pool.priority(top)]
    for index in range(4):
        pool.admit(path_of(f"other{index}", 3), 192, None)
        worth.append(pool.priority(top))
    assert worth == sorted(worth, reverse=True)
    assert worth[-1] < worth[0] / 2
    pool.admit(path, 1280, top)
    assert (top.used_at, low.used_at) == (pool.requests, 1)


def test_for_kv_the_checkpoint_goes_that_was_not_used_for_longest_and_stands_alone() -> None:
    pool, path = SlotPool(4, COST), path_of("a", 30, shared=10)
    shared, deep = put(pool, path[:10]), put(pool, path)
    short = put(pool, path_of("b", 12, shared=10))
    assert shared is not None
    assert deep is not None
    assert short is not None
    assert len(pool.cover) == 32
    pool.new_step()
    for _ in range(3):
        pool.admit(path, 30 * 64, deep)
        pool.new_step()
    # Others rest on the shared blocks; of the two ends only one was used of late.
    assert pool.give_up_kv(lambda _: True)
    assert not pool.holds(short)
    assert pool.take_uncovered() == ["b10", "b11"]
    assert not pool.give_up_kv(lambda checkpoint: checkpoint is not deep)
    assert pool.give_up_kv(lambda _: True)
    assert pool.take_uncovered() == path[10:]
    assert pool.give_up_kv(lambda _: True)
    assert pool.take_uncovered() == path[:10]
    assert len(pool.cover) == 0


def test_for_kv_a_shared_beginning_in_frequent_use_outlives_later_ones() -> None:
    pool = SlotPool(8, COST)
    shared = put(pool, path_of("a", 10))
    assert shared is not None
    for index in range(6):
        pool.new_step()
        pool.admit([*shared.path, f"tail{index}"], 700, shared)
    later = [put(pool, path_of(name, 10)) for name in "bc"]
    for index in range(6):
        pool.new_step()
        pool.admit(path_of(f"x{index}", 3), 192, None)
    assert pool.give_up_kv(lambda _: True)
    assert pool.holds(shared)
    assert [pool.holds(one) for one in later if one is not None].count(False) == 1


def test_a_path_that_ends_below_a_checkpoint_is_not_on_it() -> None:
    checkpoint = put(SlotPool(1, COST), path_of("a", 3))
    assert checkpoint is not None
    assert checkpoint.is_on(path_of("a", 3))
    assert checkpoint.is_on(path_of("a", 9))
    assert not checkpoint.is_on(path_of("a", 2))
    assert not checkpoint.is_on(path_of("b", 3))


def test_nothing_that_the_step_reads_or_writes_is_given_away() -> None:
    pool = SlotPool(2, COST)
    read, old = put(pool, path_of("a", 2)), put(pool, path_of("b", 50))
    assert read is not None
    assert old is not None
    pool.new_step()
    pool.admit(path_of("a", 3), 192, read)
    first = pool.reserve(6400, plan_of(6400), path_of("c", 100))
    assert first is not None
    assert first.slot == old.slot
    assert pool.reserve(12800, plan_of(12800), path_of("d", 200)) is None
    pool.new_step()
    assert pool.reserve(12800, plan_of(12800), path_of("d", 200)) is not None
    assert not pool.holds(read)


def test_of_two_that_publish_a_prefix_the_second_gives_its_slot_back() -> None:
    pool, path = SlotPool(2, COST), path_of("a", 4)
    first = pool.reserve(256, plan_of(256), [])
    second = pool.reserve(256, plan_of(256), [])
    assert first is not None
    assert second is not None
    assert pool.publish(first, path)
    assert not pool.publish(second, path)
    assert not pool.holds(second)
    assert pool.by_slot == {first.slot: first}


@pytest.mark.parametrize("used", [False, True])
def test_decoding_rolls_through_one_slot_unless_somebody_used_it(used: bool) -> None:
    pool, path, plan = SlotPool(4, COST), path_of("a", 6), Plan({}, 100)
    last = None
    for boundary in (128, 192, 256, 320):
        pool.new_step()
        checkpoint = pool.reserve(boundary, plan, path, last)
        assert checkpoint is not None
        pool.publish(checkpoint, path)
        if used and boundary == 192:
            pool.new_step()
            pool.admit(path, 192, checkpoint)
        last = checkpoint
    assert sorted(c.boundary for c in pool.by_slot.values()) == ([192, 320] if used else [320])


def test_a_slot_written_by_this_very_step_is_not_rolled_over() -> None:
    pool, path, plan = SlotPool(4, COST), path_of("a", 6), Plan({}, 100)
    first = pool.reserve(128, plan, path)
    second = pool.reserve(192, plan, path, first)
    assert first is not None
    assert second is not None
    assert pool.holds(first)
    assert first.slot != second.slot


def test_a_shared_beginning_outlives_ends_that_are_never_used() -> None:
    pool = SlotPool(4, COST)
    shared = path_of("", 20, shared=20)
    preamble = put(pool, shared, Kind.PREAMBLE)
    assert preamble is not None
    for index in range(60):
        path = path_of(f"{index}-", 40, shared=20)
        pool.new_step()
        found = pool.lookup(path, 2559)
        assert found is preamble
        pool.admit(path, 2559, found)
        plan = plan_of(2560, origin=Kind.PREAMBLE)
        checkpoint = pool.reserve(2560, plan, path)
        if checkpoint:
            pool.publish(checkpoint, path)
    group = pool.reuse.group(preamble.key)
    assert group is not None
    assert group.trait is Continued.MANY_WAYS
    assert pool.reuse.record(group).chance > 0.9


def test_drops_are_told_with_their_reason_and_only_of_what_could_be_found() -> None:
    told: list[tuple[int, DropReason]] = []
    pool = SlotPool(1, COST, lambda checkpoint, reason: told.append((checkpoint.boundary, reason)))
    put(pool, path_of("a", 1))
    put(pool, path_of("b", 9))
    reserved = pool.lookup(path_of("b", 9), 576)
    assert reserved is not None
    pool.clear()
    unpublished = pool.reserve(128, plan_of(128), path_of("c", 2))
    assert unpublished is not None
    pool.drop(unpublished, DropReason.UNWRITTEN)
    assert told == [(64, DropReason.CAPACITY), (576, DropReason.RESET)]
    with pytest.raises(ValueError, match="does not hold slot 1"):
        pool.drop(unpublished, DropReason.UNWRITTEN)


class AnySequenceOfCalls(RuleBasedStateMachine):
    """Random requests over a small tree of prefixes, on two pools that must stay alike."""

    def __init__(self) -> None:
        super().__init__()
        self.dropped: list[int] = []
        self.pool = SlotPool(5, COST, lambda checkpoint, _: self.dropped.append(checkpoint.slot))
        self.twin = SlotPool(5, COST)
        self.busy: set[int] = set()
        self.open: list[tuple[Checkpoint, Checkpoint, list[str]]] = []

    @rule()
    def step(self) -> None:
        for pool in (self.pool, self.twin):
            pool.new_step()
        self.busy.clear()

    @rule(branch=st.lists(st.integers(0, 2), min_size=1, max_size=6))
    def admit(self, branch: list[int]) -> None:
        path = _tree(branch)
        for pool in (self.pool, self.twin):
            found = pool.lookup(path, len(path) * 64)
            pool.admit(path, len(path) * 64, found)
            if found:
                assert found.is_on(path)
                self.busy.add(found.slot)

    @rule(branch=st.lists(st.integers(0, 2), min_size=1, max_size=6), kind=st.sampled_from(Kind))
    def reserve(self, branch: list[int], kind: Kind) -> None:
        path = _tree(branch)
        boundary, plan = len(path) * 64, plan_of(len(path) * 64, kind=kind)
        self.dropped.clear()
        mine, other = (pool.reserve(boundary, plan, path) for pool in (self.pool, self.twin))
        assert not self.busy & set(self.dropped)
        assert (mine is None) == (other is None)
        if mine and other:
            assert mine.slot == other.slot
            assert mine.slot not in self.busy
            self.busy.add(mine.slot)
            self.open.append((mine, other, path))

    @precondition(lambda self: self.open)
    @rule(data=st.data(), written=st.booleans())
    def settle(self, data: st.DataObject, written: bool) -> None:
        mine, other, path = self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))
        if written:
            assert self.pool.publish(mine, path) == self.twin.publish(other, path)
            self.busy.add(mine.slot)  # this step writes it, held or not
        else:
            self.pool.drop(mine, DropReason.UNWRITTEN)
            self.twin.drop(other, DropReason.UNWRITTEN)
            self.busy.discard(mine.slot)

    @invariant()
    def slots_are_accounted_for(self) -> None:
        pool = self.pool
        assert sorted([*pool._free, *pool._late, *pool.by_slot]) == [1, 2, 3, 4, 5]
        published = [c for c in pool.by_slot.values() if c.published]
        assert {c.key: c for c in published} == pool.by_key
        assert all(not mine.published and pool.holds(mine) for mine, _, _ in self.open)

    @invariant()
    def the_cover_is_what_prefixes_need(self) -> None:
        published = self.pool.by_key.values()
        needed = {key for c in published for key in c.path[: c.blocks]}
        assert set(self.pool.cover._counts) == needed
        assert not set(self.pool.take_uncovered()) & needed
        parents = {c.parent for c in published}
        for c in published:
            others = {key for o in published if o is not c for key in o.path[: o.blocks]}
            if c not in parents:
                assert c.key not in others

    @invariant()
    def parents_are_the_deepest_below(self) -> None:
        for checkpoint in self.pool.by_key.values():
            assert checkpoint.parent is self.pool.lookup(checkpoint.path, checkpoint.boundary - 64)


def _tree(branch: list[int]) -> list[str]:
    return ["".join(map(str, branch[: depth + 1])) for depth in range(len(branch))]


TestAnySequenceOfCalls = AnySequenceOfCalls.TestCase
TestAnySequenceOfCalls.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
