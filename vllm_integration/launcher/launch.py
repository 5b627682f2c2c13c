"""A start, checked and complete: what runs, with which settings, and every contradiction refused by its flag."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from qwen36_neuron.config import ModelConfig
from qwen36_neuron.devices import CHOICES, FP8_KV
from qwen36_neuron.errors import ConfigError

from ..chat_proxy.settings import ProxySettings
from ..flags import either
from ..kv_dtype import check_kv_cache_dtype
from ..settings import Settings
from ..speculation.config import ALONE, DraftLimits, asked_for, settings_of
from . import envelope, events, extra
from . import model as models
from .errors import Refusal
from .options import Engine, options
from .parse import ParsedArguments

_SLOTS_OF_ARTIFACTS = 64
"""Checkpoint slots of the profiles, which a start on a device asks for unless told otherwise."""

_TOKEN_BYTES = 16
"""Of a request's body for each token of its prompt: a token id in JSON, or the text of a token."""

_SLOW_PROMPT = 50.0
"""Tokens a second of the slowest prompts: until its first token the backend sends nothing. Half of what is modelled for
the 27B's million tokens in graphs of plain operations."""

DEFAULT_PORT = next(field.default for field in fields(ProxySettings) if field.name == "port")

_SHARED = ("host", "port", "api_key")
"""Fields of the proxy that vLLM alone has a use for too."""


@dataclass(frozen=True, slots=True)
class Launch:
    """Everything that a start consists of.

    Attributes:
        engine: sizes and paths, without a default left open but `revision`.
        model: the checkpoint.
        settings: what the plugin is told; `given` names those fields of it that were chosen.
        front: what the proxy is told; its host, port and key are vLLM's own where there is no proxy.
        extra: flags for `vllm serve`, as they were given.
        dtype: number format.
        drafts: what --speculative-config comes to.
        events: vLLM's configuration of KV events, where --kv-events asks for them.
        names: by field, the flag as it was written.
    """

    engine: Engine
    model: models.Model
    settings: Settings
    given: frozenset[str]
    front: ProxySettings
    extra: tuple[str, ...]
    dtype: str
    drafts: DraftLimits
    events: Mapping[str, Any] | None
    names: Mapping[str, str]

    @property
    def python(self) -> str:
        return self.engine.python or sys.executable

    @property
    def served_model_names(self) -> tuple[str, ...]:
        """What clients may call the model; the first is the one in answers."""
        return self.engine.served_model_name or (self.model.name,)

    @property
    def backend_port(self) -> int:
        return self.engine.backend_port or self.front.port + 1


def prepare(asked: ParsedArguments, environment: Mapping[str, str]) -> tuple[Launch, list[str]]:
    """Check what was asked for against itself and against the checkpoint.

    Args:
        environment: the key that clients must present may be there, as VLLM_API_KEY.
    Returns:
        The start, and what the user should know about it.
    Raises:
        Refusal: two values contradict each other, or one cannot be used.
    """
    values, name = dict(asked.values), _Names(asked.names)
    device = values.get("device", "cpu")
    _check_device(values, name, device)
    dtype = values.get("dtype") or ("float32" if device == "cpu" else "bfloat16")
    if values.get("kernels") == "fused" and dtype != "float32":
        raise Refusal(f"{name('kernels')} fused computes in float32, not {dtype}; use --kernels torch")
    if not values.get("model"):
        raise Refusal("--model DIR is missing; see --help")
    model = models.find(values["model"], values.get("revision"), name("model"))
    notes = [*asked.notes, *filter(None, [models.check(model, name("model"))])]
    engine = Engine(**_of(Engine, values))
    _check_kv(values, engine, name)
    _check_sizes(values, engine, name)
    _check_slots(values, engine, name, device)
    front = _front(values, engine, name, environment)
    extra.check(asked.rest, blocks_are_chosen=_blocks(name, device))
    settings = _settings(values, name)
    drafts = _drafts(engine, model, values, name)
    if "served_model_name" in values and not engine.served_model_name:
        raise Refusal(f"{name('served_model_name')} has no name")
    served = (engine.served_model_name or (model.name,))[0]
    published = events.config(engine, front, served, asked.rest, name, environment)
    if published is not None:
        everywhere = f"port {engine.kv_events} on every address, to anyone: keep it from all but routers"
        notes.append(f"{name('kv_events')} publishes the tokens of prompts on {everywhere}")
    given = frozenset(field for field in _of(Settings, values)) | {"device", "tp_degree", "cache_gib"}
    return Launch(engine, model, settings, given, front, asked.rest, dtype, drafts, published, asked.names), notes


