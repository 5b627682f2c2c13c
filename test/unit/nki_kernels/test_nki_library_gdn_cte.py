"""AWS's chunked prefill of the gated delta rule, run as it is, against the fp64 recurrence; it came with SDK 2.33.

Set NKI_LIBRARY_SRC to the ``src/nkilib_src`` folder of an nki-library that has it; nothing of it is kept here.
"""

import importlib
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from nki_kernels.interpreter import simulate
from qwen36_lab.pricing import gdn_cte
from qwen36_lab.pricing.delta_rule_cases import make_case, recurrence, worst
from qwen36_lab.pricing.gdn_cte_errors import DTYPES, arrays, schur_errors

SRC = os.environ.get("NKI_LIBRARY_SRC", "")
HAS_IT = bool(SRC) and Path(SRC, *gdn_cte.PACKAGE.split("."), "gdn_cte_schur.py").is_file()
pytestmark = pytest.mark.skipif(not HAS_IT, reason="NKI_LIBRARY_SRC does not name an nki-library with gdn_cte")
BARS = {"float32": 2e-5, "bfloat16": 5e-2}


@pytest.fixture(scope="module")
def schur():
    return gdn_cte.load(Path(SRC))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("correlation", [0.0, 0.99])
@pytest.mark.parametrize(("cores", "tokens", "key_heads", "heads"), [
    (1, 128, 1, 1), (1, 640, 1, 2), (1, 1152, 1, 1), (2, 256, 1, 3), (2, 512, 2, 6)])  # fmt: skip
def test_schur(schur, cores, tokens, key_heads, heads, correlation, dtype):
    """One chunk, one group of five, a group of eight with one left over; heads that do not divide among two cores."""
    case = make_case(tokens, key_heads, heads, correlation, 0.99, -1e-4, seed=3)
    found = schur_errors(schur, case, dtype, cores)
    assert max(max(pair) for pair in found.values()) <= BARS[dtype]


def test_schur_from_no_state(schur):
    case = make_case(256, 1, 2, 0.9)
    case.state.zero_()
    args, kwargs = gdn_cte.arguments(schur, *arrays(case, np.float32))
    del kwargs["recurrent_state"]
    o, state = simulate(schur.kernel, gdn_cte.TARGET)(*args, **kwargs)
    want, states = recurrence(case)
    assert worst(torch.from_numpy(np.swapaxes(o[0], 0, 1).copy()), want) <= BARS["float32"]
    assert worst(torch.from_numpy(state[0]), states[-1]) <= BARS["float32"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [64, 128, 192, 256, 320, 384, 448, 512, 576, 640])
def test_neumann(schur, tokens, dtype):
    """The other solve, from no state: sixteen rows a chunk of 64, of which a group has one to eight."""
    torch_type, numpy_type = DTYPES[dtype]
    kernel = importlib.import_module(f"{gdn_cte.PACKAGE}.gdn_cte").gdn_cte
    case = make_case(tokens, 2, 2).cast(torch_type)
    case.state.zero_()
    (*tensors, _), kwargs = gdn_cte.arguments(schur, *arrays(case, numpy_type))
    o, state = simulate(kernel, gdn_cte.TARGET)(*tensors, scale=kwargs["scale"], algorithm="neumann")
    want, states = recurrence(case)
    got = (torch.from_numpy(np.ascontiguousarray(x, dtype=np.float64)) for x in (np.swapaxes(o[0], 0, 1), state[0]))
    for x, expected in zip(got, (want, states[-1]), strict=True):
        assert worst(x, expected) <= BARS[dtype]
