"""The platform: what vLLM may and may not do with this model, decided before anything is built."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from vllm.exceptions import VLLMValidationError
from vllm.logger import init_logger
from vllm.platforms.interface import Platform, PlatformEnum

from qwen36_neuron.config import BLOCK_SIZE
from qwen36_neuron.errors import ConfigError
from qwen36_neuron.openmp import openmp_environment

from . import parsers
from .compat import check_vllm
from .parsers.stops import ANSWER_STOP
from .settings import NAMED, Settings
from .speculation.config import PROPOSER, allow_all_sampling

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.utils.argparse_utils import FlexibleArgumentParser

logger = init_logger("vllm.vllm_integration.platform")

WORKER = "vllm_integration.worker.Worker"
SCHEDULER = "vllm_integration.scheduler.SlotScheduler"
BODY_GUARD = "vllm_integration.body_guard.BodyGuard"


class QwenPlatform(Platform):
    """Qwen3.6 behind the step contract. To vLLM it is a CPU: tensors that cross are host tensors on either device."""

    _enum = PlatformEnum.OOT
    device_name = "qwen36"
    device_type = "cpu"
    dispatch_key = "CPU"
    simple_compile_backend = "eager"
    supported_quantization: ClassVar[list[str]] = []
    stop_in_reasoning: ClassVar[bool] = False
    """Whether stop strings count in the reasoning too; the reasoning parser asks, in the server's process."""

    @property
    def supported_dtypes(self) -> list[torch.dtype]:
        """Of weights and KV; the first is what a checkpoint in any other number format is turned into."""
        return [torch.bfloat16, torch.float32]

    def is_cpu(self) -> bool:
        """Yes: it keeps vLLM from looking for a torch accelerator, to sample on or to clean up at exit."""
        return True

    # ---- nothing of vLLM's own kernels is used -----------------------------------------------------------------------

    @classmethod
    def import_kernels(cls) -> None:
        """None."""

    @classmethod
    def import_ir_kernels(cls) -> None:
        """None."""

    @classmethod
    def get_device_name(cls, device_id: int = 0) -> str:
        """The platform's name."""
        return cls.device_name

    @classmethod
    def get_device_total_memory(cls, device_id: int = 0) -> int:
        """Bytes of the host."""
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

    @classmethod
    def inference_mode(cls) -> AbstractContextManager[Any]:
        """No gradients."""
        return torch.no_grad()

    @classmethod
    def set_device(cls, device: torch.device) -> None:
        """The runtime holds the device."""

    @classmethod
    def manual_seed_all(cls, seed: int) -> None:
        """There is no device generator."""

    @classmethod
    def is_pin_memory_available(cls) -> bool:
        """No."""
        return False

    # ---- memory ------------------------------------------------------------------------------------------------------

    @classmethod
    def support_hybrid_kv_cache(cls) -> bool:
        """Two groups: KV and lanes."""
        return True

    @classmethod
    def update_block_size_for_backend(cls, vllm_config: VllmConfig) -> None:
        """The block size is fixed; vLLM would otherwise ask its attention backends."""

    @classmethod
    def register_custom_kv_cache_specs(cls, vllm_config: VllmConfig) -> None:
        """The recurrent state's spec and its manager."""
        from vllm.v1.kv_cache_spec_registry import KVCacheSpecRegistry

        from .kv_cache.slot_manager import SlotManager
        from .kv_cache.spec import LaneSpec

        KVCacheSpecRegistry.register(LaneSpec, SlotManager)

    # ---- configuration -----------------------------------------------------------------------------------------------

    @classmethod
    def pre_register_and_update(cls, parser: FlexibleArgumentParser | None = None) -> None:
        """Settle the arguments that vLLM is about to make a configuration of, or the defaults that its help shows.

        Raises:
            ConfigError: something asked for is not supported.
        """
        from .arguments import DEFAULT_MAX_NUM_SEQS, arguments_in_use, fill_defaults
        from .quantization import register
        from .refusals import tell_briefly

        if parser is not None:
            parser.set_defaults(
                max_num_seqs=DEFAULT_MAX_NUM_SEQS,
                reasoning_parser=parsers.NAME,
                tool_call_parser=parsers.NAME,
                enable_auto_tool_choice=True,
            )
            if any(action.dest == "middleware" for action in parser._actions):  # The server's parser, not the engine's.
                parser.set_defaults(middleware=[BODY_GUARD])
            tell_briefly()
            return
        arguments = arguments_in_use()
        if arguments is not None:
            check_vllm()
            register()
            fill_defaults(arguments, cls.get_device_total_memory())

    @classmethod
    def check_and_update_config(cls, vllm_config: VllmConfig) -> None:
        """Choose the worker and the scheduler, and refuse what cannot work.

        Raises:
            ConfigError: something asked for is not supported.
        """
        if vllm_config.model_config is None:
            return
        from .description import check_model

        check_vllm()
        settings = Settings.parse(vllm_config.additional_config)
        check_model(vllm_config.model_config, settings)
        _check_features(vllm_config)
        _check_caching(vllm_config, settings)
        cls.stop_in_reasoning = settings.stop_in_reasoning

        from vllm.config import CompilationMode, CUDAGraphMode

        if vllm_config.parallel_config.worker_cls == "auto":
            vllm_config.parallel_config.worker_cls = WORKER
        vllm_config.parallel_config.distributed_executor_backend = "uni"
        vllm_config.scheduler_config.scheduler_cls = SCHEDULER
        vllm_config.scheduler_config.async_scheduling = False
        vllm_config.compilation_config.mode = CompilationMode.NONE
        vllm_config.compilation_config.cudagraph_mode = CUDAGraphMode.NONE
        vllm_config.cache_config.block_size = BLOCK_SIZE
        if settings.device == "cpu":
            os.environ.update(openmp_environment(os.environ))  # for what loads OpenMP after this, here or in a child
        if vllm_config.structured_outputs_config.backend == "auto":
            # The engine core has one back end, that of its first grammar. Where the reader of requests chooses another
            # for one that this cannot do, the engine core fails at it, or leaves out what it does not know.
            vllm_config.structured_outputs_config.backend = "xgrammar"

    @classmethod
    def validate_request(cls, processed_inputs: Any, params: Any) -> None:
        """Refuse a request that asks for what is not implemented; it is answered with status 400.

        Raises:
            VLLMValidationError: naming the parameter.
        """
        if processed_inputs.get("type") == "embeds":
            raise VLLMValidationError("prompt embeddings are not supported", parameter="prompt_embeds")
        if processed_inputs.get("type") == "multimodal":
            raise VLLMValidationError("the model takes text only", parameter="messages")
        if getattr(params, "extra_args", None):
            from .requested import apply_requested

            apply_requested(params)
        named = (getattr(params, "extra_args", None) or {}).get(NAMED, [])
        if not isinstance(named, list) or not all(isinstance(length, int) and length >= 0 for length in named):
            raise VLLMValidationError(f"{NAMED} must be a list of prefix lengths in tokens", parameter="vllm_xargs")
        stops = (getattr(params, "extra_args", None) or {}).get(ANSWER_STOP, [])
        if not isinstance(stops, list) or not all(isinstance(stop, str) and stop for stop in stops):
            raise VLLMValidationError(f"{ANSWER_STOP} must be a list of strings", parameter="vllm_xargs")
        if getattr(params, "trace_decode_token_ids", None) is not None:
            raise VLLMValidationError("trace_decode_token_ids is not supported", parameter="trace_decode_token_ids")
        if getattr(params, "structured_outputs", None) is not None:
            from .grammars import check_grammar

            check_grammar(params)


