"""Replays requests through vLLM's own scheduler and KV cache managers: `align` mode, and this project's slots.

No model runs: the scheduler is told that the tokens of the trace were sampled. All that decides what is reused is the
engine's: Scheduler, KVCacheManager, HybridKVCacheCoordinator, FullAttentionManager, BlockPool, and MambaManager for
`align` or SlotManager for the slots.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

# vLLM reads these when it is imported.
os.environ.update(HF_HUB_OFFLINE="1", VLLM_NO_USAGE_STATS="1", VLLM_LOGGING_LEVEL="ERROR", VLLM_USE_V2_MODEL_RUNNER="0")

import torch
from vllm import SamplingParams
from vllm.config import VllmConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import (
    get_group_id,
    get_kv_cache_configs,
    get_request_block_hasher,
    init_none_hash,
    resolve_kv_cache_block_sizes,
)
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheSpec, MambaSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

from qwen36_lab.apc.simulator import KeyedRequest
from qwen36_neuron.apc import PolicyConfig
from qwen36_neuron.config import BLOCK_SIZE, LayerType, ModelConfig
from vllm_integration.kv_cache.spec import kv_cache_specs
from vllm_integration.scheduler import SlotScheduler

STEP_TOKENS = 2048
STATE_TYPES = (torch.float32, torch.bfloat16)
KERNEL_TOKENS = 16
"""vLLM's attention kernels take blocks of a multiple of this many tokens."""


class VllmCache:
    """A PrefixCache that is a vLLM scheduler, fed one request at a time.

    Args:
        name: for the tables.
        config: vLLM's configuration.
        specs: what each layer caches.
        pool_bytes: memory of vLLM's block pool, on top of which comes the page that it never uses.
        scheduler_class: vLLM's own, or one derived from it.
    """

    def __init__(
        self,
        name: str,
        config: VllmConfig,
        specs: dict[str, KVCacheSpec],
        pool_bytes: int,
        scheduler_class: type[Scheduler] = Scheduler,
    ) -> None:
        self.name = name
        (cache,) = get_kv_cache_configs(config, [specs], [pool_bytes])
        self.page_bytes = cache.kv_cache_groups[0].kv_cache_spec.page_size_bytes * len(
            cache.kv_cache_groups[0].layer_names
        )
        (self.cache,) = get_kv_cache_configs(config, [specs], [pool_bytes + self.page_bytes])
        config.cache_config.num_gpu_blocks = self.cache.num_blocks
        scheduler_block, hash_block = resolve_kv_cache_block_sizes(self.cache, config)
        init_none_hash(sha256)
        self._hasher = get_request_block_hasher(hash_block, sha256)
        self.scheduler = scheduler_class(
            config, self.cache, StructuredOutputManager(config), block_size=scheduler_block, hash_block_size=hash_block
        )
        self._served = 0

    @property
    def checkpoints(self) -> int:
        """States that a lookup could find."""
        if isinstance(self.scheduler, SlotScheduler):
            return len(self.scheduler.slot_manager.slots.by_key)
        groups = self.cache.kv_cache_groups
        group = next(index for index, g in enumerate(groups) if isinstance(g.kv_cache_spec, MambaSpec))
        hashes = (block.block_hash for block in self.scheduler.kv_cache_manager.block_pool.blocks)
        return sum(1 for key in hashes if key is not None and get_group_id(key) == group)

    def serve(self, keyed: KeyedRequest) -> int:
        """Run a request step by step until its last token and return the tokens that its first step skipped.

        Raises:
            ValueError: the request does not fit into the memory.
        """
        self._served += 1
        name, output = str(self._served), keyed.request.output
        params = SamplingParams(max_tokens=len(output), ignore_eos=True)
        params.update_from_generation_config({}, None)
        request = Request(name, list(keyed.request.prompt), params, None, block_hasher=self._hasher)
        self.scheduler.add_request(request)
        reused = 0
        while not request.is_finished():
            step = self.scheduler.schedule()
            if not step.num_scheduled_tokens:
                raise ValueError("a sequence does not fit into the memory")
            reused += sum(new.num_computed_tokens for new in step.scheduled_new_reqs)
            in_prefill = request.num_computed_tokens < request.num_tokens
            sampled = [] if in_prefill else [output[request.num_output_tokens]]
            self.scheduler.update_from_output(
                step, ModelRunnerOutput(req_ids=[name], req_id_to_index={name: 0}, sampled_token_ids=[sampled])
            )
        return reused


def align(published: dict[str, Any], pool_bytes: int, longest: int, match_unit: int | None) -> VllmCache:
    """`align` as vLLM lays this model out: groups of equally many layers, one pool of equal pages for all of them.

    The block is the least number of tokens whose KV in a layer takes no less than a layer's state. With `match_unit`,
    vLLM's `--prefix-match-unit`, hits may also end inside a block.
    """
    model = ModelConfig.from_dict(published)
    state = (
        (model.num_value_heads, model.key_head_dim, model.value_head_dim),
        (model.conv_kernel - 1, model.conv_channels),
    )
    state_bytes = MambaSpec(block_size=1, shapes=state, dtypes=STATE_TYPES).page_size_bytes
    kernel_bytes = KERNEL_TOKENS * 2 * model.num_kv_heads * model.head_dim * torch.bfloat16.itemsize
    block = -(-state_bytes // kernel_bytes) * KERNEL_TOKENS
    attention = FullAttentionSpec(
        block_size=block, num_kv_heads=model.num_kv_heads, head_size=model.head_dim, dtype=torch.bfloat16
    )
    recurrent = MambaSpec(
        block_size=block,
        shapes=state,
        dtypes=STATE_TYPES,
        page_size_padded=attention.page_size_bytes,
        mamba_cache_mode="align",
    )
    specs = {
        f"layers.{index}": attention if kind is LayerType.ATTENTION else recurrent
        for index, kind in enumerate(model.layer_types)
    }
    config = _engine_config(published, longest)
    config.cache_config.block_size = block
    config.cache_config.mamba_cache_mode = "align"
    config.cache_config.prefix_match_unit = match_unit
    return VllmCache("align" if match_unit is None else f"align, match unit {match_unit}", config, specs, pool_bytes)


def slots(published: dict[str, Any], num_blocks: int, longest: int, policy: PolicyConfig) -> VllmCache:
    """This project's slot manager and scheduler: `num_blocks` KV blocks, and the slots beside them."""
    specs = kv_cache_specs(ModelConfig.from_dict(published), torch.bfloat16, policy)
    config = _engine_config(published, longest)
    config.cache_config.block_size = BLOCK_SIZE
    pool_bytes = num_blocks * specs["attention"].page_size_bytes
    return VllmCache("ours, in the engine", config, specs, pool_bytes, SlotScheduler)


def _engine_config(published: dict[str, Any], longest: int) -> VllmConfig:
    """vLLM's configuration for one sequence of up to `longest` tokens at a time, with prefix caching."""
    with TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(published))
        config = EngineArgs(
            model=folder,
            skip_tokenizer_init=True,
            enable_prefix_caching=True,
            max_model_len=longest,
            max_num_batched_tokens=STEP_TOKENS,
            max_num_seqs=1,
            dtype="bfloat16",
        ).create_engine_config()
    config.cache_config.kv_cache_layout = "LBNHC"
    return config
