"""The multi-token-prediction layer against transformers' MtpLayer in fp32, on the same weights.

Tolerance: 1e-5 absolute on normed states of about one, as for the network itself.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from draft_oracle import Growing
from safetensors.torch import load_file
from transformers.modeling_layers import MtpLayer as Reference
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5DecoderLayer, Qwen3_5RMSNorm
from transformers.models.qwen3_5_moe.modeling_qwen3_5_moe import Qwen3_5MoeDecoderLayer

from qwen36_lab.reference import transformers_model
from qwen36_neuron.checkpoint.load import load_weights
from qwen36_neuron.config import ModelConfig
from qwen36_neuron.model import Qwen36Model

TOLERANCE = 1e-5
TOKENS = 131
RENAMED = {
    "mtp.fc.": "eh_proj.",
    "mtp.pre_fc_norm_embedding.": "enorm.",
    "mtp.pre_fc_norm_hidden.": "hnorm.",
    "mtp.norm.": "post_norm.",
    "mtp.layers.0.": "mtp_block.",
}


@pytest.fixture(scope="module", params=["tiny", "tiny_mixture"])
def checkpoint(request: pytest.FixtureRequest) -> Path:
    made: Path = request.getfixturevalue(f"{request.param}_checkpoint")
    return made


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> Qwen36Model:
    config = ModelConfig.from_pretrained(checkpoint)
    return Qwen36Model.from_weights(config, load_weights(checkpoint, config, include_mtp=True))


@pytest.fixture(scope="module")
def hidden(model: Qwen36Model) -> torch.Tensor:
    """Anything of the size of normed states: [1, TOKENS, hidden]."""
    return torch.randn(1, TOKENS, model.config.hidden_size, generator=torch.Generator().manual_seed(4))


@pytest.fixture(scope="module")
def tokens(model: Qwen36Model) -> torch.Tensor:
    """The tokens that follow."""
    return torch.randint(0, model.config.vocab_size, (1, TOKENS), generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def expected(checkpoint: Path, model: Qwen36Model, hidden: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    text = transformers_model(checkpoint).model.language_model
    kind = Qwen3_5MoeDecoderLayer if model.config.moe else Qwen3_5DecoderLayer
    layer = Reference(text.config, kind, Qwen3_5RMSNorm, 3)
    stored = load_file(checkpoint / "model.safetensors")
    layer.load_state_dict(
        {
            new + name.removeprefix(old): tensor.float()
            for name, tensor in stored.items()
            for old, new in RENAMED.items()
            if name.startswith(old)
        }
    )
    positions, mask = torch.arange(TOKENS)[None], torch.full((TOKENS, TOKENS), -torch.inf).triu(1)[None, None]
    with torch.inference_mode():
        embedded = text.embed_tokens(tokens)
        return layer(embedded, hidden, text.rotary_emb(embedded, positions), mask, positions, None)


@pytest.mark.parametrize("pieces", [[131], [1] * 131, [64, 1, 66], [2, 129]], ids=str)
def test_prefill_of_the_layer_cut_anywhere(
    model: Qwen36Model, hidden: torch.Tensor, tokens: torch.Tensor, expected: torch.Tensor, pieces: list[int]
) -> None:
    state, start, drafted = Growing(), 0, []
    with torch.inference_mode():
        for length in pieces:
            span = slice(start, start + length)
            positions = torch.arange(start, start + length)[None]
            drafted.append(model.draft(hidden[:, span], tokens[:, span], positions, state))
            start += length
    assert (torch.cat(drafted, dim=1) - expected).abs().max() <= TOLERANCE
    assert list(state.kv) == [model.config.num_layers]  # its own place, behind the model's attention layers


def test_the_last_token_alone_is_what_it_is_among_all(
    model: Qwen36Model, hidden: torch.Tensor, tokens: torch.Tensor, expected: torch.Tensor
) -> None:
    with torch.inference_mode():
        last = model.draft(hidden, tokens, torch.arange(TOKENS)[None], Growing(), torch.tensor([TOKENS - 1]))
    assert last.shape == (1, 1, model.config.hidden_size)
    assert (last[:, 0] - expected[:, -1]).abs().max() <= TOLERANCE


def test_a_model_without_the_layer_does_not_have_it(checkpoint: Path) -> None:
    config = ModelConfig.from_pretrained(checkpoint)
    assert not hasattr(Qwen36Model.from_weights(config, load_weights(checkpoint, config)), "mtp")
