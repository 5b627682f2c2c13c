"""How many checkpoint slots suit the memory of KV."""

import pytest

from qwen36_neuron.cache import default_slots, slots_starve
from qwen36_neuron.cache.spec import FEWEST_SLOTS, MOST_SLOTS

GB, STATE_27B = 10**9, 153_944_064


@pytest.mark.parametrize(
    ("kv_bytes", "state_bytes", "expected"),
    [
        (20 * GB, STATE_27B, 64),
        (40 * GB, STATE_27B, 129),
        (1 * GB, STATE_27B, FEWEST_SLOTS),
        (2 * GB, 10**5, MOST_SLOTS),
    ],
)
def test_half_of_the_bytes_of_kv_within_limits(kv_bytes: int, state_bytes: int, expected: int) -> None:
    assert default_slots(kv_bytes, state_bytes) == expected


@pytest.mark.parametrize("kv_bytes", [GB // 10, GB, 10 * GB, 100 * GB, 1000 * GB])
@pytest.mark.parametrize("state_bytes", [10**4, 10**6, STATE_27B])
def test_the_default_never_starves(kv_bytes: int, state_bytes: int) -> None:
    assert not slots_starve(default_slots(kv_bytes, state_bytes), kv_bytes, state_bytes)


def test_few_slots_beside_much_kv_starve() -> None:
    assert slots_starve(8, 22 * GB, STATE_27B)
    assert not slots_starve(8, 8 * STATE_27B * 4, STATE_27B)
    assert not slots_starve(0, 22 * GB, STATE_27B)
