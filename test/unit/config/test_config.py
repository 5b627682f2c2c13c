"""The model description: the published sizes, both layouts of config.json, and every bad value named."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from qwen36_neuron.config import LayerType, ModelConfig
from qwen36_neuron.errors import ConfigError, UnsupportedModelError
from qwen36_neuron.moe import MoEConfig
from qwen36_neuron.rope import RopeConfig, YarnConfig

Raw = dict[str, Any]


@pytest.fixture
def big(published_27b: Raw) -> ModelConfig:
    return ModelConfig.from_dict(published_27b)


def test_published_sizes(big: ModelConfig) -> None:
    assert big.num_parameters() / 1e9 == pytest.approx(26.9, abs=0.05)
    assert big.kv_bytes_per_token() == 64 * 1024
    assert big.state_bytes_per_lane(tp=4) / 1e6 == pytest.approx(38.49, abs=0.005)
    assert big.state_bytes_per_lane() == 4 * big.state_bytes_per_lane(tp=4)
    assert big.conv_channels == 10240
    assert (big.key_dim, big.value_dim) == (2048, 6144)
    assert len(big.deltanet_layers) == 48
    assert big.attention_layers == tuple(range(3, 64, 4))
    assert big.rope == RopeConfig(theta=1e7, dim=64, mrope_section=(11, 11, 10))


def test_state_bytes_by_number_format(big: ModelConfig) -> None:
    recurrent = 48 * 48 * 128 * 128 * 4  # fp32 whatever the model's dtype is
    assert big.state_bytes_per_lane(conv_element_bytes=2) == recurrent + 48 * 3 * 10240 * 2
    assert big.state_bytes_per_lane(conv_element_bytes=4) == recurrent + 48 * 3 * 10240 * 4
    assert big.kv_bytes_per_token(element_bytes=4) == 128 * 1024


def test_the_draft_layer_adds_its_parameters(big: ModelConfig) -> None:
    mlp, attention = 3 * 5120 * 17408, 5120 * (12288 + 2048 + 6144) + 2 * 256
    assert big.num_parameters(include_mtp=True) - big.num_parameters() == mlp + attention + 2 * 5120**2 + 5 * 5120


def test_flat_and_nested_read_alike(published_27b: Raw, big: ModelConfig) -> None:
    flat = ModelConfig.from_dict(published_27b["text_config"])
    assert flat.model_type == "qwen3_5_text"
    assert {**_fields(flat), "model_type": "qwen3_5"} == _fields(big)


def _fields(config: ModelConfig) -> Raw:
    return {name: getattr(config, name) for name in ModelConfig.__dataclass_fields__}


def test_layer_pattern_from_the_interval_or_from_the_list(published_27b: Raw, big: ModelConfig) -> None:
    text = published_27b["text_config"]
    text["layer_types"] = [kind.value for kind in big.layer_types]
    assert ModelConfig.from_dict(published_27b).layer_types == big.layer_types
    del text["layer_types"], text["full_attention_interval"]
    assert ModelConfig.from_dict(published_27b).layer_types == big.layer_types
    text["full_attention_interval"] = 2
    assert ModelConfig.from_dict(published_27b).layer_types == (LayerType.DELTANET, LayerType.ATTENTION) * 32


@pytest.mark.parametrize(
    ("tp", "query", "kv", "replicas", "key", "value"),
    [(1, 24, 4, 1, 16, 48), (2, 12, 2, 1, 8, 24), (4, 6, 1, 1, 4, 12), (8, 3, 1, 2, 2, 6)],
)
def test_rank_shares(big: ModelConfig, tp: int, query: int, kv: int, replicas: int, key: int, value: int) -> None:
    rank = big.rank(tp)
    assert (rank.num_query_heads, rank.num_kv_heads, rank.kv_replicas) == (query, kv, replicas)
    assert (rank.num_key_heads, rank.num_value_heads) == (key, value)
    assert rank.conv_channels == (2 * key + value) * 128
    assert rank.intermediate_size * tp == 17408
    assert rank.vocab_size * tp == 248320


@pytest.mark.parametrize(("tp", "field"), [(0, "tp_degree"), (-4, "tp_degree"), (3, "tp_degree"), (16, "tp_degree")])
def test_impossible_rank_counts(big: ModelConfig, tp: int, field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        big.rank(tp)
    assert caught.value.field == field
    assert caught.value.value == tp


def test_kv_heads_that_neither_split_nor_repeat(published_27b: Raw) -> None:
    published_27b["text_config"]["num_key_value_heads"] = 3
    with pytest.raises(ConfigError, match="neither split nor replicated"):
        ModelConfig.from_dict(published_27b).rank(4)


YARN: Raw = {"rope_type": "yarn", "rope_theta": 1e7, "factor": 4.0, "original_max_position_embeddings": 262144}

BAD_VALUES: list[tuple[str, Any, str]] = [
    *(
        (field, value, field)
        for field in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
            "linear_num_key_heads",
            "linear_num_value_heads",
            "linear_key_head_dim",
            "linear_value_head_dim",
            "linear_conv_kernel_dim",
            "max_position_embeddings",
        )
        for value in (0, -1, 2.5, "8", True, [8])
    ),
    ("linear_conv_kernel_dim", 1, "linear_conv_kernel_dim"),
    ("mtp_num_hidden_layers", -1, "mtp_num_hidden_layers"),
    ("full_attention_interval", 0, "full_attention_interval"),
    ("num_attention_heads", 25, "num_attention_heads"),
    ("linear_num_value_heads", 40, "linear_num_value_heads"),
    *(("rms_norm_eps", value, "rms_norm_eps") for value in (0, -1e-6, "small", float("nan"), float("inf"))),
    ("hidden_act", "gelu", "hidden_act"),
    ("attention_bias", True, "attention_bias"),
    ("attn_output_gate", False, "attn_output_gate"),
    *(("layer_types", value, "layer_types") for value in ("full_attention", 3, ["full_attention"], ["mamba"] * 64)),
    ("layer_types", [["full_attention"]] * 64, "layer_types"),
    *(("eos_token_id", value, "eos_token_id") for value in ("<|im_end|>", -1, [1, "2"], 1.5, True)),
    ("rope_parameters", 3, "rope_parameters"),
    ("rope_parameters", {}, "rope_theta"),
    ("rope_parameters", {"rope_theta": 0}, "rope_theta"),
    *(
        ("rope_parameters", {"rope_theta": 1e7, "rope_type": kind, "factor": 4.0}, "rope_parameters.rope_type")
        for kind in ("dynamic", "linear", "longrope", "llama3", "proportional", "ntk", "deepseek_yarn", 3)
    ),
    ("rope_parameters", {"rope_theta": 1e7, "factor": 4.0}, "rope_parameters.factor"),
    ("rope_parameters", {"rope_theta": 1e7, "rope_type": "default", "type": "yarn"}, "rope_parameters.type"),
    ("rope_parameters", {**YARN, "rope_theta": 1.0}, "rope_theta"),
    *(
        ("rope_parameters", {**YARN, name: value}, f"rope_parameters.{name}")
        for name, values in {
            "factor": (None, 0.5, "4", True, float("nan")),
            "original_max_position_embeddings": (0, 2.5, "262144"),
            "beta_fast": (0, -1, "32", 0.5),
            "beta_slow": (0, "1"),
            "truncate": (1, "yes"),
            "attention_factor": (0, -1.0, "1"),
            "mscale": (1.0,),
            "mscale_all_dim": (0.5,),
            "attn_factor": (1.0,),
            "extrapolation_factor": (1.0,),
            "apply_yarn_scaling": (True,),
            "short_factor": ([1.0],),
        }.items()
        for value in values
    ),
    ("rope_parameters", {**YARN, "attention_factor": 1.0, "mscale": 1.0}, "rope_parameters.mscale"),
    ("rope_parameters", {**YARN, "mscale": 0, "mscale_all_dim": 1.0}, "rope_parameters.mscale"),
    ("rope_scaling", 3, "rope_scaling"),
    ("rope_scaling", {"rope_theta": 5e5}, "rope_scaling.rope_theta"),
    ("rope_parameters", {"rope_theta": 1e7, "mrope_interleaved": False}, "rope_parameters.mrope_interleaved"),
    *(
        ("rope_parameters", {"rope_theta": 1e7, "mrope_section": section}, "rope_parameters.mrope_section")
        for section in ([11, 11, 11], [16, 16], "11", [-11, 33, 10], [11, 11, "10"], 32)
    ),
    ("rope_parameters", {"rope_theta": 1e7, "partial_rotary_factor": 2.0}, "partial_rotary_factor"),
    ("rope_parameters", {"rope_theta": 1e7, "partial_rotary_factor": 0.012}, "partial_rotary_factor"),
]


@pytest.mark.parametrize(("field", "value", "named"), BAD_VALUES)
def test_bad_values_are_named(published_27b: Raw, field: str, value: Any, named: str) -> None:
    published_27b["text_config"][field] = value
    with pytest.raises(ConfigError) as caught:
        ModelConfig.from_dict(published_27b)
    assert caught.value.field == named
    assert str(caught.value).startswith(f"{named}=")
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize(
    "field",
    [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "linear_num_key_heads",
        "linear_num_value_heads",
    ],
)
@pytest.mark.parametrize("how", [lambda text, field: text.pop(field), lambda text, field: text.update({field: None})])
def test_missing_fields_are_named(published_27b: Raw, field: str, how: Callable[[Raw, str], object]) -> None:
    how(published_27b["text_config"], field)
    with pytest.raises(ConfigError, match="is missing") as caught:
        ModelConfig.from_dict(published_27b)
    assert caught.value.field == field


def test_text_that_says_true_is_not_true(published_27b: Raw) -> None:
    published_27b["tie_word_embeddings"] = "false"
    with pytest.raises(ConfigError) as caught:
        ModelConfig.from_dict(published_27b)
    assert caught.value.field == "tie_word_embeddings"


@pytest.mark.parametrize("where", ["outside", "inside"])
def test_tied_embeddings_count_once(published_27b: Raw, big: ModelConfig, where: str) -> None:
    if where == "inside":
        del published_27b["tie_word_embeddings"]
    (published_27b["text_config"] if where == "inside" else published_27b)["tie_word_embeddings"] = True
    tied = ModelConfig.from_dict(published_27b)
    assert big.num_parameters() - tied.num_parameters() == 248320 * 5120


@pytest.mark.parametrize("model_type", ["qwen3_next", "llama", None])
def test_other_families_are_refused(published_27b: Raw, model_type: str | None) -> None:
    published_27b["model_type"] = model_type
    with pytest.raises(UnsupportedModelError, match="Supported: qwen3_5"):
        ModelConfig.from_dict(published_27b)


def moe_of(dense: Raw) -> Raw:
    """The published 35B-A3B's expert fields on a dense description."""
    text = dense["text_config"]
    del text["intermediate_size"]
    text |= {
        "model_type": "qwen3_5_moe_text",
        "num_experts": 256,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 512,
        "shared_expert_intermediate_size": 512,
    }
    return dense | {"model_type": "qwen3_5_moe"}


