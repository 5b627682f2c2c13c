"""Every form of the delta rule against an fp64 recurrence on inputs that break doubling solves.

Tolerance: 1e-5 of the largest magnitude of the fp64 result. fp32 rounding is 6e-8 and a chunk chains 64 updates whose
inverse is tame (|T| about 1), so a few 1e-6 is what a sound method leaves; an unsound one is off by orders.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest
import torch
from bank_cases import HEADS, TORCH, assert_banks_agree, delta_rule_inputs, int32, make_bank, make_span
from bank_cases import assert_close as assert_within
from compiled_forms import needs_numba
from delta_net_cases import Bank, Shape, definition, inputs_of, memory, prefill, steps, weights_of

from qwen36_neuron.config import BLOCK_SIZE
from qwen36_neuron.ops.banks import Batch, Span
from qwen36_neuron.ops.gated_delta_rule import (
    StateCopy,
    gated_delta_rule_boundaries,
    gated_delta_rule_prefill_cpu,
    gated_delta_rule_recurrent,
    gated_delta_rule_step,
    l2norm,
)

if TYPE_CHECKING:  # imported by the fixture: on a device it is AWS's own
    from qwen36_neuron.ops.nki_kernels import NkiKernels

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


def test_kernel_of_a_prompt(nki: NkiKernels, span: Span) -> None:
    """2e-5: tiles of 128 tokens, where the graph's form has chunks of 64."""
    inputs, states = delta_rule_inputs(1, 256), make_bank(HEADS, 128, 128)
    want, expected = TORCH.delta_rule_prefill(*inputs, states.clone(), span)
    got, actual = nki.delta_rule_prefill(*inputs, states.clone(), span)
    own = slice(int(span.first), int(span.end))
    assert_within(got[:, own], want[:, own], 2e-5)
    assert_banks_agree(actual, expected, states, 2e-5)
    before = states[span.source].double().masked_fill(span.fresh, 0.0)
    exact, after = gated_delta_rule_recurrent(*(x[:, own] for x in inputs), before)
    assert_within(got[:, own], exact, 2e-5)
    assert_within(actual[span.lane], after, 2e-5)


def test_kernel_of_an_odd_number_of_blocks(nki: NkiKernels) -> None:
    """The lane's state is that after the last tile, which is then half full."""
    inputs, states, span = delta_rule_inputs(1, 192), make_bank(HEADS, 128, 128), make_span(0, 192, 3, {1: 4, 3: 5})
    want, expected = TORCH.delta_rule_prefill(*inputs, states.clone(), span)
    got, actual = nki.delta_rule_prefill(*inputs, states.clone(), span)
    assert_within(got, want, 2e-5)
    assert_banks_agree(actual, expected, states, 2e-5)


def test_kernel_of_single_tokens(nki: NkiKernels, batch: Batch) -> None:
    inputs, states = delta_rule_inputs(len(batch.lane), 1), make_bank(HEADS, 128, 128)
    want, expected = TORCH.delta_rule_decode(*inputs, states.clone(), batch)
    got, actual = nki.delta_rule_decode(*inputs, states.clone(), batch)
    assert_within(got, want, 2e-5)
    assert_banks_agree(actual, expected, states, 2e-5)
    before = states[batch.source].double().masked_fill(batch.fresh.view(-1, 1, 1, 1), 0.0)
    assert_within(got, gated_delta_rule_recurrent(*inputs, before)[0], 2e-5)


def test_kernel_of_a_row_that_starts_reads_nothing_stale(nki: NkiKernels) -> None:
    """Whatever its lane holds, even what is not finite."""
    states = make_bank(HEADS, 128, 128)
    states[2] = torch.nan
    rows = Batch(int32(0) == 0, int32(2), int32(2), int32(0), int32(0))
    assert nki.delta_rule_decode(*delta_rule_inputs(1, 1), states, rows)[0].isfinite().all()
    assert states[2].isfinite().all()


