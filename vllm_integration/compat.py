"""The one vLLM minor that this plugin is written for, checked at start-up.

vLLM's scheduler and cache managers are not a stable interface. What this package overrides or calls there is listed
here with the parameters it relies on; anything else than the pinned minor, or a changed signature, is refused at
start-up with its name, before it can show as a wrong token.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from qwen36_neuron.errors import ConfigError

SUPPORTED_MINOR = "0.29"


def check_vllm() -> None:
    """Raises ConfigError if the installed vLLM is not the one this plugin was tested with."""
    from vllm.version import __version__

    if not __version__.startswith(SUPPORTED_MINOR + "."):
        raise ConfigError(
            "vllm", __version__, f"this plugin is written for {SUPPORTED_MINOR}.x", f"Install vllm=={SUPPORTED_MINOR}.0"
        )
    for owner, name, parameters in _relied_upon():
        found = getattr(owner, name, None)
        label = f"{owner.__name__}.{name}"
        if found is None:
            raise ConfigError("vllm", __version__, f"{label} does not exist", f"Install vllm=={SUPPORTED_MINOR}.0")
        check_signature(label, found, parameters, __version__)


def check_signature(label: str, function: Callable[..., Any], parameters: tuple[str, ...], version: str) -> None:
    """Raises ConfigError if `function` does not take exactly `parameters` (after self or cls), in this order."""
    found = tuple(name for name in inspect.signature(function).parameters if name not in ("self", "cls"))
    if found != parameters:
        raise ConfigError(
            "vllm",
            version,
            f"{label} takes ({', '.join(found)}), expected ({', '.join(parameters)})",
            f"Install vllm=={SUPPORTED_MINOR}.0",
        )


def _relied_upon() -> list[tuple[type, str, tuple[str, ...]]]:
    from vllm.engine.arg_utils import EngineArgs
    from vllm.sampling_params import SamplingParams
    from vllm.v1.core.block_pool import BlockPool
    from vllm.v1.core.kv_cache_manager import KVCacheManager
    from vllm.v1.core.kv_cache_utils import FreeKVCacheBlockQueue
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.core.single_type_kv_cache_manager import SingleTypeKVCacheManager as Manager
    from vllm.v1.engine.detokenizer import BaseIncrementalDetokenizer, IncrementalDetokenizer

    return [
        (EngineArgs, "create_engine_config", ("usage_context", "headless")),
        (EngineArgs, "create_model_config", ()),
        (
            Manager,
            "get_num_blocks_to_allocate",
            (
                "request_id",
                "num_tokens",
                "new_computed_blocks",
                "total_computed_tokens",
                "num_local_computed_tokens",
                "num_tokens_main_model",
                "apply_admission_cap",
            ),
        ),
        (
            Manager,
            "add_local_computed_blocks",
            ("request_id", "new_computed_blocks", "num_local_computed_tokens", "num_external_computed_tokens"),
        ),
        (Manager, "allocate_new_blocks", ("request_id", "num_tokens", "num_tokens_main_model")),
        (Manager, "cache_blocks", ("request", "num_tokens", "retention_interval")),
        (Manager, "pop_blocks_for_free", ("request_id",)),
        (Manager, "new_step_starts", ()),
        (
            Manager,
            "find_longest_cache_hit",
            (
                "block_hashes",
                "max_length",
                "kv_cache_group_ids",
                "block_pool",
                "kv_cache_spec",
                "drop_eagle_block",
                "alignment_tokens",
                "dcp_world_size",
                "pcp_world_size",
            ),
        ),
        (Scheduler, "schedule", ("throttle_prefills",)),
        (Scheduler, "_preempt_request", ("request", "timestamp", "drop_stale_output")),
        (Scheduler, "reset_prefix_cache", ("reset_running_requests", "reset_connector")),
        (Scheduler, "update_from_output", ("scheduler_output", "model_runner_output")),
        (Scheduler, "add_request", ("request",)),
        (Scheduler, "_update_request_with_output", ("request", "new_token_ids", "is_stale")),
        (Scheduler, "_free_request", ("request", "delay_free_blocks")),
        (Scheduler, "finish_requests", ("request_ids", "finished_status")),
        (
            Scheduler,
            "make_stats",
            ("spec_decoding_stats", "kv_connector_stats", "cudagraph_stats", "perf_stats"),
        ),
        (SamplingParams, "_validate_spec_decode", ("speculative_config",)),
        (IncrementalDetokenizer, "from_new_request", ("tokenizer", "request")),
        (BaseIncrementalDetokenizer, "update", ("new_token_ids", "stop_terminated")),
        (KVCacheManager, "evict_blocks", ("block_ids",)),
        (KVCacheManager, "get_block_ids", ("request_id",)),
        (BlockPool, "get_cached_block", ("block_hash", "kv_cache_group_ids")),
        (BlockPool, "get_num_free_blocks", ()),
        (BlockPool, "evict_blocks", ("block_ids",)),
        (BlockPool, "touch", ("blocks",)),
        (BlockPool, "free_blocks", ("ordered_blocks",)),
        (FreeKVCacheBlockQueue, "iter_blocks_after", ("cursor",)),
    ]
