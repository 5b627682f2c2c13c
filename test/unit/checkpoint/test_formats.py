"""Reading quantised checkpoints: the same numbers as the tools that write them, and everything else refused by name."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("compressed_tensors")

from quantised import FORMS, Made, as_int32, auto_round, block_fp8, compressed, configure, make, maker

from qwen36_neuron.checkpoint.files import CheckpointError, CheckpointFiles
from qwen36_neuron.checkpoint.formats import Inputs, QuantisedWeight, join, read_format, round_inputs
from qwen36_neuron.checkpoint.load import load_inputs, load_weights
from qwen36_neuron.checkpoint.maker import PRESETS, make_checkpoint, write_weights
from qwen36_neuron.checkpoint.sharding import Slice
from qwen36_neuron.config import ModelConfig
from qwen36_neuron.errors import ConfigError

SPEC = replace(
    PRESETS["tiny"],
    vocab_size=1024,
    num_mtp_layers=1,
    num_query_heads=4,
    num_kv_heads=2,
    num_key_heads=2,
    num_value_heads=4,
)
RAGGED = replace(SPEC, hidden_size=320, intermediate_size=448, vocab_size=1000)
"""Neither size is a multiple of 128."""

Tensors = dict[str, torch.Tensor]
Edit = Callable[[Tensors], None]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("source"), SPEC)


@pytest.fixture(scope="module")
def ragged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("ragged"), RAGGED)


@pytest.fixture(scope="module")
def made(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    return maker(source, tmp_path_factory)


def config_of(folder: Path) -> ModelConfig:
    return ModelConfig.from_pretrained(folder)


def loaded(folder: Path, **options: Any) -> Tensors:
    return load_weights(folder, config_of(folder), rounds_inputs=True, **options)


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("tp", [1, 2])
def test_weights_are_those_that_the_tool_multiplies_out(name: str, tp: int, made: Callable[[str], Made]) -> None:
    """Exactly: codes of 8 bits times scales of 16 are exact in fp32. Of parts, too, which cut groups and blocks."""
    for rank in range(tp):
        expected = loaded(made(name).plain, tp=tp, rank=rank, include_mtp=True)
        found = loaded(made(name).folder, tp=tp, rank=rank, include_mtp=True)
        assert found.keys() == expected.keys()
        for key, tensor in expected.items():
            assert torch.equal(found[key], tensor), key


@pytest.mark.parametrize("form", [block_fp8(), block_fp8(vocabulary=True), compressed("channel"), auto_round(-1)])
def test_ragged_sizes(form: Any, ragged: Path, tmp_path: Path) -> None:
    both = make(ragged, tmp_path, form)
    expected = loaded(both.plain)
    found = loaded(both.folder)
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())
    embedding = load_file(both.folder / "model.safetensors").get("model.language_model.embed_tokens.weight_scale_inv")
    assert embedding is None or embedding.shape == (8, 3)


@pytest.mark.parametrize("name", FORMS)
def test_any_part_of_a_matrix_is_that_part_of_the_whole(name: str, made: Callable[[str], Made]) -> None:
    whole = load_file(made(name).plain / "model.safetensors")
    with CheckpointFiles(made(name).folder) as files:
        for layer in ("layers.3.self_attn.o_proj.weight", "layers.0.mlp.down_proj.weight"):
            for dim, start, stop in ((0, 0, 1), (0, 100, 131), (1, 0, 256), (1, 5, 131), (1, 130, 133)):
                expected = whole[f"model.language_model.{layer}"].narrow(dim, start, stop - start)
                assert torch.equal(files.read(Slice(layer, dim, start, stop)).float(), expected)


def test_a_word_holds_its_lowest_byte_first_and_values_plus_128(source: Path, tmp_path: Path) -> None:
    """The layout itself, apart from what any tool's functions do."""
    both = make(source, tmp_path, compressed("channel"))
    stored = load_file(both.folder / "model.safetensors")
    base = "model.language_model.layers.0.mlp.up_proj"
    word, scale = int(stored[f"{base}.weight_packed"][3, 5]), stored[f"{base}.weight_scale"][3].float()
    codes = [(word >> 8 * place & 0xFF) - 128 for place in range(4)]
    with CheckpointFiles(both.folder) as files:
        assert torch.equal(
            files.read(Slice("layers.0.mlp.up_proj.weight", 0, 3, 4))[0, 20:24], torch.tensor(codes) * scale
        )


