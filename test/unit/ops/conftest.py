"""The NKI kernels in their interpreter, and the rows that they are run on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from bank_cases import BATCHES, SPANS

from nki_kernels.interpreter.install import real_nki_present
from qwen36_neuron.ops.banks import Batch, Span

if TYPE_CHECKING:
    from qwen36_neuron.ops.nki_kernels import NkiKernels


@pytest.fixture(params=[1, 2], ids=["one-core", "two-cores"])
def nki(request: pytest.FixtureRequest) -> NkiKernels:
    if real_nki_present():
        pytest.skip("AWS's own nki is installed, whose place the interpreter does not take")
    from qwen36_neuron.ops.nki_kernels import NkiKernels

    return NkiKernels(request.param)


@pytest.fixture(params=SPANS)
def span(request: pytest.FixtureRequest) -> Span:
    return SPANS[request.param]


@pytest.fixture(params=BATCHES)
def batch(request: pytest.FixtureRequest) -> Batch:
    return BATCHES[request.param]
