"""Tokens drawn by a uniform number: the right distribution, and never another token than the whole vocabulary gives;
the same ones compiled, and the penalties that come before.
"""

from __future__ import annotations

import math
import random
from collections import Counter

import numpy as np
import pytest
import torch
from compiled_forms import needs_numba
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen36_neuron.ops.sampling import (
    GREEDY,
    MOST_CANDIDATES,
    UNDECIDED,
    TokenCounts,
    draw,
    most_likely,
    penalise,
    running_sum,
    sample,
    sample_all,
)

VOCAB = 400
DRAWS = 40_000
CUTS = [
    {},
    {"top_k": 1},
    {"top_k": 20},
    {"top_k": 64},
    {"top_p": 0.95},
    {"top_p": 1e-6},
    {"top_p": 0.5, "top_k": 40},
    {"min_p": 0.05},
    {"min_p": 1.0},
    {"min_p": 0.02, "top_p": 0.8, "top_k": 30},
    {"temperature": 0.3},
    {"temperature": 1e-3},
    {"temperature": 3.0, "top_k": 64},
]


def logits_of(seed: int, rows: int = 1, vocab: int = VOCAB, spread: float = 3.0) -> torch.Tensor:
    return spread * torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed))


def params(uniform: torch.Tensor, **cuts: float) -> torch.Tensor:
    asked = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0} | cuts
    columns = [torch.full_like(uniform, float(asked[name])) for name in ("temperature", "top_k", "top_p", "min_p")]
    return torch.stack((*columns, uniform), dim=1)


def probabilities(logits: torch.Tensor, **cuts: float) -> torch.Tensor:
    """What each token must be drawn with, by sorting and masking in fp64 as vLLM does: fp64 [vocab]."""
    asked = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0} | cuts
    scaled = logits.double() / asked["temperature"]
    p = scaled.softmax(-1)
    scaled = scaled.masked_fill(p < asked["min_p"] * p.max(), -math.inf)
    if asked["top_k"]:
        smallest = scaled.topk(int(asked["top_k"])).values[-1]
        scaled = scaled.masked_fill(scaled < smallest, -math.inf)
    p, order = scaled.softmax(-1).sort()
    cut = p.cumsum(-1) <= 1 - asked["top_p"]
    cut[-1] = False
    p = p.masked_fill(cut, 0.0) if asked["top_p"] < 1 else p
    return torch.zeros_like(p).scatter(0, order, p / p.sum())


def chi_square(counts: torch.Tensor, expected: torch.Tensor) -> tuple[float, int]:
    """The statistic and its degrees of freedom; tokens expected fewer than 5 times are taken together."""
    common = expected >= 5
    counts = torch.cat((counts[common], counts[~common].sum().view(1)))
    expected = torch.cat((expected[common], expected[~common].sum().view(1)))
    counts, expected = counts[expected > 0], expected[expected > 0]
    return float(((counts - expected) ** 2 / expected).sum()), len(expected) - 1


@pytest.mark.parametrize("cuts", CUTS, ids=lambda cuts: ",".join(f"{k}={v}" for k, v in cuts.items()) or "uncut")
def test_drawn_as_often_as_the_probabilities_say(cuts: dict[str, float]) -> None:
    logits = logits_of(1)[0]
    uniform = torch.rand(DRAWS, generator=torch.Generator().manual_seed(2))
    tokens = sample_all(logits.expand(DRAWS, -1), params(uniform, **cuts), candidates=64)
    expected = probabilities(logits, **cuts)
    counts = torch.bincount(tokens.long(), minlength=VOCAB).double()
    assert not counts[expected == 0].any(), "a token that the cuts forbid"
    statistic, freedom = chi_square(counts, expected * DRAWS)
    # The statistic has mean `freedom` and variance 2 * freedom; five deviations are never met by chance.
    assert statistic <= freedom + 5 * math.sqrt(2 * max(freedom, 1))


