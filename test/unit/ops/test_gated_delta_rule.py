"""Every form of the delta rule against an fp64 recurrence on inputs that break doubling solves.

Tolerance: 1e-5 of the largest magnitude of the fp64 result. fp32 rounding is 6e-8 and a chunk chains 64 updates whose
inverse is tame (|T| about 1), so a few 1e-6 is what a sound method leaves; an unsound one is off by orders.
"""

from __future__ import annotations

import itertools

import pytest
import torch

from qwen36_neuron.config import BLOCK_SIZE
from qwen36_neuron.ops.gated_delta_rule import (
    StateCopy,
    gated_delta_rule_boundaries,
    gated_delta_rule_prefill_cpu,
    gated_delta_rule_recurrent,
    gated_delta_rule_step,
    l2norm,
)

TOLERANCE = 1e-5
CORRELATIONS, BETAS, GATES = (0.0, 0.5, 0.9, 0.99, 1.0), (0.5, 0.9, 0.99), (-1e-4, -1e-2, -1.0, -8.0)


def inputs(
    tokens: int, correlation: float, beta: float, gate: float, *, batch: int = 1, key_heads: int = 1, share: int = 3
) -> tuple[torch.Tensor, ...]:
    """q, k, v, g, beta and a carried state; keys share a direction as far as `correlation` says."""
    random = torch.Generator().manual_seed(tokens * 1000 + int(correlation * 100))
    dim, heads = 128, key_heads * share

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random)

    common = normal(batch, 1, key_heads, dim)
    k = correlation**0.5 * common + (1 - correlation) ** 0.5 * normal(batch, tokens, key_heads, dim)
    q = correlation**0.5 * common + (1 - correlation) ** 0.5 * normal(batch, tokens, key_heads, dim)
    v = normal(batch, tokens, heads, dim)
    g = torch.full((batch, tokens, heads), gate)
    return q, k, v, g, torch.full((batch, tokens, heads), beta), normal(batch, heads, dim, dim)


def assert_close(actual: torch.Tensor, oracle: torch.Tensor) -> None:
    assert oracle.dtype == torch.float64
    error = (actual.double() - oracle).abs().max() / oracle.abs().max()
    assert error <= TOLERANCE, f"relative error {error:.2e}"


@pytest.mark.parametrize(("correlation", "beta", "gate"), itertools.product(CORRELATIONS, BETAS, GATES))
def test_cpu_form_on_hostile_inputs(correlation: float, beta: float, gate: float) -> None:
    *args, state = inputs(150, correlation, beta, gate)
    expected, expected_state = gated_delta_rule_recurrent(*args, state.double())
    actual, actual_state = gated_delta_rule_prefill_cpu(*args, state)
    assert_close(actual, expected)
    assert_close(actual_state, expected_state)


@pytest.mark.parametrize(("correlation", "beta", "gate"), itertools.product(CORRELATIONS, BETAS, GATES))
def test_graph_form_on_hostile_inputs(correlation: float, beta: float, gate: float) -> None:
    """All whole chunks, the last one padded as a graph pads it, and the state after each of them."""
    *args, state = inputs(150, correlation, beta, gate)
    padded = [torch.nn.functional.pad(x, (0, 0) * (x.dim() - 2) + (0, 3 * BLOCK_SIZE - 150)) for x in args]
    actual, states = gated_delta_rule_boundaries(*padded, state)
    for chunk, tokens in enumerate((64, 128, 150)):
        expected, expected_state = gated_delta_rule_recurrent(*(x[:, :tokens] for x in args), state.double())
        assert_close(states[chunk], expected_state[0])
        assert_close(actual[:, :tokens], expected)


def test_the_cpu_form_takes_views_of_wider_rows() -> None:
    """Queries, keys and values as the convolution leaves them, side by side, of one row and of several."""
    for batch in (1, 3):
        *args, state = inputs(128, 0.5, 0.9, -1e-2, batch=batch, key_heads=2)
        joined = torch.cat([x.flatten(2) for x in args[:3]], dim=-1)
        parts = joined.split((256, 256, 768), dim=-1)
        views = [part.unflatten(2, (-1, 128)) for part in parts]
        expected, expected_state = gated_delta_rule_recurrent(*args, state.double())
        actual, actual_state = gated_delta_rule_prefill_cpu(*views, *args[3:], state)
        assert_close(actual, expected)
        assert_close(actual_state, expected_state)


@pytest.mark.parametrize(("correlation", "beta", "gate"), [(0.99, 0.99, -1e-4), (1.0, 0.9, -1e-2), (0.0, 0.5, -1.0)])
def test_every_length_to_200(correlation: float, beta: float, gate: float) -> None:
    """All lengths of one sequence, so that the padding of every partial chunk is seen."""
    *args, state = inputs(200, correlation, beta, gate, share=1)
    expected, _ = gated_delta_rule_recurrent(*args, state.double())
    running = state.double()
    for length in range(1, 201):
        last = (x[:, length - 1 : length] for x in args)
        _, running = gated_delta_rule_recurrent(*last, running)
        actual, actual_state = gated_delta_rule_prefill_cpu(*(x[:, :length] for x in args), state)
        assert_close(actual, expected[:, :length])
        assert_close(actual_state, running)


