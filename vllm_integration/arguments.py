"""The arguments that a user gave, before vLLM makes a configuration of them: defaults of this project, and refusals.

Afterwards what was asked for cannot be told from what vLLM filled in, and an error reaches its user as one of
pydantic's, with the whole configuration around it.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import vllm.config
from vllm.engine.arg_utils import EngineArgs

from qwen36_neuron.cache import default_slots
from qwen36_neuron.checkpoint.files import INDEX, SINGLE, CheckpointFiles
from qwen36_neuron.checkpoint.kv_scales import FILE as KV_SCALES
from qwen36_neuron.checkpoint.kv_scales import load_kv_scales
from qwen36_neuron.checkpoint.load import check_files
from qwen36_neuron.config import BLOCK_SIZE, STRETCH, ModelConfig
from qwen36_neuron.devices import FP8_KV
from qwen36_neuron.errors import ConfigError
from qwen36_neuron.runtime import RuntimeConfig, cpu_kernels

from .description import DTYPES, check_model, kv_element
from .engine_flags import check_flags
from .kv_dtype import check_kv_cache_dtype, settle_kv_cache_dtype
from .memory import Memory
from .quantization import check_quantization
from .settings import Settings
from .speculation.config import take_speculative_config

DEFAULT_MAX_NUM_SEQS = 8
"""Every sequence owns a lane of fixed size, so not vLLM's 256 of them."""

DEFAULT_MAX_NUM_BATCHED_TOKENS = 2048
DEFAULT_MAX_MODEL_LEN = 8192
"""Or the model's own, where that is less."""


def arguments_in_use() -> EngineArgs | None:
    """The arguments of the `create_engine_config` that is calling, if it is.

    vLLM calls `Platform.pre_register_and_update` first of all there, for a platform to settle its defaults, but does
    not hand it the arguments; they are the caller's own, a frame or two up.
    """
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code.co_name == EngineArgs.create_engine_config.__name__:
            arguments = frame.f_locals.get("self")
            return arguments if isinstance(arguments, EngineArgs) else None
        frame = frame.f_back
    return None


def fill_defaults(arguments: EngineArgs, host: int) -> None:
    """Fill in, in place, the defaults that the start script has too, and refuse what cannot work.

    Args:
        host: bytes of the machine.
    Raises:
        ConfigError: naming an argument, its value, what is wrong and what to do.
    """
    check_flags(arguments)
    check_kv_cache_dtype(arguments.kv_cache_dtype)
    take_speculative_config(arguments)
    settings = Settings.parse(arguments.additional_config)
    _check_kv_memory(arguments)
    if arguments.dtype == "auto":
        arguments.dtype = "float32" if settings.device == "cpu" else "bfloat16"
    if arguments.max_num_seqs is None:
        most = arguments.max_num_batched_tokens or DEFAULT_MAX_NUM_SEQS
        arguments.max_num_seqs = min(DEFAULT_MAX_NUM_SEQS, most)
    if arguments.max_num_batched_tokens is None:
        arguments.max_num_batched_tokens = max(DEFAULT_MAX_NUM_BATCHED_TOKENS, arguments.max_num_seqs)
    held = _model_config(arguments)
    form = check_quantization(held, settings, arguments.quantization)
    model = check_model(held, settings)
    declared = form is not None and form.fp8_kv
    arguments.kv_cache_dtype = settle_kv_cache_dtype(arguments.kv_cache_dtype, DTYPES[held.dtype], declared)
    _check_kv_scales(arguments, settings, model, Path(held.model))
    if arguments.max_model_len is None:
        arguments.max_model_len = min(DEFAULT_MAX_MODEL_LEN, held.max_model_len)
    if settings.draft_layer and model.num_mtp_layers != 1:
        problem = f"needs one multi-token-prediction layer, and config.json says {model.num_mtp_layers}"
        raise ConfigError("speculative_config.method", "mtp", problem, "Use ngram, or no speculation")
    check_checkpoint(Path(held.model), model, settings.draft_layer)
    if settings.device == "cpu":
        _check_memory(arguments, settings, held, model, host)


