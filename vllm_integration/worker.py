"""The worker that vLLM's executor drives: opens the runtime, says how much it holds, runs the steps."""

from __future__ import annotations

import gc
import multiprocessing
import time
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from tokenizers import Tokenizer
from vllm.config import VllmConfig
from vllm.logger import init_logger
from vllm.v1.core.sched.output import GrammarOutput, SchedulerOutput
from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheSpec
from vllm.v1.kv_cache_layout import KVCacheLayout
from vllm.v1.outputs import DraftTokenIds, ModelRunnerOutput
from vllm.v1.worker.worker_base import CompilationTimes, WorkerBase

from qwen36_neuron.apc import PolicyConfig
from qwen36_neuron.cache import default_slots, slots_starve
from qwen36_neuron.config import BLOCK_SIZE
from qwen36_neuron.devices import FP8_KV
from qwen36_neuron.ops.fp8 import STORAGE
from qwen36_neuron.runtime import Runtime, RuntimeConfig, cpu_kernels, open_runtime
from qwen36_neuron.runtime.threads import ThreadGovernor, usable_cores

from .arguments import kv_bytes
from .description import DTYPES, describe, kv_element
from .kv_cache.spec import group_indices, kv_cache_specs
from .lanes import LaneAllocator
from .memory import Memory
from .refusals import ends_the_engine
from .requests import RequestTable
from .runner import ModelRunner
from .sampling import HostSampler
from .settings import Settings
from .speculation.costs import StepCosts, measure
from .speculation.drafter import Drafter

logger = init_logger("vllm.vllm_integration.worker")


