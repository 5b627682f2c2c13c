"""What a checkpoint's `config.json` says of a mixture of experts."""

from __future__ import annotations

from dataclasses import dataclass

from .fields import Fields

SPARSE_FIELDS: dict[str, object] = {
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "moe_layer_freq": 1,
    "first_k_dense_replace": 0,
    "scoring_func": "softmax",
    "routed_scaling_factor": 1.0,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
    "moe_router_enable_expert_bias": False,
}
"""Fields of other families of mixtures, and the only value of each that says what this family does anyway."""


@dataclass(frozen=True, slots=True)
class MoEConfig:
    """The fields that `qwen3_5_moe` adds: every layer's feed-forward block is a mixture of experts.

    Attributes:
        norm_topk_prob: have the weights of a token's experts sum to one. The family always does; a config may say so.
    """

    num_experts: int
    num_experts_per_tok: int
    moe_intermediate_size: int
    shared_expert_intermediate_size: int
    norm_topk_prob: bool = True


def read_moe(read: Fields) -> MoEConfig:
    """The mixture of the text model's fields. Raises ConfigError naming one that is missing or cannot be used."""
    for field, only in SPARSE_FIELDS.items():
        value = read.raw.get(field)
        if value is not None and value != only:
            problem = f"only {only!r} is implemented: every layer is a mixture, routed by softmax and top k"
            raise read.error(field, value, problem, "Use a published qwen3_5_moe checkpoint")
    moe = MoEConfig(
        num_experts=read.size("num_experts"),
        num_experts_per_tok=read.size("num_experts_per_tok"),
        moe_intermediate_size=read.size("moe_intermediate_size"),
        shared_expert_intermediate_size=read.size("shared_expert_intermediate_size"),
        norm_topk_prob=read.flag("norm_topk_prob", True),
    )
    if moe.num_experts_per_tok > moe.num_experts:
        problem = f"num_experts is {moe.num_experts}"
        raise read.error("num_experts_per_tok", moe.num_experts_per_tok, problem, "Correct config.json")
    return moe
