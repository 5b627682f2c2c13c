"""Profiles: what they refuse, and what is found in them before anything is compiled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qwen36_neuron.artifact.check import Checked, check
from qwen36_neuron.artifact.graphs import DECODE, DRAFT, PREFILL, VERIFY
from qwen36_neuron.config import ModelConfig
from qwen36_neuron.errors import ConfigError
from qwen36_neuron.graph.inputs import PrefillInputs
from qwen36_neuron.graph.options import GraphOptions
from qwen36_neuron.graph.profile import Profile
from qwen36_neuron.planning.plan import GIB

from .conftest import PROFILES

SHIPPED = sorted(file for file in PROFILES.glob("*.yaml") if not file.stem.startswith("35b-"))
"""Those of the 27B; the mixture's are in `planning/test_mixture.py`."""


@pytest.fixture
def checked(raw: dict[str, Any], big: ModelConfig) -> Callable[..., Checked]:
    """Check the 128K profile with changes."""
    return lambda **changes: check(Profile.parse("test", raw | changes), big)


def fatal(result: Checked) -> str:
    return "\n".join(str(finding) for finding in result.findings if finding.fatal)


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_every_shipped_profile_compiles_for_the_27b(file: Path, stretched: ModelConfig) -> None:
    result = check(Profile.load(file), stretched)
    assert result.findings == []
    result.require()


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_every_shipped_profile_compiles_with_the_kernels_too(file: Path, stretched: ModelConfig) -> None:
    profile = Profile.load(file)
    assert profile.options.kernels == "torch"
    profile = replace(profile, options=replace(profile.options, kernels="nki"))
    assert check(profile, stretched).findings == []
    with pytest.raises(ConfigError, match="linear_conv_kernel_dim is 3, must be 4"):
        check(profile, replace(stretched, conv_kernel=3)).require()


def test_fp8_keys_and_values(checked: Callable[..., Checked]) -> None:
    """Half the memory, the same graphs, and the compiler told what FP8 means, also where nothing else is FP8."""
    plain, fp8 = checked(weights="bf16"), checked(weights="bf16", kv_cache_dtype="fp8")
    assert fp8.findings == []
    kv, half = (next(line for line in each.plan.lines if line.name == "KV") for each in (plain, fp8))
    assert kv.rank_bytes == 2 * half.rank_bytes
    assert [graph.inputs for graph in plain.graphs] == [graph.inputs for graph in fp8.graphs]
    assert all("fp8e4m3fn-as-fp8e4m3" in graph.arguments for graph in fp8.graphs)
    assert not any("fp8e4m3fn-as-fp8e4m3" in graph.arguments for graph in plain.graphs)
    with pytest.raises(ConfigError, match="kv_cache_dtype='fp8_e5m2'"):
        checked(kv_cache_dtype="fp8_e5m2")


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_every_shipped_profile_can_verify_drafts(file: Path, stretched: ModelConfig) -> None:
    profile = Profile.load(file)
    assert profile.options.max_drafts == 0
    plain, result = (
        check(replace(profile, options=replace(profile.options, max_drafts=count)), stretched) for count in (0, 4)
    )
    assert result.findings == []
    decode, verify = ([graph for graph in result.graphs if graph.tag == tag] for tag in (DECODE, VERIFY))
    assert [graph.bucket for graph in verify] == [(5, held) for _, held in (graph.bucket for graph in decode)]
    assert verify[0].inputs["tokens"] == (profile.options.num_lanes, 5)
    assert verify[0].inputs["sampling"] == (profile.options.num_lanes, 5, 5)
    assert {graph.states for graph in result.graphs} == {plain.graphs[0].states + 2 * 48}
    (line,) = (line for line in result.plan.lines if line.name == "pending drafts")
    # Of a rank, layer and draft: 2,560 channels in bf16; 4 key heads of 128, and 12 value heads of 128 and a gate.
    assert line.rank_bytes == 48 * (1 + profile.options.num_lanes) * 4 * (2 * 2560 + 4 * (4 * 128 + 12 * 129))
    assert plain.plan.free_bytes - result.plan.free_bytes == line.rank_bytes


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_every_shipped_profile_can_hold_the_draft_layer(file: Path, stretched: ModelConfig) -> None:
    options = Profile.load(file).options
    assert options.max_proposals == 0
    verifying, drafting = (
        check(replace(Profile.load(file), options=replace(options, max_drafts=3, max_proposals=count)), stretched)
        for count in (0, 3)
    )
    assert drafting.findings == []
    made = [graph for graph in drafting.graphs if graph.tag == DRAFT]
    assert len(made) == 3 * len([graph for graph in drafting.graphs if graph.tag == DECODE])
    assert made[0].inputs["wanted"] == (options.num_lanes, 1)
    assert made[-1].inputs["wanted"] == (1, 3)
    assert {graph.states for graph in drafting.graphs} == {verifying.graphs[0].states + 4}
    lines = {line.name: line.rank_bytes for line in drafting.plan.lines}
    kv = options.num_blocks * 64 * 2 * 256 * (1 if options.fp8_kv else 2)  # a key and value head of 256 a rank
    lanes = 1 + options.num_lanes
    hidden = ((lanes + 64) + lanes * 3) * 5120 * 2
    assert lines["draft layer cache"] == kv + hidden
    assert verifying.plan.free_bytes - drafting.plan.free_bytes == kv + hidden + lines["weights: mtp"]
    assert lines["KV"] == {line.name: line.rank_bytes for line in verifying.plan.lines}["KV"]


