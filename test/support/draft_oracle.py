"""What the multi-token-prediction layer drafts after a text, in one pass over all of it, without any cache."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F

from qwen36_lab.reference import transformers_model
from qwen36_neuron.checkpoint.load import load_weights
from qwen36_neuron.config import ModelConfig
from qwen36_neuron.model import Qwen36Model
from qwen36_neuron.model.state import Mixing


class Growing(Mixing):
    """Keys and values of one row, laid end to end."""

    def __init__(self) -> None:
        self.kv: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        if layer in self.kv:
            k, v = (torch.cat(pair, dim=1) for pair in zip(self.kv[layer], (k, v), strict=True))
        self.kv[layer] = k, v
        new, held = q.shape[1], k.shape[1]
        mask = torch.ones(new, held, dtype=torch.bool).tril(held - new)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True).transpose(1, 2)


class DraftOracle:
    """Hidden states are transformers'; the layer is this project's, which test_mtp.py compares with transformers'."""

    def __init__(self, checkpoint: Path) -> None:
        whole = transformers_model(checkpoint)
        self._text = whole.model.language_model.eval()
        config = ModelConfig.from_pretrained(checkpoint)
        self._model = Qwen36Model.from_weights(config, load_weights(checkpoint, config, include_mtp=True))

    def __call__(self, tokens: Sequence[int], count: int) -> tuple[int, ...]:
        """`count` drafts after `tokens`, two at least, of which the last has not run."""
        state, ids = Growing(), torch.tensor([tokens])
        drafts: list[int] = []
        with torch.inference_mode():
            hidden = self._text(input_ids=ids[:, :-1]).last_hidden_state
            following, start = ids[:, 1:], 0
            while len(drafts) < count:
                positions = torch.arange(start, start + hidden.shape[1])[None]
                hidden = self._model.draft(hidden, following, positions, state)[:, -1:]
                start = int(positions[0, -1]) + 1
                drafts.append(int(self._model.logits(hidden[:, 0]).argmax()))
                following = torch.tensor([[drafts[-1]]])
        return tuple(drafts)
