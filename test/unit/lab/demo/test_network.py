"""The model under training against transformers' Qwen3_5: same logits, same gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import Qwen3_5ForConditionalGeneration

from qwen36_lab.demo.scan import StateScan, UnitLowerInverse
from qwen36_lab.demo.trainable import TrainableModel
from qwen36_neuron.checkpoint.names import canonical_name


@pytest.mark.parametrize("length", [64, 192])
def test_logits_and_gradients_are_those_of_transformers(tiny_checkpoint: Path, length: int) -> None:
    model = TrainableModel.from_pretrained(tiny_checkpoint)
    network = model.assemble()
    reference = Qwen3_5ForConditionalGeneration.from_pretrained(tiny_checkpoint, dtype=torch.float32)
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


def test_scan_and_inverse_gradients() -> None:
    generator = torch.Generator().manual_seed(3)

    def random(*shape: int) -> torch.Tensor:
        return (0.3 * torch.randn(shape, generator=generator, dtype=torch.float64)).requires_grad_()

    decay = torch.rand(3, 2, generator=generator, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(
        StateScan.apply, (random(3, 2, 4, 5), random(3, 2, 4, 3), random(3, 2, 4, 3), decay)
    )
    assert torch.autograd.gradcheck(lambda a: UnitLowerInverse.apply(a.tril(-1)), (random(2, 16, 16),))
