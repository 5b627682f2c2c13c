"""`--additional-config`: every key is known, every value is usable, and a refusal names both."""

import pytest

from qwen36_neuron.errors import ConfigError
from vllm_integration.settings import Settings


def test_values_are_taken_over():
    settings = Settings.parse({"num_slots": 3, "cache_gib": 0.5, "threads": 2})
    assert settings == Settings(num_slots=3, cache_gib=0.5, threads=2)


def test_kernels_are_those_of_the_device():
    assert Settings.parse({}).kernels is None
    assert Settings.parse({"kernels": "interpreter"}).kernels == "interpreter"
    assert Settings.parse({"device": "neuron", "kernels": "nki"}).kernels == "nki"
    with pytest.raises(ConfigError, match=r"additional_config\.kernels='interpreter'.*Use one of: torch, nki"):
        Settings.parse({"device": "neuron", "kernels": "interpreter"})


def test_an_unknown_key_is_named_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"additional_config\.slots=8.*Known:.*num_slots"):
        Settings.parse({"slots": 8})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("device", "cuda"),
        ("tp_degree", 0),
        ("num_slots", -1),
        ("num_slots", 2.5),
        ("num_slots", True),
        ("slots_per_prompt", 0),
        ("cache_gib", 0),
        ("cache_gib", "2"),
        ("threads", 0),
        ("kernels", "nki"),
        ("kernels", 3),
        ("sampling_candidates", -1),
        ("sampling_candidates", 2.5),
        ("lazy_logits", 1),
        ("share_cores", 0),
    ],
)
def test_a_value_that_cannot_be_used_is_named(key, value):
    with pytest.raises(ConfigError, match=rf"additional_config\.{key}"):
        Settings.parse({key: value})