def test_there_are_profiles_from_4k_to_1m() -> None:
    lengths = {file.stem: Profile.load(file).options.max_model_len for file in SHIPPED}
    assert lengths == {"4k": 4096, "32k": 32768, "128k": 131072, "256k": 262144, "1m": 1048576}


def test_128k_holds_8_sequences_at_32k_or_one_at_128k_with_64_slots_in_96_gib(checked: Callable[..., Checked]) -> None:
    result = checked()
    options = result.profile.options
    assert options.num_slots == 64
    assert options.num_lanes == 8
    assert options.num_blocks - 1 >= max(8 * 32768, 131072) // 64
    assert result.plan.used_bytes * options.tp_degree < 96 * GIB
    assert result.plan.fits


@pytest.mark.parametrize(
    ("changes", "field", "hint"),
    [
        ({"max_num_seqs": "8"}, "max_num_seqs", "whole number"),
        ({"slots": -1}, "num_slots", "at least 0"),
        ({"slots": True}, "slots", "whole number"),
        ({"weights": "int4"}, "weights", "fp8-mlp"),
        ({"dtype": "float16"}, "dtype", "bfloat16"),
        ({"bucket": 1}, "bucket", "Known: description"),
        ({"prefill_buckets": [[512]]}, "prefill_buckets", "pairs"),
        ({"prefill_buckets": [[512, 0], [512, 0], [512, 131072]]}, "buckets", "List every bucket once"),
        ({"prefill_buckets": [[500, 0]]}, "prefill_buckets", "multiples of 64"),
        ({"prefill_buckets": [[512, 0], [512, 65536]]}, "prefill_buckets", "longer prefix"),
        ({"decode_buckets": [32768]}, "decode_buckets", "do not reach"),
        ({"decode_buckets": []}, "decode_buckets", "is empty"),
        ({"decode_buckets": 2048}, "decode_buckets", "list of whole numbers"),
        ({"decode_rows": [8]}, "decode_rows", "stay below the 8 rows"),
        ({"decode_rows": [4, 2]}, "decode_rows", "ascend from 1"),
        ({"num_blocks": 2048}, "num_blocks", "at least 2049"),
        ({"logical_cores": 4}, "logical_cores", "1 or 2"),
        ({"kernels": "interpreter"}, "kernels", "Use one of: torch, nki"),
        ({"kernels": None}, "kernels", "is not known"),
        ({"dma_transposes": 0}, "dma_transposes", "true or false"),
        ({"kernels": ["nki"]}, "kernels", "is not known"),
        ({"kernels": "nki", "prefill_buckets": [[192, 131072]]}, "prefill_buckets", "multiple of 128"),
    ],
)
def test_a_wrong_field_is_named_with_its_value_and_a_remedy(
    raw: dict[str, Any], changes: dict[str, Any], field: str, hint: str
) -> None:
    with pytest.raises(ConfigError, match=hint) as caught:
        Profile.parse("test", raw | changes)
    assert caught.value.field == field
    assert caught.value.remedy


def test_drafts_are_a_profiles_choice(raw: dict[str, Any]) -> None:
    assert Profile.parse("test", raw | {"max_drafts": 3}).options.max_drafts == 3
    assert Profile.parse("test", raw | {"max_drafts": 3, "max_proposals": 2}).options.max_proposals == 2
    del raw["max_drafts"], raw["max_proposals"]
    assert Profile.parse("test", raw).options.max_drafts == 0
    assert Profile.parse("test", raw).options.max_proposals == 0
    with pytest.raises(ConfigError, match=r"max_drafts='three'"):
        Profile.parse("test", raw | {"max_drafts": "three"})


def test_the_dma_engines_transpose_unless_a_profile_forbids_it(raw: dict[str, Any]) -> None:
    assert Profile.parse("test", raw).options.dma_transposes
    options = Profile.parse("test", raw | {"dma_transposes": False}).options
    assert not options.dma_transposes
    assert GraphOptions.from_json(options.to_json()) == options


def test_a_missing_field_and_a_missing_file_are_named(raw: dict[str, Any], tmp_path: Path) -> None:
    del raw["num_blocks"]
    with pytest.raises(ConfigError, match="num_blocks=None: is missing"):
        Profile.parse("test", raw)
    with pytest.raises(ConfigError, match="no such file"):
        Profile.load(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match="not YAML"):
        Profile.load(tmp_path / "bad.yaml")


