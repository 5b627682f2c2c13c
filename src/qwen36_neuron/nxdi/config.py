"""NxDI's two configuration objects, filled from ours."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from neuronx_distributed_inference.models.config import InferenceConfig, NeuronConfig

from ..checkpoint.fp8 import BLOCK, Scales
from ..checkpoint.weight_format import WeightFormat
from ..config import BLOCK_SIZE, ModelConfig
from ..errors import ConfigError
from ..graph.buckets import Buckets
from ..graph.options import GraphOptions

UNSUPPORTED: dict[str, tuple[object, str]] = {
    "async_mode": (
        False,
        "NxDI then runs a step ahead and throws the result away when the batch changes; keys and values can be written "
        "twice, a recurrent state cannot",
    ),
    "cast_type": ("as-declared", "casting everything to one type would take the recurrent state and A out of fp32"),
    "speculation_length": (0, "rejected tokens cannot be taken out of a recurrent state"),
    "enable_fused_speculation": (False, "rejected tokens cannot be taken out of a recurrent state"),
    "is_medusa": (False, "a token tree has no meaning for a recurrent state"),
    "padding_side": ("right", "a chunk is laid out by whole blocks"),
    "is_prefix_caching": (True, "the memory is paged"),
    "is_block_kv_layout": (True, "the memory is paged"),
    "pa_block_size": (BLOCK_SIZE, "a block is one chunk of the delta rule"),
    "ctx_batch_size": (1, "a context-encoding graph runs one sequence"),
    "sequence_parallel_enabled": (False, "the delta rule needs a sequence whole on every rank"),
    "flash_decoding_enabled": (False, "KV is not split over ranks"),
    "vocab_parallel": (False, "NxDI's own switch; the embedding is always split over the vocabulary here"),
    "cp_degree": (1, "only tensor parallelism is implemented"),
    "attention_dp_degree": (1, "only tensor parallelism is implemented"),
    "pp_degree": (1, "only tensor parallelism is implemented"),
    "ep_degree": (1, "only tensor parallelism is implemented"),
    "lora_config": (None, "adapters are not implemented"),
    "kv_quant_config": (None, "its cast has no scales, which corrupts long sequences; see kv_cache_dtype"),
    "on_device_sampling_config": (
        None,
        "its draws have a random state; here the host gives the number",
    ),
    "token_generation_batches": (None, "decode graphs of fewer rows are those of decode_rows"),
    "windowed_context_encoding_size": (None, "long prompts are run in chunks"),
    "tensor_capture_config": (None, "it would shift the outputs that state is returned in"),
    "tensor_replacement_config": (None, "the graphs have inputs of their own"),
}
"""The one value of each NxDI setting that works here, and why."""


class Qwen36NeuronConfig(NeuronConfig):
    """NxDI's device settings, derived from `GraphOptions`.

    Built either from `options`, or, as NxDI's own tools do, from NxDI's settings alone.
    """

    def __init__(self, options: GraphOptions | dict[str, Any] | None = None, **settings: Any) -> None:
        if options is None:
            options = options_from_settings(settings)
        elif isinstance(options, dict):
            options = GraphOptions.from_json(options)
        self.qwen36: dict[str, Any] = options.to_json()  # plain, because NxDI writes this object to JSON
        settings.pop("qwen36", None)
        for name, (value, reason) in UNSUPPORTED.items():
            if settings.get(name, value) != value:
                raise ConfigError(name, settings[name], reason, f"Leave it at {value!r}")
        if settings.get("kv_cache_quant", options.fp8_kv) != options.fp8_kv:
            problem = f"contradicts kv_cache_dtype={options.kv_cache_dtype}, from which it follows"
            raise ConfigError("kv_cache_quant", settings["kv_cache_quant"], problem, "Leave it out")
        derived: dict[str, Any] = {
            "batch_size": options.num_lanes,
            "max_batch_size": options.num_lanes,
            "tkg_batch_size": options.num_lanes,
            "kv_cache_batch_size": options.num_lanes,
            "spec_batch_size": options.num_lanes,
            "seq_len": options.positions,
            "max_context_length": options.positions,
            "max_length": options.positions,
            "n_positions": options.positions,
            "n_active_tokens": options.positions,
            "torch_dtype": options.torch_dtype,
            "tp_degree": options.tp_degree,
            "pa_num_blocks": options.num_blocks - 1,
            "logical_nc_config": options.logical_cores,
            "is_continuous_batching": True,
            "enable_bucketing": True,
            "output_logits": True,
            "overrides_torch_dtype": True,
            "kv_cache_quant": options.fp8_kv,  # NxDI only tells the compiler of it; what is quantised is done here
            **quantisation(options),
        }
        fixed = {name: value for name, (value, _) in UNSUPPORTED.items()}
        super().__init__(**{**settings, **derived, **fixed})

    @property
    def options(self) -> GraphOptions:
        """What the artifact is compiled for."""
        return GraphOptions.from_json(self.qwen36)


def quantisation(options: GraphOptions, mixture: bool = False) -> dict[str, Any]:
    """NxDI's settings of FP8 weights: which of our layers NxD exchanges for its quantised ones, and their scales.

    Args:
        mixture: the feed-forward blocks are mixtures, for which `options.mlp_kernel` is nothing. Their experts are no
            layers of NxD, and never exchanged.
    """
    kernel = options.mlp_kernel and not mixture
    if options.weights == WeightFormat.BF16 or (options.weights == WeightFormat.FP8_MLP and kernel):
        return {"quantized": False}
    kept = ["in_proj_ba"] if options.weights == WeightFormat.FP8 else ["mixer", "lm_head"]
    kept += ["mlp"] if kernel or options.stages.fused else []
    kept += ["mtp"] if options.draft_layer else []  # bf16 in every checkpoint of ours
    blocks = options.scales == Scales.BLOCK
    return {
        "quantized": True,
        "quantized_checkpoints_path": "",  # NxDI asks for one; the checkpoint itself holds the FP8 weights
        "quantization_dtype": "f8e4m3",
        "quantization_type": "blockwise_symmetric" if blocks else "per_channel_symmetric",
        "quantization_block_axis": [0, 1] if blocks else None,
        "quantization_block_size": [BLOCK, BLOCK] if blocks else None,
        "modules_to_not_convert": kept,
    }


def options_from_settings(settings: dict[str, Any]) -> GraphOptions:
    """Our options from the settings that NxDI's tools give; its buckets become a full grid."""
    saved = settings.get("qwen36")
    if saved is not None:
        return GraphOptions.from_json(saved)
    length = int(settings.get("seq_len", 128))
    lanes = int(settings.get("batch_size", 1))
    positions = -(-length // BLOCK_SIZE) * BLOCK_SIZE
    active = settings.pop("context_encoding_buckets", None) or [positions]
    prefix = settings.pop("prefix_buckets", None) or [positions]
    decode = settings.pop("token_generation_buckets", None) or [positions]
    dtype = str(settings.get("torch_dtype", "bfloat16")).removeprefix("torch.")
    return GraphOptions(
        max_model_len=length,
        num_lanes=lanes,
        num_blocks=int(settings.get("pa_num_blocks", lanes * positions // BLOCK_SIZE)) + 1,
        buckets=Buckets.grid(tuple(active), tuple(prefix), tuple(decode)),
        tp_degree=int(settings.get("tp_degree", 1)),
        dtype=dtype,
        logical_cores=int(settings.get("logical_nc_config", 2)),
    )


class Qwen36InferenceConfig(InferenceConfig):
    """The model's configuration as NxDI reads it: flat names, beside the checkpoint's own config.json."""

    def add_derived_config(self) -> None:
        self.num_cores_per_group = 1
        if not hasattr(self, "checkpoint_config"):
            self.checkpoint_config = _from_transformers(self.__dict__)
        self.__dict__.pop("text_config", None)  # NxDI prefers a nested one, which would be the unvalidated form
        model = self.model_config
        self.hidden_size = model.hidden_size
        self.intermediate_size = model.intermediate_size
        self.num_hidden_layers = model.num_layers
        self.num_attention_heads = model.num_query_heads
        self.num_key_value_heads = model.num_kv_heads
        self.head_dim = model.head_dim
        self.vocab_size = model.vocab_size
        self.rms_norm_eps = model.rms_norm_eps
        self.max_position_embeddings = model.max_position_embeddings
        self.tie_word_embeddings = model.tie_word_embeddings
        self.pad_token_id = 0
        options = self.neuron_config.options
        model.rank(options.tp_degree)
        options.check_model(model)
        if model.moe is not None:
            for name, value in quantisation(options, mixture=True).items():
                setattr(self.neuron_config, name, value)

    @property
    def model_config(self) -> ModelConfig:
        """The validated description of the network."""
        return ModelConfig.from_dict(self.checkpoint_config)

    @classmethod
    def get_neuron_config_cls(cls) -> type[Qwen36NeuronConfig]:
        return Qwen36NeuronConfig

    @classmethod
    def from_checkpoint(cls, folder: str | Path, options: GraphOptions, **settings: Any) -> Qwen36InferenceConfig:
        """Read a checkpoint's config.json directly, so that no transformers release has to know the model.

        Raises:
            ConfigError: the file or a value cannot be used.
        """
        return cls(Qwen36NeuronConfig(options, **settings), load_config=checkpoint_config(folder))


def checkpoint_config(folder: str | Path) -> Callable[[InferenceConfig], None]:
    """A `load_config` for NxDI that reads config.json."""

    def load(config: InferenceConfig) -> None:
        ModelConfig.from_pretrained(folder)  # for its errors, which name the file
        config.checkpoint_config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        config._name_or_path = str(folder)

    return load


def _from_transformers(attributes: dict[str, Any]) -> dict[str, Any]:
    """config.json again, from what NxDI's own reader has made of it."""

    def plain(value: Any) -> Any:
        return plain(vars(value)) if isinstance(value, SimpleNamespace) else value

    skipped = ("neuron_config", "fused_spec_config", "metadata", "checkpoint_config")
    return {name: plain(value) for name, value in attributes.items() if name not in skipped}
