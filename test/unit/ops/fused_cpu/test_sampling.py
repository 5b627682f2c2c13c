"""The compiled draw against its definition: the same token, also among equal logits and where most are forbidden."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("numba")

from qwen36_neuron.ops.sampling import numba as compiled
from qwen36_neuron.ops.sampling import sample_all
from qwen36_neuron.ops.sampling.numba import BLOCK, draw_rows

ROWS = 48
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


@pytest.mark.parametrize("kind", [plain, tied, forbidden])
@pytest.mark.parametrize("vocab", VOCABS)
def test_the_token_of_the_definition(vocab: int, kind) -> None:
    generator = torch.Generator().manual_seed(vocab)
    for spread in (0.0, 0.1, 3.0, 30.0):
        logits = kind(spread * torch.randn(ROWS, vocab, generator=generator), generator)
        params, before = drawn_params(vocab, generator), logits.clone()
        expected = sample_all(logits, params, vocab)
        assert torch.equal(draw_rows(logits, params), expected)
        assert torch.equal(sample_all(logits, params, min(32, vocab)), expected), "of however many candidates"
        assert torch.equal(logits, before)
        assert [int(draw_rows(logits[i : i + 1], params[i : i + 1])) for i in range(4)] == expected[:4].tolist()


def test_the_check_finds_a_bound_that_is_too_high() -> None:
    """Of the k largest block maxima the smallest is a bound; the next larger one loses tokens."""
    bits = torch.tensor([float(i) for i in range(4 * BLOCK)]).view(torch.int32).numpy()
    maxima = compiled._block_maxima(bits)
    bound = compiled._bound(bits, maxima, 3)
    assert sorted(maxima)[-3] == bound
    assert len(compiled._ranked(bits, maxima, bound)) >= 3 > len(compiled._ranked(bits, maxima, sorted(maxima)[-1]))


@pytest.mark.parametrize("k", [1, 3, 4, 5, 400, 4 * BLOCK])
def test_a_bound_is_reached_by_k_tokens(k: int) -> None:
    for spread in (1e-3, 1.0, 1e3):
        logits = spread * torch.randn(4 * BLOCK, generator=torch.Generator().manual_seed(k))
        bits = logits.view(torch.int32).numpy()
        maxima = compiled._block_maxima(bits)
        ranked = compiled._ranked(bits, maxima, compiled._bound(bits, maxima, k))
        assert len(ranked) >= k
        assert ranked[:k].tolist() == logits.argsort(descending=True, stable=True)[:k].tolist()


def test_what_is_no_number_gives_some_token() -> None:
    logits = torch.randn(4, 600, generator=torch.Generator().manual_seed(1))
    logits[0, 5], logits[1, 7], logits[2] = torch.inf, torch.nan, torch.nan
    params = torch.tensor([(1.0, 20, 0.9, 0.0, 0.5), (1.0, 0, 0.9, 0.0, 0.5)]).repeat(2, 1)
    tokens = draw_rows(logits, params)
    assert tokens[0] == 5
    assert ((tokens >= 0) & (tokens < 600)).all()