class _Names:
    """The flag that a field was given by, or would be."""

    def __init__(self, given: Mapping[str, str]) -> None:
        self._names = {option.flag.field: option.names[0] for option in options()} | dict(given)
        self.given = given

    def __call__(self, field: str) -> str:
        return self._names[field]


def _of(settings: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that are fields of a dataclass."""
    return {field.name: values[field.name] for field in fields(settings) if field.name in values}


def _check_device(values: dict[str, Any], name: _Names, device: str) -> None:
    kernels, artifact = values.get("kernels"), values.get("artifact")
    if kernels is not None and kernels not in CHOICES[device]:
        choices = either(sorted(CHOICES[device], key=lambda choice: (choice != "fused", choice == "interpreter")))
        raise Refusal(f"{name('kernels')} must be {choices} on {device}, not '{kernels}'")
    if device == "cpu":
        if artifact is not None:
            raise Refusal(f"{name('artifact')} is for --device neuron; cpu compiles nothing")
        if values.setdefault("tp_degree", 1) != 1:
            raise Refusal(f"{name('tp_degree')} must be 1 on cpu, not '{values['tp_degree']}'")
        return
    values.setdefault("tp_degree", 4)
    if artifact is None:
        raise Refusal("--device neuron needs --artifact DIR, the compiled model")
    if not Path(artifact).is_dir():
        raise Refusal(f"{name('artifact')}: no such folder: {artifact}")


def _check_kv(values: Mapping[str, Any], engine: Engine, name: _Names) -> None:
    try:
        check_kv_cache_dtype(engine.kv_cache_dtype)
    except ConfigError as error:
        raise _refusal(error, name) from error
    scales = values.get("kv_scales")
    if scales is not None and not Path(scales).is_file():
        raise Refusal(f"{name('kv_scales')}: no such file: {scales}")
    if scales is not None and engine.kv_cache_dtype not in ("auto", *FP8_KV):
        raise Refusal(f"{name('kv_scales')} is for FP8 keys and values; give --kv-cache-dtype fp8 with it")


def _check_sizes(values: Mapping[str, Any], engine: Engine, name: _Names) -> None:
    sizes = ("max_model_len", "max_num_seqs", "max_num_batched_tokens", "tp_degree", "port", "backend_port")
    for field in (*sizes, "max_concurrent"):
        if values.get(field) is not None and values[field] < 1:
            raise Refusal(f"{name(field)} must be at least 1, not {values[field]}")
    tokens, rows = engine.max_num_batched_tokens, engine.max_num_seqs
    if tokens < rows:
        asked = f"{name('max_num_batched_tokens')} {tokens} is less than {name('max_num_seqs')} {rows}"
        raise Refusal(f"{asked}: a step must have room for a token of each")


def _check_slots(values: dict[str, Any], engine: Engine, name: _Names, device: str) -> None:
    slots = values.get("num_slots")
    if not engine.enable_prefix_caching:
        if slots:
            keeps = f"{name('num_slots')} {slots} keeps prefixes"
            raise Refusal(f"{keeps}, which {name('enable_prefix_caching')} forbids")
        values["num_slots"] = 0
    elif slots == 0:
        off = "leaves prefix caching nothing to restore; use --no-enable-prefix-caching"
        raise Refusal(f"{name('num_slots')} 0 {off}")
    elif device == "neuron" and slots is None:
        values["num_slots"] = _SLOTS_OF_ARTIFACTS


def _front(values: Mapping[str, Any], engine: Engine, name: _Names, environment: Mapping[str, str]) -> ProxySettings:
    """What the proxy is told."""
    port = values.get("port", DEFAULT_PORT)
    backend_port = engine.backend_port or port + 1
    if max(port, backend_port) > 65535:
        raise Refusal(f"ports end at 65535: {name('port')} {port}, {name('backend_port')} {backend_port}")
    if engine.proxy and port == backend_port:
        raise Refusal(f"{name('port')} and {name('backend_port')} are both {port}")
    asked = _of(ProxySettings, values)
    if not engine.proxy:
        for field in ("backend_port", "envelope", *asked):
            if field in name.given and field not in _SHARED:
                raise Refusal(f"{name(field)} is the proxy's, which --no-proxy leaves out")
    accepted = engine.envelope or envelope.beside(values.get("artifact"), proxy=engine.proxy)
    if accepted is not None:
        limits = envelope.read(accepted, name("envelope"))
        envelope.within(limits, asked, {field: name(field) for field in limits})
        asked = {**limits, **asked}
    if engine.proxy:
        asked = _long_limits(engine.max_model_len) | asked
    if asked.get("api_key") is None:
        asked["api_key"] = environment.get("VLLM_API_KEY") or None
    try:
        return ProxySettings(backend=f"http://127.0.0.1:{backend_port}", **asked)
    except ConfigError as error:
        raise _refusal(error, name) from error


def _long_limits(max_model_len: int) -> dict[str, Any]:
    """Limits of the proxy that a prompt of that length would not pass: where they are not asked for, they grow."""
    needed = {"max_body_bytes": max_model_len * _TOKEN_BYTES, "response_timeout": max_model_len / _SLOW_PROMPT}
    plain = ProxySettings(backend="http://127.0.0.1")
    return {name: value for name, value in needed.items() if value > getattr(plain, name)}


def _blocks(name: _Names, device: str) -> str | None:
    """What decides the number of KV blocks, so that --num-gpu-blocks-override may not."""
    if device == "neuron":
        return "the artifact decides how many KV blocks there are"
    return f"{name('cache_gib')} has decided how many KV blocks there are" if "cache_gib" in name.given else None


def _drafts(engine: Engine, model: models.Model, values: Mapping[str, Any], name: _Names) -> DraftLimits:
    """What the plugin will make of --speculative-config; refused here is what it would refuse when vLLM starts."""
    try:
        given = None if engine.speculative_config is None else json.loads(engine.speculative_config)
    except json.JSONDecodeError as error:
        raise Refusal(f"{name('speculative_config')} {engine.speculative_config} is not JSON: {error}") from error
    try:
        asked = asked_for(given, {})
        drafts = {} if asked is None else settings_of(asked, values)
    except ConfigError as error:
        raise _refusal(error, name) from error
    for field in ALONE if not drafts else ():
        if values.get(field) is not None:
            raise Refusal(f"{name(field)} says nothing without {name('speculative_config')}")
    if drafts.get("mtp_drafts") and model.described:
        layers = ModelConfig.from_pretrained(model.folder).num_mtp_layers
        if layers != 1:
            raise Refusal(f"{name('speculative_config')} mtp needs one draft layer, and {model.folder} has {layers}")
    return DraftLimits(drafts.get("mtp_drafts", 0), drafts.get("lookup_drafts", 0))


def _settings(values: Mapping[str, Any], name: _Names) -> Settings:
    try:
        return Settings(**_of(Settings, values))
    except ConfigError as error:
        raise _refusal(error, name) from error


def _refusal(error: ConfigError, name: _Names) -> Refusal:
    """The same error, naming the flag."""
    field = error.field.rsplit(".", 1)[-1]
    flag = name(field) if field in {option.flag.field for option in options()} else error.field
    value = "" if field == "api_key" else f" {error.value}"
    return Refusal(f"{flag}{value} {error.problem}. {error.remedy}")
