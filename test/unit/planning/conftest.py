"""Importing the package provides ``nki`` where the real one is not installed; the test modules then import it."""

import nki_kernels  # noqa: F401
