"""Variables without which a device misreads FP8 weights, and gives no error."""

from __future__ import annotations

import pytest

from qwen36_neuron.errors import ConfigError
from qwen36_neuron.runtime.environment import FP8_ENVIRONMENT, check_fp8_environment


@pytest.mark.parametrize("weights", ["fp8", "fp8-mlp"])
def test_every_missing_or_wrong_variable_is_named(weights: str) -> None:
    check_fp8_environment(weights, FP8_ENVIRONMENT)
    for name in FP8_ENVIRONMENT:
        others = {other: value for other, value in FP8_ENVIRONMENT.items() if other != name}
        for wrong in (others, others | {name: "0"}):
            with pytest.raises(ConfigError, match=f"{name}=.*misread.*Export XLA_HANDLE_SPECIAL_SCALAR=1 UNS") as error:
                check_fp8_environment(weights, wrong)
            assert next(iter(others)) not in str(error.value.value)


def test_this_processs_variables_and_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in FP8_ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    check_fp8_environment("bf16")
    with pytest.raises(ConfigError, match="kv_cache_dtype=fp8 would be misread"):
        check_fp8_environment("bf16", {}, kv_cache_dtype="fp8")
    with pytest.raises(ConfigError, match=r"environment=.*weights=fp8"):
        check_fp8_environment("fp8")
    for name, value in FP8_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    check_fp8_environment("fp8")