def test_bf16_is_rounded_once(made: Callable[[str], Made]) -> None:
    weights, exact = (loaded(made("block fp8").folder, dtype=dtype) for dtype in (torch.bfloat16, torch.float32))
    for key, tensor in exact.items():
        assert torch.equal(weights[key], tensor.to(weights[key].dtype)), key


def test_names_with_and_without_prefixes(source: Path, tmp_path: Path) -> None:
    """Of a text-only model's configuration beside tensors of conditional generation."""
    form = auto_round()
    form.config["block_name_to_quantize"] = "model.layers"
    both = make(source, tmp_path, form)
    assert torch.equal(
        loaded(both.folder)["layers.1.mlp.down_proj.weight"], loaded(both.plain)["layers.1.mlp.down_proj.weight"]
    )


W8A16 = compressed("channel").config


@pytest.mark.parametrize(
    ("entry", "meant", "not_meant"),
    [
        ("re:.*linear_attn.*", "layers.0.linear_attn.in_proj_qkv", "layers.3.self_attn.q_proj"),
        ("model.language_model.layers.0.mlp.up_proj", "layers.0.mlp.up_proj", "layers.1.mlp.up_proj"),
        ("model.layers.0.mlp.up_proj", "layers.0.mlp.up_proj", "layers.0.mlp.gate_proj"),
        ("language_model.model.layers.0.mlp.up_proj", "layers.0.mlp.up_proj", "layers.0.mlp.gate_proj"),
        ("re:^model\\.language_model\\.layers\\.1\\.", "layers.1.mlp.up_proj", "layers.11.mlp.up_proj"),
        ("re:.*in_proj_b", "layers.0.linear_attn.in_proj_b", "layers.0.linear_attn.in_proj_a"),
        ("re:.*in_proj_qkv", "layers.0.linear_attn.in_proj_qkv", "layers.0.linear_attn.in_proj_z"),
        ("re:.*in_proj_qkvz$", "layers.0.linear_attn.in_proj_z", "layers.0.linear_attn.in_proj_b"),
        ("model.layers.0.linear_attn.in_proj_ba", "layers.0.linear_attn.in_proj_a", "layers.0.linear_attn.in_proj_z"),
        ("re:.*qkv_proj", "layers.3.self_attn.k_proj", "layers.3.self_attn.o_proj"),
        ("model.layers.3.mlp.gate_up_proj", "layers.3.mlp.gate_proj", "layers.3.mlp.down_proj"),
        ("re:.*mtp.*", "mtp.layers.0.mlp.up_proj", "layers.0.mlp.up_proj"),
        ("lm_head", "lm_head", "layers.0.mlp.up_proj"),
        ("Linear", "layers.0.mlp.up_proj", None),
    ],
)
def test_what_entries_of_the_ignore_list_mean(entry: str, meant: str, not_meant: str | None) -> None:
    form = read_format({"quantization_config": W8A16 | {"ignore": [entry]}})
    assert form is not None
    assert form.layout(meant) is None
    assert not_meant is None or form.layout(not_meant) is not None


def test_targets_by_name_go_before_those_by_class() -> None:
    groups = copy.deepcopy(W8A16["config_groups"])
    groups["group_1"] = copy.deepcopy(groups["group_0"]) | {"targets": ["re:.*down_proj$"]}
    groups["group_1"]["weights"] |= {"strategy": "group", "group_size": 64}
    form = read_format({"quantization_config": W8A16 | {"config_groups": groups}})
    assert form is not None
    assert [getattr(form.layout(f"layers.0.mlp.{name}_proj"), "group", 0) for name in ("up", "down")] == [None, 64]