def test_a_mixture_of_experts_is_read(published_27b: Raw) -> None:
    raw = moe_of(published_27b)
    raw["text_config"] |= {"router_aux_loss_coef": 0.001, "output_router_logits": False, "decoder_sparse_step": 1}
    raw["text_config"] |= {"mlp_only_layers": [], "norm_topk_prob": None}
    config = ModelConfig.from_dict(raw)
    assert config.moe == MoEConfig(256, 8, 512, 512, norm_topk_prob=True)
    assert config.intermediate_size == 512
    raw["text_config"]["norm_topk_prob"] = False
    changed = ModelConfig.from_dict(raw).moe
    assert changed is not None
    assert not changed.norm_topk_prob


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("decoder_sparse_step", 2),
        ("mlp_only_layers", [0]),
        ("scoring_func", "sigmoid"),
        ("n_group", 4),
        ("routed_scaling_factor", 2.5),
        ("first_k_dense_replace", 1),
        ("norm_topk_prob", "yes"),
        ("num_experts_per_tok", 257),
        ("hidden_act", "gelu"),
    ],
)
def test_what_this_family_of_mixtures_does_not_do_is_refused_by_name(
    published_27b: Raw, field: str, value: object
) -> None:
    raw = moe_of(published_27b)
    raw["text_config"][field] = value
    with pytest.raises(ConfigError) as caught:
        ModelConfig.from_dict(raw)
    assert caught.value.field == field


