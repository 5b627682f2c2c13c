"""What a device's libraries must find in the environment, which they read once, when they are first imported."""

from __future__ import annotations

import os
from collections.abc import Mapping

from ..checkpoint.weight_format import WeightFormat
from ..errors import ConfigError

FP8_ENVIRONMENT = {"XLA_HANDLE_SPECIAL_SCALAR": "1", "UNSAFE_FP8FNCAST": "1"}
"""For torch_xla and the compiler, where anything is in FP8: without them its bytes are read as another FP8 format."""


def check_fp8_environment(
    weights: str, environment: Mapping[str, str] | None = None, kv_cache_dtype: str = "auto"
) -> None:
    """Raises ConfigError naming each variable that FP8 weights or keys and values need and do not have.

    Args:
        weights: a value of WeightFormat.
        environment: instead of this process's.
        kv_cache_dtype: as in `GraphOptions`.
    """
    if weights == WeightFormat.BF16 and kv_cache_dtype == "auto":
        return
    found = os.environ if environment is None else environment
    wrong = [f"{name}={found.get(name)!r}" for name, needed in FP8_ENVIRONMENT.items() if found.get(name) != needed]
    if wrong:
        wanted = " ".join(f"{name}={value}" for name, value in FP8_ENVIRONMENT.items())
        raise ConfigError(
            "environment",
            ", ".join(wrong),
            f"weights={weights} with kv_cache_dtype={kv_cache_dtype} would be misread on the device, without an error",
            f"Export {wanted} before Python starts, as the launcher does",
        )
