"""The training network against transformers' Qwen3_5: same logits, same gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import Qwen3_5ForConditionalGeneration

from qwen36_lab.demo.network import Batch, Network
from qwen36_lab.demo.scan import StateScan, UnitLowerInverse
from qwen36_neuron.checkpoint.names import canonical_name

CPU = torch.device("cpu")


@pytest.mark.parametrize("length", [64, 192])
def test_logits_and_gradients_are_those_of_transformers(tiny_checkpoint: Path, length: int) -> None:
    network = Network.from_pretrained(tiny_checkpoint)
    reference = Qwen3_5ForConditionalGeneration.from_pretrained(tiny_checkpoint, dtype=torch.float32)
    tokens = torch.randint(0, network.config.vocab_size, (2, length), generator=torch.Generator().manual_seed(length))
    batch = Batch.of(network.config, 2, length, CPU)

    logits = network.logits(network.hidden(tokens.flatten(), batch)).view(2, length, -1)
    expected = reference(input_ids=tokens).logits
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=2e-4)

    logits.logsumexp(-1).mean().backward()
    expected.logsumexp(-1).mean().backward()
    grads = {canonical_name(name): p.grad for name, p in reference.named_parameters()}
    for name, parameter in network.parameters.items():
        if name.startswith("mtp."):
            assert parameter.grad is None
            continue
        scale = grads[name].abs().max()
        torch.testing.assert_close(parameter.grad, grads[name], rtol=1e-3, atol=float(1e-4 * scale), msg=name)


def test_rows_do_not_see_each_other(tiny_checkpoint: Path) -> None:
    network = Network.from_pretrained(tiny_checkpoint)
    tokens = torch.randint(0, network.config.vocab_size, (2, 128), generator=torch.Generator().manual_seed(1))
    both = network.hidden(tokens.flatten(), Batch.of(network.config, 2, 128, CPU))
    second = network.hidden(tokens[1], Batch.of(network.config, 1, 128, CPU))
    torch.testing.assert_close(both[128:], second, rtol=1e-5, atol=1e-5)


def test_drafting_reads_nothing_later_than_the_next_token(tiny_checkpoint: Path) -> None:
    network = Network.from_pretrained(tiny_checkpoint)
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randint(0, network.config.vocab_size, (129,), generator=generator)
    changed = tokens.clone()
    changed[100] = (changed[100] + 1) % network.config.vocab_size
    batch = Batch.of(network.config, 1, 128, CPU)
    one, other = (network.draft_hidden(network.hidden(t[:-1], batch), t[1:], batch) for t in (tokens, changed))
    torch.testing.assert_close(one[:99], other[:99])
    assert not torch.allclose(one[99], other[99])


def test_scan_and_inverse_gradients() -> None:
    generator = torch.Generator().manual_seed(3)

    def random(*shape: int) -> torch.Tensor:
        return (0.3 * torch.randn(shape, generator=generator, dtype=torch.float64)).requires_grad_()

    decay = torch.rand(3, 2, generator=generator, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(
        StateScan.apply, (random(3, 2, 4, 5), random(3, 2, 4, 3), random(3, 2, 4, 3), decay)
    )
    assert torch.autograd.gradcheck(lambda a: UnitLowerInverse.apply(a.tril(-1)), (random(2, 16, 16),))
