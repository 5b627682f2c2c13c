"""The Qwen3.6 network for training on one GPU, over a plain dict of Hugging Face-named parameters.

Tokens are kept flat ([tokens, ...], rows of the batch one after another), so that everything but attention and the
state scan has the same shapes at every sequence length and is compiled once. `test/unit/demo` holds its logits and
gradients to transformers' Qwen3_5.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from qwen36_neuron.checkpoint.names import canonical_name, mtp_shapes, text_shapes
from qwen36_neuron.config import BLOCK_SIZE, LayerType, ModelConfig

from .scan import StateScan, UnitLowerInverse

L2_EPS = 1e-6


@dataclass(frozen=True, slots=True)
class Batch:
    """The shape of a step's tokens and their places.

    Attributes:
        rows: sequences.
        length: tokens of each, a multiple of 64.
        positions: int64 [rows * length], the place of each token in its row.
        cos, sin: fp32 [rows * length, rotary_dim].
    """

    rows: int
    length: int
    positions: Tensor
    cos: Tensor
    sin: Tensor

    @classmethod
    def of(cls, config: ModelConfig, rows: int, length: int, device: torch.device) -> Batch:
        positions = torch.arange(length, device=device).repeat(rows)
        exponent = torch.arange(0, config.rope.dim, 2, device=device, dtype=torch.float32) / config.rope.dim
        angle = positions[:, None].float() / config.rope.theta**exponent
        angle = torch.cat((angle, angle), dim=-1)
        return cls(rows, length, positions, angle.cos(), angle.sin())


class Network:
    """Forward passes over fp32 master parameters; matrix products run in `compute_dtype`.

    Attributes:
        parameters: canonical Hugging Face name -> fp32 leaf tensor, the multi-token-prediction layer included.
    """

    def __init__(self, config: ModelConfig, seed: int, device: torch.device, compute_dtype: torch.dtype) -> None:
        self.config = config
        self.dtype = compute_dtype
        self._norm: Any = rms_norm
        self._deltanet_in: Any = deltanet_in
        self._deltanet_out: Any = deltanet_out
        self._attention_in: Any = attention_in
        self._attention_out: Any = attention_out
        generator = torch.Generator().manual_seed(seed)
        shapes = text_shapes(config) | mtp_shapes(config)
        self.parameters = {
            name: _initial(name, shape, config, generator).to(device).requires_grad_() for name, shape in shapes.items()
        }

    @classmethod
    def from_pretrained(cls, folder: Path) -> Network:
        """A checkpoint's weights on CPU in fp32."""
        network = cls(ModelConfig.from_pretrained(folder), 0, torch.device("cpu"), torch.float32)
        for stored, tensor in load_file(folder / "model.safetensors").items():
            name = canonical_name(stored)
            if name is not None:
                network.parameters[name].data.copy_(tensor)
        return network

    def compile(self) -> None:
        """Compile all but attention and the state scan. Every call must then have the same number of tokens."""
        for name in ("_norm", "_deltanet_in", "_deltanet_out", "_attention_in", "_attention_out"):
            setattr(self, name, torch.compile(getattr(self, name), dynamic=False))

    def hidden(self, tokens: Tensor, batch: Batch) -> Tensor:
        """Final-norm hidden states [tokens, hidden] of int64 tokens [tokens]."""
        x = F.embedding(tokens, self.parameters["embed_tokens.weight"]).to(self.dtype)
        for index, kind in enumerate(self.config.layer_types):
            layer = self._layer(f"layers.{index}.")
            x = (
                self._run_attention(x, layer, batch)
                if kind is LayerType.ATTENTION
                else self._run_deltanet(x, layer, batch)
            )
        return self._norm(x, self.parameters["norm.weight"], self.config.rms_norm_eps)

    def draft_hidden(self, hidden: Tensor, next_tokens: Tensor, batch: Batch) -> Tensor:
        """The multi-token-prediction layer: hidden [tokens, hidden] at t and the token at t + 1 -> its own at t."""
        p, eps = self.parameters, self.config.rms_norm_eps
        embedded = F.embedding(next_tokens, p["embed_tokens.weight"].detach()).to(self.dtype)
        embedded = self._norm(embedded, p["mtp.pre_fc_norm_embedding.weight"], eps)
        hidden = self._norm(hidden, p["mtp.pre_fc_norm_hidden.weight"], eps)
        x = F.linear(torch.cat((embedded, hidden), dim=-1), p["mtp.fc.weight"].to(self.dtype))
        x = self._run_attention(x, self._layer("mtp.layers.0."), batch)
        return self._norm(x, p["mtp.norm.weight"], eps)

    def head(self) -> Tensor:
        """The output matrix [vocab, hidden]."""
        return self.parameters["embed_tokens.weight" if self.config.tie_word_embeddings else "lm_head.weight"]

    def logits(self, hidden: Tensor) -> Tensor:
        """fp32 [tokens, vocab]."""
        return F.linear(hidden, self.head().to(self.dtype)).float()

    def _layer(self, prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): p for name, p in self.parameters.items() if name.startswith(prefix)}

    def _run_deltanet(self, x: Tensor, p: dict[str, Tensor], batch: Batch) -> Tensor:
        heads, chunks = self.config.num_value_heads, batch.length // BLOCK_SIZE
        a, w, u, k, decay, q, scores, z = self._deltanet_in(x, p, batch.positions, self.config)
        inverse = UnitLowerInverse.apply(a)

        def chunk_major(t: Tensor) -> Tensor:
            t = t.view(batch.rows, chunks, *t.shape[1:]).transpose(0, 1)
            return t.reshape(chunks, batch.rows * heads, *t.shape[3:])

        def token_major(t: Tensor) -> Tensor:
            t = t.view(chunks, batch.rows, heads, *t.shape[2:]).transpose(0, 1)
            return t.reshape(batch.rows * chunks, heads, *t.shape[3:])

        states, v = StateScan.apply(
            chunk_major(inverse @ u), chunk_major(inverse @ w), chunk_major(k), chunk_major(decay)
        )
        out = q @ token_major(states) + scores @ token_major(v)
        return self._deltanet_out(x, out, z, p, self.config.rms_norm_eps)

    def _run_attention(self, x: Tensor, p: dict[str, Tensor], batch: Batch) -> Tensor:
        q, gate, k, v = self._attention_in(x, p, batch.cos, batch.sin, self.config)
        q, k, v = (t.view(batch.rows, batch.length, *t.shape[1:]).transpose(1, 2) for t in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        out = out.transpose(1, 2).reshape(x.shape[0], -1)
        return self._attention_out(x, out, gate, p, self.config.rms_norm_eps)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Normalise in fp32 and scale by 1 + weight."""
    y = x.float()
    y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps)
    return (y * (1.0 + weight)).to(x.dtype)


def l2_norm(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + L2_EPS)


def mlp(x: Tensor, p: dict[str, Tensor], eps: float) -> Tensor:
    """x plus its gated MLP."""
    h = rms_norm(x, p["post_attention_layernorm.weight"], eps)
    gate = F.linear(h, p["mlp.gate_proj.weight"].to(x.dtype))
    up = F.linear(h, p["mlp.up_proj.weight"].to(x.dtype))
    return x + F.linear(F.silu(gate) * up, p["mlp.down_proj.weight"].to(x.dtype))


def deltanet_in(x: Tensor, p: dict[str, Tensor], positions: Tensor, config: ModelConfig) -> tuple[Tensor, ...]:
    """All before the inverse, fp32, by chunk: A, beta k e^G, beta v, decayed k, e^{G_last}, q e^G, scores; and z.

    Matrices are [tokens / 64, heads, 64, ...]; z is [tokens, heads, value_head_dim].
    """
    heads, key_heads = config.num_value_heads, config.num_key_heads
    h = rms_norm(x, p["input_layernorm.weight"], config.rms_norm_eps)
    qkv = F.linear(h, p["linear_attn.in_proj_qkv.weight"].to(x.dtype)).float()
    z = F.linear(h, p["linear_attn.in_proj_z.weight"].to(x.dtype)).view(-1, heads, config.value_head_dim)
    beta = F.linear(h, p["linear_attn.in_proj_b.weight"].to(x.dtype)).float().sigmoid()
    rate = F.linear(h, p["linear_attn.in_proj_a.weight"].to(x.dtype)).float()
    gate = -p["linear_attn.A_log"].exp() * F.softplus(rate + p["linear_attn.dt_bias"])

    taps = p["linear_attn.conv1d.weight"].squeeze(1)
    mixed = qkv * taps[:, -1]
    for back in range(1, config.conv_kernel):
        earlier = torch.roll(qkv, back, 0) * (positions >= back)[:, None]
        mixed = mixed + earlier * taps[:, -1 - back]
    q, k, v = F.silu(mixed).split((config.key_dim, config.key_dim, config.value_dim), dim=-1)

    def by_chunk(t: Tensor, count: int) -> Tensor:
        t = t.view(-1, BLOCK_SIZE, count, t.shape[-1] // count).transpose(1, 2)
        return t.repeat_interleave(heads // count, dim=1)

    q = by_chunk(l2_norm(q.view(-1, key_heads, config.key_head_dim)).flatten(1), key_heads) * config.key_head_dim**-0.5
    k = by_chunk(l2_norm(k.view(-1, key_heads, config.key_head_dim)).flatten(1), key_heads)
    v, beta, gate = by_chunk(v, heads), by_chunk(beta, heads), by_chunk(gate, heads).squeeze(-1)

    total = gate.cumsum(-1)
    ones = torch.ones(BLOCK_SIZE, BLOCK_SIZE, dtype=torch.bool, device=x.device)
    decay = (total[..., :, None] - total[..., None, :]).masked_fill(~ones.tril(), -torch.inf).exp()
    a = ((beta * k) @ k.mT * decay).masked_fill(ones.triu(), 0.0)
    scores = q @ k.mT * decay
    grown = total.exp()[..., None]
    last = total[..., -1:]
    return (
        a,
        beta * k * grown,
        beta * v,
        k * (last - total).exp()[..., None],
        last.squeeze(-1).exp(),
        q * grown,
        scores,
        z,
    )


def deltanet_out(x: Tensor, out: Tensor, z: Tensor, p: dict[str, Tensor], eps: float) -> Tensor:
    """Gated norm of out [tokens / 64, heads, 64, value_head_dim], output projection, residual, MLP."""
    out = out.transpose(1, 2).reshape(z.shape)
    out = out * torch.rsqrt(out.square().mean(-1, keepdim=True) + eps)
    out = (p["linear_attn.norm.weight"] * out * F.silu(z.float())).to(x.dtype)
    return mlp(x + F.linear(out.flatten(1), p["linear_attn.out_proj.weight"].to(x.dtype)), p, eps)


def attention_in(
    x: Tensor, p: dict[str, Tensor], cos: Tensor, sin: Tensor, config: ModelConfig
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q [tokens, heads, head_dim], gate [tokens, heads * head_dim], k and v [tokens, kv_heads, head_dim]."""
    d, eps = config.head_dim, config.rms_norm_eps
    h = rms_norm(x, p["input_layernorm.weight"], eps)
    q, gate = F.linear(h, p["self_attn.q_proj.weight"].to(x.dtype)).view(-1, config.num_query_heads, 2 * d).chunk(2, -1)
    k = F.linear(h, p["self_attn.k_proj.weight"].to(x.dtype)).view(-1, config.num_kv_heads, d)
    v = F.linear(h, p["self_attn.v_proj.weight"].to(x.dtype)).view(-1, config.num_kv_heads, d)
    q = rotate(rms_norm(q, p["self_attn.q_norm.weight"], eps), cos, sin)
    k = rotate(rms_norm(k, p["self_attn.k_norm.weight"], eps), cos, sin)
    return q, gate.flatten(1), k, v


def attention_out(x: Tensor, out: Tensor, gate: Tensor, p: dict[str, Tensor], eps: float) -> Tensor:
    """Output gate, output projection, residual, MLP."""
    out = out * gate.float().sigmoid().to(x.dtype)
    return mlp(x + F.linear(out, p["self_attn.o_proj.weight"].to(x.dtype)), p, eps)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE on the first dimensions of each head; text positions, so that all three position axes are equal."""
    dim = cos.shape[-1]
    turned, rest = x[..., :dim].float(), x[..., dim:]
    half = torch.cat((-turned[..., dim // 2 :], turned[..., : dim // 2]), dim=-1)
    return torch.cat(((turned * cos[:, None] + half * sin[:, None]).to(x.dtype), rest), dim=-1)


def matrices(network: Network) -> Iterator[tuple[str, Tensor]]:
    """The weights of the layers' linear maps: those that an orthogonalised optimiser is meant for."""
    for name, parameter in network.parameters.items():
        if parameter.dim() == 2 and "embed_tokens" not in name and "lm_head" not in name:
            yield name, parameter


def _initial(name: str, shape: tuple[int, ...], config: ModelConfig, generator: torch.Generator) -> Tensor:
    if name.endswith("A_log"):
        return torch.empty(shape).uniform_(0.0, math.log(16.0), generator=generator)
    if name.endswith("dt_bias"):
        dt = torch.empty(shape).uniform_(math.log(0.001), math.log(0.1), generator=generator).exp()
        return dt + torch.log(-torch.expm1(-dt))
    if len(shape) == 1:
        return torch.ones(shape) if name.endswith("linear_attn.norm.weight") else torch.zeros(shape)
    normal = torch.randn(shape, generator=generator)
    if name == "embed_tokens.weight":
        return 0.5 * normal
    fan_in = math.prod(shape[1:])
    scale = 1.0
    if name == "lm_head.weight":
        scale = 0.1
    elif name.endswith(("out_proj.weight", "o_proj.weight", "down_proj.weight")):
        scale = 0.5 / math.sqrt(config.num_layers)
    return normal * scale * fan_in**-0.5