def test_the_check_finds_a_wrong_distribution() -> None:
    logits = logits_of(1)[0]
    uniform = torch.rand(DRAWS, generator=torch.Generator().manual_seed(2))
    tokens = sample_all(logits.expand(DRAWS, -1), params(uniform, temperature=1.05), candidates=64)
    counts = torch.bincount(tokens.long(), minlength=VOCAB).double()
    statistic, freedom = chi_square(counts, probabilities(logits) * DRAWS)
    assert statistic > freedom + 5 * math.sqrt(2 * freedom)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    spread=st.sampled_from([0.1, 1.0, 4.0, 20.0]),
    uniform=st.floats(0, 1, exclude_max=True, width=32),
    temperature=st.sampled_from([1e-4, 0.2, 1.0, 5.0]),
    top_k=st.sampled_from([0, 1, 7, 32, 33, VOCAB, 10 * VOCAB]),
    top_p=st.sampled_from([1e-6, 0.3, 0.9, 0.999, 1.0]),
    min_p=st.sampled_from([0.0, 1e-4, 0.1, 1.0]),
)
def test_candidates_never_give_another_token(
    seed: int, spread: float, uniform: float, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    """Either the token that the whole vocabulary gives, or none; in fp32 up to rounding at the edge between two."""
    logits = logits_of(seed, spread=spread)
    asked = params(torch.tensor([uniform]), temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    few, whole = (int(sample(logits.double(), asked.double(), count)) for count in (32, VOCAB))
    assert 0 <= whole < VOCAB
    if few == UNDECIDED:
        assert (top_k == 0 and top_p < 1) or top_k > 32
    else:
        assert few == whole
    allowed = probabilities(logits[0], temperature=temperature, top_k=min(top_k, VOCAB), top_p=top_p, min_p=min_p)
    assert int((logits[0] > logits[0, whole]).sum()) <= int((allowed > 0).sum())
    single = int(sample(logits, asked, 32))
    if single not in (UNDECIDED, whole):
        first, last = sorted((single, whole))
        assert (allowed.cumsum(0)[first:last] - uniform).abs().max() < 1e-5


def searched(logits: torch.Tensor, parts: int, kept: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The most likely tokens of each part of the vocabulary, and what is above no other token's logit."""
    places = torch.arange(logits.shape[1]).view(-1, parts).t()
    values, at = torch.topk(logits[:, places], kept, dim=2)
    ids = places.expand(len(logits), -1, -1).gather(2, at).flatten(1)
    values, order = torch.sort(values.flatten(1), dim=1, descending=True)
    return values, ids.gather(1, order), logits[:, places].topk(kept, dim=2).values[..., -1].amax(1, keepdim=True)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    spread=st.sampled_from([0.1, 1.0, 4.0, 20.0]),
    uniform=st.floats(0, 1, exclude_max=True, width=32),
    top_k=st.sampled_from([0, 1, 7, 16, 40, VOCAB]),
    top_p=st.sampled_from([1e-6, 0.3, 0.9, 0.999, 1.0]),
    min_p=st.sampled_from([0.0, 1e-4, 0.1, 1.0]),
    coarse=st.booleans(),
)
def test_candidates_of_parts_of_the_vocabulary_never_give_another_token(
    seed: int, spread: float, uniform: float, top_k: int, top_p: float, min_p: float, coarse: bool
) -> None:
    """Of 16 parts 4 each: the most likely 64 tokens are hardly ever among them, and equal logits go missing."""
    logits = logits_of(seed, spread=spread)
    logits = (logits.bfloat16() if coarse else logits).double()
    asked = params(torch.tensor([uniform]), top_k=top_k, top_p=top_p, min_p=min_p).double()
    values, ids, bound = searched(logits, 16, 4)
    found = int(draw(logits, values, ids, logits.argmax(-1), asked, bound))
    whole = int(sample(logits, asked, VOCAB))
    sure = int((values >= bound).sum())
    assert found == whole or (found == UNDECIDED and not 0 < top_k <= sure)
    assert found == whole or top_k or top_p < 1


def test_the_check_finds_candidates_that_are_taken_for_all() -> None:
    """Without the bound some draws are of the wrong tokens."""
    logits = logits_of(3, rows=400).double()
    asked = params(torch.rand(400, generator=torch.Generator().manual_seed(4)), top_k=40).double()
    values, ids, bound = searched(logits, 16, 4)
    whole = sample(logits, asked, VOCAB)
    assert (draw(logits, values, ids, logits.argmax(-1), asked) != whole).any()
    found = draw(logits, values, ids, logits.argmax(-1), asked, bound)
    assert torch.equal(found[found != UNDECIDED], whole[found != UNDECIDED])
    short = params(asked[:, 4], top_k=4).double()
    assert torch.equal(draw(logits, values, ids, logits.argmax(-1), short, bound), sample(logits, short, VOCAB))


@pytest.mark.parametrize("cuts", [{}, {"top_p": 0.95}, {"min_p": 0.02}], ids=str)
def test_rounding_of_the_logits_hardly_ever_changes_a_draw(cuts: dict[str, float]) -> None:
    """What another batch or another cut of a prompt does; in the order of the ranking 86 to 92 would change."""
    logits = logits_of(7, rows=20_000, spread=0.3)
    noise = 1e-5 * torch.randn(logits.shape, generator=torch.Generator().manual_seed(8))
    asked = params(torch.rand(20_000, generator=torch.Generator().manual_seed(9)), **cuts)
    assert (sample_all(logits, asked) != sample_all(logits + noise, asked)).sum() <= 20


def backwards(logits: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A ranking that has equal logits in the other order."""
    values, ids = most_likely(logits.flip(1), k)
    return values, logits.shape[1] - 1 - ids


@pytest.mark.parametrize("cuts", [{}, {"top_p": 0.9}, {"top_k": 20}, {"min_p": 0.1}], ids=str)
def test_no_token_depends_on_how_a_ranking_orders_equal_logits(cuts: dict[str, float]) -> None:
    """Many are equal where they were computed in bfloat16, and a device's ranking promises no order."""
    logits = logits_of(5, rows=400).bfloat16().double()
    asked = params(torch.rand(400, generator=torch.Generator().manual_seed(6)), **cuts).double()
    whole = sample(logits, asked, VOCAB)
    for few in (sample(logits, asked, 64), sample(logits, asked, 64, backwards)):
        decided = few != UNDECIDED
        assert decided.sum() >= 40
        assert torch.equal(few[decided], whole[decided])


def test_what_the_candidates_cannot_tell_is_undecided() -> None:
    flat = torch.zeros(4, VOCAB)
    asked = torch.tensor([GREEDY, (1.0, 0, 0.9, 0, 0.0), (1.0, 100, 1.0, 0, 0.5), (1.0, 0, 1.0, 0, 0.75)])
    assert sample(flat, asked, 64).tolist() == [0, UNDECIDED, UNDECIDED, 3 * VOCAB // 4]
    assert sample_all(flat, asked, 64).tolist() == [0, 0, 50, 3 * VOCAB // 4]


def test_rows_do_not_depend_on_each_other_and_greedy_ones_are_the_argmax() -> None:
    logits = logits_of(3, rows=6)
    asked = torch.tensor(
        [
            GREEDY,
            (0.7, 20, 0.8, 0.0, 0.99),
            GREEDY,
            (1.0, 0, 0.95, 0.0, 0.5),
            (2.0, 64, 1.0, 0.0, 0.7),
            (0.0, 5, 0.5, 0.5, 0.999),
        ]
    )
    together = sample_all(logits, asked, 64)
    assert torch.equal(together, torch.cat([sample_all(logits[i : i + 1], asked[i : i + 1], 64) for i in range(6)]))
    assert together[[0, 2, 5]].tolist() == logits[[0, 2, 5]].argmax(-1).tolist()
    assert torch.equal(together, sample_all(logits, asked, 64))


def test_a_greedy_row_takes_the_token_that_the_device_says_is_best() -> None:
    """Ties are broken as the argmax does, whatever order the candidates are in."""
    logits = torch.zeros(1, VOCAB)
    assert sample(logits, torch.tensor([GREEDY]), 64).tolist() == logits.argmax(-1).tolist()


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-24])
def test_limits(uniform: float) -> None:
    logits = logits_of(4)
    best, number = int(logits.argmax()), torch.tensor([uniform])
    for cuts in ({"top_k": 1}, {"top_p": 1e-7}, {"min_p": 1.0}, {"temperature": 1e-6}):
        assert int(sample(logits, params(number, **cuts), 64)) == best, cuts
    last = int(sample(logits, params(number, top_k=64, temperature=100.0), 64))
    assert last in logits.topk(64).indices[0].tolist()
    assert 0 <= int(sample_all(logits, params(number, temperature=1e4), 64)) < VOCAB


def test_the_largest_uniform_number_reaches_the_last_token_of_top_k() -> None:
    logits = torch.arange(VOCAB, 0, -1.0).view(1, -1) * 1e-3
    assert int(sample(logits, params(torch.tensor([1 - 2**-24]), top_k=10), 64)) == 9


def test_running_sums_agree() -> None:
    weights = torch.rand(3, MOST_CANDIDATES, generator=torch.Generator().manual_seed(5))
    assert torch.allclose(running_sum(weights), weights.cumsum(-1), rtol=1e-5)
    assert torch.equal(running_sum(weights.repeat(1, 2)), weights.repeat(1, 2).cumsum(-1))


def test_ranking_of_all_is_in_order() -> None:
    logits = logits_of(6)
    values, ids = most_likely(logits, VOCAB)
    assert torch.equal(values, logits.gather(1, ids))
    assert (values.diff() <= 0).all()


ROWS, BLOCK = 48, 256
"""Rows of a call of the compiled form, and logits that it takes the largest of."""

VOCABS = (1, 5, BLOCK - 1, BLOCK, BLOCK + 1, 21 * BLOCK + 7)


def plain(logits: torch.Tensor, _: torch.Generator) -> torch.Tensor:
    return logits


def tied(logits: torch.Tensor, _: torch.Generator) -> torch.Tensor:
    """Many equal logits, as bfloat16 makes them, and both zeros."""
    logits = logits.bfloat16().float()
    logits[:, ::3] *= 0.0
    return logits


def forbidden(logits: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Half of the tokens, and in one row all of them."""
    vocab = logits.shape[1]
    logits[:, torch.randperm(vocab, generator=generator)[: vocab // 2]] = -torch.inf
    logits[0] = -torch.inf
    return logits


def drawn_params(vocab: int, generator: torch.Generator) -> torch.Tensor:
    def one_of(*values: float) -> torch.Tensor:
        return torch.tensor(values)[torch.randint(len(values), (ROWS,), generator=generator)]

    columns = (
        one_of(0.0, 1e-4, 0.2, 1.0, 1.0, 5.0),
        one_of(0, 1, 7, 20, 22, 23, BLOCK, BLOCK + 1, vocab, 10 * vocab),
        one_of(1e-6, 0.3, 0.9, 0.999, 1.0, 1.0),
        one_of(0.0, 0.0, 1e-4, 0.1, 1.0),
        torch.rand(ROWS, generator=generator),
    )
    params = torch.stack(columns, 1)
    params[1::7, 4], params[2::7, 4] = 0.0, 1 - 2**-24
    return params


@needs_numba
@pytest.mark.parametrize("kind", [plain, tied, forbidden])
@pytest.mark.parametrize("vocab", VOCABS)
def test_compiled_form_gives_the_token_of_the_definition(vocab: int, kind) -> None:
    from qwen36_neuron.ops.sampling import numba as compiled

    assert compiled.BLOCK == BLOCK
    generator = torch.Generator().manual_seed(vocab)
    for spread in (0.0, 0.1, 3.0, 30.0):
        logits = kind(spread * torch.randn(ROWS, vocab, generator=generator), generator)
        params, before = drawn_params(vocab, generator), logits.clone()
        expected = sample_all(logits, params, vocab)
        assert torch.equal(compiled.draw_rows(logits, params), expected)
        assert torch.equal(sample_all(logits, params, min(32, vocab)), expected), "of however many candidates"
        assert torch.equal(logits, before)
        alone = [int(compiled.draw_rows(logits[i : i + 1], params[i : i + 1])) for i in range(4)]
        assert alone == expected[:4].tolist()


@needs_numba
def test_the_check_finds_a_compiled_bound_that_is_too_high() -> None:
    """Of the k largest block maxima the smallest is a bound; the next larger one loses tokens."""
    from qwen36_neuron.ops.sampling import numba as compiled

    bits = torch.tensor([float(i) for i in range(4 * BLOCK)]).view(torch.int32).numpy()
    maxima = compiled._block_maxima(bits)
    bound = compiled._bound(bits, maxima, 3)
    assert sorted(maxima)[-3] == bound
    assert len(compiled._ranked(bits, maxima, bound)) >= 3 > len(compiled._ranked(bits, maxima, sorted(maxima)[-1]))


@needs_numba
@pytest.mark.parametrize("k", [1, 3, 4, 5, 400, 4 * BLOCK])
def test_a_compiled_bound_is_reached_by_k_tokens(k: int) -> None:
    from qwen36_neuron.ops.sampling import numba as compiled

    for spread in (1e-3, 1.0, 1e3):
        logits = spread * torch.randn(4 * BLOCK, generator=torch.Generator().manual_seed(k))
        bits = logits.view(torch.int32).numpy()
        maxima = compiled._block_maxima(bits)
        ranked = compiled._ranked(bits, maxima, compiled._bound(bits, maxima, k))
        assert len(ranked) >= k
        assert ranked[:k].tolist() == logits.argsort(descending=True, stable=True)[:k].tolist()


@needs_numba
def test_compiled_form_gives_some_token_of_what_is_no_number() -> None:
    from qwen36_neuron.ops.sampling import numba as compiled

    logits = torch.randn(4, 600, generator=torch.Generator().manual_seed(1))
    logits[0, 5], logits[1, 7], logits[2] = torch.inf, torch.nan, torch.nan
    params = torch.tensor([(1.0, 20, 0.9, 0.0, 0.5), (1.0, 0, 0.9, 0.0, 0.5)]).repeat(2, 1)
    tokens = compiled.draw_rows(logits, params)
    assert tokens[0] == 5
    assert ((tokens >= 0) & (tokens < 600)).all()


@pytest.mark.parametrize("prompt", [[], [5], [3, 3, 900, 7] * 40])
def test_tokens_counted_one_by_one_are_those_counted_anew(prompt: list[int]) -> None:
    rng = random.Random(len(prompt))
    counts, generated = TokenCounts(prompt), []
    for _ in range(60):
        new = [rng.choice([3, 4, 900, rng.randrange(1000)]) for _ in range(rng.randrange(4))]
        counts.add(new)
        generated += new
        times = Counter(generated)
        table = dict(zip(counts.tokens.tolist(), counts.times.tolist(), strict=True))
        assert counts.size == len(table) == len(set(prompt) | set(generated))
        assert table == {token: times[token] for token in {*prompt, *generated}}


def test_penalties_change_only_tokens_that_occur() -> None:
    logits = np.array([2.0, -2.0, 0.0, -np.inf, 5.0, 6.0], np.float32)
    counts = TokenCounts([0, 1])
    counts.add([1, 1, 3, 4])
    penalise(logits, counts, 2.0, 0.25, 1.0)
    assert logits.tolist() == [1.0, -4.0 - 0.5 - 1.0, 0.0, -np.inf, 2.5 - 0.25 - 1.0, 6.0]


def test_penalties_of_no_token_change_nothing() -> None:
    logits = np.array([1.0, 2.0], np.float32)
    penalise(logits, TokenCounts(), 2.0, 1.0, 1.0)
    assert logits.tolist() == [1.0, 2.0]
