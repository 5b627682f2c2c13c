"""The two forms of every operation on the same rows: plain torch, and the NKI kernels in their interpreter.

fp32. Tolerances are relative to the largest element compared: 2e-5 for what the delta rule gives, whose solve the two
forms order differently on tiles of 128 and 64 tokens, and 5e-6 for the rest, which only sum in another order.
"""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
from shapes import CONFIG

from nki_kernels.fp8_mlp_torch import fp8_mlp_torch
from qwen36_neuron.config import ModelConfig
from qwen36_neuron.errors import ConfigError
from qwen36_neuron.ops.kernels import Batch, Span, check_choice, check_shapes, check_tokens, open_kernels
from qwen36_neuron.ops.nki_kernels import NkiKernels

KEY_HEADS, HEADS, CHANNELS, ENTRIES = 2, 6, 1280, 7
TORCH = open_kernels("torch", 1)


@pytest.fixture(params=[1, 2], ids=["one-core", "two-cores"])
def nki(request: pytest.FixtureRequest):
    return open_kernels("interpreter", request.param)


def index(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def bank(*shape: int) -> torch.Tensor:
    """States whose entry 0, which is nobody's, is zero: as it is when a runtime starts."""
    made = random(ENTRIES, *shape, seed=9)
    made[0] = 0.0
    return made


def close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    error = (actual.float() - expected.float()).abs().max() / expected.float().abs().max()
    assert error <= tolerance, error


def span(first: int, end: int, source: int, commits: dict[int, int]) -> Span:
    """Commits are {blocks: entry}; unused ones follow, as a graph with room for four has them."""
    at = [*commits, *[1] * (4 - len(commits))]
    to = [*commits.values(), *[0] * (4 - len(commits))]
    return Span(index(first), index(end), index(source) == 0, index(source), index(2), index(*at), index(*to))


SPANS = {
    "whole": span(0, 256, 3, {1: 4, 4: 5}),
    "starts": span(0, 256, 0, {2: 5, 3: 4}),
    "padded-at-both-ends": span(37, 150, 4, {1: 6, 2: 5}),
    "inside-one-block": span(5, 30, 2, {}),
    "ends-at-a-boundary": span(0, 128, 1, {2: 3}),
}


@pytest.fixture(params=SPANS)
def at(request: pytest.FixtureRequest) -> Span:
    return SPANS[request.param]


def delta_rule(batch: int, tokens: int) -> tuple[torch.Tensor, ...]:
    """Correlated keys and strong writes: what a solve that is not safe fails on."""
    shared = random(1, 1, KEY_HEADS, 128, seed=1)
    k = 0.9 * shared + 0.1 * random(batch, tokens, KEY_HEADS, 128, seed=2)
    return (
        random(batch, tokens, KEY_HEADS, 128, seed=3),
        k,
        random(batch, tokens, HEADS, 128, seed=4),
        -0.05 * random(batch, tokens, HEADS, seed=5).exp(),
        torch.sigmoid(2 + random(batch, tokens, HEADS, seed=6)),
    )


def check_bank(actual: torch.Tensor, expected: torch.Tensor, before: torch.Tensor, tolerance: float) -> None:
    """Entries agree, those that nothing was left in to the bit, and nobody's stays zero."""
    assert not actual[0].any()
    for entry in range(1, ENTRIES):
        if torch.equal(expected[entry], before[entry]):
            assert torch.equal(actual[entry], before[entry]), entry
        else:
            close(actual[entry], expected[entry], tolerance)


def test_delta_rule_of_a_prompt(nki, at: Span) -> None:
    inputs, states = delta_rule(1, 256), bank(HEADS, 128, 128)
    want, expected = TORCH.delta_rule_prefill(*inputs, states.clone(), at)
    got, actual = nki.delta_rule_prefill(*inputs, states.clone(), at)
    own = slice(int(at.first), int(at.end))
    close(got[:, own], want[:, own], 2e-5)
    check_bank(actual, expected, states, 2e-5)


def test_delta_rule_of_an_odd_number_of_blocks(nki) -> None:
    """The lane's state is that after the last tile, which is then half full."""
    inputs, states, at = delta_rule(1, 192), bank(HEADS, 128, 128), span(0, 192, 3, {1: 4, 3: 5})
    want, expected = TORCH.delta_rule_prefill(*inputs, states.clone(), at)
    got, actual = nki.delta_rule_prefill(*inputs, states.clone(), at)
    close(got, want, 2e-5)
    check_bank(actual, expected, states, 2e-5)


def test_convolution_of_a_prompt(nki, at: Span) -> None:
    x, weight, windows = random(1, 256, CHANNELS), random(CHANNELS, 4, seed=1), bank(3, CHANNELS)
    want, expected = TORCH.conv_prefill(x, weight, windows.clone(), at)
    got, actual = nki.conv_prefill(x, weight, windows.clone(), at)
    own = slice(int(at.first), int(at.end))
    close(got[:, own], want[:, own], 5e-6)
    check_bank(actual, expected, windows, 0.0)


BATCHES = {
    # Rows: continues in its lane, starts, continues from a checkpoint, padding. One checkpoint, and one unused.
    "mixed": Batch(index(9, 0, 9, 0) == 0, index(1, 2, 5, 0), index(1, 2, 3, 0), index(2, 0), index(6, 0)),
    "one": Batch(index(9) == 0, index(4), index(4), index(0), index(0)),
}


@pytest.fixture(params=BATCHES)
def rows(request: pytest.FixtureRequest) -> Batch:
    return BATCHES[request.param]


def test_delta_rule_of_single_tokens(nki, rows: Batch) -> None:
    inputs, states = delta_rule(len(rows.lane), 1), bank(HEADS, 128, 128)
    want, expected = TORCH.delta_rule_decode(*inputs, states.clone(), rows)
    got, actual = nki.delta_rule_decode(*inputs, states.clone(), rows)
    close(got, want, 2e-5)
    check_bank(actual, expected, states, 2e-5)


def test_convolution_of_single_tokens(nki, rows: Batch) -> None:
    x, weight, windows = random(len(rows.lane), 1, CHANNELS), random(CHANNELS, 4, seed=1), bank(3, CHANNELS)
    want, expected = TORCH.conv_decode(x, weight, windows.clone(), rows)
    got, actual = nki.conv_decode(x, weight, windows.clone(), rows)
    close(got, want, 5e-6)
    check_bank(actual, expected, windows, 0.0)


def test_a_row_that_starts_reads_nothing_stale(nki) -> None:
    """Whatever its lane holds, even what is not finite."""
    states, windows = bank(HEADS, 128, 128), bank(3, CHANNELS)
    states[2], windows[2] = torch.nan, torch.nan
    rows = Batch(index(0) == 0, index(2), index(2), index(0), index(0))
    assert nki.delta_rule_decode(*delta_rule(1, 1), states, rows)[0].isfinite().all()
    assert nki.conv_decode(random(1, 1, CHANNELS), random(CHANNELS, 4), windows, rows)[0].isfinite().all()
    assert states[2].isfinite().all()
    assert windows[2].isfinite().all()


@pytest.mark.parametrize(
    ("batch", "tokens", "blocks", "held"),
    [(1, 128, 0, [0]), (1, 256, 3, [128]), (1, 64, 2, [64]), (3, 1, 4, [0, 70, 255])],
    ids=["prompt", "prompt-after-two-blocks", "one-block", "single-tokens"],
)
def test_attention(nki, batch: int, tokens: int, blocks: int, held: list[int]) -> None:
    q, k, v = (random(batch, tokens, heads, 256, seed=heads) for heads in (4, 2, 2))
    cache = random(13, 64, 2, 256, seed=7), random(13, 64, 2, 256, seed=8)
    table = torch.randperm(12, generator=torch.Generator().manual_seed(0))[: batch * blocks].view(batch, blocks) + 1
    arguments = (q, k, v, cache, table.to(torch.int32), index(*held))
    close(nki.attend(*arguments), TORCH.attend(*arguments), 5e-6)


def test_gated_norm(nki) -> None:
    x, gate, weight = random(2, 70, HEADS, 128), random(2, 70, HEADS, 128, seed=1), random(128, seed=2)
    close(nki.gated_norm(x, gate, weight, 1e-6), TORCH.gated_norm(x, gate, weight, 1e-6), 5e-6)


def test_mlp(nki) -> None:
    """A sum over the cores, each of which has half of the intermediate channels."""
    random_codes = torch.Generator().manual_seed(0)
    codes = tuple(
        torch.randint(0, 112, shape, dtype=torch.uint8, generator=random_codes)
        for shape in ((512, 256), (512, 256), (256, 512))
    )
    scales = (torch.full((256, 1), 1e-3), torch.full((256, 1), 2e-3), torch.full((1, 512), 3e-3))
    x = random(5, 512).bfloat16()
    close(nki.mlp(x, codes, scales), fp8_mlp_torch(x, *codes, *scales)[0], 5e-3)


@pytest.mark.parametrize(
    ("choice", "device", "problem"),
    [
        ("nki", "cpu", "does not run on device=cpu. Use one of: torch, fused, interpreter"),
        ("interpreter", "neuron", "does not run on device=neuron. Use one of: torch, nki"),
        ("triton", "cpu", "is not known. Use one of: torch, fused, interpreter"),
    ],
)
def test_a_choice_that_does_not_run_there_is_refused(choice: str, device: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_choice(choice, device)
    assert str(caught.value) == f"kernels={choice!r}: {problem}."


def test_the_interpreter_is_refused_where_the_real_nki_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nki", ModuleType("nki"))
    with pytest.raises(ConfigError, match=r"kernels='interpreter'.*Use kernels=torch"):
        open_kernels("interpreter", 1)
    assert isinstance(open_kernels("nki", 2), NkiKernels)


def test_sizes_that_the_kernels_do_not_take_are_all_named() -> None:
    small = ModelConfig.from_dict(CONFIG)
    check_shapes("torch", small)
    with pytest.raises(ConfigError, match=r"kernels='interpreter'.*Use kernels=torch") as caught:
        check_shapes("interpreter", small)
    for part in ("linear_key_head_dim is 64", "linear_value_head_dim is 64", "head_dim is 64, must be 256"):
        assert part in str(caught.value)


def test_heads_that_two_cores_cannot_share_are_named(published_27b) -> None:
    big = ModelConfig.from_dict(published_27b)
    check_shapes("nki", big, tp=4, cores=2)
    check_shapes("nki", big, tp=8, cores=1)
    check_shapes("nki", big, tp=4, cores=2, mlp=True)
    with pytest.raises(ConfigError, match="2176 intermediate channels a rank must be a multiple of 256"):
        check_shapes("nki", big, tp=8, cores=2, mlp=True)
    published_27b["text_config"] |= {"linear_num_key_heads": 4, "linear_num_value_heads": 12}
    with pytest.raises(ConfigError, match="1 DeltaNet key heads a rank must be a multiple of 2 on 2 physical cores"):
        check_shapes("nki", ModelConfig.from_dict(published_27b), tp=4, cores=2)


def test_numbers_of_tokens_that_the_kernels_do_not_take_are_named() -> None:
    check_tokens("nki", [64, 128, 512, 1024])
    check_tokens("torch", [192])
    with pytest.raises(ConfigError, match=r"prefill_buckets=\[192, 320\].*multiple of 128"):
        check_tokens("nki", [128, 192, 320])
