"""The graphs around the kernels, as a tracer sees them: a kernel is one operation that gives tensors of known shapes.

The interpreter needs values, which a tracer has none of. So each kernel is stood in for by a plain operation that
depends on everything that it is given.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from qwen36_neuron.graph.options import GraphOptions
from qwen36_neuron.ops.nki_kernels import NkiKernels

from .test_hazards import test_no_shape_or_branch_depends_on_data, test_unused_inputs  # noqa: F401


@pytest.fixture
def make_options(make_options: Callable[..., GraphOptions]) -> Callable[..., GraphOptions]:
    """The tests' options with kernels."""
    return lambda **changes: make_options(**({"kernels": "nki", "logical_cores": 1} | changes))


@pytest.fixture(autouse=True)
def opaque_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every kernel's results by its documentation: shapes, types, and which of them are arguments given back."""

    def launch(self: NkiKernels, kernel: Any, *tensors: torch.Tensor | None, **_: Any) -> Any:
        given = [tensor for tensor in tensors if tensor is not None]
        touch = torch.stack([tensor.float().sum() for tensor in given]).sum() * 0

        def result(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype) + touch.to(dtype)

        def back(tensor: torch.Tensor) -> torch.Tensor:
            return tensor + touch.to(tensor.dtype)

        match kernel.__name__:
            case "causal_conv1d":
                x, _, _, _, ends = given
                return back(x), result(ends.shape[1], 3, x.shape[1], dtype=x.dtype)
            case "causal_conv1d_step":
                return back(given[0]), back(given[1])
            case "causal_conv1d_verify":
                return back(given[0]), back(given[1]), back(given[2])
            case "state_copy" | "paged_attention":
                return back(given[0])
            case "gated_delta_rule_prefill":
                return result(*given[2].shape), back(given[7])
            case "gated_delta_rule_decode":
                return result(*given[2].shape), back(given[5])
            case "gated_delta_rule_verify":
                return result(*given[2].shape), back(given[5]), back(given[6])
            case "gated_rms_norm":
                return back(given[1])
        raise AssertionError(kernel.__name__)

    monkeypatch.setattr(NkiKernels, "launch", launch)