@pytest.mark.parametrize("cuts", [(1, 149), (63, 87), (64, 86), (65, 85), (97, 53), (50, 50, 50), (1, 1, 148)])
def test_a_cut_anywhere_continues(cuts: tuple[int, ...]) -> None:
    *args, state = inputs(150, 0.9, 0.9, -1e-2, batch=2, key_heads=2)
    expected, expected_state = gated_delta_rule_recurrent(*args, state.double())
    start, parts = 0, []
    for tokens in cuts:
        here = (x[:, start : start + tokens] for x in args)
        part, state = gated_delta_rule_prefill_cpu(*here, state, lead=start % 64)
        parts.append(part)
        start += tokens
    assert_close(torch.cat(parts, dim=1), expected)
    assert_close(state, expected_state)


@pytest.mark.parametrize("share", [1, 3])
def test_the_given_state_is_not_changed(share: int) -> None:
    *args, state = inputs(70, 0.5, 0.9, -1e-2, share=share)
    before = state.clone()
    gated_delta_rule_prefill_cpu(*args, state)
    assert torch.equal(state, before)


def test_a_cut_at_a_chunk_boundary_changes_the_state_by_no_bit() -> None:
    *args, state = inputs(192, 0.9, 0.9, -1e-2)
    _, whole = gated_delta_rule_prefill_cpu(*args, state)
    _, half = gated_delta_rule_prefill_cpu(*(x[:, :128] for x in args), state)
    _, rest = gated_delta_rule_prefill_cpu(*(x[:, 128:] for x in args), half)
    assert torch.equal(whole, rest)


def test_states_at_boundaries_are_copied_out() -> None:
    *args, state = inputs(200, 0.9, 0.9, -1e-2, batch=2)
    targets = [torch.full(state.shape[1:], torch.nan) for _ in range(3)]
    copies = [StateCopy(0, 0, targets[0]), StateCopy(1, 0, targets[1]), StateCopy(1, 2, targets[2])]
    gated_delta_rule_prefill_cpu(*args, state, copies=copies)
    for copy, tokens in zip(copies, (64, 64, 192), strict=True):
        _, expected = gated_delta_rule_recurrent(*(x[:, :tokens] for x in args), state.double())
        assert_close(copy.target, expected[copy.row])


@pytest.mark.parametrize("correlation", [0.0, 0.99, 1.0])
def test_padding_is_an_exact_no_op(correlation: float) -> None:
    """Padded rows with identical keys, which is what a repeated padding token gives, change no bit of the state."""
    *args, state = inputs(130, correlation, 0.9, -1e-2)
    q, k, v, g, beta = (x.clone() for x in args)
    k[:, 70:] = k[:, 70:71]
    g[:, 70:] = 0
    beta[:, 70:] = 0
    out, padded = gated_delta_rule_prefill_cpu(q, k, v, g, beta, state)
    expected, plain = gated_delta_rule_prefill_cpu(*(x[:, :70] for x in (q, k, v, g, beta)), state)
    assert torch.equal(padded, plain)
    assert torch.equal(out[:, :70], expected)
    _, step = gated_delta_rule_recurrent(q, k, v, g, beta, state)
    assert_close(padded, step.double())


@pytest.mark.parametrize(("correlation", "beta", "gate"), itertools.product(CORRELATIONS, BETAS, GATES))
def test_single_steps_on_hostile_inputs(correlation: float, beta: float, gate: float) -> None:
    *args, state = inputs(40, correlation, beta, gate, batch=2)
    expected, expected_state = gated_delta_rule_recurrent(*args, state.double())
    running, outs = state.clone(), []
    for t in range(40):
        outs.append(gated_delta_rule_step(*(x[:, t] for x in args), running))
    assert_close(torch.stack(outs, dim=1), expected)
    assert_close(running, expected_state)


def test_recurrence_equals_the_textbook_update() -> None:
    """The oracle itself, against the update written out with matrices for one head."""
    q, k, v, g, beta, state = inputs(5, 0.5, 0.9, -0.1, share=1)
    out, final = gated_delta_rule_recurrent(q, k, v, g, beta, state.double())
    s = state[0, 0].double()
    for t in range(5):
        key, query = l2norm(k[0, t, 0].double()), l2norm(q[0, t, 0].double())
        strength = beta[0, t, 0].double()
        s = (torch.eye(128) - strength * torch.outer(key, key)) @ (s * g[0, t, 0].double().exp())
        s = s + strength * torch.outer(key, v[0, t, 0].double())
        torch.testing.assert_close(out[0, t, 0], s.T @ query / 128**0.5, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(final[0, 0], s, rtol=1e-6, atol=1e-9)