def _model_config(arguments: EngineArgs) -> vllm.config.ModelConfig:
    """vLLM's own, with what it refuses of lengths and of YaRN said in our words."""
    try:
        with _quiet("vllm.config.model"):
            return arguments.create_model_config()  # vLLM will say it all again
    except KeyError as error:
        if not arguments.hf_overrides:
            raise
        problem, remedy = f"has no {error}, which vLLM needs with what it has", "Give it beside the others"
        raise ConfigError("hf_overrides", arguments.hf_overrides, problem, remedy) from error
    except ValueError as error:
        if "greater than the derived max_model_len" not in str(error):
            raise
        problem = "is more than the model was made for, or than its YaRN reaches"
        raise ConfigError("max_model_len", arguments.max_model_len, problem, STRETCH) from error


def kv_bytes(given: int | None, settings: Settings) -> int:
    """Bytes for KV blocks: --kv-cache-memory-bytes, or what `cache_gib` says."""
    return int(settings.cache_gib * 2**30) if given is None else given


def check_checkpoint(folder: Path, model: ModelConfig, draft_layer: bool = False) -> None:
    """Compare the headers of a checkpoint's files with the model, where they are on this machine.

    Args:
        draft_layer: the tensors of the multi-token-prediction layer too.

    Raises:
        CheckpointError: with the tensors that are missing, unknown or wrong.
    """
    if (folder / INDEX).is_file() or (folder / SINGLE).is_file():
        with CheckpointFiles(folder) as files:
            check_files(files, model, draft_layer)


def _check_kv_memory(arguments: EngineArgs) -> None:
    given, gib = arguments.kv_cache_memory_bytes, arguments.additional_config.get("cache_gib")
    if given is None:
        return
    if given <= 0:
        raise ConfigError("kv_cache_memory_bytes", given, "must be a positive number of bytes", "Give the KV memory")
    if gib is not None and given != int(gib * 2**30):
        problem = f"additional_config.cache_gib={gib} says otherwise, and both are the KV memory"
        raise ConfigError("kv_cache_memory_bytes", given, problem, "Give one of the two")


def _check_kv_scales(arguments: EngineArgs, settings: Settings, model: ModelConfig, folder: Path) -> None:
    """Refuse FP8 keys and values without scales, where the checkpoint is on this machine, before anything is loaded."""
    if arguments.kv_cache_dtype not in FP8_KV:
        if settings.kv_scales is not None:
            problem = f"is for FP8 keys and values, and kv_cache_dtype={arguments.kv_cache_dtype}"
            remedy = "Give --kv-cache-dtype fp8 with it, or remove it"
            raise ConfigError("additional_config.kv_scales", settings.kv_scales, problem, remedy)
        return
    file = None if settings.kv_scales is None else Path(settings.kv_scales)
    if file is None and settings.artifact is not None and (Path(settings.artifact) / KV_SCALES).is_file():
        file = Path(settings.artifact) / KV_SCALES
    if file is not None or (folder / INDEX).is_file() or (folder / SINGLE).is_file():
        load_kv_scales(folder, model, settings.draft_layer, file)


def _check_memory(
    arguments: EngineArgs, settings: Settings, held: vllm.config.ModelConfig, model: ModelConfig, host: int
) -> None:
    element, lanes = held.dtype.itemsize, arguments.max_num_seqs or DEFAULT_MAX_NUM_SEQS
    stored = kv_element(arguments.kv_cache_dtype, held.dtype)
    kv = kv_bytes(arguments.kv_cache_memory_bytes, settings)
    token = model.kv_bytes_per_token(stored, settings.draft_layer)
    blocks = arguments.num_gpu_blocks_override or kv // (token * BLOCK_SIZE)
    slots = settings.num_slots
    if arguments.enable_prefix_caching is False:
        slots = 0
    elif slots is None:
        slots = default_slots(kv, model.state_bytes_per_lane(1, element))
    kernels = cpu_kernels(RuntimeConfig(Path(held.model), dtype=DTYPES[held.dtype], kernels=settings.kernels))
    weights = Memory.of_stored(model, Path(held.model), kernels)
    memory = Memory.of(model, element, lanes, blocks, slots, settings.draft_layer, weights, stored)
    memory.check(host, {"model": held.model, "max_num_seqs": lanes, "kv_cache_memory_bytes": kv, "num_slots": slots})


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