@pytest.mark.parametrize("field", ["moe_intermediate_size", "shared_expert_intermediate_size"])
def test_ranks_are_inside_each_expert(published_27b: Raw, field: str) -> None:
    raw = moe_of(published_27b)
    rank = ModelConfig.from_dict(raw).rank(4)
    assert (rank.intermediate_size, rank.shared_intermediate_size) == (128, 128)
    raw["text_config"][field] = 510
    with pytest.raises(ConfigError, match=f"{field}=510 does not divide"):
        ModelConfig.from_dict(raw).rank(4)


def test_parameters_of_the_35b(published_27b: Raw) -> None:
    """By hand, of the feed-forward blocks: experts, the shared one, the router and the shared one's gate."""
    raw = moe_of(published_27b)
    dense = ModelConfig.from_dict(
        raw | {"model_type": "qwen3_5", "text_config": raw["text_config"] | {"intermediate_size": 1}}
    )
    mixture = ModelConfig.from_dict(raw)
    h, layers = mixture.hidden_size, mixture.num_layers
    each = 257 * 3 * h * 512 + 256 * h + h
    assert mixture.num_parameters() - dense.num_parameters() == layers * (each - 3 * h)
    active = 9 * 3 * h * 512 + 256 * h + h
    assert mixture.num_active_parameters() - dense.num_active_parameters() == layers * (active - 3 * h)
    assert dense.num_active_parameters() == dense.num_parameters()


