"""Which graph a call takes, and which sets of graphs are refused."""

from __future__ import annotations

import pytest

from qwen36_neuron.errors import ConfigError
from qwen36_neuron.graph.buckets import Buckets, PrefillBucket

GRID = Buckets.grid((128, 512), (256, 1024), (256, 1024))


@pytest.mark.parametrize(
    ("start", "tokens", "expected"),
    [
        (0, 1, (128, 0)),
        (0, 128, (128, 0)),
        (0, 129, (512, 0)),
        (64, 128, (128, 256)),
        (63, 65, (128, 0)),  # 63 tokens of padding before it
        (63, 66, (512, 0)),
        (64, 65, (128, 256)),
        (256, 5, (128, 256)),
        (319, 5, (128, 256)),
        (320, 5, (128, 1024)),
        (1087, 65, (128, 1024)),
        (1024, 512, (512, 1024)),
        (0, 5000, (512, 0)),
        (300, 5000, (512, 256)),
    ],
)
def test_the_smallest_prefill_bucket_that_fits(start: int, tokens: int, expected: tuple[int, int]) -> None:
    bucket = GRID.prefill_for(start, tokens)
    assert (bucket.active, bucket.prefix) == expected
    assert bucket.table_width == sum(expected) // 64


def test_a_prefix_longer_than_any_bucket() -> None:
    with pytest.raises(ConfigError, match="no bucket takes a prefix"):
        GRID.prefill_for(1088, 3)


@pytest.mark.parametrize(("held", "expected"), [(1, 256), (256, 256), (257, 1024), (1024, 1024)])
def test_the_smallest_decode_bucket_that_fits(held: int, expected: int) -> None:
    assert GRID.decode_for(held) == expected


def test_a_sparse_set_takes_what_there_is() -> None:
    sparse = Buckets((PrefillBucket(128, 1024), PrefillBucket(512, 0)), (1024,))
    assert sparse.prefill_for(0, 100) == PrefillBucket(128, 1024)
    assert sparse.prefill_for(0, 400) == PrefillBucket(512, 0)
    assert sparse.prefill_for(64, 400) == PrefillBucket(128, 1024)  # in pieces


@pytest.mark.parametrize(
    ("prefill", "decode", "problem"),
    [
        (((100, 0),), (256,), "multiples of 64"),
        (((128, 30),), (256,), "multiples of 64"),
        (((0, 128),), (256,), "at least one block"),
        (((128, 0),), (), "decode_buckets"),
        (((128, 0),), (512, 256), "ascending"),
        (((128, 0), (128, 0)), (256,), "hide each other"),
    ],
)
def test_bad_sets_are_refused(prefill: tuple[tuple[int, int], ...], decode: tuple[int, ...], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        Buckets(tuple(PrefillBucket(*pair) for pair in prefill), decode)


@pytest.mark.parametrize(
    ("prefix", "decode", "length", "covered"),
    [
        (448, 512, 512, True),
        (384, 512, 512, False),
        (448, 448, 512, False),
        (448, 512, 449, True),
        (0, 64, 64, True),
        (0, 128, 128, False),
    ],
)
def test_every_step_of_the_longest_sequence_has_a_bucket(prefix: int, decode: int, length: int, covered: bool) -> None:
    buckets = Buckets((PrefillBucket(128, prefix),), (decode,))
    if covered:
        buckets.check_covers(length)
        for start in range(length):
            buckets.prefill_for(start, length - start)
    else:
        with pytest.raises(ConfigError, match="buckets"):
            buckets.check_covers(length)