def test_fp8_keeps_what_is_listed_by_name_parent_or_last_part() -> None:
    kept = ["model.language_model.layers.1", "in_proj_a", "model.language_model.layers.0.mlp.up_proj"]
    form = read_format({"quantization_config": block_fp8().config | {"modules_to_not_convert": kept}})
    assert form is not None
    plain = "layers.1.mlp.up_proj", "layers.0.linear_attn.in_proj_a", "layers.0.mlp.up_proj", "lm_head", "embed_tokens"
    assert [form.layout(name) for name in plain] == [None] * len(plain)
    assert form.layout("layers.10.mlp.up_proj") is not None


@pytest.mark.parametrize("keys", [{"lm_head": True}, {"embed_tokens": True}, {"embeddings": True}])
def test_the_vocabulary_is_in_fp8_only_where_asked_for(keys: dict[str, bool]) -> None:
    config = block_fp8(vocabulary=True).config
    plain = {key: value for key, value in config.items() if key not in ("lm_head", "embeddings")}
    form = read_format({"quantization_config": plain | keys})
    assert form is not None
    assert (form.layout("lm_head") is not None) == ("lm_head" in keys)
    assert (form.layout("embed_tokens") is None) == ("lm_head" in keys)


# ---- refused ---------------------------------------------------------------------------------------------------------

GROUP = "config_groups.group_0"
REFUSED = [
    ({"quant_method": "awq"}, "quantization_config.quant_method='awq'.*compressed-tensors, auto-round, fp8"),
    ({**W8A16, "format": "nvfp4-pack-quantized"}, "quantization_config.format='nvfp4-pack-quantized'"),
    ({**W8A16, "quantization_status": "frozen"}, "quantization_status='frozen'"),
    ({**W8A16, "kv_cache_scheme": {"num_bits": 8}}, r"kv_cache_scheme\.type=None.*null"),
    ({**W8A16, "sparsity_config": {"format": "sparse-24-bitmask"}}, "sparsity_config"),
    ({**W8A16, "config_groups": {}}, "config_groups="),
    ({**W8A16, "ignore": "lm_head"}, "ignore='lm_head'.*list"),
    ({**W8A16, "ignore": ["re:*"]}, r"ignore='\*'.*regular expression"),
    ({**W8A16, "smoothing": 1}, "quantization_config.smoothing=1.*not known"),
    ({**auto_round().config, "bits": 4}, "bits=4"),
    ({**auto_round().config, "sym": False}, "sym=False"),
    ({**auto_round().config, "packing_format": "auto_round:auto_awq"}, "packing_format='auto_round:auto_awq'"),
    ({**auto_round().config, "act_bits": 8}, "act_bits=8"),
    ({**auto_round().config, "data_type": "mx_fp"}, "data_type='mx_fp'"),
    ({**auto_round().config, "group_size": 6}, "group_size=6"),
    ({**auto_round().config, "static_kv_dtype": "fp8"}, "static_kv_dtype='fp8'"),
    ({**auto_round().config, "extra_config": {"lm_head": {"bits": 2}}}, "extra_config.lm_head.bits=2"),
    ({**auto_round().config, "extra_config": {"lm_head": {"wits": 8}}}, "extra_config.lm_head.wits=8"),
    ({**block_fp8().config, "weight_block_size": [64, 64]}, r"weight_block_size=\[64, 64\]"),
    ({**block_fp8().config, "weight_block_size": None}, "weight_block_size=None"),
    ({**block_fp8().config, "activation_scheme": "static"}, "activation_scheme='static'"),
    ({**block_fp8().config, "scale_fmt": "ue8m0"}, "scale_fmt='ue8m0'"),
    ({**block_fp8().config, "lm_head": 1}, "lm_head=1.*true or false"),
    ({**block_fp8().config, "store_dtype": "mxfp4"}, "store_dtype='mxfp4'"),
]
WEIGHTS = [
    ({"num_bits": 4}, "weights.num_bits=4"),
    ({"symmetric": False}, "weights.symmetric=False"),
    ({"strategy": "tensor"}, "weights.strategy='tensor'"),
    ({"strategy": "group", "group_size": 6}, "weights.group_size=6.*multiple of 4"),
    ({"strategy": "channel", "group_size": 128}, "weights.group_size=128.*contradicts"),
    ({"actorder": "group"}, "weights.actorder='group'"),
    ({"type": "float"}, "weights.type='float'"),
    ({"dynamic": True}, "weights.dynamic=True"),
    ({"zeros": 1}, "weights.zeros=1"),
]


