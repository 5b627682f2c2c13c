"""`--speculative-config`: what a user asks for, and what vLLM is told.

vLLM's own MTP proposer wants a draft model, a KV margin for it and one block less of every prefix. None of that holds
here, so vLLM is told of a custom proposer, a class that it never makes: its scheduler then counts, rolls back and
reports drafts as for any other, and leaves where they come from to the worker.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qwen36_neuron.errors import ConfigError

if TYPE_CHECKING:
    from vllm.config import SpeculativeConfig
    from vllm.engine.arg_utils import EngineArgs

PROPOSER = "vllm_integration.speculation.drafter.Drafter"
"""What vLLM is told as the proposer's class."""

MTP = ("mtp", "qwen3_5_mtp", "qwen3_next_mtp")
"""How commands in use name drafts by the checkpoint's own layer."""
LOOKUP = ("ngram", "[ngram]")
MOST = 16
"""Drafts that a step verifies of one request at most."""
LEAST_MATCH = 3
"""Tokens that have to repeat before what followed them is proposed."""

SHORT = {"spec_method": "method", "spec_model": "model", "spec_tokens": "num_speculative_tokens"}
"""Keys by vLLM's short forms of them."""
ALONE = ("lookup_drafts", "adaptive_drafts")
"""Settings beside it that mean nothing alone."""

_KEYS = {
    "method": (*MTP, *LOOKUP),
    "num_speculative_tokens": None,
    "prompt_lookup_min": LOOKUP,
    "prompt_lookup_max": LOOKUP,
}


@dataclass(frozen=True, slots=True)
class DraftLimits:
    """What drafts may be made.

    Attributes:
        mtp: by the checkpoint's draft layer, at most in a step; 0 for none.
        lookup: out of the request's own tokens, where they repeat, at most in a step; 0 for none.
        least_match: tokens that must repeat.
        adaptive: give each request as many as they earn; otherwise as many as there are.
    """

    mtp: int = 0
    lookup: int = 0
    least_match: int = LEAST_MATCH
    adaptive: bool = True

    @property
    def most(self) -> int:
        """Drafts that a row may have."""
        return max(self.mtp, self.lookup)


def take_speculative_config(arguments: EngineArgs) -> None:
    """Turn what was asked for into vLLM's custom proposer, and settings of this plugin, in place.

    Raises:
        ConfigError: naming the key, its value, what is wrong and what to do.
    """
    short = {field: getattr(arguments, field) for field in SHORT}
    asked = asked_for(arguments.speculative_config, short)
    if asked is None:
        _check_alone(arguments.additional_config)
        return
    if asked.get("model") == PROPOSER:
        return
    arguments.additional_config = {**arguments.additional_config, **settings_of(asked, arguments.additional_config)}
    most = max(arguments.additional_config.get(key, 0) for key in ("mtp_drafts", "lookup_drafts"))
    arguments.spec_method = arguments.spec_model = arguments.spec_tokens = None
    arguments.speculative_config = {"method": "custom_class", "model": PROPOSER, "num_speculative_tokens": most}


def asked_for(given: Any, short: Mapping[str, Any]) -> dict[str, Any] | None:
    """The keys of --speculative-config and of its short forms; None if there are none.

    Args:
        short: values by fields in SHORT.
    Raises:
        ConfigError: it is no object, or a key is given twice.
    """
    if given is not None and not isinstance(given, Mapping):
        raise ConfigError("speculative_config", given, "must be a JSON object", """Use '{"method": "mtp", ...}'""")
    asked = {key.replace("-", "_"): value for key, value in (given or {}).items()}
    for field, key in SHORT.items():
        value = short.get(field)
        if value is not None:
            if key in asked:
                raise ConfigError(field, value, f"--speculative-config has {key} too", "Give one of the two")
            asked[key] = value
    return asked or None


def settings_of(asked: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of this plugin that say the same.

    Args:
        asked: keys of --speculative-config.
        extra: settings that were given beside it.
    Raises:
        ConfigError: naming the key, its value, what is wrong and what to do.
    """
    _check_keys(asked)
    method, count = asked.get("method"), asked.get("num_speculative_tokens")
    if method not in (*MTP, *LOOKUP):
        raise _error("method", method, "is not made here", "Use mtp, or ngram")
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= MOST:
        raise _error("num_speculative_tokens", count, f"must be an integer, 1 to {MOST}", "Use 3")
    for key in ("mtp_drafts", "lookup_match"):
        if extra.get(key):
            raise ConfigError(
                f"additional_config.{key}", extra[key], "is set by --speculative-config", "Leave it out there"
            )
    if method in MTP:
        lookup = extra.get("lookup_drafts")
        if lookup is None:  # a device runs a row as wide as the graph is, so what is not asked for is not paid for
            lookup = count if extra.get("device") == "neuron" else MOST
        return {"mtp_drafts": count, "lookup_drafts": lookup}
    if extra.get("lookup_drafts") not in (None, count):
        problem = f"--speculative-config says {count}"
        raise ConfigError("additional_config.lookup_drafts", extra["lookup_drafts"], problem, "Give one of the two")
    return {"lookup_drafts": count, "lookup_match": _least_match(asked)}


def allow_all_sampling() -> None:
    """Have vLLM's front end take `min_p` and `logit_bias` with speculation.

    It refuses them since its own worker leaves them out where it verifies drafts; here every token is sampled as it
    would be without drafts. There is no hook before that check.
    """
    from vllm.sampling_params import SamplingParams

    validate = SamplingParams._validate_spec_decode
    if getattr(validate, "__module__", None) == __name__:
        return

    def validate_others(self: SamplingParams, speculative_config: SpeculativeConfig | None) -> None:
        if speculative_config is None or speculative_config.model != PROPOSER:
            validate(self, speculative_config)

    SamplingParams._validate_spec_decode = validate_others


def _check_alone(extra: Mapping[str, Any]) -> None:
    for key in (*ALONE, "mtp_drafts", "lookup_match"):
        if extra.get(key) is not None:
            problem = "says nothing without --speculative-config"
            raise ConfigError(f"additional_config.{key}", extra[key], problem, "Give both, or neither")


def _check_keys(asked: Mapping[str, Any]) -> None:
    for key, value in asked.items():
        if key == "model":
            raise _error(key, value, "drafts are made by the checkpoint's own layer", "Remove it")
        if key not in _KEYS:
            raise _error(key, value, "has no effect here", f"Known: {', '.join(_KEYS)}")
        only = _KEYS[key]
        if only is not None and asked.get("method") not in only and key != "method":
            raise _error(key, value, f"belongs to method {only[0]}", "Remove it")


def _least_match(asked: Mapping[str, Any]) -> int:
    least = asked.get("prompt_lookup_min")
    most = asked.get("prompt_lookup_max")
    for key, value in (("prompt_lookup_min", least), ("prompt_lookup_max", most)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise _error(key, value, "must be an integer of at least 1", "Correct it")
    if least is None:
        least = most if most is not None else LEAST_MATCH
    if most is not None and most < least:
        raise _error("prompt_lookup_max", most, f"is less than prompt_lookup_min={least}", "Raise it")
    return least


def _error(key: str, value: Any, problem: str, remedy: str) -> ConfigError:
    return ConfigError(f"speculative_config.{key}", value, problem, remedy)