@needs_numba
@pytest.mark.parametrize(("correlation", "beta", "gate"), itertools.product(CORRELATIONS, BETAS, GATES))
def test_compiled_forms_on_hostile_inputs(correlation: float, beta: float, gate: float) -> None:
    shape = Shape()
    weights = weights_of(shape)
    x = inputs_of(shape, weights, 200, correlation=correlation, beta=beta, gate=gate)
    window, state = memory(shape)
    expected = definition(x, weights, window, state, shape)
    for actual in (prefill(x, weights, window, state), steps(x, weights, window, state)):
        assert_close(actual[0], expected[0])
        assert_close(actual[1], expected[1])


@needs_numba
@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 5, 63, 64, 65, 127, 128, 129])
@pytest.mark.parametrize("lead", [0, 1, 3, 62, 63])
def test_compiled_lengths_and_leads(tokens: int, lead: int) -> None:
    shape = Shape(key_heads=2)
    weights, (window, state) = weights_of(shape), memory(shape)
    x = inputs_of(shape, weights, tokens, correlation=0.9)
    out, final, left = prefill(x, weights, window, state, lead=lead)
    expected = definition(x, weights, window, state, shape)
    assert_close(out, expected[0])
    assert_close(final, expected[1])
    assert torch.equal(left, expected[2].float())


@needs_numba
@pytest.mark.parametrize(
    "shape",
    [Shape(1, 1), Shape(2, 1), Shape(2, 2), Shape(4, 3), Shape(2, 2, 64, 32), Shape(1, 2, 18, 20), Shape(2, 1, taps=2)],
)
def test_compiled_forms_of_other_shapes(shape: Shape) -> None:
    """Head sizes that are no multiple of what the loops unroll, a shorter convolution, one value head a key head."""
    weights, (window, state) = weights_of(shape), memory(shape, batch=2)
    x = inputs_of(shape, weights, 70, batch=2, correlation=0.5)
    prefilled, stepped = prefill(x, weights, window, state), steps(x, weights, window, state)
    for row in range(2):
        expected = definition(x[row : row + 1], weights, window[row : row + 1], state[row : row + 1], shape)
        for actual in (prefilled, stepped):
            assert_close(actual[0][row : row + 1], expected[0])
            assert_close(actual[1][row : row + 1], expected[1])
            assert torch.equal(actual[2][row : row + 1], expected[2].float())


@needs_numba
def test_compiled_padding_changes_nothing() -> None:
    """Rows of unequal lengths, what is after them being anything at all; a padded row gives what it gives alone."""
    shape, lengths, lead = Shape(), (130, 1, 64, 100), 5
    weights, (window, state) = weights_of(shape), memory(shape, batch=4)
    x = inputs_of(shape, weights, 130, batch=4, correlation=0.99)
    for row, length in enumerate(lengths):
        x[row, length:] = torch.nan
    out, final, left = prefill(x, weights, window, state, lengths, lead)
    for row, length in enumerate(lengths):
        alone = slice(row, row + 1)
        own = prefill(x[alone, :length].contiguous(), weights, window[alone], state[alone], lead=lead)
        assert torch.equal(out[row, :length], own[0][0])
        assert torch.equal(final[row], own[1][0])
        assert torch.equal(left[row], own[2][0])
        assert (out[row, length:] == 0.0).all()


@needs_numba
def test_a_compiled_cut_at_a_boundary_changes_no_bit_and_checkpoints_are_what_lanes_are_there() -> None:
    shape = Shape(key_heads=2)
    weights, (window, state) = weights_of(shape), memory(shape, batch=2)
    x = inputs_of(shape, weights, 192, batch=2, correlation=0.9)
    bank = Bank.of(window, state, slots=4)
    marks = [(0, BLOCK_SIZE, 3), (1, BLOCK_SIZE, 1), (1, 2 * BLOCK_SIZE, 2)]
    whole = prefill(x, weights, window, state, bank=bank, marks=marks)
    at, parts = 0, []
    for end in (BLOCK_SIZE, 2 * BLOCK_SIZE, 192):
        out, state, window = prefill(x[:, at:end].contiguous(), weights, window, state)
        at = end
        parts.append(out)
        for row, tokens, slot in marks:
            if tokens == end:
                assert torch.equal(bank.states[bank.slot(slot)], state[row])
                assert torch.equal(bank.windows[bank.slot(slot)], window[row])
    assert torch.equal(torch.cat(parts, dim=1), whole[0])
    assert torch.equal(state, whole[1])
    assert torch.equal(window, whole[2])
    assert bank.states[bank.slot(0)].isnan().all()  # a slot that no checkpoint was given


