"""The multi-token-prediction layer: `model.mtp` is its definition, `numba` makes all drafts of a step in one call."""
