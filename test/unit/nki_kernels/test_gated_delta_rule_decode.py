"""Decoding by lane index, and drafts with a lane a token, against the twin and the fp64 recurrence."""

import pytest
import torch

from nki_kernels import examples
from nki_kernels.gated_delta_rule_decode import gated_delta_rule_decode
from nki_kernels.gated_delta_rule_decode_torch import gated_delta_rule_decode_torch
from nki_kernels.gated_delta_rule_prefill import gated_delta_rule_prefill
from nki_kernels.interpreter import profile
from qwen36_lab.pricing.delta_rule_cases import make_case, prefilled, recurrence, worst

FORMS = [gated_delta_rule_decode, gated_delta_rule_decode[2], gated_delta_rule_decode_torch]
NAMES = ["kernel", "two cores", "twin"]


def batch_of(cases):
    """q, k, v, g, beta with a batch dimension."""
    return [torch.stack([case.tensors[n] for case in cases]) for n in range(5)]


def lanes_of(cases, total):
    """Case b's state in lane 2 b + 1; the others hold a mark."""
    lanes = torch.full((total, *cases[0].state.shape), 5.0)
    lanes[1 : 2 * len(cases) : 2] = torch.stack([case.state for case in cases])
    return lanes, torch.arange(1, 2 * len(cases), 2, dtype=torch.int32).unsqueeze(0)


@pytest.mark.parametrize("form", FORMS, ids=NAMES)
@pytest.mark.parametrize(("batch", "correlation", "beta", "gate"), [
    (1, 0.0, None, None), (3, 0.99, 0.99, -1e-4), (3, 1.0, 0.5, -8.0), (23, 0.9, 0.9, -1.0),
])  # fmt: skip
def test_one_token_in_place(form, batch, correlation, beta, gate):
    cases = [make_case(1, 2, 6, correlation, beta, gate, seed) for seed in range(batch)]
    lanes, index = lanes_of(cases, 2 * batch + 1)
    o, returned = form(*batch_of(cases), lanes, index, index)
    for b, case in enumerate(cases):
        want, states = recurrence(case)
        assert worst(o[b], want) <= 2e-5
        assert worst(lanes[2 * b + 1], states[-1]) <= 2e-5
    assert torch.equal(returned, lanes)
    assert (lanes[0::2] == 5.0).all()


@pytest.mark.parametrize("form", FORMS, ids=NAMES)
@pytest.mark.parametrize("steps", [2, 4])
def test_drafts_leave_a_state_a_token(form, steps):
    cases = [make_case(steps, 2, 6, 0.9, 0.9, -1e-2, seed) for seed in range(2)]
    lanes, index = lanes_of(cases, 5 + 2 * steps)
    write = torch.arange(5, 5 + 2 * steps, dtype=torch.int32)
    write[steps] = 10_000
    o, _ = form(*batch_of(cases), lanes, index, write.unsqueeze(0))
    for b, case in enumerate(cases):
        want, states = recurrence(case)
        assert worst(o[b], want) <= 2e-5
        assert torch.equal(lanes[2 * b + 1], case.state)
        for m in range(steps):
            if (b, m) != (1, 0):
                assert worst(lanes[5 + b * steps + m], states[m]) <= 2e-5
    assert (lanes[5 + steps] == 5.0).all()


@pytest.mark.parametrize("form", FORMS, ids=NAMES)
@pytest.mark.parametrize("steps", [1, 2])
def test_a_state_goes_to_two_lanes(form, steps):
    """The second of sequence 1's last token is a checkpoint; the others' are past the last lane."""
    cases = [make_case(steps, 2, 6, 0.9, 0.9, -1e-2, seed) for seed in range(3)]
    lanes, index = lanes_of(cases, 9)
    write = torch.full((3, steps, 2), 9, dtype=torch.int32)
    write[:, -1, 0], write[1, -1, 1] = index[0], 8
    form(*batch_of(cases), lanes, index, write.view(1, -1))
    for b, case in enumerate(cases):
        assert worst(lanes[2 * b + 1], recurrence(case)[1][-1]) <= 2e-5
    assert torch.equal(lanes[8], lanes[3])
    assert (lanes[[0, 2, 4, 6, 7]] == 5.0).all()


