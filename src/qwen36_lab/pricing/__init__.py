"""The price list held against kernels that others measured: `scripts/validate_prices.py`."""