class Worker(WorkerBase):
    """One worker, in the engine's process, for all ranks of the device: the runtime spreads over them by itself."""

    def __init__(self, vllm_config: VllmConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(vllm_config, *args, **kwargs)
        self.settings = Settings.parse(vllm_config.additional_config)
        self.num_slots = 0
        self.runtime: Runtime | None = None
        self.runner: ModelRunner | None = None
        self.threads: ThreadGovernor | None = None
        self._stepped = False

    # ---- start-up, in the order in which the engine calls ------------------------------------------------------------

    def init_device(self) -> None:
        """Threads and the random stream of requests without a seed of their own."""
        most = self.settings.threads or min(torch.get_num_threads(), usable_cores())
        torch.set_num_threads(most)
        if self.settings.share_cores and self.settings.device == "cpu":
            self.threads = ThreadGovernor(most)
        torch.manual_seed(self.model_config.seed)
        self.device = torch.device("cpu")

    @ends_the_engine
    def load_model(self, *, load_dummy_weights: bool = False) -> None:
        """Find the checkpoint, and take its description from vLLM, overrides and all.

        Weights are loaded with the runtime, once its memory is decided.
        """
        self.checkpoint = self._checkpoint_folder()
        self.model = describe(self.model_config)
        if self.cache_config.enable_prefix_caching:
            self.num_slots = self._choose_slots()

    def get_supported_tasks(self) -> tuple[str, ...]:
        """Text generation."""
        _let_engines_be_collected()
        return ("generate",)

    def get_model_inspection(self) -> str:
        """What `print(llm)` says of the model."""
        size = f"{self.model.num_layers} layers of {self.model.hidden_size}"
        return f"Qwen3.6: {size}, {self.model.num_parameters() / 1e9:.3g} B parameters, on {self.settings.device}"

    def get_supported_kv_cache_layouts(self) -> list[str]:
        """Any: the runtime lays its memory out by itself."""
        return [layout.name for layout in KVCacheLayout]

    @ends_the_engine
    def get_kv_cache_spec(self) -> dict[str, KVCacheSpec]:
        """One pseudo layer for all KV, one for all recurrent state."""
        starts, ends = message_tokens(self.checkpoint)
        policy = PolicyConfig(self.num_slots, starts, ends, self.settings.slots_per_prompt)
        numbers = STORAGE if self.fp8_kv else None
        return kv_cache_specs(self.model, self.model_config.dtype, policy, self.settings.draft_layer, numbers)

    def determine_available_memory(self) -> int:
        """Bytes for KV blocks, as set; vLLM makes blocks of them unless --num-gpu-blocks-override says how many."""
        return kv_bytes(self.cache_config.kv_cache_memory_bytes, self.settings)

    def update_max_model_len(self, max_model_len: int) -> None:
        """vLLM fitted the length to the memory (--max-model-len auto)."""
        self.model_config.max_model_len = max_model_len

    @ends_the_engine
    def initialize_from_config(self, kv_cache_config: KVCacheConfig) -> None:
        """Open the runtime, now that the number of blocks is known."""
        started = time.perf_counter()
        self._check_memory(kv_cache_config.num_blocks)
        config = RuntimeConfig(
            model=self.checkpoint,
            device=self.settings.device,
            dtype=DTYPES[self.model_config.dtype],
            max_model_len=self.model_config.max_model_len,
            max_step_tokens=self.scheduler_config.max_num_batched_tokens,
            num_lanes=self.scheduler_config.max_num_seqs,
            num_blocks=kv_cache_config.num_blocks,
            num_slots=self.num_slots,
            tp_degree=self.settings.tp_degree,
            artifact=Path(self.settings.artifact) if self.settings.artifact else None,
            kernels=self.settings.kernels,
            sampling_candidates=self.settings.sampling_candidates,
            lazy_logits=self.settings.lazy_logits,
            max_drafts=self.settings.draft_limits.most,
            max_proposals=self.settings.mtp_drafts,
            kv_cache_dtype="fp8" if self.fp8_kv else DTYPES[self.model_config.dtype],
            kv_scales=Path(self.settings.kv_scales) if self.settings.kv_scales else None,
            description=self.model,
        )
        self.runtime = open_runtime(config)
        self._log_memory(config, time.perf_counter() - started)
        self._log_kernels(config)
        table = RequestTable(LaneAllocator(config.num_lanes), *group_indices(kv_cache_config.kv_cache_groups))
        sampler = HostSampler(self.vllm_config, self.runtime.vocab_size)
        self.runner = ModelRunner(self.runtime, table, sampler, self._drafter(self.runtime))

    @ends_the_engine
    def compile_or_warm_up_model(self) -> CompilationTimes:
        """Run every graph once; the server answers ready only after this."""
        assert self.runtime is not None
        assert self.runner is not None
        started = time.perf_counter()
        self.runtime.warm_up()
        self.runner.sampler.warm_up()
        if self.runner.drafter is not None:
            limits = self.settings.draft_limits
            measure(self.runtime, self.runner.drafter.costs, limits.most, limits.mtp)
        return CompilationTimes(language_model=time.perf_counter() - started, encoder=0.0)

    # ---- steps -------------------------------------------------------------------------------------------------------

    def execute_model(self, scheduler_output: SchedulerOutput) -> ModelRunnerOutput | None:
        """Run a step; None if its tokens wait for the grammars of structured output."""
        assert self.runner is not None
        if not self._stepped:
            self._stepped = True
            _let_engines_be_collected()
        if self.threads is not None:
            self.threads.before_step()
        return self.runner.execute(scheduler_output)

    def sample_tokens(self, grammar_output: GrammarOutput | None) -> ModelRunnerOutput:
        """Choose the tokens of the step that execute_model ran."""
        assert self.runner is not None
        return self.runner.sample(grammar_output)

    def take_draft_token_ids(self) -> DraftTokenIds | None:
        """Drafts for the requests that the last step gave tokens; its answers are on their way already."""
        assert self.runner is not None
        return self.runner.drafts()

    def shutdown(self) -> None:
        """Give the device and its memory back."""
        if self.runtime is not None:
            self.runtime.close()
        self.runtime = self.runner = None
        if self.threads is not None:
            self.threads.release()

    # ---- inside ------------------------------------------------------------------------------------------------------

    @property
    def fp8_kv(self) -> bool:
        """Whether keys and values are FP8; the platform has settled it."""
        return self.cache_config.cache_dtype in FP8_KV

    @property
    def kv_element(self) -> int:
        """Bytes of a number of theirs."""
        return kv_element(self.cache_config.cache_dtype, self.model_config.dtype)

    def _drafter(self, runtime: Runtime) -> Drafter | None:
        limits = self.settings.draft_limits
        return Drafter(runtime, limits, StepCosts()) if limits.most else None

    def _checkpoint_folder(self) -> Path:
        folder = Path(self.model_config.model)
        if folder.is_dir():
            return folder
        return Path(
            snapshot_download(
                self.model_config.model,
                revision=self.model_config.revision,
                cache_dir=self.load_config.download_dir,
                token=self.model_config.hf_token,
                allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.txt"],
            )
        )

    def _choose_slots(self) -> int:
        """As set, or as many as suit the memory of KV. Warns where so few are set that KV would lie idle."""
        element = self.model_config.dtype.itemsize
        state = self.model.state_bytes_per_lane(1, element)
        blocks = self.cache_config.num_gpu_blocks_override
        block = self.model.kv_bytes_per_token(self.kv_element, self.settings.draft_layer) * BLOCK_SIZE
        kv = self.determine_available_memory() if blocks is None else blocks * block
        if self.settings.num_slots is None:
            return default_slots(kv, state)
        if slots_starve(self.settings.num_slots, kv, state):
            logger.warning(
                "%d checkpoint slots of %.1f MiB are few beside %.1f MiB of KV: most prefixes in KV will have no "
                "checkpoint and cannot be reused. Set num_slots in --additional-config to %d, or leave it out.",
                self.settings.num_slots,
                state / 2**20,
                kv / 2**20,
                default_slots(kv, state),
            )
        return self.settings.num_slots

    def _memory(self, num_blocks: int) -> Memory:
        element, lanes = self.model_config.dtype.itemsize, self.scheduler_config.max_num_seqs
        weights = None
        if self.settings.device == "cpu":
            asked = RuntimeConfig(self.checkpoint, dtype=DTYPES[self.model_config.dtype], kernels=self.settings.kernels)
            weights = Memory.of_stored(self.model, self.checkpoint, cpu_kernels(asked))
        draft = self.settings.draft_layer
        return Memory.of(self.model, element, lanes, num_blocks, self.num_slots, draft, weights, self.kv_element)

    def _check_memory(self, num_blocks: int) -> None:
        """On the host, refuse what cannot fit at all; a device's own plan is checked when its artifact is built."""
        if self.settings.device == "cpu":
            given = {
                "model": self.model_config.model,
                "max_num_seqs": self.scheduler_config.max_num_seqs,
                "kv_cache_memory_bytes": self.determine_available_memory(),
                "num_slots": self.num_slots,
            }
            self._memory(num_blocks).check(self.current_platform.get_device_total_memory(), given)

    def _log_kernels(self, config: RuntimeConfig) -> None:
        if config.device != "cpu":
            return
        kernels = cpu_kernels(config)
        logger.info("Operations on CPU: %s.", kernels)
        if kernels == "fused":
            logger.info("Fused operations are compiled on a machine's first start, which takes 20 s or so.")
        elif config.kernels is None and config.dtype == "float32":
            logger.warning("Without Numba decoding is two to three times slower: pip install 'qwen36-neuron[cpu]'.")

    def _log_memory(self, config: RuntimeConfig, seconds: float) -> None:
        logger.info(
            "Qwen3.6 on %s, %s, KV in %s, %d rank(s), %d threads: %d lanes, %d KV blocks, %d checkpoint slots, "
            "grain %d tokens; %s. Up to %d tokens a step. Opened in %.1f s.",
            config.device,
            config.dtype,
            config.kv_cache_dtype,
            config.tp_degree,
            torch.get_num_threads(),
            config.num_lanes,
            config.num_blocks - 1,
            config.num_slots,
            BLOCK_SIZE,
            self._memory(config.num_blocks),
            config.max_step_tokens,
            seconds,
        )


def _let_engines_be_collected() -> None:
    """Undo the freezing of the heap, where an engine shares its user's process and may end before it.

    vLLM freezes all objects once an engine is made. An engine refers to itself, so that one which is deleted without a
    shutdown would stay for good, with its weights and caches.
    """
    if multiprocessing.parent_process() is None:
        gc.unfreeze()


def message_tokens(checkpoint: Path) -> tuple[frozenset[int], frozenset[int]]:
    """Ids of the tokens that open and that close a message in the chat template; empty without a tokenizer."""
    file = checkpoint / "tokenizer.json"
    if not file.is_file():
        return frozenset(), frozenset()
    tokenizer = Tokenizer.from_file(str(file))
    starts, ends = (
        frozenset(token for token in (tokenizer.token_to_id(mark),) if token is not None)
        for mark in ("<|im_start|>", "<|im_end|>")
    )
    return starts, ends
