"""Reads kernel source for Python that NKI's compiler rejects but plain Python, and so the interpreter, runs.

A kernel is a function decorated with ``nki.jit``, plus every function that it reaches by name in its own module or in a
module of the same package. What is accepted follows the NKI language guide and migration guide, and a census of the
constructs in AWS's public kernels: what none of them uses and no document promises is refused here.

Command line: ``python -m nki_kernels.interpreter.static_check FILE...`` prints findings and exits 1 if there are any.
"""

import ast
import inspect
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import isa

_REFUSED_NODES: dict[type[ast.AST], str] = {
    ast.ListComp: "list comprehension: write a loop",
    ast.SetComp: "set comprehension: write a loop",
    ast.DictComp: "dict comprehension: write a loop",
    ast.GeneratorExp: "generator expression: write a loop",
    ast.Try: "try/except: a kernel cannot catch",
    ast.Yield: "yield: a kernel is not a generator",
    ast.YieldFrom: "yield: a kernel is not a generator",
    ast.Global: "global: a kernel is a pure function of its arguments",
    ast.Nonlocal: "nonlocal: a kernel is a pure function of its arguments",
    ast.Set: "set: use a tuple or list",
    ast.ClassDef: "class inside a kernel",
    ast.Import: "import inside a kernel",
    ast.ImportFrom: "import inside a kernel",
    ast.NamedExpr: "assignment expression (:=)",
    ast.Match: "match statement: use if",
    ast.Delete: "del",
    ast.Await: "await",
    ast.AsyncFunctionDef: "async function",
    ast.AsyncFor: "async for",
    ast.AsyncWith: "async with",
}
_REFUSED_CALLS = frozenset(
    [
        "enumerate",
        "zip",
        "sum",
        "any",
        "all",
        "sorted",
        "map",
        "filter",
        "reversed",
        "set",
        "iter",
        "next",
        "eval",
        "exec",
        "getattr",
        "setattr",
        "hasattr",
        "open",
        "globals",
        "locals",
        "vars",
        "super",
    ]
)
_REMOVED = {"arange": "nl.arange", "mgrid": "nl.mgrid", "par_dim": "nl.par_dim"}
_ENUM_KEYWORDS = frozenset(("engine", "dge_mode", "oob_mode", "reduce_cmd", "dma_engine", "perf_mode"))
_HOST_MODULES = frozenset(("numpy", "torch", "jax", "ml_dtypes", "os", "random", "time", "neuronxcc"))
# Positional parameters up to here have kept their place from NKI 0.3 to 0.6.
_STABLE_POSITIONS = {"dma_copy": 2, "dma_transpose": 3}
# Methods of NkiTensor that NKI 0.3 and 0.4 lack.
_LATE_METHODS = frozenset(
    [
        "permute",
        "broadcast",
        "expand_dim",
        "squeeze_dim",
        "reshape_dim",
        "flatten_dims",
        "rearrange",
        "vector_select",
        "is_contiguous",
        "is_indirect",
        "indirect",
    ]
)


@dataclass(frozen=True)
class Finding:
    """A construct that would not compile.

    Attributes:
        path, line: Where.
        function: Kernel function it is in.
        rule: What is wrong, and what to write instead.
    """

    path: str
    line: int
    function: str
    rule: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.function}: {self.rule}"


@dataclass
class _Module:
    path: Path
    functions: dict[str, ast.FunctionDef]
    imported: dict[str, tuple[str, str]]
    aliases: dict[str, str]


def _decorated(node: ast.FunctionDef) -> bool:
    return any(ast.unparse(d).split("(")[0] in ("nki.jit", "jit") for d in node.decorator_list)


def _load(path: Path, source: str | None = None) -> _Module:
    tree = ast.parse(path.read_text(encoding="utf-8") if source is None else source, filename=str(path))
    functions: dict[str, ast.FunctionDef] = {}
    imported: dict[str, tuple[str, str]] = {}
    aliases: dict[str, str] = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            functions[node.name] = node
        elif isinstance(node, ast.Import):
            for a in node.names:
                aliases[a.asname or a.name.split(".")[0]] = a.name if a.asname else a.name.split(".")[0]
        elif isinstance(node, ast.ImportFrom):
            for a in node.names:
                module = "." * node.level + (node.module or "")
                imported[a.asname or a.name] = (module, a.name)
                aliases[a.asname or a.name] = f"{node.module or ''}.{a.name}".lstrip(".")
    return _Module(path, functions, imported, aliases)