def _check_features(vllm_config: VllmConfig) -> None:
    """Refuse what goes past the step contract."""
    parallel = vllm_config.parallel_config
    for field in ("tensor_parallel_size", "pipeline_parallel_size", "decode_context_parallel_size"):
        if getattr(parallel, field) != 1:
            raise ConfigError(
                field,
                getattr(parallel, field),
                "one worker drives all ranks of the device",
                """Use 1, and set the device's ranks with --additional-config '{"tp_degree": 4}'""",
            )
    speculative = vllm_config.speculative_config
    if speculative is not None and speculative.model != PROPOSER:
        raise ConfigError("speculative_config", speculative.method, "is not made here", "Use method mtp, or ngram")
    if speculative is not None:
        allow_all_sampling()
    for field in ("lora_config", "kv_transfer_config", "ec_transfer_config"):
        value = getattr(vllm_config, field)
        if value is not None:
            raise ConfigError(field, type(value).__name__, "is not supported", "Remove it")
    if not vllm_config.scheduler_config.enable_chunked_prefill:
        raise ConfigError("enable_chunked_prefill", False, "prompts are run in chunks", "Remove the flag")


def _check_caching(vllm_config: VllmConfig, settings: Settings) -> None:
    cache = vllm_config.cache_config
    if cache.user_specified_block_size and cache.block_size != BLOCK_SIZE:
        raise ConfigError(
            "block_size", cache.block_size, f"a block is a DeltaNet chunk of {BLOCK_SIZE} tokens", "Remove --block-size"
        )
    if cache.prefix_match_unit not in (None, BLOCK_SIZE):
        raise ConfigError(
            "prefix_match_unit", cache.prefix_match_unit, f"prefixes end at {BLOCK_SIZE} tokens", "Drop it"
        )
    if cache.enable_prefix_caching and settings.num_slots == 0:
        logger.warning(
            "Prefix caching is on but num_slots is 0: no prefix can ever be reused, since that takes the recurrent "
            "state at its end. Set num_slots in --additional-config, or --no-enable-prefix-caching."
        )
