"""Lanes: one a sequence, never more than there are, and each release announced once."""

import pytest

from vllm_integration.lanes import LaneAllocator


def test_lowest_free_lane_first_and_never_lane_0():
    lanes = LaneAllocator(3)
    assert [lanes.acquire(name) for name in "abc"] == [1, 2, 3]
    lanes.release("b")
    lanes.release("a")
    assert [lanes.acquire(name) for name in "de"] == [1, 2]
    assert lanes.in_use == 3


def test_one_sequence_too_many_is_refused():
    lanes = LaneAllocator(1)
    lanes.acquire("a")
    with pytest.raises(RuntimeError, match="b needs a lane and all 1"):
        lanes.acquire("b")
    with pytest.raises(RuntimeError, match="a already owns lane 1"):
        lanes.acquire("a")


def test_releases_are_kept_until_announced():
    lanes = LaneAllocator(2)
    lanes.acquire("a")
    lanes.release("a")
    lanes.release("a")
    lanes.release("never seen")
    assert lanes.released == (1,)
    lanes.acquire("b")
    lanes.release("b")
    assert lanes.released == (1, 1)
    lanes.announced()
    assert lanes.released == ()