def test_bfloat16_inputs_lose_nothing():
    case = make_case(1, 1, 2, 0.9).cast(torch.bfloat16)
    want, _ = recurrence(case)
    lanes, index = lanes_of([case], 2)
    o, _ = gated_delta_rule_decode(*batch_of([case]), lanes, index, index)
    assert worst(o[0], want) <= 2e-5


def test_a_padded_row_changes_nothing():
    case = make_case(1, 1, 2)
    case.g.zero_()
    case.beta.zero_()
    lanes, index = lanes_of([case], 2)
    gated_delta_rule_decode(*batch_of([case]), lanes, index, index)
    assert torch.equal(lanes[1], case.state)


def test_decoding_continues_a_prefill():
    case = make_case(70, 1, 2, 0.9, 0.9, -1e-2)
    want, states = recurrence(case)
    prompt = case.cut(0, 67, case.state)
    _, state = prefilled(gated_delta_rule_prefill, prompt)
    lanes, index = state.unsqueeze(0).clone(), torch.zeros(1, 1, dtype=torch.int32)
    for t in range(67, 70):
        one = case.cut(t, t + 1, state)
        o, _ = gated_delta_rule_decode(*batch_of([one]), lanes, index, index)
        assert worst(o[0], want[t : t + 1]) <= 2e-5
    assert worst(lanes[0], states[-1]) <= 2e-5


@pytest.mark.parametrize("correlation", [0.0, 1.0])
def test_gates_that_end_all_and_gates_that_keep_all(correlation):
    """A difference of running sums of these gates would have lost the small ones."""
    case = make_case(24, 2, 6, correlation, 0.999)
    case.g.fill_(-1e-4)
    case.g[::8], case.g[4::8] = -50.0, -8.0
    want, states = recurrence(case)
    lanes, index = case.state.unsqueeze(0).clone(), torch.zeros(1, 1, dtype=torch.int32)
    for t in range(24):
        one = case.cut(t, t + 1, case.state)
        o, _ = gated_delta_rule_decode(*batch_of([one]), lanes, index, index)
        assert worst(o[0], want[t : t + 1]) <= 2e-5
    assert worst(lanes[0], states[-1]) <= 2e-5


@pytest.mark.parametrize(("key_heads", "heads", "batch", "steps"), [(8, 32, 1, 1), (1, 30, 4, 1), (16, 48, 3, 2)])
def test_more_heads_than_a_core_has_banks(key_heads, heads, batch, steps):
    cases = [make_case(steps, key_heads, heads, 0.9, 0.9, -1e-2, seed) for seed in range(batch)]
    lanes = torch.cat((torch.stack([case.state for case in cases]), torch.zeros(batch * steps, heads, 128, 128)))
    index = torch.arange(batch * (1 + steps), dtype=torch.int32).unsqueeze(0)
    o, _ = gated_delta_rule_decode(*batch_of(cases), lanes, index[:, :batch], index[:, batch:])
    for b, case in enumerate(cases):
        want, states = recurrence(case)
        assert worst(o[b], want) <= 2e-5
        assert worst(lanes[batch + b * steps : batch + (b + 1) * steps], states) <= 2e-5


def price(batch, checkpoints=None):
    example = examples.decode(batch, checkpoints=checkpoints)
    return profile(example.kernel, *example.args)[1].time_us


def test_modelled_price():
    one, eight = price(1), price(8)
    assert one <= 10
    assert eight <= 3.5 * one


@pytest.mark.parametrize("batch", [1, 8])
def test_modelled_price_of_checkpoints(batch):
    """A sequence leaves one every 64 tokens at most."""
    none, all_of_them = price(batch, 0), price(batch, batch)
    assert none < all_of_them
    assert (all_of_them - none) / 64 <= 0.03 * none
