"""Drafting replayed over a known reply: against transformers' own layer, and against what it must count."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import Qwen3_5ForConditionalGeneration
from transformers.modeling_layers import MtpLayer
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5DecoderLayer, Qwen3_5RMSNorm

from qwen36_lab.demo import drafting
from qwen36_lab.demo.drafting import Acceptance, acceptance
from qwen36_lab.demo.network import Batch, Network

CPU = torch.device("cpu")
RENAMED = {
    "fc.": "eh_proj.",
    "pre_fc_norm_embedding.": "enorm.",
    "pre_fc_norm_hidden.": "hnorm.",
    "norm.": "post_norm.",
    "layers.0.": "mtp_block.",
}


def test_draft_layer_is_that_of_transformers(tiny_checkpoint: Path) -> None:
    network = Network.from_pretrained(tiny_checkpoint)
    reference = Qwen3_5ForConditionalGeneration.from_pretrained(tiny_checkpoint, dtype=torch.float32)
    text = reference.model.language_model
    layer = MtpLayer(text.config, Qwen3_5DecoderLayer, Qwen3_5RMSNorm, 3)
    stored = load_file(tiny_checkpoint / "model.safetensors")
    weights = {}
    for name, tensor in stored.items():
        if name.startswith("mtp."):
            old, new = next((o, n) for o, n in RENAMED.items() if name.removeprefix("mtp.").startswith(o))
            weights[new + name.removeprefix("mtp." + old)] = tensor.float()
    layer.load_state_dict(weights)
    tokens = torch.randint(0, network.config.vocab_size, (129,), generator=torch.Generator().manual_seed(5))
    batch = Batch.of(network.config, 1, 128, CPU)
    positions = torch.arange(128)[None]
    with torch.no_grad():
        hidden = network.hidden(tokens[:-1], batch)
        drafted = network.draft_hidden(hidden, tokens[1:], batch)
        embedded = text.embed_tokens(tokens[None, 1:])
        mask = torch.full((128, 128), -torch.inf).triu(1)[None, None]
        expected = layer(embedded, hidden[None], text.rotary_emb(embedded, positions), mask, positions, None)
    torch.testing.assert_close(drafted, expected[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("wrong", "steps"),
    [(set(), [4, 4, 1]), ({2}, [2, 4, 3]), (set(range(10)), [1] * 9)],
    ids=["all right", "one wrong", "all wrong"],
)
def test_counts_accepted_drafts_and_the_token_that_replaces_a_wrong_one(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, wrong: set[int], steps: list[int]
) -> None:
    network = Network.from_pretrained(tiny_checkpoint)
    prompt, reply = [1, 2, 3], list(range(10, 20))

    def guesses(_: object, hidden: torch.Tensor, tokens: list[int], count: int) -> list[int]:
        assert len(hidden) == len(tokens) - 1
        at = len(tokens) - len(prompt)
        return [-1 if i in wrong else (reply + [0] * count)[i] for i in range(at, at + count)]

    monkeypatch.setattr(drafting, "draft", guesses)
    assert acceptance(network, prompt, reply, 3) == Acceptance(len(steps), sum(steps))


def test_drafts_do_not_depend_on_padding(tiny_checkpoint: Path) -> None:
    network = Network.from_pretrained(tiny_checkpoint)
    tokens = torch.randint(0, network.config.vocab_size, (80,), generator=torch.Generator().manual_seed(6)).tolist()
    hidden = drafting._padded(network, tokens, None)
    for known in (63, 64, 65):
        drafts = drafting.draft(network, hidden[: known - 1], tokens[:known], 3)
        again = drafting.draft(network, hidden[: known - 1], tokens[:known], 2)
        assert drafts[:2] == again
        assert len(drafts) == 3
