"""What becomes of every argument of vLLM's engine: done by vLLM, done here, or refused unless it is the default.

vLLM has some 240 of them, most for machinery that this plugin does not run: CUDA graphs, attention back ends, data
parallelism, media. Each is in exactly one group below, so that an argument that a later vLLM adds is noticed, and none
is accepted and then ignored.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from enum import StrEnum
from typing import Any

from vllm.engine.arg_utils import EngineArgs

from qwen36_neuron.config import BLOCK_SIZE
from qwen36_neuron.errors import ConfigError


class Done(StrEnum):
    """By whom an argument is honoured."""

    VLLM = "by vLLM itself, in its server, engine or scheduler"
    HERE = "by this plugin"
    REFUSED = "not at all: any value but the default is refused"


@dataclass(frozen=True, slots=True)
class Flag:
    """One argument.

    Attributes:
        why: who reads it, or why it cannot be honoured.
        remedy: what to do instead, where it is refused.
        also: values that say what happens anyway, and are accepted beside the default.
    """

    done: Done
    why: str
    remedy: str = ""
    also: tuple[Any, ...] = ()

    def accepts(self, value: Any, default: Any) -> bool:
        """Whether an argument may have the value. None is unset, and so is no value where none is the default."""
        empty = not value and not default and not (value is False and default is None)
        unset = value is None or value == default or empty
        return self.done is not Done.REFUSED or unset or value in self.also


FLAGS: dict[str, Flag] = {}


def _group(flag: Flag, names: str) -> None:
    for name in names.split():
        if name in FLAGS:
            raise ValueError(f"{name} is in two groups")
        FLAGS[name] = flag


def _refused(why: str, names: str, remedy: str = "", also: tuple[Any, ...] = ()) -> None:
    _group(Flag(Done.REFUSED, why, remedy, also), names)


# ---- done by vLLM ----------------------------------------------------------------------------------------------------

_group(
    Flag(Done.VLLM, "the front end: names, tokenizer, templates, parsers, limits of requests"),
    """
    served_model_name tokenizer tokenizer_mode tokenizer_revision skip_tokenizer_init trust_remote_code code_revision
    hf_config_path config_format generation_config override_generation_config max_logprobs renderer_num_workers
    structured_outputs_config reasoning_parser reasoning_parser_plugin reasoning_config tokens_only stream_interval
    max_num_queued_reqs max_num_queued_tokens shutdown_timeout enable_log_requests
    fail_on_environ_validation _api_process_count _api_process_rank
    """,
)
_group(
    Flag(Done.VLLM, "the scheduler and the block pool, which are vLLM's own"),
    """
    max_num_scheduled_tokens long_prefill_token_threshold scheduling_policy scheduler_reserve_full_isl watermark
    prefill_schedule_interval prefix_caching_hash_algo kv_events_config worker_extension_cls
    """,
)
_group(
    Flag(Done.VLLM, "logs, metrics and traces of the engine"),
    """
    disable_log_stats aggregate_engine_logging show_hidden_metrics_for_version otlp_traces_endpoint
    kv_cache_metrics kv_cache_metrics_sample enable_logging_iteration_details per_request_spec_decode_metrics
    """,
)

# ---- done here -------------------------------------------------------------------------------------------------------

_group(
    Flag(Done.HERE, "where the checkpoint is, and what its config.json is taken to say"),
    "model revision download_dir hf_token hf_overrides",
)
_group(
    Flag(Done.HERE, "sizes and number format of the runtime, in arguments.py and worker.py"),
    """
    dtype max_model_len max_num_seqs max_num_batched_tokens num_gpu_blocks_override kv_cache_memory_bytes
    enable_prefix_caching additional_config
    """,
)
_group(Flag(Done.HERE, "numbers of keys and values, in kv_dtype.py"), "kv_cache_dtype")
_group(Flag(Done.HERE, "must be what the checkpoint says, in quantization.py"), "quantization")
_group(
    Flag(Done.HERE, "speculation, in speculation/config.py"), "speculative_config spec_method spec_model spec_tokens"
)
_group(Flag(Done.HERE, "sampling on the host"), "seed logits_processors logprobs_mode")
_group(Flag(Done.HERE, "the user's own worker takes the place of ours"), "worker_cls")

# ---- refused, with what happens in any case --------------------------------------------------------------------------

_refused(
    f"a block is a DeltaNet chunk of {BLOCK_SIZE} tokens, in which prefixes are found and checkpoints are taken",
    "block_size prefix_match_unit mamba_block_size",
    also=(BLOCK_SIZE,),
)
_refused("prompts are run in chunks", "enable_chunked_prefill", also=(True,))
_refused("a step's tokens are needed before the next step is planned", "async_scheduling", also=(False,))
_refused("one worker, in the engine's process, drives all ranks", "distributed_executor_backend", also=("uni",))
_refused("text is generated, and nothing is pooled", "runner", also=("generate",))
_refused("text is generated, and nothing is pooled", "convert", also=("none",))
_refused("text is generated, and nothing is pooled", "pooler_config io_processor_plugin")
_refused("weights are read from safetensors files", "load_format", also=("safetensors",))
_refused("weights are read from mapped files, each part when it is needed", "safetensors_load_strategy", also=("lazy",))
_refused("the recurrent state is float32 always", "mamba_ssm_cache_dtype", also=("float32",))
_refused("nothing is compiled by vLLM", "optimization_level", also=(0,))
_refused("nothing is compiled by vLLM", "enforce_eager", also=(True,))
_refused("the model takes text alone", "language_model_only", also=(True,))
_refused("the scheduler is this plugin's", "scheduler_cls", also=("vllm_integration.scheduler.SlotScheduler",))
_refused("one engine runs on one device", "enable_batch_sharded_sampling dcp_q_replicate", also=(False,))
_refused("vLLM's kernels are not used", "enable_flashinfer_autotune enable_bf16x3_router_gemm", also=(False,))
_refused("there is no progress bar", "use_tqdm_on_load", also=(False,))
_refused("KV and states are two groups of one manager", "disable_hybrid_kv_cache_manager", also=(False,))
_refused(
    "prefixes are kept in checkpoint slots, by their own policy",
    "prefix_cache_retention_interval",
    """Use --additional-config '{"num_slots": N, "slots_per_prompt": M}'""",
    also=(0, None),
)

# ---- refused ---------------------------------------------------------------------------------------------------------

_refused(
    "the KV memory is not a part of a GPU's",
    "gpu_memory_utilization",
    "Give --kv-cache-memory-bytes, or cache_gib in --additional-config",
)
_refused(
    "convolution windows are held in the number format of the model",
    "mamba_cache_dtype",
    "Leave it out, and choose with --dtype",
)
_refused("keys and values are in one number format in all layers", "kv_cache_dtype_skip_layers")
_refused(
    "weights are in the format of the checkpoint, and are not quantised while it is loaded",
    "quantization_config allow_deprecated_quantization",
    "Remove it, and give a checkpoint in the format that is wanted",
)
_refused(
    "one worker drives all ranks of the device",
    "tensor_parallel_size",
    """Use 1, and set the device's ranks with --additional-config '{"tp_degree": 4}'""",
)
_refused(
    "one engine runs on one device",
    """
    pipeline_parallel_size prefill_context_parallel_size decode_context_parallel_size dcp_comm_backend
    dcp_kv_cache_interleave_size cp_kv_cache_interleave_size data_parallel_size data_parallel_rank
    data_parallel_start_rank data_parallel_size_local data_parallel_address data_parallel_rpc_port
    data_parallel_hybrid_lb data_parallel_external_lb data_parallel_multi_port_external_lb data_parallel_backend
    master_addr master_port nnodes node_rank distributed_timeout_seconds cpu_distributed_timeout_seconds
    disable_nccl_for_dp_synchronization disable_custom_all_reduce ray_workers_use_nsight max_parallel_loading_workers
    enable_fault_tolerance fault_tolerance_config enable_elastic_ep
    """,
    "Start one server for each device, and spread requests over them",
)
_refused(
    "vLLM would place workers of its own, and there are none",
    "device_ids numa_bind numa_bind_nodes numa_bind_cpus",
    "Start the server under numactl or taskset, or with NEURON_RT_VISIBLE_CORES",
)
_refused(
    "a mixture's experts are all on the one device, run by its own kernels",
    """
    enable_expert_parallel enable_ep_weight_filter moe_backend all2all_backend eplb_config enable_eplb
    expert_placement_strategy enable_return_routed_experts enable_mixed_moe_lora_format enable_moe_shared_loras
    """,
)
_refused(
    "the model takes text alone",
    """
    limit_mm_per_prompt enable_mm_embeds interleave_mm_strings media_io_kwargs mm_processor_kwargs mm_processor_cache_gb
    mm_processor_cache_type mm_hasher_algorithm mm_shm_cache_max_object_size_mb mm_encoder_only mm_encoder_tp_mode
    mm_encoder_attn_backend mm_encoder_attn_dtype mm_encoder_fp8_scale_path mm_encoder_fp8_scale_save_path
    mm_encoder_fp8_scale_save_margin skip_mm_profiling video_pruning_rate video_pruning_method mm_tensor_ipc
    mm_processor_device mm_ipc_gpu_memory_gb mm_device_do_normalize enable_mm_processor_stats disable_chunked_mm_input
    allowed_local_media_path allowed_media_domains enable_prompt_embeds
    """,
)
_refused(
    "there are no adapters",
    """
    enable_lora max_loras max_lora_rank default_mm_loras fully_sharded_loras max_cpu_loras lora_dtype
    lora_target_modules enable_tower_connector_lora specialize_active_lora
    """,
    "Merge the adapter into the checkpoint",
)
_refused("tokens are generated one after the other", "diffusion_config")
_refused(
    "weights and caches stay where they are",
    """
    offload_backend cpu_offload_gb cpu_offload_params offload_group_size offload_num_in_group offload_prefetch_step
    offload_params kv_offloading_size kv_offloading_backend kv_transfer_config ec_transfer_config ec_manager_config
    weight_transfer_config enable_sleep_mode enable_cumem_allocator
    """,
)
_refused(
    "weights are loaded by this project's own reader",
    """
    model_weights model_loader_extra_config ignore_patterns pt_load_map_location safetensors_prefetch_num_threads
    safetensors_prefetch_block_size model_impl model_class_overrides
    """,
)
_refused(
    "vLLM's kernels and compiler are not used",
    """
    cudagraph_capture_sizes max_cudagraph_capture_size ir_op_priority compilation_config attention_config mamba_config
    kernel_config attention_backend linear_backend
    gdn_prefill_backend kda_prefill_backend disable_cascade_attn disable_sliding_window mamba_backend
    mamba_ssu_algorithm mamba_cache_mode enable_mamba_cache_stochastic_rounding mamba_cache_philox_rounds
    use_replayssm replayssm_buffer_len kv_sharing_fast_prefill enable_dbo ubatch_size dbo_decode_token_threshold
    dbo_prefill_token_threshold jit_monitor_mode jit_monitor_verbose
    """,
    """Choose kernels with --additional-config '{"kernels": "..."}'""",
)
_refused(
    "it is read by vLLM's own GPU worker alone",
    """
    profiler_config enable_layerwise_nvtx_tracing cudagraph_metrics enable_mfu_metrics collect_detailed_traces
    """,
)
_refused("tokens are drawn by this plugin's sampler", "use_fp64_gumbel return_sampling_mask enable_trace_replay")
_refused(
    "it scales vLLM's defaults for GPUs",
    "performance_mode",
    "Set --max-num-seqs and --max-num-batched-tokens",
)


def check_flags(arguments: EngineArgs) -> None:
    """Refuse the first argument that would be ignored, as its user gave it: call this before vLLM resolves defaults.

    Raises:
        ConfigError: naming the argument, its value, why it is not honoured and what to do.
    """
    for field in fields(arguments):
        flag, value = FLAGS.get(field.name), getattr(arguments, field.name)
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        if flag is None:
            if value != default:
                raise ConfigError(field.name, value, "is not known to this plugin", "Remove it")
        elif not flag.accepts(value, default):
            raise ConfigError(field.name, value, flag.why, flag.remedy or _remedy(field.name, flag))


def _remedy(name: str, flag: Flag) -> str:
    also = [value for value in flag.also if value not in (None, True, False)]
    flag_name = f"--{name.replace('_', '-')}"
    return f"Use {' or '.join(map(str, also))}, or remove {flag_name}" if also else f"Remove {flag_name}"
