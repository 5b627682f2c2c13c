"""Says whether this folder's tests ran."""

from __future__ import annotations

import pytest

from .conftest import AVAILABLE


def test_nxdi_can_be_imported() -> None:
    if not AVAILABLE:
        pytest.skip("no NxDI here: install it, or set QWEN36_NXDI_SOURCES to its clones (test/nxdi/README.md)")
    import neuronx_distributed_inference

    assert neuronx_distributed_inference is not None
