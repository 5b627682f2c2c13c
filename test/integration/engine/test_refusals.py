"""What cannot work is refused before anything is built, by name and with a remedy."""

from __future__ import annotations

import copy
import json

import pytest
from engine import greedy
from shapes import CONFIG, MOE_CONFIG


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
            ({"block_size": 32}, "block_size=32"),
            ({"dtype": "float16"}, "float16"),
            ({"enable_lora": True}, "lora_config"),
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
        with pytest.raises(ValueError, match=message):
            build(shape_only, **arguments)

    def test_a_text_only_checkpoint_is_accepted(self, tmp_path):
        write(tmp_path, {**CONFIG["text_config"], "architectures": ["Qwen3_5ForCausalLM"]})
        assert build(tmp_path).parallel_config.worker_cls == "vllm_integration.worker.Worker"

    @pytest.mark.parametrize("architecture", ["Qwen3_5MoeForConditionalGeneration", "Qwen3_5MoeForCausalLM"])
    def test_a_mixture_of_experts_is_refused_by_name(self, tmp_path, architecture):
        write(tmp_path, {**MOE_CONFIG, "architectures": [architecture]})
        with pytest.raises(ValueError, match=r"qwen3_5_moe.*8 experts is not supported yet"):
            build(tmp_path)

    def test_a_field_that_the_model_cannot_have_is_named(self, tmp_path):
        config = copy.deepcopy(CONFIG)
        config["text_config"]["attention_bias"] = True
        write(tmp_path, config)
        with pytest.raises(ValueError, match="attention_bias"):
            build(tmp_path)


def test_more_lanes_than_the_host_can_hold_are_refused(fake_engine):
    with pytest.raises(ValueError, match=r"max_num_seqs=10000000.*do not fit"):
        fake_engine(max_num_seqs=10_000_000, max_num_batched_tokens=10_000_000)


@pytest.mark.parametrize("named", ["x", [1.5], [-1], 64])
def test_a_request_that_names_prefixes_badly_is_refused(fake_engine, named):
    engine = fake_engine(num_gpu_blocks_override=40)
    from vllm.exceptions import VLLMValidationError

    with pytest.raises(VLLMValidationError, match="checkpoints must be a list"):
        engine.add("0", [1, 2, 3], greedy(1, extra_args={"checkpoints": named}))
