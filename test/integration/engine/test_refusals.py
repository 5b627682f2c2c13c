"""What cannot work is refused before anything is built, by name and with a remedy."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace

import pytest
import torch
from engine import greedy
from shapes import CONFIG, MOE_CONFIG

from qwen36_neuron.config import ModelConfig
from qwen36_neuron.errors import ConfigError
from qwen36_neuron.rope import YarnConfig
from vllm_integration.description import describe


def build(folder, **arguments):
    from vllm.engine.arg_utils import EngineArgs

    named = {"dtype": "float32", "max_model_len": 1024, "max_num_seqs": 4, "skip_tokenizer_init": True, **arguments}
    return EngineArgs(model=str(folder), **named).create_engine_config()


def write(folder, config) -> None:
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.usefixtures("engines")
class TestConfiguration:
    def test_what_is_chosen(self, shape_only):
        config = build(shape_only)
        assert config.parallel_config.worker_cls == "vllm_integration.worker.Worker"
        assert config.scheduler_config.scheduler_cls == "vllm_integration.scheduler.SlotScheduler"
        assert config.cache_config.block_size == 64
        assert config.cache_config.enable_prefix_caching
        assert not config.scheduler_config.async_scheduling

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"additional_config": {"slots": 3}}, "additional_config.slots=3.*is not known"),
            ({"additional_config": {"tp_degree": 3}}, "tp_degree=3"),
            ({"tensor_parallel_size": 2}, "tensor_parallel_size=2.*tp_degree"),
            ({"block_size": 32}, "block_size=32.*Use 64"),
            ({"dtype": "float16"}, "float16"),
            ({"enable_lora": True}, "enable_lora"),
            ({"kv_cache_dtype": "fp8_e5m2"}, "kv_cache_dtype='fp8_e5m2'"),
            ({"kv_cache_memory_bytes": 0}, "kv_cache_memory_bytes=0"),
            (
                {"kv_cache_memory_bytes": 1 << 30, "additional_config": {"cache_gib": 2}},
                "kv_cache_memory_bytes=1073741824.*cache_gib=2.*one of the two",
            ),
            ({"gpu_memory_utilization": 0.5}, "gpu_memory_utilization=0.5.*--kv-cache-memory-bytes"),
            ({"async_scheduling": True}, "async_scheduling=True"),
            ({"hf_overrides": {"text_config": {"hidden_act": "gelu"}}}, "hidden_act='gelu'.*silu"),
            ({"hf_overrides": {"text_config": {"sliding_window": 5}}}, "hf_overrides.sliding_window=5.*is not read"),
            ({"hf_overrides": {"vocab_size": 5}}, "hf_overrides.vocab_size=5.*text_config"),
            (
                {"hf_overrides": {"rms_norm_eps": 0.1, "text_config": {"rms_norm_eps": 0.2}}},
                "hf_overrides.rms_norm_eps=0.1.*contradicts.*=0.2",
            ),
            ({"enable_chunked_prefill": False}, "enable_chunked_prefill"),
            (
                {"speculative_config": {"method": "custom_class", "model": "a.B", "num_speculative_tokens": 2}},
                "speculative_config",
            ),
            (
                {"kv_transfer_config": {"kv_connector": "ExampleConnector", "kv_role": "kv_both"}},
                "kv_transfer_config",
            ),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
    )
    def test_what_is_refused(self, shape_only, arguments, message):
        with pytest.raises(ConfigError, match=message) as caught:
            build(shape_only, **arguments)
        assert str(caught.value).startswith(caught.value.field), "the message as it is, not within another"

    def test_a_text_only_checkpoint_is_accepted(self, tmp_path):
        write(tmp_path, {**CONFIG["text_config"], "architectures": ["Qwen3_5ForCausalLM"]})
        assert build(tmp_path).parallel_config.worker_cls == "vllm_integration.worker.Worker"

    @pytest.mark.parametrize("architecture", ["Qwen3_5MoeForConditionalGeneration", "Qwen3_5MoeForCausalLM"])
    def test_a_mixture_of_experts_is_accepted(self, tmp_path, architecture):
        flat = architecture == "Qwen3_5MoeForCausalLM"
        write(tmp_path, {**(MOE_CONFIG["text_config"] if flat else MOE_CONFIG), "architectures": [architecture]})
        assert build(tmp_path).parallel_config.worker_cls == "vllm_integration.worker.Worker"

    def test_a_field_of_another_familys_mixtures_is_named(self, tmp_path):
        write(tmp_path, {**MOE_CONFIG, "text_config": {**MOE_CONFIG["text_config"], "decoder_sparse_step": 2}})
        with pytest.raises(ConfigError, match="decoder_sparse_step=2"):
            build(tmp_path)

    def test_a_field_that_the_model_cannot_have_is_named(self, tmp_path):
        config = copy.deepcopy(CONFIG)
        config["text_config"]["attention_bias"] = True
        write(tmp_path, config)
        with pytest.raises(ConfigError, match="attention_bias"):
            build(tmp_path)


def other_eps(config):
    """An override as a callable; vLLM also calls it with a configuration of nothing but a model type."""
    if hasattr(config, "text_config"):
        config.text_config.rms_norm_eps = 0.01
    return config


@pytest.mark.usefixtures("engines")
@pytest.mark.parametrize(
    ("overrides", "field", "value"),
    [
        ({}, "rms_norm_eps", 1e-6),
        ({"text_config": {"rms_norm_eps": 0.01}}, "rms_norm_eps", 0.01),
        ({"rms_norm_eps": 0.01}, "rms_norm_eps", 0.01),
        (other_eps, "rms_norm_eps", 0.01),
        ({"text_config": {"rope_theta": 5e5}}, "rope.theta", 5e5),
        ({"rope_theta": 5e5}, "rope.theta", 5e5),
        ({"text_config": {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}}, "rope.theta", 5e5),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, "rope.theta", 5e5),
        ({"text_config": {"partial_rotary_factor": 0.5}}, "rope.dim", 32),
        ({"text_config": {"max_position_embeddings": 4096}}, "max_position_embeddings", 4096),
        ({"text_config": {"tie_word_embeddings": True}}, "tie_word_embeddings", True),
    ],
)
@pytest.mark.parametrize("nested", [True, False])
def test_an_override_is_in_the_one_description(shape_only, tmp_path, overrides, field, value, nested):
    """And changes nothing else. What vLLM itself has read of it agrees."""
    folder = shape_only
    if not nested:
        if callable(overrides):
            return
        folder = tmp_path
        write(folder, {**CONFIG["text_config"], "architectures": ["Qwen3_5ForCausalLM"]})
        overrides = overrides.get("text_config", overrides)
    plain = ModelConfig.from_pretrained(folder)
    held = describe(build(folder, hf_overrides=overrides, max_model_len=64).model_config)
    name, _, part = field.partition(".")
    changed = replace(getattr(plain, name), **{part: value}) if part else value
    if field == "rope.dim":
        changed = replace(changed, mrope_section=held.rope.mrope_section)
    assert held == replace(plain, **{name: changed})


CARD = {
    "mrope_interleaved": True,
    "mrope_section": [3, 3, 2],
    "rope_type": "yarn",
    "rope_theta": 10000000,
    "partial_rotary_factor": 0.25,
    "factor": 4.0,
    "original_max_position_embeddings": 32768,
}
"""YaRN as the 35B's card has it, for a model of 32,768 positions and 16 rotary dimensions."""