@pytest.mark.parametrize(("config", "message"), REFUSED)
def test_a_configuration_is_refused_by_key_and_value(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_format({"quantization_config": config})


@pytest.mark.parametrize(("change", "message"), WEIGHTS)
def test_a_scheme_is_refused_by_its_path(change: dict[str, Any], message: str) -> None:
    groups = copy.deepcopy(W8A16["config_groups"])
    groups["group_0"]["weights"] |= change
    with pytest.raises(ConfigError, match=f"{GROUP}.{message}"):
        read_format({"quantization_config": W8A16 | {"config_groups": groups}})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": ["Conv1d"]}, "targets='Conv1d'"),
        ({"weights": None}, "weights=None"),
        ({"output_activations": {"num_bits": 8}}, "output_activations"),
        ({"input_activations": {"num_bits": 8, "dynamic": False}}, "input_activations.dynamic=False"),
        ({"input_activations": {"num_bits": 8, "dynamic": True, "strategy": "tensor"}}, "strategy='tensor'"),
        ({"input_activations": {"num_bits": 8, "dynamic": True, "strategy": "token"}}, "format='pack-quantized'"),
    ],
)
def test_a_group_is_refused_by_its_path(change: dict[str, Any], message: str) -> None:
    groups = copy.deepcopy(W8A16["config_groups"])
    groups["group_0"] |= change
    with pytest.raises(ConfigError, match=message):
        read_format({"quantization_config": W8A16 | {"config_groups": groups}})


UP = "model.language_model.layers.2.mlp.up_proj"


def drop(ending: str) -> Edit:
    return lambda tensors: tensors.__delitem__(f"{UP}.{ending}") or None


def put(ending: str, tensor: torch.Tensor) -> Edit:
    return lambda tensors: tensors.__setitem__(f"{UP}.{ending}", tensor) or None


@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [
        ("w8a16 groups", drop("weight_scale"), f"missing: {UP}.weight_scale"),
        (
            "w8a16 groups",
            put("weight_scale", torch.ones(512, 1)),
            f"{UP}.weight_scale is F32 \\(512, 1\\).*\\(512, 2\\)",
        ),
        ("w8a16 groups", put("weight_shape", torch.tensor([512, 250])), f"{UP}.weight is of \\(512, 250\\)"),
        ("w8a16 groups", put("weight_zero_point", torch.zeros(128, 2)), f"unknown: {UP}.weight_zero_point"),
        (
            "w8a16 channels",
            put("weight_scale", torch.full((512, 1), float("inf"))),
            f"{UP} has a scale that is infinite",
        ),
        ("w8a8", put("weight", torch.ones(512, 256)), f"{UP}.weight is F32 .*must be I8"),
        ("auto-round", put("qzeros", as_int32(torch.full((2, 128), 5))), f"{UP} has a zero point of 6"),
        ("auto-round", drop("qzeros"), f"missing: {UP}.qzeros"),
        ("block fp8", put("weight", torch.ones(512, 256)), f"{UP}.weight is F32.*must be F8_E4M3"),
        (
            "block fp8",
            put("weight_scale_inv", torch.ones(4, 3)),
            f"{UP}.weight_scale_inv is F32 \\(4, 3\\).*\\(4, 2\\)",
        ),
        ("block fp8", put("input_scale", torch.ones(1)), f"unknown: {UP}.input_scale"),
    ],
)
def test_a_bad_tensor_is_refused_with_its_layer(
    name: str, edit: Edit, message: str, made: Callable[[str], Made], tmp_path: Path
) -> None:
    folder = tmp_path / "spoilt"
    shutil.copytree(made(name).folder, folder)
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    write_weights(folder, tensors)
    with pytest.raises(CheckpointError, match=message):
        loaded(folder)


