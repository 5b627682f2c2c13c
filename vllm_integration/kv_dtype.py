"""--kv-cache-dtype: which numbers keys and values are held in. Imports neither torch nor vLLM's engine."""

from __future__ import annotations

from qwen36_neuron.devices import FP8_KV
from qwen36_neuron.errors import ConfigError

SERVED = ("auto", *FP8_KV, "bfloat16")

_REASONS = {
    "float16": "the runtime has no float16",
    "fp8_e5m2": "of two digits instead of three, which is twice the error of fp8_e4m3 in the same memory",
    "fp8_inc": "it is Intel Gaudi's",
    "fp8_ds_mla": "it is for latent attention, which the model does not have",
    "int4_per_token_head": "it has scales by token, and here they are by head",
    "int8_per_token_head": "it has scales by token, and here they are by head",
    "fp8_per_token_head": "it has scales by token, and here they are by head",
}
"""Why a value of vLLM's is not served."""

_OTHERS = "no device of this plugin reads it"


def check_kv_cache_dtype(value: str, field: str = "kv_cache_dtype") -> None:
    """Raises ConfigError unless keys and values can be held so, whatever the model."""
    if value not in SERVED:
        problem = f"is not served: {_REASONS.get(value, _OTHERS)}"
        raise ConfigError(field, value, problem, "Use fp8, or auto")


def settle_kv_cache_dtype(value: str, dtype: str, declared: bool) -> str:
    """What becomes of --kv-cache-dtype.

    Args:
        value: as given.
        dtype: number format of the model.
        declared: whether the checkpoint says that its keys and values are FP8.
    Raises:
        ConfigError: it is a number format that the model is not in.
    """
    if value == "auto" and declared:
        return "fp8"
    if value not in ("auto", *FP8_KV) and value != dtype:
        problem = f"keys and values are in FP8, or in the number format of the model, which is {dtype}"
        raise ConfigError("kv_cache_dtype", value, problem, f"Use fp8 or auto, or --dtype {value}")
    return value
