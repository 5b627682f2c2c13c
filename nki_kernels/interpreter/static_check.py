"""Reads kernel source for Python that NKI's compiler rejects but plain Python, and so the interpreter, runs.

A kernel is a function decorated with ``nki.jit``, plus every function that it reaches by name in its own module or in a
module of the same package. What is accepted follows the NKI language guide and migration guide, and a census of the
constructs in AWS's public kernels: what none of them uses and no document promises is refused here.

Command line: ``python -m nki_kernels.interpreter.static_check [--sdk 2.31] FILE...`` prints findings and exits 1 if
there are any.
"""

import argparse
import ast
import sys
from collections.abc import Iterator
from pathlib import Path

from .static_visitor import Checker, Finding, Module, decorated, load_module
from .target import SDKS, Target, current_target


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


def check_file(
    path: str | Path, source: str | None = None, entries: tuple[str, ...] = (), target: Target | None = None
) -> list[Finding]:
    """Findings in every kernel of a file and in all that they call.

    Args:
        path: Python file.
        source: Its text, if not to be read from ``path``.
        entries: Names of further functions to treat as kernels (undecorated building blocks).
        target: What they are compiled for; None: what :func:`~.target.compiling_for` says.
    """
    target = target or current_target()
    modules: dict[Path, Module] = {}

    def load(at: Path) -> Module:
        if at not in modules:
            modules[at] = load_module(at, source if at == Path(path) else None)
        return modules[at]

    start = load(Path(path))
    todo = [(start, f) for f in start.functions.values() if decorated(f) or f.name in entries]
    seen = {(start.path, f.name) for _, f in todo}
    out: list[Finding] = []
    while todo:
        module, function = todo.pop()
        checker = Checker(module, function, target)
        checker.run()
        for name, node in checker.names.items():
            where, bound = module, name
            if name in module.imported:
                found = _file_of(module.path, *module.imported[name])
                where, bound = (load(found), module.imported[name][1]) if found is not None else (module, name)
            if where.is_host_array(bound):
                checker.breaks(node, "constant-argument", f"'{name}' is an array made on the host")
        for old in _old_imports(module):
            checker.breaks(old, "old-package", ast.unparse(old))
        out += checker.findings
        for name in sorted(checker.called):
            root, _, leaf = name.partition(".")
            callee: tuple[Module, str] | None = None
            if name in module.functions:
                callee = (module, name)
            elif root in module.imported and "." not in leaf:
                found = _file_of(module.path, *module.imported[root])
                if found is not None:
                    callee = (load(found), leaf or module.imported[root][1])
            if callee is None or callee[1] not in callee[0].functions or (callee[0].path, callee[1]) in seen:
                continue
            seen.add((callee[0].path, callee[1]))
            todo.append((callee[0], callee[0].functions[callee[1]]))
    return sorted(set(out), key=lambda f: (f.path, f.line, f.rule))


def _old_imports(module: Module) -> Iterator[ast.stmt]:
    """Imports of the first NKI, but for annotations."""
    for node in module.imports:
        base = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
        names = [base + a.name for a in node.names]
        if any(n.startswith("neuronxcc.nki") and not n.startswith("neuronxcc.nki.typing") for n in names):
            yield node


def kernel_files(folder: str | Path) -> Iterator[Path]:
    """Python files directly in ``folder`` that hold kernels."""
    for path in sorted(Path(folder).glob("*.py")):
        if any(decorated(f) for f in load_module(path).functions.values()):
            yield path


def main(arguments: list[str]) -> int:
    """Print findings; 1 if there are any."""
    parser = argparse.ArgumentParser(description="Find what NKI's compiler would refuse in the source of kernels.")
    parser.add_argument("files", nargs="+")
    parser.add_argument(
        "--sdk", choices=SDKS, default=Target().sdk, help="release to compile for (default: %(default)s)"
    )
    asked = parser.parse_args(arguments)
    target = Target(sdk=asked.sdk, checks="cautious")
    findings = [f for p in asked.files for f in check_file(p, target=target)]
    for finding in findings:
        print(finding)
    return int(bool(findings))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