@pytest.mark.parametrize(
    ("pairs", "problem"),
    [
        ([[1024, 1024]], "NCC_ITIN902"),
        ([[2048, 2048]], "square"),
        ([[256, 16384]], "Use 512 new tokens"),
        ([[128, 65536]], "NCC_ITIN902"),
        ([[64, 0]], "Use 128 or more"),
        ([[512, 262144]], "no sequence of max_model_len=131072"),
        ([[16384, 131072]], "GiB a rank"),
    ],
)
def test_buckets_known_to_fail_are_found(checked: Callable[..., Checked], pairs: list[list[int]], problem: str) -> None:
    result = checked(prefill_buckets=[[512, 0], [512, 131072], *pairs])
    assert problem in fatal(result)
    with pytest.raises(ConfigError, match="cannot be compiled"):
        result.require()


@pytest.mark.parametrize("name", ["256k", "1m"])
def test_no_graph_of_a_long_profile_holds_all_scores(name: str, stretched: ModelConfig) -> None:
    """512 tokens of 6 heads after 1,048,576 are 19 GB of scores and weights; a segment's are below 1 GiB."""
    result = check(Profile.load(name), stretched)
    assert result.findings == []
    assert result.plan.used_bytes * 4 <= 96 * GIB
    longest = max((graph for graph in result.graphs if graph.tag == PREFILL), key=lambda graph: graph.bucket[1])
    assert longest.bucket == (512, result.profile.options.max_model_len)
    assert longest.scratch_bytes < GIB
    assert max(graph.scratch_bytes for graph in result.graphs) <= 13 * GIB // 8


@pytest.mark.parametrize("pair", [[1024, 1536], [512, 512], [256, 8192], [512, 16384]])
def test_their_neighbours_are_not(checked: Callable[..., Checked], pair: list[int]) -> None:
    assert not fatal(checked(prefill_buckets=[[512, 0], [512, 131072], pair]))


def test_a_slow_bucket_is_noted_and_not_refused(checked: Callable[..., Checked]) -> None:
    result = checked(prefill_buckets=[[2048, 0], [512, 131072]])
    (note,) = result.findings
    assert "2.8 x slower" in str(note)
    result.require()


def test_what_does_not_fit_in_memory_is_refused_with_limits_that_would(checked: Callable[..., Checked]) -> None:
    assert "would fit" in fatal(checked(slots=400))
    assert "would fit" in fatal(checked(num_blocks=16385))


def test_all_findings_are_listed_at_once(checked: Callable[..., Checked]) -> None:
    result = checked(slots=400, prefill_buckets=[[1024, 1024], [256, 16384], [512, 131072], [512, 0]])
    with pytest.raises(ConfigError) as caught:
        result.require()
    assert all(part in str(caught.value) for part in ("[1024, 1024]", "[256, 16384]", "memory"))


def test_a_model_that_cannot_be_split_so_is_refused(raw: dict[str, Any], big: ModelConfig) -> None:
    with pytest.raises(ConfigError, match="tp_degree=3"):
        check(Profile.parse("test", raw | {"tp_degree": 3}), big)
    with pytest.raises(ConfigError, match="4 logical cores"):
        check(Profile.parse("test", raw | {"tp_degree": 8}), big)


def test_graphs_are_one_a_bucket_with_the_inputs_that_a_call_gives(checked: Callable[..., Checked]) -> None:
    result = checked()
    options = result.profile.options
    prefill = {graph.bucket: graph for graph in result.graphs if graph.tag == PREFILL}
    decode = {(graph.inputs["tokens"][0], graph.bucket[1]): graph for graph in result.graphs if graph.tag == DECODE}
    assert set(prefill) == {(pair.active, pair.prefix) for pair in options.buckets.prefill}
    assert options.decode_rows == (1,)
    assert set(decode) == {(rows, size) for rows in (1, 8) for size in options.buckets.decode}
    assert tuple(prefill[512, 6144].inputs) == PrefillInputs._fields
    assert prefill[512, 6144].inputs["table"] == (1, (512 + 6144) // 64)
    assert decode[8, 8192].inputs["tokens"] == (8, 1)
    assert decode[1, 8192].scratch_bytes * 8 == decode[8, 8192].scratch_bytes
    assert decode[1, 8192].name == "decode 1 to 8192"
    assert len({graph.signature for graph in result.graphs}) == len(result.graphs)
    assert {graph.states for graph in result.graphs} == {2 * 16 + 2 * 48}


def test_compiler_arguments_say_fp8_only_for_fp8(checked: Callable[..., Checked]) -> None:
    assert all("fp8e4m3fn-as-fp8e4m3" in graph.arguments for graph in checked().graphs)
    plain = checked(weights="bf16", slots=0, num_blocks=2049)
    assert not any("fp8" in graph.arguments for graph in plain.graphs)
    assert all(f"--lnc={2}" in graph.arguments for graph in plain.graphs)
