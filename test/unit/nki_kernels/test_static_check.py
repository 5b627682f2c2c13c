"""The static check: every refused construct is found, accepted ones are not, and our own kernels are clean."""

from pathlib import Path

import pytest

import nki_kernels
from nki_kernels.interpreter.static_check import check_file, kernel_files

HEADER = """
import math
import os
import nki
import nki.isa as nisa
import nki.language as nl
import numpy as np
"""


def findings(body: str, signature: str = "x, n=2", before: str = "") -> list[str]:
    indented = "\n".join("    " + line for line in body.splitlines())
    source = f"{HEADER}\n{before}\n@nki.jit\ndef kernel({signature}):\n{indented}\n    return x\n"
    return [f.rule for f in check_file("kernel.py", source=source)]


@pytest.mark.parametrize(
    ("body", "match"),
    [
        ("y = [i for i in range(n)]", "list comprehension"),
        ("y = {i: 1 for i in range(n)}", "dict comprehension"),
        ("y = tuple(i for i in range(n))", "generator expression"),
        ("if x is None:\n    pass", "is / is not"),
        ("if x is not None:\n    pass", "is / is not"),
        ("try:\n    pass\nexcept ValueError:\n    pass", "try/except"),
        ("f = lambda i: i", "lambda"),
        ("for i, v in enumerate((1, 2)):\n    pass", r"enumerate\(\)"),
        ("for i, v in zip((1,), (2,)):\n    pass", r"zip\(\)"),
        ("y = sum((1, 2))", r"sum\(\)"),
        ("with open('f'):\n    pass", "only nl.no_reorder"),
        ("global y", "global"),
        ("yield 1", "not a generator"),
        ("import os", "import inside"),
        ("y = {1: 2}", "keys must be strings"),
        ("d = {'a': 1}\nif 'a' in d:\n    pass", "key in a dict"),
        ("y = np.sqrt(2.0)", "numpy on the host"),
        ("y = os.environ.get('A')", "os on the host"),
        ("nisa.tensor_copy(dst=x, src=x, mask=n)", "mask= was removed"),
        ("nisa.tensor_copy(dst=x, src=x, dtype=n)", "no argument 'dtype'"),
        ("nisa.tensor_copy(dst=x, src=x, engine=5)", r"engine=5: use the member"),
        ("y = nl.ndarray((1, 2), dtype=nl.float32, buffer='sbuf')", "buffer is a string"),
        ("y = nl.arange(4)", "removed in NKI 0.2"),
        ("nisa.dma_copy(x, x, None)", "pass keywords after the first 2"),
        ("y = x.permute((0, 2, 1))", "needs NKI 0.5"),
        ("if nisa.get_nc_version() >= nisa.nc_version.gen3:\n    pass", "with == only"),
        ("nisa.exponential(x, x)", "trn3 only"),
        ("y = 1 if (z := n) else 2", "assignment expression"),
    ],
)
def test_refused(body, match):
    import re

    found = findings(body)
    assert len(found) >= 1
    assert any(re.search(match, rule) for rule in found), found


@pytest.mark.parametrize(
    ("signature", "match"),
    [
        ("x, *, n=2", "bare \\*"),
        ("x, n=[1]", "default argument"),
        ("x, *args", r"\*args"),
        ("x, /, n=1", "positional-only"),
    ],
)
def test_refused_signatures(signature, match):
    import re

    found = findings("pass", signature)
    assert any(re.search(match, rule) for rule in found), found


def test_functions_that_a_kernel_calls_are_checked_and_others_are_not():
    before = "def helper(x):\n    return [i for i in x]\n\ndef host(x):\n    return [i for i in x]\n"
    assert findings("y = helper(x)", before=before) == ["list comprehension: write a loop"]


@pytest.mark.parametrize(
    ("import_line", "call"),
    [
        ("from .parts import helper", "helper(x)"),
        ("from . import parts", "parts.helper(x)"),
        ("from . import parts as p", "p.helper(x)"),
        ("from pack.parts import helper as h", "h(x)"),
        ("from pack import parts", "parts.helper(x)"),
    ],
)
def test_functions_of_the_same_package_are_checked(tmp_path, import_line, call):
    folder = tmp_path / "pack"
    folder.mkdir()
    (folder / "parts.py").write_text("def helper(x):\n    return [i for i in x]\n")
    (folder / "kernel.py").write_text(f"import nki\n{import_line}\n\n@nki.jit\ndef kernel(x):\n    return {call}\n")
    found = check_file(folder / "kernel.py")
    assert [(Path(f.path).name, f.line, f.function) for f in found] == [("parts.py", 2, "helper")]


def test_accepted():
    body = """
assert n > 0, f"n is {n}"
y = nl.ndarray((128, 4), dtype=nl.float32, buffer=nl.sbuf)
half = math.ceil(n / 2)
for i in range(half):
    if i == 0 or n in (1, 2) or x == None:
        nisa.memset(dst=y[:, i : i + 1], value=0.0)
    elif i != 1:
        break
sizes = {"a": 1, "b": 2}
with nl.no_reorder():
    nisa.tensor_tensor(y, y, y, nl.add)
nl.fori_loop(0, n, lambda i: None)
while half > 3:
    half -= 1
"""
    assert findings(body) == []


def test_our_kernels_are_clean():
    folder = Path(nki_kernels.__file__).parent
    for path in kernel_files(folder):
        assert [str(f) for f in check_file(path)] == []