@pytest.mark.parametrize(
    "field", ["num_experts", "num_experts_per_tok", "moe_intermediate_size", "shared_expert_intermediate_size"]
)
@pytest.mark.parametrize("value", [None, 0, "8"])
def test_bad_expert_fields_are_named(published_27b: Raw, field: str, value: object) -> None:
    raw = moe_of(published_27b)
    raw["text_config"][field] = value
    with pytest.raises(ConfigError) as caught:
        ModelConfig.from_dict(raw)
    assert caught.value.field == field


@pytest.mark.parametrize("content", ["{", "[]", "3", '"text"', "\xff"])
def test_a_damaged_file_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content, encoding="latin-1")
    with pytest.raises(ConfigError) as caught:
        ModelConfig.from_pretrained(tmp_path)
    assert caught.value.field == "config.json"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no config\.json"):
        ModelConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize("nested", [3, "x", [], None])
def test_a_text_config_that_is_no_object(published_27b: Raw, nested: object) -> None:
    published_27b["text_config"] = nested
    with pytest.raises(ConfigError) as caught:
        ModelConfig.from_dict(published_27b)
    assert caught.value.field == ("num_hidden_layers" if nested is None else "text_config")


def test_folder_and_file_read_alike(published_27b: Raw, big: ModelConfig, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(published_27b))
    assert ModelConfig.from_pretrained(tmp_path) == ModelConfig.from_pretrained(tmp_path / "config.json") == big


