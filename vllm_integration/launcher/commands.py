"""The two command lines, and what their processes find in their environment."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from qwen36_neuron.openmp import openmp_environment

from .. import parsers
from ..chat_proxy.settings import ProxySettings
from ..flags import flags
from .launch import Launch


def vllm_command(launch: Launch, num_blocks: int | None = None) -> list[str]:
    """`vllm serve` with the plugin's settings.

    Args:
        num_blocks: KV blocks, where an artifact decides how many there are.
    """
    engine, front = launch.engine, launch.front
    host, port = ("127.0.0.1", launch.backend_port) if engine.proxy else (front.host, front.port)
    command = [
        *(launch.python, "-m", "vllm.entrypoints.cli.main", "serve", str(launch.model.folder)),
        *("--served-model-name", *launch.served_model_names),
        *("--host", host, "--port", str(port)),
        *("--dtype", launch.dtype),
        *(("--kv-cache-dtype", engine.kv_cache_dtype) if engine.kv_cache_dtype != "auto" else ()),
        *("--max-model-len", str(engine.max_model_len)),
        *("--max-num-seqs", str(engine.max_num_seqs)),
        *("--max-num-batched-tokens", str(engine.max_num_batched_tokens)),
        "--enable-prefix-caching" if engine.enable_prefix_caching else "--no-enable-prefix-caching",
        "--enable-prompt-tokens-details",
        *("--enable-auto-tool-choice", "--tool-call-parser", parsers.NAME, "--reasoning-parser", parsers.NAME),
        *("--disable-access-log-for-endpoints", "/health,/metrics"),
        *("--additional-config", json.dumps(additional_config(launch))),
        *(("--kv-events-config", json.dumps(launch.events)) if launch.events else ()),
        *(("--speculative-config", engine.speculative_config) if engine.speculative_config else ()),
        *launch.extra,
    ]
    return command if num_blocks is None else [*command, "--num-gpu-blocks-override", str(num_blocks)]


def additional_config(launch: Launch) -> dict[str, Any]:
    """The plugin's settings that were chosen; it has its own defaults for the rest."""
    values = {flag.field: getattr(launch.settings, flag.field) for flag in flags(type(launch.settings))}
    return {field: value for field, value in values.items() if field in launch.given}


def proxy_command(launch: Launch) -> list[str]:
    """The chat proxy: where it listens and what is behind it, and every setting that differs from its default."""
    front = launch.front
    command = [launch.python, "-m", "vllm_integration.chat_proxy", "--backend", front.backend]
    command += ["--host", front.host, "--port", str(front.port)]
    for flag in flags(ProxySettings, leave_out=("backend", "host", "port", "api_key")):
        value = getattr(front, flag.field)
        if value != flag.default and value is not None:
            command += flag.render(value)
    return command


def chosen_environment(launch: Launch, environment: Mapping[str, str]) -> dict[str, str]:
    """What both processes are given beside the environment of the launcher, without the key.

    Blocks of replicas have the same hashes, with any of vLLM's hash functions, unless the environment says otherwise.
    """
    chosen = {"PYTHONHASHSEED": environment.get("PYTHONHASHSEED") or "0"}
    chosen |= {"VLLM_USE_V2_MODEL_RUNNER": "0"}  # the second runner's step protocol is not the plugin's
    if launch.settings.device == "neuron":
        chosen |= {"XLA_HANDLE_SPECIAL_SCALAR": "1", "UNSAFE_FP8FNCAST": "1"}  # torch_xla reads them once, for FP8
    return chosen | {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}


def full_environment(launch: Launch, environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of both processes. The key is there, since a command line shows in every process list."""
    full = {**openmp_environment(environment), **environment, **chosen_environment(launch, environment)}
    full.pop("VLLM_API_KEY", None)
    if launch.front.api_key is not None:
        full["VLLM_API_KEY"] = launch.front.api_key
    return full
