"""Causal attention with head size 256 over a paged prefix and new tokens: prompts, single tokens and drafts alike."""

import nki
import nki.language as nl

from .paged_attention_chunk import SIZE
from .paged_attention_decode import attend_few
from .paged_attention_prefill import attend_many
from .paged_gather import BLOCK

ROWS = 128


@nki.jit
def paged_attention(
    q: nl.ndarray,
    k: nl.ndarray,
    v: nl.ndarray,
    k_cache: nl.ndarray,
    v_cache: nl.ndarray,
    table: nl.ndarray,
    start: nl.ndarray,
    turns_by_dma: bool = True,
    begin: int = 0,
) -> nl.ndarray:
    """softmax(q K^T / 16) V, K and V being a sequence's first `start` tokens from the cache, then its new tokens.

    A running maximum and sum keep the softmax exact (Milakov and Gimelshein, "Online normalizer calculation for
    softmax"), from one section of keys to the next. New tokens come first, so that no row is without a key when the
    prefix is masked.

    Dimensions:
        B: sequences
        N: new tokens of each; one token or drafts decode, more are a prompt. N at most 128 or a multiple of it
        HQ, HK: query and key heads, HQ a multiple of HK; with two cores each takes half of the query heads
        P: blocks of 64 tokens that a row of the table can name

    Args:
        q (nl.ndarray): [B, N, HQ, 256], float32 or bfloat16, which is also the type of the operands
        k (nl.ndarray): [B, N, HK, 256], keys of the new tokens, of q's type
        v (nl.ndarray): [B, N, HK, 256], values of the new tokens, of q's type
        k_cache (nl.ndarray): [blocks, 64, HK, 256], of q's type, or float8_e4m3 codes (IEEE-like: largest 240) as
            float8_e4m3fn or uint8
        v_cache (nl.ndarray): [blocks, 64, HK, 256], of k_cache's type
        table (nl.ndarray): [B, P], int32, blocks of each sequence in order; unused entries name any block, all finite
        start (nl.ndarray): [1, B], int32, tokens of each sequence that the cache holds, at most 64 * P
        turns_by_dma (bool): of 128 new tokens and more, the DMA engines turn queries, keys and weights, else TensorE
        begin (int): places of the cache before this one hold nothing; for up to 127 new tokens, at most a block

    Returns:
        o (nl.ndarray): [B, N, HQ, 256], of q's type

    Notes:
        Up to 127 new tokens go through `attend_few`, in sections of 2,048 keys of the cache; more through
        `attend_many`, in sections of 4,096 keys, or 2,048 in float32. Places of the cache are below 2^24.
        Codes are read as the numbers that they are, exactly in q's type; whose keys and values are those times a scale
        of their head multiplies q with the one and o with the other, and gives k and v over them.

    Pseudocode:
        for each section of keys: new tokens first, then blocks of the table
            s = q k^T, masked
            m' = max(m, max(s)); p = e^((s - m') / 16)
            l = l e^((m - m') / 16) + sum(p); o = o e^((m - m') / 16) + p v; m = m'
        o = o / l
    """
    batch, tokens, heads, size = q.shape
    key_heads = k.shape[2]
    cores = nl.num_programs()
    assert size == SIZE, f"head size is {size}, must be {SIZE}"
    assert tokens <= ROWS or tokens % ROWS == 0, f"{tokens} new tokens, must be at most {ROWS} or a multiple of it"
    assert heads % key_heads == 0, f"{heads} query heads do not divide among {key_heads} key heads"
    assert heads % cores == 0, f"{heads} query heads do not divide among {cores} cores"
    assert begin == 0 or tokens < ROWS, f"{tokens} new tokens begin at {begin}, must be fewer than {ROWS} or begin at 0"
    assert 0 <= begin <= BLOCK, f"places begin at {begin}, must be 0 to {BLOCK}"
    own = heads // cores
    first = nl.program_id(0) * own if cores > 1 else 0
    o = nl.ndarray((batch, tokens, heads, size), dtype=q.dtype, buffer=nl.shared_hbm)

    if tokens < ROWS:
        attend_few(q, k, v, k_cache, v_cache, table, start, o, first, own, begin)
    else:
        attend_many(q, k, v, k_cache, v_cache, table, start, o, first, own, turns_by_dma)
    return o