@pytest.mark.usefixtures("engines")
class TestYarn:
    def test_the_cards_override_reaches_the_network_and_the_length(self, shape_only):
        plain = ModelConfig.from_pretrained(shape_only)
        config = build(shape_only, hf_overrides={"text_config": {"rope_parameters": CARD}}, max_model_len=131072)
        held = describe(config.model_config)
        yarn = YarnConfig(4.0, 32768, 0.1 * math.log(4) + 1)
        assert held == replace(plain, rope=replace(plain.rope, yarn=yarn))
        assert config.model_config.max_model_len == held.max_positions == 131072

    @pytest.mark.parametrize("overrides", [{}, {"text_config": {"rope_parameters": CARD}}])
    def test_more_needs_the_consent_that_vllm_asks_for(self, shape_only, monkeypatch, overrides):
        most = 131072 if overrides else 32768
        monkeypatch.delenv("VLLM_ALLOW_LONG_MAX_MODEL_LEN", raising=False)
        with pytest.raises(ConfigError, match="VLLM_ALLOW_LONG_MAX_MODEL_LEN") as caught:
            build(shape_only, hf_overrides=overrides, max_model_len=most + 1)
        assert (caught.value.field, caught.value.value) == ("max_model_len", most + 1)
        assert "hf-overrides" in caught.value.remedy
        monkeypatch.setenv("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "1")
        assert build(shape_only, hf_overrides=overrides, max_model_len=most + 1).model_config.max_model_len == most + 1

    @pytest.mark.parametrize(
        ("changes", "named"),
        [
            ({"rope_type": "dynamic"}, "rope_parameters.rope_type"),
            ({"attn_factor": 1.0}, "rope_parameters.attn_factor"),
            ({"mscale": 1.0}, "rope_parameters.mscale"),
            ({"type": "linear"}, "rope_parameters.type"),
        ],
    )
    def test_a_key_that_is_not_done_is_refused_by_name(self, shape_only, changes, named):
        with pytest.raises(ConfigError) as caught:
            build(shape_only, hf_overrides={"text_config": {"rope_parameters": CARD | changes}}, max_model_len=64)
        assert caught.value.field == named

    def test_a_key_that_vllm_misses_is_named(self, shape_only):
        short = {name: value for name, value in CARD.items() if name != "original_max_position_embeddings"}
        with pytest.raises(ConfigError, match="original_max_position_embeddings") as caught:
            build(shape_only, hf_overrides={"text_config": {"rope_parameters": short}}, max_model_len=64)
        assert caught.value.field == "hf_overrides"


def test_the_runtime_is_given_the_description(fake_engine):
    engine = fake_engine(num_gpu_blocks_override=40, hf_overrides={"text_config": {"rms_norm_eps": 0.25}})
    assert engine.runtime.config.model_config().rms_norm_eps == 0.25


def test_an_override_changes_the_tokens(engine, tiny_checkpoint):
    prompt = list(range(5, 45))
    plain = engine(num_gpu_blocks_override=40).generate([prompt])
    eps = engine(num_gpu_blocks_override=40, hf_overrides={"text_config": {"rms_norm_eps": 1.0}}).generate([prompt])
    assert plain != eps


@pytest.mark.usefixtures("engines")
class TestDefaults:
    """Of `EngineArgs`, and so of `LLM`: what scripts/start_vllm_server.sh says."""

    def defaults(self, folder, **arguments):
        from vllm.engine.arg_utils import EngineArgs
        from vllm.usage.usage_lib import UsageContext

        made = EngineArgs(model=str(folder), skip_tokenizer_init=True, **arguments)
        return made.create_engine_config(UsageContext.LLM_CLASS)

    def test_what_is_not_asked_for(self, shape_only):
        config = self.defaults(shape_only)
        assert config.scheduler_config.max_num_seqs == 8
        assert config.scheduler_config.max_num_batched_tokens == 2048
        assert config.scheduler_config.enable_chunked_prefill
        assert config.model_config.max_model_len == 8192
        assert config.model_config.dtype == torch.float32
        assert config.cache_config.enable_prefix_caching

    @pytest.mark.parametrize("count", [1, 8, 128, 256, 300])
    def test_a_number_of_sequences_that_is_asked_for(self, shape_only, count):
        assert self.defaults(shape_only, max_num_seqs=count).scheduler_config.max_num_seqs == count

    def test_what_goes_with_what_is_asked_for(self, shape_only):
        assert self.defaults(shape_only, max_num_batched_tokens=5).scheduler_config.max_num_seqs == 5
        assert self.defaults(shape_only, max_num_seqs=3000).scheduler_config.max_num_batched_tokens == 3000
        assert self.defaults(shape_only, dtype="bfloat16").model_config.dtype == torch.bfloat16
        assert self.defaults(shape_only, max_model_len=-1).model_config.max_model_len == 32768
        assert not self.defaults(shape_only, enable_prefix_caching=False).cache_config.enable_prefix_caching
        short = {"text_config": {"max_position_embeddings": 512}}
        assert self.defaults(shape_only, hf_overrides=short).model_config.max_model_len == 512

    def test_the_kv_memory_is_what_is_asked_for(self, fake_engine):
        block = 64 * 2 * 64 * 4  # keys and values of one head of 64 in fp32
        engine = fake_engine(kv_cache_memory_bytes=100 * block, max_model_len=512)
        assert engine.runtime.config.num_blocks == 100


@pytest.mark.usefixtures("engines")
def test_weights_count_as_memory(shape_only, monkeypatch):
    from vllm_integration.platform import QwenPlatform

    weights = ModelConfig.from_pretrained(shape_only).num_parameters() * 4
    for spare, fits in ((-1, False), (1 << 30, True)):
        monkeypatch.setattr(QwenPlatform, "get_device_total_memory", lambda extra=spare: weights + extra)
        small = {"kv_cache_memory_bytes": 1 << 20, "enable_prefix_caching": False}
        if fits:
            build(shape_only, **small)
        else:
            with pytest.raises(ConfigError, match=r"do not fit in 0\.0 GiB"):
                build(shape_only, **small)


def test_more_lanes_than_the_host_can_hold_are_refused(fake_engine):
    with pytest.raises(ValueError, match=r"max_num_seqs=10000000.*do not fit"):
        fake_engine(max_num_seqs=10_000_000, max_num_batched_tokens=10_000_000)


@pytest.mark.parametrize("named", ["x", [1.5], [-1], 64])
def test_a_request_that_names_prefixes_badly_is_refused(fake_engine, named):
    engine = fake_engine(num_gpu_blocks_override=40)
    from vllm.exceptions import VLLMValidationError

    with pytest.raises(VLLMValidationError, match="checkpoints must be a list"):
        engine.add("0", [1, 2, 3], greedy(1, extra_args={"checkpoints": named}))
