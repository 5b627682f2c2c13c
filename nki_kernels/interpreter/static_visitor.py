"""What one kernel function's source may not hold, by target: the front end's language, and calls it would refuse."""

import ast
import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import isa
from .rules import API_SPAN, RULES, span_error
from .target import Target

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
_LOOPS = ("fori_loop", "while_loop")
_REMOVED = {"arange": "nl.arange", "mgrid": "nl.mgrid", "par_dim": "nl.par_dim"}
_ENUM_KEYWORDS = frozenset(("engine", "dge_mode", "oob_mode", "reduce_cmd", "dma_engine", "perf_mode"))
_ARRAY_MODULES = frozenset(("numpy", "torch", "jax"))
_HOST_MODULES = _ARRAY_MODULES | {"ml_dtypes", "os", "random", "time", "neuronxcc"}
# Positional parameters up to here have kept their place from NKI 0.3 to 0.6.
_STABLE_POSITIONS = {"dma_copy": 2, "dma_transpose": 3}
# Methods of NkiTensor that came with NKI 0.5.
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
        id: Name of the entry of ``rules.RULES`` that it breaks; empty for the language of the front end.
    """

    path: str
    line: int
    function: str
    rule: str
    id: str = ""

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.function}: {self.rule}"


@dataclass
class Module:
    """A source file.

    Attributes:
        functions: Its functions.
        constants: What its module-level names are bound to.
        imported: (module, name) of each imported name.
        aliases: Full dotted name of each imported name.
        imports: Its import statements.
    """

    path: Path
    functions: dict[str, ast.FunctionDef]
    constants: dict[str, ast.expr]
    imported: dict[str, tuple[str, str]]
    aliases: dict[str, str]
    imports: list[ast.Import | ast.ImportFrom]

    def is_host_array(self, name: str, seen: frozenset[str] = frozenset()) -> bool:
        """Whether a module-level name is bound to what numpy or torch made."""
        value = self.constants.get(name)
        return value is not None and name not in seen and self._holds_host_call(value, seen | {name})

    def _holds_host_call(self, value: ast.AST, seen: frozenset[str]) -> bool:
        for node in ast.walk(value):
            if isinstance(node, ast.Name) and self.is_host_array(node.id, seen):
                return True
            if not isinstance(node, ast.Call):
                continue
            root, _, leaf = ast.unparse(node.func).partition(".")
            if leaf and self.aliases.get(root, root).split(".")[0] in _ARRAY_MODULES:
                return True
            function = self.functions.get(root)
            if function is not None and root not in seen and self._holds_host_call(function, seen | {root}):
                return True
        return False


def decorated(node: ast.FunctionDef) -> bool:
    """Whether a function is a kernel."""
    return any(ast.unparse(d).split("(")[0] in ("nki.jit", "jit") for d in node.decorator_list)


def load_module(path: Path, source: str | None = None) -> Module:
    """Parse a file, or ``source`` in its place."""
    tree = ast.parse(path.read_text(encoding="utf-8") if source is None else source, filename=str(path))
    functions: dict[str, ast.FunctionDef] = {}
    constants: dict[str, ast.expr] = {}
    imports: list[ast.Import | ast.ImportFrom] = []
    imported: dict[str, tuple[str, str]] = {}
    aliases: dict[str, str] = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            functions[node.name] = node
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                constants |= {n.id: node.value for n in ast.walk(target) if isinstance(n, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            constants[node.target.id] = node.value
        elif isinstance(node, ast.Import):
            imports.append(node)
            for a in node.names:
                aliases[a.asname or a.name.split(".")[0]] = a.name if a.asname else a.name.split(".")[0]
        elif isinstance(node, ast.ImportFrom):
            imports.append(node)
            for a in node.names:
                module = "." * node.level + (node.module or "")
                imported[a.asname or a.name] = (module, a.name)
                aliases[a.asname or a.name] = f"{node.module or ''}.{a.name}".lstrip(".")
    return Module(path, functions, constants, imported, aliases, imports)


class Checker(ast.NodeVisitor):
    """Collects the findings of one function.

    Attributes:
        findings: What it found.
        called: Dotted names that the function calls.
        names: Names that it reads and does not bind itself.
    """

    def __init__(self, module: Module, function: ast.FunctionDef, target: Target) -> None:
        self.module = module
        self.function = function
        self.target = target
        self.findings: list[Finding] = []
        self.called: set[str] = set()
        self._bodies: set[int] = set()
        self._in_tuples: set[int] = set()
        self._body_names: set[str] = set()
        self._bound = {a.arg for a in ast.walk(function) if isinstance(a, ast.arg)}
        self._bound |= {n.id for n in ast.walk(function) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        self.names: dict[str, ast.Name] = {}

    def found(self, node: ast.AST, rule: str) -> None:
        """Report what no target takes."""
        line = getattr(node, "lineno", self.function.lineno)
        self.findings.append(Finding(str(self.module.path), line, self.function.name, rule))

    def parser(self, node: ast.AST, rule: str) -> None:
        """Report what the parsing front end refuses; a traced kernel is plain Python."""
        if not self.target.traces:
            self.found(node, rule)

    def breaks(self, node: ast.AST, rule_id: str, detail: str) -> None:
        """Report a broken rule of :data:`~.rules.RULES`, if the target enforces it."""
        rule = RULES[rule_id]
        if rule.holds(self.target):
            line = getattr(node, "lineno", self.function.lineno)
            text = rule.message(detail, self.target)
            self.findings.append(Finding(str(self.module.path), line, self.function.name, text, rule_id))

    def run(self) -> None:
        """Visit the function."""
        for call in (n for n in ast.walk(self.function) if isinstance(n, ast.Call)):
            if ast.unparse(call.func).rpartition(".")[2] in _LOOPS and self.target.reaches("2.32"):
                self._bodies |= {id(a) for a in call.args if isinstance(a, ast.Lambda)}
                self._body_names |= {a.id for a in call.args if isinstance(a, ast.Name)}
        self._signature(self.function)
        for statement in self.function.body:
            self.visit(statement)

    def _signature(self, node: ast.FunctionDef) -> None:
        a = node.args
        if a.kwonlyargs and a.vararg is None:
            self.found(node, "bare * in the signature")
        if a.posonlyargs:
            self.parser(node, "positional-only parameters (/) in the signature")
        if a.vararg is not None or a.kwarg is not None:
            self.parser(node, "*args or **kwargs in the signature")
        for default in [*a.defaults, *[d for d in a.kw_defaults if d is not None]]:
            if isinstance(default, (ast.List, ast.Dict, ast.Set)):
                self.found(default, "a list or dict as a default argument: use a tuple")

    def generic_visit(self, node: ast.AST) -> None:
        rule = _REFUSED_NODES.get(type(node))
        if rule is not None:
            (self.found if isinstance(node, (ast.Global, ast.Nonlocal)) else self.parser)(node, rule)
        super().generic_visit(node)

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Load) and node.id not in self._bound:
            self.names.setdefault(node.id, node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        if node.decorator_list:
            self.parser(node, "decorator on a nested function")
        if node.name not in self._body_names:
            self.breaks(node, "front-end", f"function '{node.name}' is defined inside another")
        self._signature(node)
        for statement in node.body:
            self.visit(statement)

    def visit_Lambda(self, node: ast.Lambda) -> None:
        if id(node) not in self._bodies:
            self.parser(node, "lambda: only as the body of nl.fori_loop or nl.while_loop, from SDK 2.32 on")
        self.visit(node.body)

    def visit_Starred(self, node: ast.Starred) -> None:
        if id(node) in self._in_tuples:
            self.breaks(node, "front-end", f"{ast.unparse(node)} in a tuple or list")
        self.generic_visit(node)

    def visit_Tuple(self, node: ast.Tuple) -> None:
        self._sequence(node)

    def visit_List(self, node: ast.List) -> None:
        self._sequence(node)

    def _sequence(self, node: ast.Tuple | ast.List) -> None:
        self._in_tuples |= {id(e) for e in node.elts}
        if isinstance(node.ctx, ast.Store):
            for element in node.elts:
                if isinstance(element, (ast.Attribute, ast.Subscript)):
                    self.breaks(element, "front-end", f"unpacking into {ast.unparse(element)}")
        self.generic_visit(node)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        if isinstance(node.value, (ast.Tuple, ast.List)):
            self.breaks(node, "front-end", f"{ast.unparse(node)}: an index on a literal")
        self.generic_visit(node)

    def visit_With(self, node: ast.With) -> None:
        for item in node.items:
            if not ast.unparse(item.context_expr).endswith("no_reorder()"):
                self.parser(node, f"with {ast.unparse(item.context_expr)}: only nl.no_reorder()")
        for statement in node.body:
            self.visit(statement)

    def visit_Compare(self, node: ast.Compare) -> None:
        sides = [node.left, *node.comparators]
        for op, right in zip(node.ops, node.comparators, strict=True):
            if isinstance(op, (ast.Is, ast.IsNot)):
                self.parser(node, "is / is not: use == / !=, or an explicit flag")
            if isinstance(op, (ast.In, ast.NotIn)) and not isinstance(right, (ast.Tuple, ast.List)):
                self.parser(node, "in: only on a literal tuple or list (a key in a dict does not compile)")
            if isinstance(op, (ast.Eq, ast.NotEq)) and any(
                isinstance(s, ast.Constant) and s.value is None for s in sides
            ):
                self.breaks(node, "none-compare", ast.unparse(node))
        text = ast.unparse(node)
        ordered = not all(isinstance(op, (ast.Eq, ast.NotEq)) for op in node.ops)
        if "get_nc_version()" in text and ordered and not self.target.reaches("2.30"):
            self.found(node, "get_nc_version() compares with == only on SDK 2.29")
        self.generic_visit(node)

    def visit_Dict(self, node: ast.Dict) -> None:
        for key in node.keys:
            if key is None or not _is_text(key):
                self.parser(node, "dict keys must be strings")
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        name = ast.unparse(node.func)
        root, _, leaf = name.partition(".")
        last = name.rpartition(".")[2]
        self.called.add(name)
        if name in _REFUSED_CALLS:
            self.parser(node, f"{name}() is not a function of the compiler")
        full = self.module.aliases.get(root, root)
        if leaf and full.split(".")[0] in _HOST_MODULES:
            self.found(node, f"{name}: {full.split('.')[0]} on the host cannot run inside a kernel")
        if full in ("nki.language", "nl") and leaf in _REMOVED:
            self.found(node, f"{name} was removed in NKI 0.2")
        method = bool(leaf) and full.split(".")[0] != "nki"
        if (last in _LATE_METHODS) if method else (full.startswith("nki") and last in API_SPAN):
            wrong = span_error(last, self.target)
            if wrong:
                self.breaks(node, "sdk-api", wrong)
        self._keywords(node, full, last)
        self.generic_visit(node)

    def _keywords(self, node: ast.Call, full: str, last: str) -> None:
        for keyword in node.keywords:
            value = keyword.value
            if keyword.arg is None:
                self.parser(node, "** in a call")
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
        given = {k.arg for k in node.keywords if k.arg is not None}
        for name in sorted(given - set(known) - {"mask"}):
            self.found(node, f"{last} has no argument '{name}'")
        if last == "nc_matmul" and not given & {"accumulate", "is_transpose"}:
            self.breaks(node, "accumulate", "nc_matmul without accumulate=")
        for name in sorted(given):
            wrong = span_error(f"{last}.{name}", self.target)
            if wrong:
                self.breaks(node, "sdk-api", wrong)
        limit = _STABLE_POSITIONS.get(last, len(known))
        if len(node.args) > limit:
            self.found(node, f"{last}: pass keywords after the first {limit}; later positions differ between versions")


def _is_none(side: ast.expr) -> bool:
    return isinstance(side, ast.Constant) and side.value is None


def _is_text(key: ast.expr) -> bool:
    return isinstance(key, ast.JoinedStr) or (isinstance(key, ast.Constant) and isinstance(key.value, str))
