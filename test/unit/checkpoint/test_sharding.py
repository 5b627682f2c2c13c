"""The layout of every rank's weights, on hand-made tensors whose every element says where it comes from."""

from __future__ import annotations

import pytest
import torch

from qwen36_neuron.checkpoint.names import canonical_name, mtp_shapes, text_shapes
from qwen36_neuron.checkpoint.sharding import RankWeight, Slice, arrange, assemble, rank_weights
from qwen36_neuron.config import ModelConfig
from qwen36_neuron.errors import ConfigError

DK, DV, D, HIDDEN = 2, 3, 8, 16


def config_of(kv_heads: int = 4, tie: bool = False, mtp: int = 1) -> ModelConfig:
    """8 query, 8 key and 24 value heads of a few elements each, one DeltaNet and one attention layer."""
    return ModelConfig.from_dict(
        {
            "model_type": "qwen3_5_text",
            "vocab_size": 48,
            "hidden_size": HIDDEN,
            "intermediate_size": 16,
            "num_hidden_layers": 2,
            "layer_types": ["linear_attention", "full_attention"],
            "num_attention_heads": 8,
            "num_key_value_heads": kv_heads,
            "head_dim": D,
            "linear_num_key_heads": 8,
            "linear_num_value_heads": 24,
            "linear_key_head_dim": DK,
            "linear_value_head_dim": DV,
            "rope_theta": 1e7,
            "tie_word_embeddings": tie,
            "mtp_num_hidden_layers": mtp,
        }
    )


def numbered(config: ModelConfig) -> dict[str, torch.Tensor]:
    """Every element of every tensor is a different whole number; fp32 holds them all exactly."""
    tensors, start = {}, 0
    for name, shape in (text_shapes(config) | mtp_shapes(config)).items():
        size = torch.Size(shape).numel()
        values = torch.arange(start, start + size, dtype=torch.float32)
        tensors[name] = (values / start if name.endswith("A_log") else values).reshape(shape)  # exp() of it is finite
        start += size
    assert start < 2**24
    return tensors


def share(tensors: dict[str, torch.Tensor], config: ModelConfig, tp: int, rank: int) -> dict[str, torch.Tensor]:
    def read(piece: Slice) -> torch.Tensor:
        return tensors[piece.name].narrow(piece.dim, piece.start, piece.stop - piece.start)

    return {name: assemble(w, read, torch.float32) for name, w in rank_weights(config, tp, rank, True).items()}


def heads(tensor: torch.Tensor, size: int, chosen: range) -> torch.Tensor:
    """Rows of the chosen heads, each head being `size` rows."""
    return torch.cat([tensor[head * size : (head + 1) * size] for head in chosen])