def test_tokens_that_end_an_answer_come_from_the_generation_config(published_27b: Raw, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(published_27b))
    assert ModelConfig.from_pretrained(tmp_path).eos_token_ids == (248044,)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [248046, 248044]}))
    assert ModelConfig.from_pretrained(tmp_path).eos_token_ids == (248046, 248044)
    (tmp_path / "generation_config.json").write_text(json.dumps({"temperature": 1.0}))
    assert ModelConfig.from_pretrained(tmp_path).eos_token_ids == (248044,)
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(ConfigError) as caught:
        ModelConfig.from_pretrained(tmp_path)
    assert caught.value.field == "generation_config.json"


def test_yarn_multiplies_the_positions(published_27b: Raw, big: ModelConfig) -> None:
    assert big.max_positions == big.max_position_embeddings == 262144
    published_27b["text_config"]["rope_parameters"] |= YARN
    long = ModelConfig.from_dict(published_27b)
    assert long.rope.yarn == YarnConfig(4.0, 262144, 0.1 * math.log(4) + 1)
    assert (long.max_positions, long.max_position_embeddings) == (1048576, 262144)


def test_original_positions_are_the_models_own_where_nothing_says_them(published_27b: Raw) -> None:
    """As transformers has it; beside `rope_parameters` they may be given too."""
    text = published_27b["text_config"]
    text["rope_parameters"] |= {"rope_type": "yarn", "factor": 2}
    assert ModelConfig.from_dict(published_27b).max_positions == 2 * 262144
    text["original_max_position_embeddings"] = 131072
    assert ModelConfig.from_dict(published_27b).max_positions == 2 * 131072
    text["rope_parameters"]["original_max_position_embeddings"] = 65536
    with pytest.raises(ConfigError) as caught:
        ModelConfig.from_dict(published_27b)
    assert caught.value.field == "rope_parameters.original_max_position_embeddings"


def test_an_older_configuration_says_the_same(published_27b: Raw) -> None:
    text = published_27b["text_config"]
    text["rope_parameters"] |= YARN
    new = ModelConfig.from_dict(published_27b)
    rope = text.pop("rope_parameters")
    text |= {name: rope.pop(name) for name in ("rope_theta", "partial_rotary_factor")}
    text["rope_scaling"] = {"type": rope.pop("rope_type"), **rope}
    assert ModelConfig.from_dict(published_27b) == new


@pytest.mark.parametrize("checkpoint", ["tiny_checkpoint", "demo_checkpoint"])
def test_a_made_checkpoint_reads_as_transformers_reads_it(checkpoint: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(checkpoint)
    ours, theirs = ModelConfig.from_pretrained(folder), AutoConfig.from_pretrained(folder).text_config
    for name, other in {
        "vocab_size": "vocab_size",
        "hidden_size": "hidden_size",
        "intermediate_size": "intermediate_size",
        "num_layers": "num_hidden_layers",
        "num_query_heads": "num_attention_heads",
        "num_kv_heads": "num_key_value_heads",
        "head_dim": "head_dim",
        "num_key_heads": "linear_num_key_heads",
        "num_value_heads": "linear_num_value_heads",
        "key_head_dim": "linear_key_head_dim",
        "value_head_dim": "linear_value_head_dim",
        "conv_kernel": "linear_conv_kernel_dim",
        "rms_norm_eps": "rms_norm_eps",
        "max_position_embeddings": "max_position_embeddings",
        "tie_word_embeddings": "tie_word_embeddings",
    }.items():
        assert getattr(ours, name) == getattr(theirs, other), name
    assert [kind.value for kind in ours.layer_types] == theirs.layer_types
    rope = theirs.rope_parameters
    assert ours.rope.theta == rope["rope_theta"]
    assert ours.rope.dim == theirs.head_dim * rope["partial_rotary_factor"]
    assert list(ours.rope.mrope_section) == rope["mrope_section"]
