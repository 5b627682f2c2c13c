"""What can be asked of the launcher: every flag, with its type, default and help.

The flags are the fields of three dataclasses: `Engine` here, the plugin's `Settings` and the proxy's `ProxySettings`. A
field that is added to one of them is a flag of the launcher with that; the tables below say only what a dataclass
cannot: another name, a group, and defaults that depend on the device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from qwen36_neuron.devices import DType

from ..chat_proxy.settings import ProxySettings
from ..flags import Flag, FlagError, flags, parse_number, parse_whole
from ..settings import Settings

GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Engine:
    """What is served and how much of it at once; vLLM's own flags, by vLLM's names, and the launcher's.

    Attributes:
        model: checkpoint folder in Hugging Face layout, or the id of one that is in the local cache.
        revision: branch, tag or commit of a Hugging Face id.
        served_model_name: what clients call it; of several names the first is the one in answers and metrics.
        dtype: number format of weights and activations.
        kv_cache_dtype: number format of keys and values: fp8, which needs scales (see --kv-scales), or auto for what
            the checkpoint declares, else that of the model.
        max_model_len: tokens of a sequence.
        max_num_seqs: sequences that run at once.
        max_num_batched_tokens: tokens of one step.
        enable_prefix_caching: reuse the prefixes that requests share.
        speculative_config: JSON that says how tokens are drafted, as in {"method":"mtp","num_speculative_tokens":3}.
        kv_events: port on which what the prefix cache holds is published, for routers (ZeroMQ, vLLM's KV events); what
            was missed can be asked for on the next port.
        kv_events_topic: what the messages' topic is.
        envelope: result of qwen36 gate: prompts and answers longer than those it accepted are refused.
        proxy: run the chat proxy in front; without it vLLM alone listens on HOST:PORT.
        backend_port: inner port of vLLM behind the proxy, on 127.0.0.1.
        python: the Python that runs vLLM and the proxy.
        dry_run: check everything, print the commands and start nothing.
    """

    model: str | None = None
    revision: str | None = None
    served_model_name: tuple[str, ...] = ()
    dtype: DType | None = None
    kv_cache_dtype: str = "auto"
    max_model_len: int = 8192
    max_num_seqs: int = 8
    max_num_batched_tokens: int = 2048
    enable_prefix_caching: bool = True
    speculative_config: str | None = None
    kv_events: int | None = None
    kv_events_topic: str | None = None
    envelope: str | None = None
    proxy: bool = True
    backend_port: int | None = None
    python: str | None = None
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class Alias:
    """An earlier name of a flag, taken for one more release.

    Attributes:
        instead: what to write now.
        value: what the flag sets, where it takes no value.
        parse: how its text is read, where that differs: (name as given, text) to the field's value.
    """

    name: str
    instead: str
    value: Any = None
    parse: Callable[[str, str], Any] | None = None


@dataclass(frozen=True, slots=True)
class Option:
    """A flag of the launcher.

    Attributes:
        flag: the field that it sets.
        group: the heading that help puts it under.
        names: what it is called, the first being the one that messages use.
        negatives: what turns a bool off.
        metavar: its value, in help.
        default: its default, in words.
        aliases: names of an earlier release.
        read: how its text is read, where not as the field's type: (name as given, text) to the field's value.
    """

    flag: Flag
    group: str
    names: tuple[str, ...]
    negatives: tuple[str, ...]
    metavar: str
    default: str
    aliases: tuple[Alias, ...] = ()
    read: Callable[[str, str], Any] | None = None


MODEL, CAPACITY, FRONT, GUARDS, OTHER = (
    "Model and device",
    "Capacity",
    "Front door",
    "What the proxy does with requests",
    "Other",
)
GROUPS = (MODEL, CAPACITY, FRONT, GUARDS, OTHER)


def _gib(named: str, text: str) -> float:
    gib = parse_number(named, text) if not text.startswith("-") else 0.0
    if gib <= 0:
        raise FlagError(f"{named} must be a number above 0, not '{text}'")
    return gib


def _bytes_as_gib(named: str, text: str) -> float:
    return parse_whole(named, text, 1) / GIB


_GROUP = {
    **dict.fromkeys(("model", "revision", "served_model_name", "device", "dtype", "tp_degree", "artifact"), MODEL),
    **dict.fromkeys(("kv_cache_dtype", "kv_scales"), MODEL),
    **dict.fromkeys(("kernels", "sampling_candidates", "lazy_logits", "threads", "share_cores"), MODEL),
    **dict.fromkeys(("host", "port", "backend_port", "api_key", "proxy"), FRONT),
    **dict.fromkeys(("kv_events", "kv_events_topic"), FRONT),
    **dict.fromkeys(("python", "dry_run"), OTHER),
    "envelope": GUARDS,
}
_GROUP_OF = {Engine: CAPACITY, Settings: CAPACITY, ProxySettings: GUARDS}
"""Where a field goes that `_GROUP` does not name."""

_NAMES = {
    "tp_degree": ("--tensor-parallel-size", "-tp"),
    "cache_gib": ("--kv-cache-memory-bytes",),
    "num_slots": ("--slots", "--num-slots"),
    "speculative_config": ("--speculative-config", "-sc"),
}

_HELP = {
    "cache_gib": "memory for KV blocks: bytes, or as 2G or 512M",
    "api_key": "ask clients for this bearer token",
}

_METAVARS = {
    "model": "DIR",
    "served_model_name": "NAME[,NAME]",
    "kv_events": "PORT",
    "dtype": "TYPE",
    "kv_cache_dtype": "TYPE",
    "kv_scales": "FILE",
    "artifact": "DIR",
    "kernels": "KIND",
    "host": "ADDRESS",
    "api_key": "KEY",
    "speculative_config": "JSON",
    "cache_gib": "BYTES",
    "python": "PATH",
    "envelope": "FILE",
    "long_context_backend": "URL",
}

_DEFAULTS = {
    "served_model_name": "the folder's name, or the id",
    "dtype": "float32 on cpu, bfloat16 on neuron",
    "tp_degree": "1 on cpu, 4 on neuron",
    "cache_gib": "2G",
    "num_slots": "half of KV's bytes, 16 to 256; 64 on neuron",
    "artifact": "none; required by neuron",
    "kv_scales": "those in the checkpoint's folder",
    "backend_port": "PORT + 1",
    "api_key": "$VLLM_API_KEY, or none",
    "python": "the one that runs this",
    "revision": "main",
    "speculative_config": "no speculation",
    "kv_events": "nothing is published",
    "kv_events_topic": "kv@ADDRESS:PORT@NAME",
    "envelope": "the artifact's gate.json, or none",
}

_ALIASES = {
    "tp_degree": (Alias("--tp-degree", "--tensor-parallel-size"),),
    "cache_gib": (Alias("--cache-gib", "--kv-cache-memory-bytes, as in 2G", parse=_gib),),
    "enable_prefix_caching": (Alias("--no-prefix-caching", "--no-enable-prefix-caching", value=False),),
    "enable_thinking": (Alias("--no-thinking", "--no-enable-thinking", value=False),),
    "lazy_logits": (Alias("--eager-logits", "--no-lazy-logits", value=False),),
}

_READ = {"cache_gib": _bytes_as_gib}

_OURS = ("backend", "mtp_drafts", "lookup_match")
"""Fields that the launcher sets itself, and that --speculative-config does."""


@cache
def options() -> tuple[Option, ...]:
    """Every flag, in the order of help.

    Raises:
        TypeError: two fields have one name, or one has no form on a command line.
    """
    made = [
        _option(flag, _GROUP.get(flag.field, _GROUP_OF[owner]))
        for owner in (Engine, Settings, ProxySettings)
        for flag in flags(owner, leave_out=_OURS)
    ]
    names = [name for option in made for name in (option.flag.field, *option.names, *option.negatives)]
    if twice := {name for name in names if names.count(name) > 1}:
        raise TypeError(f"two settings share a name: {', '.join(sorted(twice))}")
    return tuple(sorted(made, key=lambda option: (GROUPS.index(option.group), _rank(option.flag.field))))


def _rank(field: str) -> int:
    """Fields that `_GROUP` names come first and in its order; the rest as their dataclasses have them."""
    return list(_GROUP).index(field) if field in _GROUP else len(_GROUP)


def _option(flag: Flag, group: str) -> Option:
    boolean = flag.kind == "bool"
    default = _DEFAULTS.get(flag.field, "")
    if not default and flag.default is not None:
        default = ("yes" if flag.default else "no") if boolean else "".join(flag.render(flag.default)[1:])
    if flag.field in _HELP:
        flag = Flag(flag.field, flag.kind, flag.default, _HELP[flag.field], flag.choices)
    return Option(
        flag=flag,
        group=group,
        names=_NAMES.get(flag.field, (flag.name,)),
        negatives=(flag.negative,) if boolean and flag.field != "dry_run" else (),
        metavar=_METAVARS.get(flag.field, flag.metavar),
        default="" if flag.field == "dry_run" else default,
        aliases=_ALIASES.get(flag.field, ()),
        read=_READ.get(flag.field),
    )
