"""A tiny checkpoint whose weights are written down, not trained, so that it retrieves from any distance.

Its vocabulary has needles (a key and a value), questions (a key) and answers (a value); all other tokens are hay. One
DeltaNet layer comes first, with random weights and a small result, so that states are carried over the whole text. The
attention layer after it gives a question a query that only needles of its key match, by 40 in the exponent, and reads
the needle's value, which the head turns into the answer. As the last layer it attends for the last token alone, so a
prompt costs time in proportion to its length.
"""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from qwen36_neuron.checkpoint.maker import CheckpointSpec, make_checkpoint, random_weights, write_weights
from qwen36_neuron.config import ModelConfig

KEYS, VALUES = 8, 32
NEEDLES = 1000
"""Token of the first needle; that of key k and value v is NEEDLES + k * VALUES + v."""
QUESTIONS = NEEDLES + KEYS * VALUES
ANSWERS = QUESTIONS + KEYS
HAY = range(100, NEEDLES)

HIDDEN, HEAD = 64, 64
_NEEDLE, _QUESTION, _VALUE, _ONE = 0, KEYS, 2 * KEYS, 2 * KEYS + VALUES
"""Places in a hidden state: which needle, which question, which value, and a one for every token."""
_MATCH, _SINK = 32, 60
"""Places in a head that are not rotated: of keys that are matched, and of what every other token has there."""
_TURNED = 0.2
"""What every query and key has in the first rotated place: scores follow distance by 1.6 at most."""


def needle(key: int, value: int) -> int:
    """The token that hides `value` under `key`."""
    return NEEDLES + key * VALUES + value


def make(folder: Path, positions: int = 262144) -> Path:
    """Write the checkpoint into a new folder. positions: its `max_position_embeddings`."""
    spec = CheckpointSpec(
        num_layers=2,
        hidden_size=HIDDEN,
        intermediate_size=64,
        num_query_heads=1,
        num_kv_heads=1,
        num_key_heads=1,
        num_value_heads=1,
        vocab_size=2048,
        max_position_embeddings=positions,
        dtype="float32",
    )
    with TemporaryDirectory() as made:
        plain = make_checkpoint(Path(made) / "plain", spec)
        raw = json.loads((plain / "config.json").read_text())
        raw["text_config"] |= {
            "layer_types": ["linear_attention", "full_attention"],
            "head_dim": HEAD,
            "linear_key_head_dim": 64,
            "linear_value_head_dim": 64,
        }
        raw["text_config"]["rope_parameters"]["mrope_section"] = [3, 3, 2]
        config = ModelConfig.from_dict(raw)
        weights = random_weights(config, spec)
        _write_down(weights)
        folder.mkdir(parents=True)
        for file in plain.iterdir():
            if file.name not in ("model.safetensors", "config.json"):
                (folder / file.name).write_bytes(file.read_bytes())
        (folder / "config.json").write_text(json.dumps(raw, indent=1))
        write_weights(folder, weights)
    return folder


def yarn(positions: int, factor: float = 4.0) -> dict[str, Any]:
    """`--hf-overrides` as published model cards have them, for a model of so many positions."""
    rope = {
        "mrope_interleaved": True,
        "mrope_section": [3, 3, 2],
        "rope_type": "yarn",
        "rope_theta": 10000000,
        "partial_rotary_factor": 0.25,
        "factor": factor,
        "original_max_position_embeddings": positions,
    }
    return {"text_config": {"rope_parameters": rope}}


def prompt(tokens: int, depths: dict[int, float], values: dict[int, int], question: int, seed: int = 0) -> list[int]:
    """Hay of `tokens` tokens with a needle of each key at its depth (0 to 1), and a question at the end."""
    random = torch.Generator().manual_seed(seed)
    ids: list[int] = torch.randint(HAY.start, HAY.stop, (tokens,), generator=random).tolist()
    for key, depth in depths.items():
        ids[round(depth * (tokens - 2))] = needle(key, values[key])
    ids[-1] = QUESTIONS + question
    return ids


def _write_down(weights: dict[str, torch.Tensor]) -> None:
    """Replace, in place, what retrieval is made of."""
    text = "model.language_model."
    embedding = weights[text + "embed_tokens.weight"]
    embedding.zero_()
    random = torch.Generator().manual_seed(1)
    embedding[:, _ONE + 1 :] = torch.randn(len(embedding), HIDDEN - _ONE - 1, generator=random) / 4
    embedding[:, _ONE] = 1
    for key in range(KEYS):
        embedding[QUESTIONS + key, _QUESTION + key] = 2
        for value in range(VALUES):
            embedding[needle(key, value), _NEEDLE + key] = 2
            embedding[needle(key, value), _VALUE + value] = 2
    for name, tensor in weights.items():
        if "layernorm" in name or (name.endswith(("norm.weight", "_norm.weight")) and "linear_attn" not in name):
            tensor.zero_()  # stored around zero
        if name.endswith(("linear_attn.out_proj.weight", "mlp.down_proj.weight")):
            tensor.mul_(0.01)
    layer = text + "layers.1.self_attn."
    queries, gates = weights[layer + "q_proj.weight"].zero_().split(HEAD)
    keys, values = weights[layer + "k_proj.weight"].zero_(), weights[layer + "v_proj.weight"].zero_()
    for key in range(KEYS):
        queries[_MATCH + key, _QUESTION + key] = 1
        keys[_MATCH + key, _NEEDLE + key] = 1
    queries[0, _ONE] = keys[0, _ONE] = _TURNED
    keys[_SINK, _ONE] = queries[_SINK + 1, _ONE] = 0.3
    gates[:, _ONE] = 10
    values[torch.arange(VALUES), _VALUE + torch.arange(VALUES)] = 1
    for name in ("q_norm.weight", "k_norm.weight"):
        weights[layer + name].fill_(5**0.5 - 1)  # 1 + w: scores of 8 x 5 where a query and a key agree
    out = weights[layer + "o_proj.weight"].zero_()
    out[_VALUE + torch.arange(VALUES), torch.arange(VALUES)] = 10
    head = weights["lm_head.weight"].zero_()
    head[ANSWERS + torch.arange(VALUES), _VALUE + torch.arange(VALUES)] = 1
