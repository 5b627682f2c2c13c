"""Errors of nki-library's `gdn_cte` and of the fused prefill on the same inputs, by the fp64 recurrence."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from nki_kernels.examples import BF16
from nki_kernels.gated_delta_rule_prefill import gated_delta_rule_prefill

from . import gdn_cte
from .delta_rule_cases import Case, make_case, prefilled, recurrence, worst

DTYPES = {"bfloat16": (torch.bfloat16, BF16), "float32": (torch.float32, np.float32)}
GATES = ((None, None), (0.5, -1e-2), (0.99, -1e-4), (0.99, -8.0))
"""Write strength and gate of a family; None: spread."""


def families(tokens: int) -> Iterator[tuple[str, list[Case]]]:
    """What the keys or gates are like, and cases of it, float32, three value heads of one key head."""
    for correlation in (0.0, 0.9, 0.99, 1.0):
        yield (
            f"keys share {correlation:.0%} of their variance",
            [make_case(tokens, 1, 3, correlation, beta, gate, seed=3) for beta, gate in GATES],
        )
    steep = []
    for gate in (-8.0, -50.0):
        case = make_case(tokens, 1, 3, 0.9, 0.9, -1e-4)
        case.g[:100] = gate
        steep.append(case)
    yield "100 gates of -8 or -50, then of -1e-4; keys share 90%", steep


def arrays(case: Case, dtype: type) -> list[np.ndarray]:
    """A case's tensors; q, k and v of a numpy type."""
    return [
        x.float().numpy().astype(dtype if at < 3 else np.float32) for at, x in enumerate(case.tensors)
    ]  # fmt: skip


def schur_errors(schur: gdn_cte.Schur, case: Case, dtype: str, cores: int = 1) -> dict[str, tuple[float, float]]:
    """Largest relative errors of (o, state) of the library's kernel.

    "schur": for the inputs as both kernels have them; "schur, as given": for the normalised ones that it was given,
    which are rounded to their type.
    """
    torch_type, numpy_type = DTYPES[dtype]
    case = case.cast(torch_type)
    inputs = arrays(case, numpy_type)
    o, state = (torch.from_numpy(x.astype(np.float64)) for x in gdn_cte.outputs(schur, *inputs, cores=cores))
    q, k = (torch.from_numpy(gdn_cte.unit(x).astype(np.float64)) for x in inputs[:2])
    found = {}
    for name, (want, states) in (
        ("schur", recurrence(case)), ("schur, as given", recurrence(replace(case, q=q, k=k), normalise=False)),
    ):  # fmt: skip
        found[name] = worst(o, want), worst(state, states[-1])
    return found


def fused_errors(case: Case, dtype: str) -> tuple[float, float]:
    """Largest relative errors of (o, state) of the fused prefill."""
    case = case.cast(DTYPES[dtype][0])
    want, states = recurrence(case)
    o, state = prefilled(gated_delta_rule_prefill, case)
    return worst(o, want), worst(state, states[-1])


def errors(schur: gdn_cte.Schur, tokens: int) -> list[dict[str, object]]:
    """The worst of every family, by type and kernel."""
    rows: list[dict[str, object]] = []
    for what, cases in families(tokens):
        for dtype in DTYPES:
            found = [schur_errors(schur, c, dtype) | {"fused": fused_errors(c, dtype)} for c in cases]
            row: dict[str, object] = {"inputs": what, "dtype": dtype}
            for name in found[0]:
                o, state = (max(f[name][at] for f in found) for at in (0, 1))
                row[name] = {"o": o, "state": state}
            rows.append(row)
    return rows
