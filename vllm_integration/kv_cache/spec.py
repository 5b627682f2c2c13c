"""What the worker tells vLLM about its memory: one pseudo layer for all KV, one for all recurrent state.

vLLM makes one group a spec, so these give exactly two groups, and one block id stands for the whole model's KV of 64
tokens. The recurrent state is deliberately not a MambaSpec: vLLM would split every prefill chunk at block boundaries
for one, which the DeltaNet scan does not need, since it has the state at every 64-token boundary in hand.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheGroupSpec, KVCacheSpec

from qwen36_neuron.apc import PolicyConfig, PrefillCost
from qwen36_neuron.config import BLOCK_SIZE, ModelConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vllm.config import VllmConfig


@dataclass(frozen=True)
class LaneSpec(KVCacheSpec):
    """Recurrent state: a lane a running sequence, and checkpoint slots at block boundaries.

    Lanes and slots are the runtime's own memory, of a size fixed at start-up; nothing of it comes out of vLLM's block
    pool. vLLM wants equal pages in all groups, so the page claims the size of a KV block, and a request claims none.

    Attributes:
        kv_page_bytes: bytes of a KV block, for the claim.
        state_bytes: bytes of a lane, and so of a slot, all ranks together.
        policy: how many checkpoint slots the runtime holds, and what the policy that fills them has to know.
        cost: what a prefix costs to compute, which is what a checkpoint is worth.
    """

    kv_page_bytes: int
    state_bytes: int
    policy: PolicyConfig
    cost: PrefillCost

    @property
    def page_size_bytes(self) -> int:
        """The claimed page."""
        return self.kv_page_bytes

    @property
    def num_heads(self) -> int:
        """One, so that a page is one element of layout."""
        return 1

    @property
    def tokens_per_state(self) -> int:
        """vLLM's mark for a state that does not grow with tokens."""
        return -1

    @property
    def state_content_size_bytes(self) -> int:
        """The claimed page."""
        return self.kv_page_bytes

    def max_memory_usage_bytes(self, vllm_config: VllmConfig) -> int:
        """Bytes of the block pool that one request may take: none."""
        return 0


def kv_cache_specs(
    model: ModelConfig,
    dtype: torch.dtype,
    policy: PolicyConfig,
    draft_layer: bool = False,
    kv_dtype: torch.dtype | None = None,
) -> dict[str, KVCacheSpec]:
    """The two pseudo layers of `model`, the keys and values of its draft layer among them.

    Args:
        dtype: of convolution windows, and of keys and values unless `kv_dtype` says otherwise.
    """
    attention = FullAttentionSpec(
        block_size=BLOCK_SIZE,
        num_kv_heads=(len(model.attention_layers) + draft_layer) * model.num_kv_heads,
        head_size=model.head_dim,
        dtype=kv_dtype or dtype,
    )
    lanes = LaneSpec(
        block_size=BLOCK_SIZE,
        kv_page_bytes=attention.page_size_bytes,
        state_bytes=model.state_bytes_per_lane(1, dtype.itemsize),
        policy=policy,
        cost=PrefillCost.of(model),
    )
    return {"attention": attention, "lanes": lanes}


def group_indices(groups: Sequence[KVCacheGroupSpec]) -> tuple[int, int]:
    """Indices of the attention group and of the lane group.

    Raises:
        RuntimeError: vLLM grouped the two pseudo layers in any other way.
    """
    lanes = [i for i, group in enumerate(groups) if isinstance(group.kv_cache_spec, LaneSpec)]
    attention = [i for i, group in enumerate(groups) if isinstance(group.kv_cache_spec, FullAttentionSpec)]
    if len(groups) != 2 or len(lanes) != 1 or len(attention) != 1:
        raise RuntimeError(f"expected an attention and a lane group, vLLM made {[g.kv_cache_spec for g in groups]}")
    return attention[0], lanes[0]
