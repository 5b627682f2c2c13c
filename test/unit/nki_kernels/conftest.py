"""Importing the package provides ``nki`` where the real one is not installed; the test modules then import it."""

from collections.abc import Iterator

import pytest

import nki_kernels  # noqa: F401
from nki_kernels.interpreter import Target, compiling_for

# What single instructions do is tested with as little around them as will do; AWS's kernels keep AWS's rules.
CHECKS = {
    "test_tensor_and_scalar_engine": "instruction", "test_vector_engine": "instruction",
    "test_gpsimd_dma_and_registers": "instruction", "test_language": "instruction", "test_prices": "instruction",
    "test_price_list": "instruction", "test_pricing": "instruction", "test_rules": "instruction",
    "test_undefined": "instruction", "test_views_and_memory": "instruction",
    "test_nki_library_conformance": "compiler", "test_nki_library_of_decoding": "compiler",
}  # fmt: skip


@pytest.fixture(autouse=True)
def checks(request: pytest.FixtureRequest) -> Iterator[None]:
    """The rules that a module's launches are held to."""
    name = request.module.__name__.rpartition(".")[2]
    with compiling_for(Target(checks=CHECKS.get(name, "cautious"))):
        yield
