"""Arguments of the size of Qwen3.6-35B-A3B at TP=4, LNC=2, for the kernels of a mixture of experts."""

import nki.collectives as ncc
import numpy as np

from .decode_experts import decode_experts
from .decode_experts_plan import expert_row
from .decode_router import decode_router
from .examples import BF16
from .prefill_experts import prefill_experts
from .profiling import Example, register

D = 128


def router(rows: int, experts: int = 256, hidden: int = 2048, cores: int = 2) -> Example:
    """The router of a decode step on the cores of a rank."""
    random, lines = np.random.default_rng(0), hidden // D
    x = random.standard_normal((rows, hidden), dtype=np.float32).astype(BF16)
    weight = (0.02 * random.standard_normal((1, D, lines * experts), dtype=np.float32)).astype(BF16)
    note = f"{rows} rows, {experts} experts, hidden {hidden}"
    return Example(decode_router[cores], (x, np.ones((D, lines), dtype=np.float32), weight), note=note)


@register("decode_router")
def router_of_a_token() -> Example:
    """The router of one token."""
    return router(1)


def experts(
    rows: int, fp8: bool = True, alike: bool = False, count: int = 256, inner: int = 128, shared: int = 128,
    top_k: int = 8, hidden: int = 2048, ranks: int = 4, cores: int = 2,
) -> Example:  # fmt: skip
    """A decode step's mixture on the cores of a rank, of `inner` channels of each of `count` experts.

    Args:
        alike: All rows are the same, and have the same experts; otherwise rows choose at random.
    """
    random, lines = np.random.default_rng(0), hidden // D
    x = random.standard_normal((rows, hidden), dtype=np.float32).astype(BF16)
    weight = (0.02 * random.standard_normal((1, D, lines * count), dtype=np.float32)).astype(BF16)
    of, of_shared = expert_row(inner, lines, fp8), expert_row(shared // cores, lines, fp8)
    held = [random.integers(0, 112, (n, D, of.size), dtype=np.uint8) for n, of in ((count, of), (cores, of_shared))]
    if fp8:
        for rows_of, where in zip(held, (of, of_shared), strict=True):
            factors = np.full((1,), 1e-3, dtype=np.float32).view(np.uint8)
            rows_of[:, :, where.down - where.factors : where.down] = np.tile(factors, where.factors // 4)
    weights = held if fp8 else [(w.astype(np.float32) * 1e-3).astype(BF16) for w in held]
    args = (
        np.repeat(x[:1], rows, axis=0) if alike else x, np.ones((D, lines), dtype=np.float32), weight, *weights,
        np.zeros((D, lines), dtype=BF16), top_k,
    )  # fmt: skip
    kwargs = {"replica_group": ncc.ReplicaGroup([list(range(ranks))]), "ranks": ranks}
    note = (
        f"{rows} rows, {'FP8' if fp8 else 'bfloat16'}, {top_k} of {count} experts of {inner} channels, one of {ranks}"
    )
    return Example(decode_experts[cores], args, kwargs, f"{note} ranks", ranks)


@register("decode_experts")
def experts_of_a_token() -> Example:
    """The mixture of one token, FP8."""
    return experts(1)


@register("decode_experts_bf16")
def experts_of_a_token_bf16() -> Example:
    """The mixture of one token, bfloat16."""
    return experts(1, fp8=False)


def prompt_experts(
    tokens: int, fp8: bool = True, alike: bool = False, size: int = 64, count: int = 256, inner: int = 128,
    top_k: int = 8, hidden: int = 2048, cores: int = 2,
) -> Example:  # fmt: skip
    """A prompt's routed experts on the cores of a rank, in as many blocks of `size` rows as any routing needs.

    Args:
        alike: All tokens have the same experts; otherwise they choose at random.
    """
    random, of = np.random.default_rng(0), expert_row(inner, hidden // D, fp8)
    codes = random.integers(0, 112, (count, D, of.size), dtype=np.uint8)
    if fp8:
        factors = np.full((1,), 1e-3, dtype=np.float32).view(np.uint8)
        codes[:, :, of.down - of.factors : of.down] = np.tile(factors, of.factors // 4)
    weights = codes if fp8 else (codes.astype(np.float32) * 1e-3).astype(BF16)
    x = random.standard_normal((tokens, hidden), dtype=np.float32).astype(BF16)
    chosen = np.stack([np.arange(top_k) if alike else random.permutation(count)[:top_k] for _ in range(tokens)])
    used = min(count, tokens * top_k)
    blocks = used + (tokens * top_k - used) // size
    experts, of_row = np.full((1, blocks), count, dtype=np.int32), np.zeros((blocks, size), dtype=np.int32)
    shares, places, block = np.zeros((blocks, size), dtype=np.float32), np.zeros_like(chosen, dtype=np.int32), 0
    for expert in range(count):
        some, at = np.nonzero(chosen == expert)
        for first in range(0, len(some), size):
            rows, place = some[first : first + size], at[first : first + size]
            experts[0, block], of_row[block, : len(rows)], shares[block, : len(rows)] = expert, rows, 1 / top_k
            places[rows, place] = block * size + np.arange(len(rows))
            block += 1
    args = (x, weights, experts, of_row.T.copy(), shares.T.copy(), places)
    note = (
        f"{tokens} tokens, {'FP8' if fp8 else 'bfloat16'}, {blocks} blocks of {size}, {block} used, of {count} experts"
    )
    return Example(prefill_experts[cores], args, note=note)


@register("prefill_experts")
def experts_of_a_prompt() -> Example:
    """The routed experts of 512 tokens, bfloat16."""
    return prompt_experts(512, fp8=False)
