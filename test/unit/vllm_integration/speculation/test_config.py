"""`--speculative-config`: every form of it is done or refused by name."""

from __future__ import annotations

from typing import Any

import pytest
from vllm.engine.arg_utils import EngineArgs

from qwen36_neuron.errors import ConfigError
from vllm_integration.settings import Settings
from vllm_integration.speculation.config import PROPOSER, DraftLimits, take_speculative_config


@pytest.fixture(autouse=True)
def _online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # which would look for the model's files


def taken(given: Any = None, extra: dict[str, Any] | None = None, **short: Any) -> EngineArgs:
    arguments = EngineArgs(model="nowhere/at-all", skip_tokenizer_init=True, additional_config=extra or {})
    arguments.speculative_config = given
    for name, value in short.items():
        setattr(arguments, name, value)
    take_speculative_config(arguments)
    return arguments


def limits(arguments: EngineArgs) -> DraftLimits:
    return Settings.parse(arguments.additional_config).draft_limits


def test_nothing_asked_is_nothing_drafted() -> None:
    arguments = taken()
    assert (arguments.speculative_config, limits(arguments).most) == (None, 0)


@pytest.mark.parametrize("method", ["mtp", "qwen3_5_mtp", "qwen3_next_mtp"])
def test_mtp_by_its_names(method: str) -> None:
    for arguments in (
        taken({"method": method, "num_speculative_tokens": 3}),
        taken({"method": method}, spec_tokens=3),
        taken(spec_method=method, spec_tokens=3),
        taken({"method": method, "num-speculative-tokens": 3}),
    ):
        assert arguments.speculative_config == {
            "method": "custom_class",
            "model": PROPOSER,
            "num_speculative_tokens": 16,
        }
        assert (arguments.spec_method, arguments.spec_tokens) == (None, None)
        assert limits(arguments) == DraftLimits(mtp=3, lookup=16)
        before = arguments.speculative_config, arguments.additional_config
        take_speculative_config(arguments)  # vLLM may settle the same arguments twice
        assert (arguments.speculative_config, arguments.additional_config) == before


def test_on_a_device_as_many_are_looked_up_as_the_layer_makes() -> None:
    """Its graphs have a fixed width."""
    assert limits(taken({"method": "mtp", "num_speculative_tokens": 3}, {"device": "neuron"})) == DraftLimits(3, 3)
    more = {"device": "neuron", "lookup_drafts": 8}
    assert limits(taken({"method": "mtp", "num_speculative_tokens": 3}, more)) == DraftLimits(3, 8)


def test_lookup_alone_and_none() -> None:
    asked = {"method": "ngram", "num_speculative_tokens": 5, "prompt_lookup_min": 2, "prompt_lookup_max": 4}
    assert limits(taken(asked)) == DraftLimits(lookup=5, least_match=2)
    assert limits(taken({"method": "ngram", "num_speculative_tokens": 5, "prompt_lookup_max": 4})).least_match == 4
    arguments = taken({"method": "mtp", "num_speculative_tokens": 2}, {"lookup_drafts": 0, "adaptive_drafts": False})
    assert limits(arguments) == DraftLimits(mtp=2, adaptive=False)
    assert arguments.speculative_config["num_speculative_tokens"] == 2


@pytest.mark.parametrize(
    ("given", "extra", "name"),
    [
        ({"method": "eagle3", "num_speculative_tokens": 3}, {}, "speculative_config.method"),
        ({"num_speculative_tokens": 3}, {}, "speculative_config.method"),
        ({"method": "mtp"}, {}, "speculative_config.num_speculative_tokens"),
        ({"method": "mtp", "num_speculative_tokens": 0}, {}, "speculative_config.num_speculative_tokens"),
        ({"method": "mtp", "num_speculative_tokens": 17}, {}, "speculative_config.num_speculative_tokens"),
        ({"method": "mtp", "num_speculative_tokens": "3"}, {}, "speculative_config.num_speculative_tokens"),
        ({"method": "mtp", "num_speculative_tokens": True}, {}, "speculative_config.num_speculative_tokens"),
        ({"method": "mtp", "num_speculative_tokens": 3, "model": "a/b"}, {}, "speculative_config.model"),
        ({"method": "mtp", "num_speculative_tokens": 3, "quantization": "fp8"}, {}, "speculative_config.quantization"),
        (
            {"method": "mtp", "num_speculative_tokens": 3, "prompt_lookup_min": 2},
            {},
            "speculative_config.prompt_lookup_min",
        ),
        (
            {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_min": 5, "prompt_lookup_max": 2},
            {},
            "speculative_config.prompt_lookup_max",
        ),
        (
            {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_min": 0},
            {},
            "speculative_config.prompt_lookup_min",
        ),
        ("mtp", {}, "speculative_config"),
        ({"method": "mtp", "num_speculative_tokens": 3}, {"mtp_drafts": 2}, "additional_config.mtp_drafts"),
        ({"method": "ngram", "num_speculative_tokens": 3}, {"lookup_drafts": 2}, "additional_config.lookup_drafts"),
    ],
)
def test_what_is_refused_is_named(given: Any, extra: dict[str, Any], name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        taken(given, extra)
    assert caught.value.field == name


@pytest.mark.parametrize("key", ["lookup_drafts", "adaptive_drafts", "mtp_drafts", "lookup_match"])
def test_settings_that_mean_nothing_alone(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"additional_config\.{key}=.*says nothing without"):
        taken(None, {key: 1})


def test_a_short_form_and_the_long_one_say_a_thing_once() -> None:
    with pytest.raises(ConfigError, match="spec_tokens=2"):
        taken({"method": "mtp", "num_speculative_tokens": 3}, spec_tokens=2)


@pytest.mark.parametrize(("key", "value"), [("lookup_drafts", 17), ("lookup_drafts", -1), ("adaptive_drafts", 1)])
def test_settings_that_cannot_be_used(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"additional_config\.{key}"):
        Settings.parse({key: value})
