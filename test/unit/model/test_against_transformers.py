"""The network, cache and runtime against transformers' Qwen3_5 and Qwen3_5Moe in fp32 on the same weights.

Tolerance: 2e-5 absolute on logits of about one; both sides round at 6e-8 and the sums are up to 640 long.
"""

from __future__ import annotations

import pytest
import torch

from qwen36_neuron.runtime import Output, Row, Step

from .conftest import Oracle
from .oracle import pieces, run_cuts, runtime

TOLERANCE = 2e-5
PROMPT = 261  # four chunks of 64 and five tokens


@pytest.fixture(params=["torch", "fused"])
def kernels(request: pytest.FixtureRequest) -> str:
    """What runs our side: plain torch and, where Numba is installed, fused operations."""
    if request.param == "fused":
        pytest.importorskip("numba")
    chosen: str = request.param
    return chosen


def ids(count: int, seed: int = 0) -> list[int]:
    return torch.randint(0, 512, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def reference(oracle: Oracle, tokens: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return oracle.model(torch.tensor([tokens])).logits[0]


def worst(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return (actual - expected).abs().max().item()


@pytest.mark.parametrize("length", [PROMPT, 1, 63, 64, 65, 127, 97])
def test_prefill_whole_and_in_pieces(oracle: Oracle, length: int, kernels: str) -> None:
    tokens = ids(PROMPT)
    actual = run_cuts(runtime(oracle.folder, kernels), tokens, pieces(PROMPT, length))
    assert worst(actual, reference(oracle, tokens)) <= TOLERANCE


def test_uneven_pieces_over_scattered_blocks(oracle: Oracle, kernels: str) -> None:
    tokens = ids(PROMPT, seed=1)
    actual = run_cuts(runtime(oracle.folder, kernels), tokens, [2, 61, 1, 130, 67], blocks=(9, 4, 17, 2, 31))
    assert worst(actual, reference(oracle, tokens)) <= TOLERANCE


@pytest.mark.parametrize("prompt", [1, 63, 64, 65])
def test_two_hundred_decode_steps(oracle: Oracle, prompt: int, kernels: str) -> None:
    tokens = ids(prompt + 200, seed=prompt)
    with torch.inference_mode():
        out = oracle.model(torch.tensor([tokens[:prompt]]), use_cache=True)
        expected = [out.logits[0]]
        for token in tokens[prompt:]:
            out = oracle.model(torch.tensor([[token]]), past_key_values=out.past_key_values, use_cache=True)
            expected.append(out.logits[0])
    actual = run_cuts(runtime(oracle.folder, kernels), tokens, [prompt] + [1] * 200)
    assert worst(actual, torch.cat(expected)) <= TOLERANCE


def test_a_batch_of_unequal_lengths(oracle: Oracle, kernels: str) -> None:
    """Prompts of eight lengths in one step, some of them padded together, then decoded together."""
    run = runtime(oracle.folder, kernels)
    prompts = [ids(count, seed=count) for count in (1, 40, 47, 63, 64, 65, 100, 128)]
    rows = tuple(
        Row(str(lane), lane, tokens, 0, range(4 * lane, 4 * lane + 4), output=Output.ALL_LOGITS)
        for lane, tokens in enumerate(prompts, start=1)
    )
    for tokens, result in zip(prompts, run.run(Step(rows)).rows, strict=True):
        assert result.logits is not None
        assert worst(result.logits, reference(oracle, tokens)) <= TOLERANCE
    for _ in range(5):
        for tokens in prompts:
            tokens.append(ids(1, seed=len(tokens))[0])
        rows = tuple(
            Row(str(lane), lane, tokens[-1:], len(tokens) - 1, range(4 * lane, 4 * lane + 4), output=Output.LOGITS)
            for lane, tokens in enumerate(prompts, start=1)
        )
        for tokens, result in zip(prompts, run.run(Step(rows)).rows, strict=True):
            assert result.logits is not None
            assert worst(result.logits[0], reference(oracle, tokens)[-1]) <= TOLERANCE


def test_bfloat16_is_as_close_as_transformers_own(oracle: Oracle) -> None:
    """Bound: at most 1.5 times the error that transformers makes in bf16, both measured against its fp32.

    And 3 % of the largest logit, where no near tie between experts can be decided otherwise.
    """
    tokens = ids(PROMPT)
    expected = reference(oracle, tokens)
    with torch.inference_mode():
        oracle.model.bfloat16()
        theirs = worst(oracle.model(torch.tensor([tokens])).logits[0].float(), expected)
        oracle.model.float()
    ours = worst(run_cuts(runtime(oracle.folder, "torch", dtype="bfloat16"), tokens, pieces(PROMPT, 100)), expected)
    assert 0 < ours <= 1.5 * theirs, f"{ours:.1e} against {theirs:.1e}"
    if "mlp.gate.weight" not in "".join(oracle.model.state_dict()):
        assert ours <= 0.03 * expected.abs().max().item()
