"""The triangular inverse, and why it is done this way."""

from __future__ import annotations

import pytest
import torch

from qwen36_neuron.ops.gated_delta_rule.triangular import _cpu_level_masks, unit_lower_inverse


def system(n: int, correlation: float, beta: float, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """A of the delta rule for unit keys with the given correlation and a gate of -1e-3 a token."""
    random = torch.Generator().manual_seed(7)
    common, own = torch.randn(1, 128, generator=random), torch.randn(n, 128, generator=random)
    keys = torch.nn.functional.normalize(correlation**0.5 * common + (1 - correlation) ** 0.5 * own, dim=-1).double()
    decay = torch.arange(n, dtype=torch.float64) * -1e-3
    return (beta * (keys @ keys.T) * (decay[:, None] - decay[None, :]).exp()).tril(-1).to(dtype)


def doubling_inverse(a: torch.Tensor) -> torch.Tensor:
    """(I - A)(I + A^2)(I + A^4) ...: exact in exact arithmetic, and what several published kernels compute."""
    eye = torch.eye(a.shape[-1], dtype=a.dtype)
    inverse, power = eye - a, a @ a
    for _ in range(a.shape[-1].bit_length() - 2):
        inverse = inverse @ (eye + power)
        power = power @ power
    return inverse


@pytest.mark.parametrize("n", [16, 32, 64, 128])
@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9, 0.99, 1.0])
@pytest.mark.parametrize("beta", [0.5, 0.9, 0.99])
def test_inverse_is_accurate_at_any_correlation(n: int, correlation: float, beta: float) -> None:
    a = system(n, correlation, beta)
    expected = torch.linalg.inv(torch.eye(n, dtype=torch.float64) + a)
    actual = unit_lower_inverse(a.float()).double()
    assert (actual - expected).abs().max() <= 2e-6  # measured: 4e-7 at worst


@pytest.mark.parametrize("correlation", [0.9, 0.99, 1.0])
def test_a_doubling_series_fails_where_the_recursion_holds(correlation: float) -> None:
    a = system(64, correlation, 0.99)
    expected = torch.linalg.inv(torch.eye(64, dtype=torch.float64) + a)
    doubling = (doubling_inverse(a.float()).double() - expected).abs().max()
    recursion = (unit_lower_inverse(a.float()).double() - expected).abs().max()
    assert doubling > 1e3, f"doubling is off by {doubling:.1e}"
    assert recursion < 1e-6, f"the recursion is off by {recursion:.1e}"


def test_doubling_looks_fine_on_independent_keys() -> None:
    """Which is why tests on random keys prove nothing."""
    a = system(64, 0.0, 0.9)
    expected = torch.linalg.inv(torch.eye(64, dtype=torch.float64) + a)
    assert (doubling_inverse(a.float()).double() - expected).abs().max() < 1e-5


def test_leading_dimensions_are_kept_and_the_upper_part_is_ignored() -> None:
    a = system(64, 0.9, 0.9, torch.float32).expand(2, 3, 64, 64)
    noisy = a + torch.randn(2, 3, 64, 64).triu(0)
    torch.testing.assert_close(unit_lower_inverse(noisy), unit_lower_inverse(a.contiguous()), rtol=0, atol=0)


def test_a_first_call_in_inference_mode_leaves_gradients_possible() -> None:
    _cpu_level_masks.cache_clear()
    a = system(16, 0.9, 0.9)
    with torch.inference_mode():
        unit_lower_inverse(a)
    asked = a.clone().requires_grad_()
    unit_lower_inverse(asked).sum().backward()
    inverse = torch.linalg.inv(torch.eye(16, dtype=torch.float64) + a)
    expected = -(inverse.sum(0)[:, None] * inverse.sum(1)[None, :]).tril(-1)  # d sum(T) = -sum(T dA T)
    torch.testing.assert_close(asked.grad.tril(-1), expected)