def _file_of(path: Path, module: str, name: str) -> Path | None:
    """File that defines ``name`` of ``module``, or is the module ``name``, if it belongs to ``path``'s package."""
    level = len(module) - len(module.lstrip("."))
    parts = [p for p in module.lstrip(".").split(".") if p]
    folder = path.parent
    if level == 0:
        while folder.name != (parts[0] if parts else "") and folder.parent != folder:
            folder = folder.parent
        if not parts or folder.name != parts[0]:
            return None
        parts = parts[1:]
    for _ in range(level - 1):
        folder = folder.parent
    as_module = folder.joinpath(*parts, name).with_suffix(".py")
    if as_module.is_file():
        return as_module
    for found in (folder.joinpath(*parts).with_suffix(".py"), folder.joinpath(*parts) / "__init__.py"):
        if found.is_file() and parts:
            return found
    return None


class _Checker(ast.NodeVisitor):
    def __init__(self, module: _Module, function: ast.FunctionDef) -> None:
        self.module = module
        self.function = function
        self.findings: list[Finding] = []
        self.called: set[str] = set()
        self._loop_bodies: set[int] = set()

    def found(self, node: ast.AST, rule: str) -> None:
        line = getattr(node, "lineno", self.function.lineno)
        self.findings.append(Finding(str(self.module.path), line, self.function.name, rule))

    def run(self) -> None:
        self._signature(self.function)
        for statement in self.function.body:
            self.visit(statement)

    def _signature(self, node: ast.FunctionDef) -> None:
        a = node.args
        if a.kwonlyargs and a.vararg is None:
            self.found(node, "bare * in the signature")
        if a.posonlyargs:
            self.found(node, "positional-only parameters (/) in the signature")
        if a.vararg is not None or a.kwarg is not None:
            self.found(node, "*args or **kwargs in the signature")
        for default in [*a.defaults, *[d for d in a.kw_defaults if d is not None]]:
            if isinstance(default, (ast.List, ast.Dict, ast.Set)):
                self.found(default, "a list or dict as a default argument: use a tuple")

    def generic_visit(self, node: ast.AST) -> None:
        rule = _REFUSED_NODES.get(type(node))
        if rule is not None:
            self.found(node, rule)
        super().generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        if node.decorator_list:
            self.found(node, "decorator on a nested function")
        self._signature(node)
        for statement in node.body:
            self.visit(statement)

    def visit_Lambda(self, node: ast.Lambda) -> None:
        if id(node) not in self._loop_bodies:
            self.found(node, "lambda: only as the body of nl.fori_loop or nl.while_loop")
        self.visit(node.body)

    def visit_With(self, node: ast.With) -> None:
        for item in node.items:
            if not ast.unparse(item.context_expr).endswith("no_reorder()"):
                self.found(node, f"with {ast.unparse(item.context_expr)}: only nl.no_reorder()")
        for statement in node.body:
            self.visit(statement)

    def visit_Compare(self, node: ast.Compare) -> None:
        for op, right in zip(node.ops, node.comparators, strict=True):
            if isinstance(op, (ast.Is, ast.IsNot)):
                self.found(node, "is / is not: use == / !=")
            if isinstance(op, (ast.In, ast.NotIn)) and not isinstance(right, (ast.Tuple, ast.List)):
                self.found(node, "in: only on a literal tuple or list (a key in a dict does not compile)")
        text = ast.unparse(node)
        if "get_nc_version()" in text and not all(isinstance(op, (ast.Eq, ast.NotEq)) for op in node.ops):
            self.found(node, "get_nc_version() compares with == only")
        self.generic_visit(node)

    def visit_Dict(self, node: ast.Dict) -> None:
        for key in node.keys:
            if key is None or not (isinstance(key, (ast.Constant, ast.JoinedStr)) and _is_text(key)):
                self.found(node, "dict keys must be strings")
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        name = ast.unparse(node.func)
        root, _, leaf = name.partition(".")
        last = name.rpartition(".")[2]
        self.called.add(name)
        if name in _REFUSED_CALLS:
            self.found(node, f"{name}() is not a function of the compiler")
        full = self.module.aliases.get(root, root)
        if leaf and full.split(".")[0] in _HOST_MODULES:
            self.found(node, f"{name}: {full.split('.')[0]} on the host cannot run inside a kernel")
        if full in ("nki.language", "nl") and leaf in _REMOVED:
            self.found(node, f"{name} was removed in NKI 0.2")
        if leaf and last in _LATE_METHODS and full.split(".")[0] != "nki":
            self.found(node, f".{last}() needs NKI 0.5; use [...], .reshape, .ap or .view")
        if last in ("fori_loop", "while_loop"):
            self._loop_bodies |= {id(a) for a in node.args if isinstance(a, ast.Lambda)}
        self._keywords(node, full, last)
        self.generic_visit(node)

    def _keywords(self, node: ast.Call, full: str, last: str) -> None:
        for keyword in node.keywords:
            value = keyword.value
            if keyword.arg is None:
                self.found(node, "** in a call")
                continue
            if keyword.arg == "mask" and full.startswith("nki"):
                self.found(node, "mask= was removed in NKI 0.2: slice the operands")
            if not isinstance(value, ast.Constant):
                continue
            if keyword.arg == "buffer" and isinstance(value.value, str):
                self.found(node, "buffer is a string: use nl.sbuf, nl.psum, nl.hbm or nl.shared_hbm")
            if keyword.arg in _ENUM_KEYWORDS and isinstance(value.value, (int, str)):
                self.found(node, f"{keyword.arg}={value.value!r}: use the member of nisa.{keyword.arg}")
        function: Any = isa.SURFACE.get(last) if full == "nki.isa" else None
        if function is None or not inspect.isfunction(function):
            return
        known = inspect.signature(function).parameters
        if "_" in known:
            self.found(node, f"{last} exists on trn3 only")
            return
        for keyword in node.keywords:
            if keyword.arg is not None and keyword.arg not in known and keyword.arg != "mask":
                self.found(node, f"{last} has no argument '{keyword.arg}'")
        limit = _STABLE_POSITIONS.get(last, len(known))
        if len(node.args) > limit:
            self.found(node, f"{last}: pass keywords after the first {limit}; later positions differ between versions")