def part(count: int, tp: int, rank: int) -> range:
    return range(rank * count // tp, (rank + 1) * count // tp)


@pytest.mark.parametrize("kv_heads", [1, 2, 4, 8])
@pytest.mark.parametrize("tp", [1, 2, 4, 8])
def test_every_rank_gets_its_heads(tp: int, kv_heads: int) -> None:
    config = config_of(kv_heads)
    full = numbered(config)
    delta = {name.removeprefix("layers.0.linear_attn."): t for name, t in full.items() if "linear_attn" in name}
    q, k, v = delta["in_proj_qkv.weight"].split([8 * DK, 8 * DK, 24 * DV])
    z = delta["in_proj_z.weight"]
    cq, ck, cv = delta["conv1d.weight"][:, 0].split([8 * DK, 8 * DK, 24 * DV])
    for rank in range(tp):
        got = share(full, config, tp, rank)
        keys, values = part(8, tp, rank), part(24, tp, rank)
        start = "layers.0.mixer."
        mixer = {name.removeprefix(start): t for name, t in got.items() if name.startswith(start)}
        expected = {
            "in_proj_qkvz.weight": torch.cat(
                [heads(q, DK, keys), heads(k, DK, keys), heads(v, DV, values), heads(z, DV, values)]
            ),
            "in_proj_ba.weight": torch.cat(
                [heads(delta["in_proj_b.weight"], 1, values), heads(delta["in_proj_a.weight"], 1, values)]
            ),
            "conv_weight": torch.cat([heads(cq, DK, keys), heads(ck, DK, keys), heads(cv, DV, values)]),
            "A": -torch.exp(heads(delta["A_log"], 1, values)),
            "dt_bias": heads(delta["dt_bias"], 1, values),
            "norm.weight": delta["norm.weight"],
            "out_proj.weight": heads(delta["out_proj.weight"].T, DV, values).T,
        }
        assert set(mixer) == set(expected)
        for name, tensor in expected.items():
            torch.testing.assert_close(mixer[name], tensor, rtol=0, atol=0, msg=name)

        queries = part(8, tp, rank)
        # A query head reads the key/value head of its group: that is what the rank must hold.
        groups = sorted({head // (8 // kv_heads) for head in queries})
        for source, target in (("layers.1.self_attn", "layers.1.mixer"), ("mtp.layers.0.self_attn", "mtp.layer.mixer")):
            per_head = full[f"{source}.q_proj.weight"].view(8, 2, D, HIDDEN)
            torch.testing.assert_close(
                got[f"{target}.in_proj_qgkv.weight"],
                torch.cat(
                    [
                        per_head[queries.start : queries.stop, 0].reshape(-1, HIDDEN),
                        per_head[queries.start : queries.stop, 1].reshape(-1, HIDDEN),
                        *(full[f"{source}.k_proj.weight"][g * D : (g + 1) * D] for g in groups),
                        *(full[f"{source}.v_proj.weight"][g * D : (g + 1) * D] for g in groups),
                    ]
                ),
                rtol=0,
                atol=0,
            )
            o_proj = heads(full[f"{source}.o_proj.weight"].T, D, queries).T
            assert torch.equal(got[f"{target}.o_proj.weight"], o_proj)
            assert torch.equal(got[f"{target}.q_norm.weight"], 1 + full[f"{source}.q_norm.weight"])


@pytest.mark.parametrize("tp", [1, 2, 4, 8])
def test_the_rest_of_the_network(tp: int) -> None:
    config = config_of()
    full = numbered(config)
    for rank in range(tp):
        got = share(full, config, tp, rank)
        rows, words = part(16, tp, rank), part(48, tp, rank)
        for source, target in (("layers.0.", "layers.0."), ("layers.1.", "layers.1."), ("mtp.layers.0.", "mtp.layer.")):
            gate, up, down = (full[f"{source}mlp.{name}_proj.weight"] for name in ("gate", "up", "down"))
            gate_up = torch.cat([heads(gate, 1, rows), heads(up, 1, rows)])
            assert torch.equal(got[f"{target}mlp.gate_up_proj.weight"], gate_up)
            assert torch.equal(got[f"{target}mlp.down_proj.weight"], down[:, rows.start : rows.stop])
            assert torch.equal(got[f"{target}input_norm.weight"], 1 + full[f"{source}input_layernorm.weight"])
            assert torch.equal(got[f"{target}post_norm.weight"], 1 + full[f"{source}post_attention_layernorm.weight"])
        for name in ("embed_tokens.weight", "lm_head.weight"):
            assert torch.equal(got[name], full[name][words.start : words.stop])
        assert torch.equal(got["norm.weight"], 1 + full["norm.weight"])
        fc = full["mtp.fc.weight"]
        own = part(len(fc), tp, rank)
        assert torch.equal(got["mtp.fc.weight"], fc[own.start : own.stop])
        for target, source in (
            ("norm_embedding", "pre_fc_norm_embedding"),
            ("norm_hidden", "pre_fc_norm_hidden"),
            ("norm", "norm"),
        ):
            assert torch.equal(got[f"mtp.{target}.weight"], 1 + full[f"mtp.{source}.weight"])


@pytest.mark.parametrize("kv_heads", [1, 4])
@pytest.mark.parametrize("tp", [1, 2, 4, 8])
def test_every_element_is_used_once_over_all_ranks(tp: int, kv_heads: int) -> None:
    config = config_of(kv_heads)
    shapes = text_shapes(config) | mtp_shapes(config)
    used = {name: torch.zeros(shape, dtype=torch.int) for name, shape in shapes.items()}
    layouts: list[dict[str, RankWeight]] = [rank_weights(config, tp, rank, include_mtp=True) for rank in range(tp)]
    for layout in layouts:
        for weight in layout.values():
            for piece in weight.slices:
                used[piece.name].narrow(piece.dim, piece.start, piece.stop - piece.start).add_(1)
    replicated = {piece.name for weight in layouts[0].values() if weight.replicated for piece in weight.slices}
    for name, count in used.items():
        repeats = tp if name in replicated else 1
        if name.endswith(("k_proj.weight", "v_proj.weight")):
            repeats = max(1, tp // kv_heads)
        assert bool((count == repeats).all()), name


@pytest.mark.parametrize("tp", [1, 2, 4, 8])
def test_equal_parts_of_the_arranged_weights_are_the_ranks_shares(tp: int) -> None:
    config = config_of()
    full = numbered(config)
    arranged = arrange(full, config, tp, torch.float32, include_mtp=True)
    for rank in range(tp):
        layout = rank_weights(config, tp, rank, include_mtp=True)
        for name, tensor in share(full, config, tp, rank).items():
            whole = arranged[name]
            cut = whole if layout[name].replicated else whole.chunk(tp, dim=layout[name].dim)[rank]
            assert torch.equal(cut, tensor), name
            assert layout[name].shape(text_shapes(config) | mtp_shapes(config)) == tuple(tensor.shape), name


@pytest.mark.parametrize("tp", [2, 4])
def test_partial_results_of_the_mlp_add_up(tp: int) -> None:
    config = config_of()
    generator = torch.Generator().manual_seed(0)
    full = {
        name: torch.randn(shape, generator=generator, dtype=torch.float64)
        for name, shape in (text_shapes(config) | mtp_shapes(config)).items()
    }
    x = torch.randn(5, HIDDEN, generator=generator, dtype=torch.float64)

    def mlp(gate_up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
        gate, up = (x @ gate_up.T).chunk(2, dim=-1)
        return (torch.nn.functional.silu(gate) * up) @ down.T

    def of(rank: int, ranks: int) -> torch.Tensor:
        weights = {
            name: assemble(w, lambda p: full[p.name].narrow(p.dim, p.start, p.stop - p.start), torch.float64)
            for name, w in rank_weights(config, ranks, rank).items()
        }
        return mlp(weights["layers.0.mlp.gate_up_proj.weight"], weights["layers.0.mlp.down_proj.weight"])

    torch.testing.assert_close(sum(of(rank, tp) for rank in range(tp)), of(0, 1))


def test_number_formats() -> None:
    config = config_of()
    arranged = arrange(numbered(config), config, 2, torch.bfloat16, include_mtp=True)
    fp32 = {name for name, tensor in arranged.items() if tensor.dtype is torch.float32}
    assert fp32 == {
        name
        for name in arranged
        if (name.endswith("norm.weight") and name != "layers.0.mixer.norm.weight")
        or name in ("layers.0.mixer.A", "layers.0.mixer.dt_bias", "mtp.norm_embedding.weight", "mtp.norm_hidden.weight")
    }
    assert {tensor.dtype for name, tensor in arranged.items() if name not in fp32} == {torch.bfloat16}


def test_tied_embeddings_serve_as_the_head() -> None:
    config = config_of(tie=True)
    full = numbered(config)
    assert "lm_head.weight" not in full
    got = share(full, config, 4, 3)
    assert torch.equal(got["lm_head.weight"], got["embed_tokens.weight"])


@pytest.mark.parametrize(
    ("tp", "rank", "mtp", "field"),
    [
        (3, 0, 1, "tp_degree"),
        (16, 0, 1, "tp_degree"),
        (0, 0, 1, "tp_degree"),
        (2, 2, 1, "rank"),
        (2, -1, 1, "rank"),
        (1, 0, 0, "mtp_num_hidden_layers"),
    ],
)
def test_impossible_splits_are_refused(tp: int, rank: int, mtp: int, field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        rank_weights(config_of(mtp=mtp), tp, rank, include_mtp=True)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("stored", "canonical"),
    [
        ("model.language_model.layers.0.mlp.up_proj.weight", "layers.0.mlp.up_proj.weight"),
        ("model.layers.0.mlp.up_proj.weight", "layers.0.mlp.up_proj.weight"),
        ("model.language_model.norm.weight", "norm.weight"),
        ("model.visual.pos_embed.weight", None),
        ("language_model.model.layers.0.mlp.up_proj.weight", "layers.0.mlp.up_proj.weight"),
        ("layers.0.mlp.up_proj.weight", "layers.0.mlp.up_proj.weight"),
        ("language_model.norm.weight", "norm.weight"),
        ("language_model.model.embed_tokens.weight", "embed_tokens.weight"),
        ("visual.blocks.0.attn.qkv.weight", None),
        ("model.language_model.rotary_emb.inv_freq", None),
        ("layers.3.self_attn.rotary_emb.inv_freq", None),
        ("lm_head.weight", "lm_head.weight"),
        ("language_model.lm_head.weight", "lm_head.weight"),
        ("model.mtp.fc.weight", "mtp.fc.weight"),
        ("mtp.fc.weight", "mtp.fc.weight"),
    ],
)
def test_canonical_names(stored: str, canonical: str | None) -> None:
    assert canonical_name(stored) == canonical