def test_a_layer_that_is_plain_though_declared_quantised_is_refused(
    made: Callable[[str], Made], tmp_path: Path
) -> None:
    folder = tmp_path / "plain"
    shutil.copytree(made("block fp8").plain, folder)
    configure(folder, block_fp8().config)
    with pytest.raises(CheckpointError, match=r"missing: .*q_proj.weight_scale_inv|missing: .*weight_scale_inv"):
        loaded(folder)


def test_an_fp8_head_that_is_not_declared_is_refused(made: Callable[[str], Made], tmp_path: Path) -> None:
    folder = tmp_path / "undeclared"
    shutil.copytree(made("block fp8 and vocabulary").folder, folder)
    config = block_fp8(vocabulary=True).config
    configure(folder, {key: value for key, value in config.items() if key != "lm_head"})
    with pytest.raises(CheckpointError, match=r"lm_head.weight is F8_E4M3.*quantization_config says") as error:
        loaded(folder)
    assert "lm_head.weight_scale_inv" in error.value.unknown


# ---- rounded inputs --------------------------------------------------------------------------------------------------


def test_w8a8_says_which_inputs_are_rounded_and_is_refused_by_who_does_not_round(made: Callable[[str], Made]) -> None:
    folder = made("w8a8").folder
    inputs = load_inputs(folder, config_of(folder))
    assert set(inputs.values()) == {Inputs.INT8_TOKEN}
    assert {"layers.0.mlp.down_proj.weight", "layers.3.mixer.in_proj_qgkv.weight"} <= set(inputs)
    assert not {"layers.0.mixer.in_proj_ba.weight", "lm_head.weight", "embed_tokens.weight"} & set(inputs)
    assert load_inputs(made("block fp8").folder, config_of(folder)) == {}
    with pytest.raises(ConfigError, match="asks for inputs of 8 bits"):
        load_weights(folder, config_of(folder))


def test_matrices_that_are_one_at_run_time_must_agree_on_their_inputs(source: Path, tmp_path: Path) -> None:
    form = compressed("channel", inputs=True, kept=r"^model\.visual|^mtp|in_proj_[ab]|up_proj")
    form.config["ignore"].append("re:.*up_proj$")
    folder = make(source, tmp_path, form).folder
    with pytest.raises(CheckpointError, match=r"gate_up_proj.weight is one matrix here"):
        load_inputs(folder, config_of(folder))


def test_rounding_a_token() -> None:
    x = torch.tensor([[127.0, -63.4, 0.5, 1.5, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    assert round_inputs(x).tolist() == [[127.0, -63.0, 0.0, 2.0, 0.0], [0.0] * 5]  # halves to the even one


# ---- weights in their own numbers ------------------------------------------------------------------------------------


def test_parts_join_with_the_finer_scales() -> None:
    draw = torch.Generator().manual_seed(0)
    codes = [torch.randint(-128, 128, (rows, 256), generator=draw, dtype=torch.int8) for rows in (3, 130, 5)]
    scales = [torch.rand(shape, generator=draw) for shape in ((3, 1), (2, 2), (5, 2))]
    blocks = (1, 256), (128, 128), (1, 128)
    parts = [QuantisedWeight(*held) for held in zip(codes, scales, blocks, strict=True)]
    whole = join(parts)
    assert whole is not None
    assert whole.block == (1, 128)
    assert torch.equal(whole.dequantise(), torch.cat([part.dequantise() for part in parts]))
    assert torch.equal(whole.part(0, 2, 100).dequantise(), whole.dequantise()[2:102])
    assert torch.equal(whole.part(1, 128, 128).dequantise(), whole.dequantise()[:, 128:])
    rounded = replace(parts[2], inputs=Inputs.INT8_TOKEN)
    assert join([parts[0], rounded]) is None
