"""Drawing a token from logits by one uniform number: the same arithmetic in a compiled graph and on the host.

Tokens are ranked from the most likely down and cut by min-p, top-k and top-p. Of those that are left the token is the
one at whose cumulative mass the uniform number falls, in the order of token ids (inversion of the distribution
function). The order of ids, not the ranking: logits of another batch or another cut of the prompt differ by rounding,
which changes the ranking of nearly equal tokens, and with it what a seed draws, but moves an edge between two ids only
by as much as the masses changed.

A graph ranks the `candidates` most likely tokens only. It says so where they are not enough to tell the cut, and `draw`
is then repeated on the host with all of them; else it gives the token that the whole vocabulary would, but for rounding
at the edge between two tokens.

Order and meaning of the cuts are vLLM's: temperature; min-p as a part of the most likely token's probability; top-k;
top-p over what top-k left. Of tokens tied at the last place of a cut the lower ids stay; vLLM keeps all that are tied.
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

BLOCK = 256
"""Tokens that are summed before running sums are taken: a vocabulary of 248,320 has 970 blocks."""

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


def place_of(weights: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Where the running sum first exceeds a target: by blocks, then within one.

    Args:
        weights: 0 or more, [rows, count].
        target: [rows, 1].
    Returns:
        int64 [rows, 1]; the last place with a weight where the target is not exceeded, 0 where there is none.
    """
    rows, count = weights.shape
    blocks = torch.nn.functional.pad(weights, (0, -count % BLOCK)).view(rows, -1, BLOCK)
    masses = blocks.sum(2)
    sums = running_sum(masses)
    block = _first_beyond(sums, masses, target)
    before = (sums - masses).gather(1, block)
    inner = blocks.gather(1, block.unsqueeze(2).expand(rows, 1, BLOCK))[:, 0]
    return block * BLOCK + _first_beyond(before + running_sum(inner), inner, target)


def _first_beyond(sums: torch.Tensor, weights: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The first place with a weight whose running sum exceeds the target, at most the last: int64 [rows, 1]."""
    places = torch.arange(weights.shape[1], device=weights.device, dtype=weights.dtype)
    some = weights > 0.0
    last = torch.where(some, places, torch.zeros_like(weights)).amax(1, keepdim=True)
    first = torch.where(some & (sums > target), places, last).amin(1, keepdim=True)
    return first.to(torch.int64)


def draw(
    logits: torch.Tensor,
    values: torch.Tensor,
    ids: torch.Tensor,
    best: torch.Tensor,
    params: torch.Tensor,
    bound: torch.Tensor | None = None,
) -> torch.Tensor:
    """One token a row, with static shapes and no random state.

    A candidate list decides a row if top-k is within it, or if all that min-p leaves, or the whole nucleus of top-p,
    is. What only min-p cuts, or nothing, needs no candidates.

    Args:
        logits: [rows, vocab], fp32 in a graph, fp64 on the host, as are all of floating point.
        values, ids: the candidates' logits, in descending order, and tokens, [rows, candidates].
        best: int [rows], the most likely tokens, for rows that want them.
        params: [rows, len(COLUMNS)], see `COLUMNS`.
        bound: [rows, 1], where the candidates may not be the most likely tokens: no other token's logit is above it. So
            those that are not below it are, in their order. None: all of them are.
    Returns:
        int32 [rows]; UNDECIDED where the candidates do not tell.
    """
    temperature, top_k, top_p, min_p, uniform = (column.unsqueeze(1) for column in params.unbind(1))
    greedy = temperature <= 0.0
    scale = torch.where(greedy, torch.ones_like(temperature), temperature)
    count = values.shape[1]
    place = torch.arange(count, device=values.device, dtype=torch.float32)
    every, uncut = top_k <= 0.0, top_p >= 1.0

    # Weights are relative to the most likely token: none overflows, and min-p is a comparison.
    top = values[:, :1]
    raw = torch.exp((values - top) / scale)
    kept = (raw >= min_p) & (every | (place < top_k))
    if bound is not None:
        kept = kept & (values >= bound)
    ranked = torch.where(kept, raw, torch.zeros_like(raw))
    sums = running_sum(ranked)
    weights = torch.exp((logits - top) / scale)
    weights = torch.where(weights >= min_p, weights, torch.zeros_like(weights))
    whole = weights.sum(1, keepdim=True)
    total = torch.where(every, whole, sums[:, -1:])
    inside = (ranked > 0.0) & (uncut | (sums - ranked < top_p * total))

    # The cut as the last logit that stays, and of those equal to it the first so many.
    last = (inside.sum(1, keepdim=True) - 1).clamp(min=0)
    edge = values.gather(1, last)
    ties = torch.where(logits == edge, torch.ones_like(logits), torch.zeros_like(logits))
    held = (inside & (values == edge)).sum(1, keepdim=True)
    highest = place_of(ties, held.to(logits.dtype) - 0.5)
    token = torch.arange(logits.shape[1], device=logits.device)
    stays = (every & uncut) | (logits > edge) | ((logits == edge) & (token <= highest))
    weights = torch.where(stays, weights, torch.zeros_like(weights))
    mass = weights.sum(1, keepdim=True)
    drawn = place_of(weights, uniform * mass).to(torch.int32)

    if count == logits.shape[1] and bound is None:
        decided = torch.ones_like(greedy)
    else:
        least, within = raw[:, -1:], top_k <= count
        if bound is not None:
            least = torch.maximum(least, torch.exp((bound - top) / scale))
            within = top_k <= (values >= bound).sum(1, keepdim=True)
        complete = (least < min_p) | (~every & within)
        nucleus = every & (sums[:, -1:] >= top_p * total)
        decided = complete | (every & uncut) | (~uncut & nucleus)
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
