"""Drawing a token from logits by one uniform number: the same arithmetic in a compiled graph and on the host.

Tokens are ordered from the most likely down, cut by top-k, min-p and top-p, and the token is the one at whose
cumulative mass the uniform number falls (inversion of the distribution function). A graph holds the `candidates` most
likely tokens only. It says so where they are not enough to tell, and `draw` is then repeated on the host with all of
them; else it gives the token that the whole vocabulary would, but for two things that change no probability: rounding
at the edge between two tokens, and the order of tokens with equal logits, which no ranking promises. Logits computed in
bfloat16 have many equal ones.

Order and meaning of the cuts are vLLM's: temperature; min-p as a part of the most likely token's probability; top-k;
top-p over what top-k left. Of tokens tied at the last place of top-k exactly k stay; vLLM keeps all that are tied.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

COLUMNS = ("temperature", "top_k", "top_p", "min_p", "uniform")
"""Columns of the sampling parameters, fp32 [rows, len(COLUMNS)].

temperature 0 asks for the most likely token, whatever the others say; top_k 0 is all tokens; 0 < top_p <= 1;
0 <= min_p <= 1; 0 <= uniform < 1.
"""

GREEDY = (0.0, 0.0, 1.0, 0.0, 0.0)
"""The row of a request that wants the most likely token, and of padding."""

MOST_CANDIDATES = 1024
"""More than this are not held by a graph: their running sum is a product with a square matrix."""

UNDECIDED = -1
"""In the place of a token: the candidates do not tell."""

Ranking = Callable[[torch.Tensor, int], tuple[torch.Tensor, torch.Tensor]]
"""(logits, k) -> the k largest of the last dimension in descending order, and where they are."""


def most_likely(logits: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The host's ranking, of equal logits the lower token first: values [rows, k] and int64 [rows, k]."""
    if k == logits.shape[-1]:
        values, ids = torch.sort(logits, dim=-1, descending=True, stable=True)
        return values, ids
    values, ids = torch.topk(logits, k, dim=-1)
    # torch's order of equal ones is its own, and so is its choice of those that tie for the last place.
    last = values[:, -1:]
    held = (values == last).sum(1)
    for row in ((logits == last).sum(1) > held).nonzero()[:, 0].tolist():
        ids[row, k - int(held[row]) :] = (logits[row] == last[row]).nonzero()[: int(held[row]), 0]
    ids = ids.sort(1).values
    values, order = torch.sort(logits.gather(1, ids), dim=1, descending=True, stable=True)
    return values, ids.gather(1, order)


def running_sum(weights: torch.Tensor) -> torch.Tensor:
    """Inclusive sums along the last dimension; one matrix product for as many as a graph holds."""
    count = weights.shape[-1]
    if count > MOST_CANDIDATES:
        return weights.cumsum(-1)
    return weights @ torch.ones(count, count, dtype=weights.dtype, device=weights.device).triu()


def draw(
    logits: torch.Tensor, values: torch.Tensor, ids: torch.Tensor, best: torch.Tensor, params: torch.Tensor
) -> torch.Tensor:
    """One token a row, with static shapes and no random state.

    A candidate list decides a row if top-k is within it, or if all that min-p leaves, or the whole nucleus of top-p,
    is; with neither cut, if the uniform number falls into its mass.

    Args:
        logits: [rows, vocab], fp32 in a graph, fp64 on the host, as are all of floating point.
        values, ids: the candidates' logits, in descending order, and tokens, [rows, candidates].
        best: int [rows], the most likely tokens, for rows that want them.
        params: [rows, len(COLUMNS)], see `COLUMNS`.
    Returns:
        int32 [rows]; UNDECIDED where the candidates do not tell.
    """
    temperature, top_k, top_p, min_p, uniform = (column.unsqueeze(1) for column in params.unbind(1))
    greedy = temperature <= 0.0
    scale = torch.where(greedy, torch.ones_like(temperature), temperature)
    count = values.shape[1]
    place = torch.arange(count, device=values.device, dtype=torch.float32)
    every = top_k <= 0.0

    # Weights are relative to the most likely token: none overflows, and min-p is a comparison.
    top = values[:, :1]
    raw = torch.exp((values - top) / scale)
    weights = torch.where((raw >= min_p) & (every | (place < top_k)), raw, torch.zeros_like(raw))
    sums = running_sum(weights)
    tail = torch.exp((logits - top) / scale)
    whole = torch.where(tail >= min_p, tail, torch.zeros_like(tail)).sum(1, keepdim=True)
    total = torch.where(every, whole, sums[:, -1:])

    uncut = top_p >= 1.0
    kept = (weights > 0.0) & (uncut | (sums - weights < top_p * total))
    reached = torch.where(kept, sums, torch.zeros_like(sums)).amax(1, keepdim=True)
    mass = torch.where(uncut, total, reached)
    target = uniform * mass
    index = (kept & (sums <= target)).sum(1, keepdim=True)
    index = torch.minimum(index, kept.sum(1, keepdim=True) - 1)

    complete = (every & (raw[:, -1:] < min_p)) | ~every
    nucleus = ~uncut & (sums[:, -1:] >= top_p * total)
    inside = uncut & (target < sums[:, -1:])
    if count == logits.shape[1]:
        decided = torch.ones_like(greedy)
    else:
        decided = (complete & (top_k <= count)) | (every & (nucleus | inside))
    drawn = ids.to(torch.int32).gather(1, index.clamp(min=0))
    chosen = torch.where(decided, drawn, torch.full_like(drawn, UNDECIDED))
    return torch.where(greedy, best.unsqueeze(1).to(torch.int32), chosen)[:, 0]


def sample(logits: torch.Tensor, params: torch.Tensor, candidates: int, ranking: Ranking = most_likely) -> torch.Tensor:
    """`draw` from the `candidates` most likely tokens: int32 [rows]. logits [rows, vocab]."""
    values, ids = ranking(logits, min(candidates, logits.shape[-1]))
    return draw(logits, values, ids, logits.argmax(-1), params)


def sample_all(logits: torch.Tensor, params: torch.Tensor, candidates: int = 256) -> torch.Tensor:
    """The token that the whole vocabulary gives: int32 [rows]. For the host, and the definition of every other form.

    Args:
        logits: fp32 [rows, vocab].
        params: fp32 [rows, len(COLUMNS)].
        candidates: how many are ranked before all are, where they do not decide; no token depends on it.
    """
    tokens = sample(logits.double(), params.double(), candidates)
    left = (tokens == UNDECIDED).nonzero()[:, 0]
    if len(left):
        tokens[left] = sample(logits[left].double(), params[left].double(), logits.shape[-1])
    return tokens
