"""The static check: every refused construct is found, accepted ones are not, and our own kernels are clean."""

import re
from pathlib import Path

import pytest

import nki_kernels
from nki_kernels.interpreter import RULES, Target
from nki_kernels.interpreter.static_check import check_file, kernel_files, main

HEADER = """
import math
import os
import nki
import nki.isa as nisa
import nki.language as nl
import numpy as np
"""


def findings(
    body: str, signature: str = "x, n=2", before: str = "", sdk: str = "2.31", checks: str = "compiler"
) -> list[str]:
    indented = "\n".join("    " + line for line in body.splitlines())
    source = f"{HEADER}\n{before}\n@nki.jit\ndef kernel({signature}):\n{indented}\n    return x\n"
    return [f.rule for f in check_file("kernel.py", source=source, target=Target(sdk, checks=checks))]


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
        ("nisa.exponential(x, x)", "trn3 only"),
        ("y = 1 if (z := n) else 2", "assignment expression"),
    ],
)
def test_refused(body, match):
    found = findings(body)
    assert len(found) >= 1
    assert any(re.search(match, rule) for rule in found), found


BY_TARGET = [
    ("y = x.permute((0, 2, 1))", "2.30", "2.31", "permute came with SDK 2.31.*rule sdk-api"),
    ("if nisa.get_nc_version() >= nisa.nc_version.gen3:\n    pass", "2.29", "2.30", "with == only"),
    ("nl.fori_loop(0, n, lambda i: None)", "2.31", "2.32", "fori_loop came with SDK 2.32"),
    ("def body(i):\n    pass\nnl.fori_loop(0, n, body)", "2.31", "2.32", "function 'body' is defined inside another"),
    ("def body(i):\n    pass\nbody(1)", "2.32", "2.33", "function 'body' is defined inside another.*front-end"),
    ("for i in nl.dynamic_range(n):\n    pass", "2.33", "2.32", "dynamic_range went after SDK 2.32"),
    ("if x == None:\n    pass", "2.33", "2.32", "x == None.*explicit flag.*rule none-compare"),
    ("if None != x:\n    pass", "2.33", "2.31", "None != x"),
    ("if x is None:\n    pass", "2.32", "2.33", "is / is not"),
    ("y = (1, *x)", "2.32", "2.33", r"\*x in a tuple.*names and module-level functions.*rule front-end"),
    ("y = [*x, 1]", "2.31", "2.33", r"\*x in a tuple or list"),
    ("x.a, x.b = 1, 2", "2.31", "2.33", "unpacking into x.a"),
    ("y, z[0] = x, x", "2.31", "2.33", r"unpacking into z\[0\]"),
    ("y = (x, n)[n]", "2.31", "2.33", r"\(x, n\)\[n\]: an index on a literal"),
    ("y = [i for i in range(n)]", "2.32", "2.33", "list comprehension"),
    ("for i, v in enumerate((1, 2)):\n    pass", "2.32", "2.33", r"enumerate\(\)"),
    ("nisa.dma_compute(x, (x,), nl.add, oob_mode=n)", "2.29", "2.30", "dma_compute.oob_mode came with SDK 2.30"),
    ("nisa.tensor_scalar_reduce(x, x, nl.add, n, nl.add, x, reduce_cmd=n)", "2.31", "2.32", "reduce_cmd came with SDK"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "refused", "taken", "match"), BY_TARGET)
def test_what_depends_on_the_release(body, refused, taken, match):
    found = findings(body, sdk=refused)
    assert any(re.search(match, rule) for rule in found), found
    assert findings(body, sdk=taken) == []


@pytest.mark.parametrize(
    ("body", "before"),
    [
        ("nisa.dma_copy(x, nl.shared_constant(EYE))", "EYE = np.eye(4)"),
        ("y = TABLE", "def table():\n    return np.zeros(4)\n\nTABLE = table()"),
        ("y = TWICE[0]", "EYE = np.eye(4)\nTWICE = (EYE, EYE)"),
        ("y = EYE", "EYE: object = np.eye(4)"),
    ],
)
def test_arrays_of_the_module_are_refused(body, before):
    found = findings(body, before=before)
    assert any(re.search("an array made on the host: make it an argument.*rule constant-argument", f) for f in found)
    assert findings(body, before=before, checks="instruction") == []


@pytest.mark.parametrize(
    ("body", "before"),
    [
        ("y = SIZE + FAR", "SIZE = 4 * 32\nFAR = float(1 << 20)"),
        ("EYE = n\ny = EYE", "EYE = np.eye(4)"),
        ("y = x", "EYE = np.eye(4)"),
    ],
)
def test_numbers_of_the_module_are_taken(body, before):
    assert findings(body, before=before) == []


def test_arrays_of_another_module_are_refused(tmp_path):
    folder = tmp_path / "pack"
    folder.mkdir()
    (folder / "parts.py").write_text("import numpy as np\n\nEYE, SIZE = np.eye(4), 4\nWIDE = SIZE\nROWS = 4\n")
    (folder / "kernel.py").write_text(
        "import nki\nfrom .parts import EYE as E, ROWS\n\n@nki.jit\ndef kernel(x):\n    return x, E, ROWS\n"
    )
    found = check_file(folder / "kernel.py", target=Target(checks="compiler"))
    assert [(f.line, f.id) for f in found] == [(6, "constant-argument")]


def test_a_matmul_says_whether_it_accumulates():
    assert "nc_matmul without accumulate=" in findings("nisa.nc_matmul(x, x, x)")[0]
    assert findings("nisa.nc_matmul(x, x, x, accumulate=n > 0)") == []
    assert findings("nisa.nc_matmul(x, x, x, is_transpose=True)") == []


@pytest.mark.parametrize(
    "line", ["from neuronxcc import nki as old", "import neuronxcc.nki", "from neuronxcc.nki import isa"]
)
def test_the_first_nki_is_refused(line):
    assert findings("pass", before=line) == [RULES["old-package"].message(line, Target())]
    assert findings("pass", before="from neuronxcc.nki.typing import mutable_tensor") == []


def test_the_command_takes_a_release(tmp_path, capsys):
    path = tmp_path / "kernel.py"
    path.write_text("import nki\n\n@nki.jit\ndef kernel(x):\n    return x, (x, x)[0]\n")
    assert main([str(path)]) == 1
    assert "rule front-end, SDK 2.31" in capsys.readouterr().out
    assert main(["--sdk", "2.33", str(path)]) == 0


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
while half > 3:
    half -= 1
"""
    assert findings(body) == []


def test_our_kernels_are_clean():
    folder = Path(nki_kernels.__file__).parent
    for path in kernel_files(folder):
        assert [str(f) for f in check_file(path)] == []