@needs_numba
def test_a_checkpoint_of_a_short_call_takes_what_came_before_it() -> None:
    """Its boundary is one token after the call's first: the window is mostly that of the lane."""
    shape = Shape()
    weights, (window, state) = weights_of(shape), memory(shape)
    x = inputs_of(shape, weights, 5)
    bank = Bank.of(window, state, slots=1)
    prefill(x, weights, window, state, lead=BLOCK_SIZE - 1, bank=bank, marks=[(0, 1, 0)])
    expected = definition(x[:, :1], weights, window, state, shape)
    assert_close(bank.states[bank.slot(0)], expected[1][0])
    assert torch.equal(bank.windows[bank.slot(0)], expected[2][0].float())


@needs_numba
@pytest.mark.parametrize("length", [2, 20, 64, 150])
def test_a_fresh_start_is_one_from_zero_whatever_the_lane_holds(length: int) -> None:
    shape = Shape(key_heads=2)
    weights, (window, state) = weights_of(shape), memory(shape, batch=2)
    x, lengths = inputs_of(shape, weights, 150, batch=2), [150, length]
    x[1, length:] = torch.nan
    nothing, anything = (tuple(torch.full_like(m, value) for m in (window, state)) for value in (0.0, torch.nan))
    zeroed = prefill(x, weights, *nothing, lengths)
    fresh = prefill(x, weights, *anything, lengths, fresh=True)
    assert all(torch.equal(a, b) for a, b in zip(zeroed, fresh, strict=True))


@needs_numba
def test_a_fresh_start_of_one_token_is_one_from_zero_whatever_the_lane_holds() -> None:
    shape = Shape(key_heads=2)
    weights, (window, state) = weights_of(shape), memory(shape, batch=2)
    x = inputs_of(shape, weights, 3, batch=2)
    nothing, anything = (tuple(torch.full_like(m, value) for m in (window, state)) for value in (0.0, torch.nan))
    zeroed, fresh = steps(x, weights, *nothing), steps(x, weights, *anything, fresh=True)
    assert all(torch.equal(a, b) for a, b in zip(zeroed, fresh, strict=True))


@needs_numba
@pytest.mark.parametrize("tokens", [1, 2, 64, 130])
def test_restoring_is_reading_another_entry(tokens: int) -> None:
    """The lanes hold nothing before, and the entries that were read hold the same after."""
    shape = Shape(key_heads=2)
    weights, (window, state) = weights_of(shape), memory(shape, batch=2)
    x = inputs_of(shape, weights, tokens, batch=2)
    bank = Bank.of(window, state, slots=1, restored=True)
    marks = [(1, 64, 0)] if tokens > 64 else []
    restored = prefill(x, weights, window, state, marks=marks, bank=bank)
    continued = prefill(x, weights, window, state)
    assert all(torch.equal(a, b) for a, b in zip(continued, restored, strict=True))
    assert torch.equal(bank.states[bank.sources], state)
    assert torch.equal(bank.windows[bank.sources], window)
    stepped, again = steps(x[:, :3], weights, window, state), steps(x[:, :3], weights, window, state, restored=True)
    assert all(torch.equal(a, b) for a, b in zip(stepped, again, strict=True))


@needs_numba
@pytest.mark.parametrize(("batch", "shape"), [(1, Shape(2, 3)), (1, Shape(1, 3)), (3, Shape(1, 2))])
def test_how_heads_are_shared_out_changes_no_bit(batch: int, shape: Shape) -> None:
    """One thread takes the value heads of a key head together, many take each for itself."""
    weights, (window, state) = weights_of(shape), memory(shape, batch=batch)
    x, threads = inputs_of(shape, weights, 130, batch=batch), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        together = prefill(x, weights, window, state)
        torch.set_num_threads(batch * shape.value_heads)
        apart = prefill(x, weights, window, state)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(together, apart, strict=True))