def _is_text(key: ast.expr) -> bool:
    return isinstance(key, ast.JoinedStr) or (isinstance(key, ast.Constant) and isinstance(key.value, str))


def check_file(path: str | Path, source: str | None = None, entries: tuple[str, ...] = ()) -> list[Finding]:
    """Findings in every kernel of a file and in all that they call.

    Args:
        path: Python file.
        source: Its text, if not to be read from ``path``.
        entries: Names of further functions to treat as kernels (undecorated building blocks).
    """
    modules: dict[Path, _Module] = {}

    def load(at: Path) -> _Module:
        if at not in modules:
            modules[at] = _load(at, source if at == Path(path) else None)
        return modules[at]

    start = load(Path(path))
    todo = [(start, f) for f in start.functions.values() if _decorated(f) or f.name in entries]
    seen = {(start.path, f.name) for _, f in todo}
    out: list[Finding] = []
    while todo:
        module, function = todo.pop()
        checker = _Checker(module, function)
        checker.run()
        out += checker.findings
        for name in sorted(checker.called):
            root, _, leaf = name.partition(".")
            target: tuple[_Module, str] | None = None
            if name in module.functions:
                target = (module, name)
            elif root in module.imported and "." not in leaf:
                found = _file_of(module.path, *module.imported[root])
                if found is not None:
                    target = (load(found), leaf or module.imported[root][1])
            if target is None or target[1] not in target[0].functions or (target[0].path, target[1]) in seen:
                continue
            seen.add((target[0].path, target[1]))
            todo.append((target[0], target[0].functions[target[1]]))
    return sorted(set(out), key=lambda f: (f.path, f.line, f.rule))


def kernel_files(folder: str | Path) -> Iterator[Path]:
    """Python files directly in ``folder`` that hold kernels."""
    for path in sorted(Path(folder).glob("*.py")):
        if any(_decorated(f) for f in _load(path).functions.values()):
            yield path


def main(paths: list[str]) -> int:
    """Print findings; 1 if there are any."""
    findings = [f for p in paths for f in check_file(p)]
    for finding in findings:
        print(finding)
    return int(bool(findings))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
