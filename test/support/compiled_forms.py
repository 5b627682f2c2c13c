"""Tests of what Numba compiles are skipped where it is not installed."""

from importlib.util import find_spec

import pytest

needs_numba = pytest.mark.skipif(find_spec("numba") is None, reason="Numba is not installed")
