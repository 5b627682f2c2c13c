"""The model under training against transformers' Qwen3_5 and Qwen3_5Moe: same logits, same gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qwen36_lab.demo.muon import StackedMuon
from qwen36_lab.demo.scan import StateScan, UnitLowerInverse
from qwen36_lab.demo.trainable import TrainableModel
from qwen36_lab.reference import transformers_model
from qwen36_neuron.checkpoint.names import canonical_name


@pytest.mark.parametrize(("made", "length"), [("tiny", 64), ("tiny", 192), ("tiny_mixture", 128)])
def test_logits_and_gradients_are_those_of_transformers(made: str, length: int, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(f"{made}_checkpoint")
    model = TrainableModel.from_pretrained(folder)
    network = model.assemble()
    reference = transformers_model(folder)
    tokens = torch.randint(0, model.config.vocab_size, (2, length), generator=torch.Generator().manual_seed(length))
    logits = network.logits(network.hidden(tokens))
    expected = reference(input_ids=tokens).logits
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=2e-4)

    logits.logsumexp(-1).mean().backward()
    expected.logsumexp(-1).mean().backward()
    grads = {canonical_name(name): p.grad for name, p in reference.named_parameters()}
    for name, parameter in model.parameters.items():
        if name.startswith("mtp."):
            assert parameter.grad is None
            continue
        scale = grads[name].abs().max()
        torch.testing.assert_close(parameter.grad, grads[name], rtol=1e-3, atol=float(1e-4 * scale), msg=name)


def test_rows_do_not_see_each_other(tiny_checkpoint: Path) -> None:
    model = TrainableModel.from_pretrained(tiny_checkpoint)
    network = model.assemble()
    tokens = torch.randint(0, model.config.vocab_size, (2, 128), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(network.hidden(tokens)[1:], network.hidden(tokens[1:]), rtol=1e-5, atol=1e-5)


def test_drafting_reads_nothing_later_than_the_next_token(tiny_checkpoint: Path) -> None:
    model = TrainableModel.from_pretrained(tiny_checkpoint)
    network = model.assemble()
    tokens = torch.randint(0, model.config.vocab_size, (1, 129), generator=torch.Generator().manual_seed(2))
    changed = tokens.clone()
    changed[0, 100] = (changed[0, 100] + 1) % model.config.vocab_size
    one, other = (network.draft_hidden(network.hidden(t[:, :-1]), t[:, 1:])[0] for t in (tokens, changed))
    torch.testing.assert_close(one[:99], other[:99])
    assert not torch.allclose(one[99], other[99])


def test_drafts_train_their_own_layer_and_the_head_alone(tiny_checkpoint: Path) -> None:
    """The embedding is the model's, and what the draft layer is given is not its to change."""
    model = TrainableModel.from_pretrained(tiny_checkpoint)
    network = model.assemble()
    tokens = torch.randint(0, model.config.vocab_size, (2, 65), generator=torch.Generator().manual_seed(3))
    hidden = network.hidden(tokens[:, :-1]).detach()
    network.logits(network.draft_hidden(hidden, tokens[:, 1:])).logsumexp(-1).mean().backward()
    trained = {name for name, parameter in model.parameters.items() if parameter.grad is not None}
    assert {name for name in trained if not name.startswith("mtp.")} <= {"lm_head.weight"}
    assert trained >= {name for name in model.parameters if name.startswith("mtp.")}


@pytest.mark.parametrize("shape", [(3, 8, 24), (3, 24, 8)], ids=str)
def test_muon_of_a_stack_is_torchs_of_each_matrix(shape: tuple[int, ...]) -> None:
    """Bound: both iterate in bfloat16, whose rounding is half a percent of an update of about one."""
    generator = torch.Generator().manual_seed(4)
    stack = torch.randn(shape, generator=generator).requires_grad_()
    halves = torch.randn(shape[0], 2 * shape[1], shape[2], generator=generator).requires_grad_()
    each = [part.detach().clone().requires_grad_() for part in (*stack, *halves.unflatten(1, (2, -1)).flatten(0, 1))]
    ours = StackedMuon([halves], [stack], lr=0.1, weight_decay=0.05)
    theirs = torch.optim.Muon(each, lr=0.1, weight_decay=0.05, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        stack.grad, halves.grad = (torch.randn(t.shape, generator=generator) for t in (stack, halves))
        for part, grad in zip(each, (*stack.grad, *halves.grad.unflatten(1, (2, -1)).flatten(0, 1)), strict=True):
            part.grad = grad.clone()
        ours.step()
        theirs.step()
    found = torch.cat((stack.flatten(0, 1), halves.flatten(0, 1)))
    torch.testing.assert_close(found, torch.cat(each), rtol=0, atol=5e-3)


def test_balance_is_one_where_all_experts_are_chosen_alike_and_pulls_towards_it(tiny_mixture_checkpoint: Path) -> None:
    model = TrainableModel.from_pretrained(tiny_mixture_checkpoint)
    routers = {name: p for name, p in model.parameters.items() if name.endswith("mlp.gate.weight")}
    for router in routers.values():
        router.data.normal_(std=3.0, generator=torch.Generator().manual_seed(5))
    tokens = torch.randint(0, model.config.vocab_size, (1, 128), generator=torch.Generator().manual_seed(6))
    found = []
    for _ in range(8):
        model.assemble().hidden(tokens)
        loss = model.balance.loss()
        found.append(loss.item())
        loss.backward()
        for name, router in routers.items():
            if not name.startswith("mtp."):
                assert router.grad is not None
                router.data -= 3.0 * router.grad
                router.grad = None
    assert found[0] > 1.1
    assert 0.9 < found[-1] < found[0]
    with torch.no_grad():
        model.assemble().hidden(tokens)
    with pytest.raises(RuntimeError):
        model.balance.loss()  # nothing is kept of passes without gradients


def test_scan_and_inverse_gradients() -> None:
    generator = torch.Generator().manual_seed(3)

    def random(*shape: int) -> torch.Tensor:
        return (0.3 * torch.randn(shape, generator=generator, dtype=torch.float64)).requires_grad_()

    decay = torch.rand(3, 2, generator=generator, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(
        StateScan.apply, (random(3, 2, 4, 5), random(3, 2, 4, 3), random(3, 2, 4, 3), decay)
    )
    assert torch.autograd.gradcheck(lambda a: UnitLowerInverse.apply(a.tril(-1)), (random(2, 16, 16),))
