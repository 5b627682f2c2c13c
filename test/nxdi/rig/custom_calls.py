"""Kernels of a graph that torch_xla traces: each is a custom call, as Neuron's own tracer makes one of it.

Run eagerly, a module has the interpreter run each kernel, which tells what the kernel gives back. Traced on an XLA
device, the same module has a custom call named after the kernel, with the same operands and results.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from qwen36_neuron.ops.nki_kernels import NkiKernels

PREFIX = "nki."
"""Begins the target of every call that is a kernel."""
MOVES = ("reshape", "bitcast", "get-tuple-element", "tuple")
"""Instructions that copy nothing."""
BESIDE = (*MOVES, "parameter", "constant", "custom-call")
"""Instructions that are no plain operation of a graph."""

LINE = re.compile(r"^\s*(ROOT )?(%?[\w.\-]+) = (?:\(.*?\)|\S+) ([a-z][a-z0-9\-]*)\((.*)$")
TARGET = re.compile(r'custom_call_target="([^"]*)"')
OPERAND = re.compile(r"%([\w.\-]+)")
INDEX = re.compile(r"index=(\d+)")


@dataclass
class Calls:
    """Kernels of one module.

    Attributes:
        results: (kernel, shapes and types of what it gave back), in the order of the eager run.
        traced: calls made since.
    """

    results: list[tuple[str, list[tuple[list[int], torch.dtype]]]] = field(default_factory=list)
    traced: int = 0

    def launch(self, cores: int, kernel: Any, tensors: tuple[torch.Tensor | None, ...], constants: Any) -> Any:
        """Run, or trace, one kernel."""
        name, given = kernel.__name__, [tensor for tensor in tensors if tensor is not None]
        given += [value for value in constants.values() if isinstance(value, torch.Tensor)]
        if given[0].device.type == "cpu":
            found = kernel[cores](*tensors, **constants)
            parts = found if isinstance(found, (tuple, list)) else (found,)
            self.results.append((name, [([*part.shape], part.dtype) for part in parts]))
            return found
        expected, results = self.results[self.traced]
        assert expected == name, f"kernel {self.traced} of the eager run is {expected}, of the trace {name}"
        self.traced += 1
        import torch_xla

        shapes, dtypes = [shape for shape, _ in results], [dtype for _, dtype in results]
        made = torch_xla._XLAC._xla_custom_call(given, PREFIX + name, shapes, dtypes, False, "", 1, {})
        return tuple(made) if len(made) > 1 else made[0]


@contextmanager
def custom_calls() -> Iterator[Calls]:
    """Launches go through these `Calls`, of modules made inside: some keep the launch that they were made with."""
    calls, launch = Calls(), NkiKernels.launch

    def through(self: NkiKernels, kernel: Any, *tensors: torch.Tensor | None, **constants: Any) -> Any:
        return calls.launch(self.cores, kernel, tensors, constants)

    NkiKernels.launch = through  # type: ignore[method-assign]
    try:
        yield calls
    finally:
        NkiKernels.launch = launch  # type: ignore[method-assign]


@dataclass(frozen=True)
class Instruction:
    """One line of a module's entry computation."""

    name: str
    operation: str
    operands: tuple[str, ...]
    target: str | None
    index: int | None
    is_root: bool


def _end(rest: str) -> int:
    """Where the operands of an instruction end, whose types may have parentheses too."""
    depth = 1
    for place, letter in enumerate(rest):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return place
    raise ValueError(f"operands without an end: {rest}")


def instructions(hlo: str) -> dict[str, Instruction]:
    """Those of the entry computation, by name."""
    found: dict[str, Instruction] = {}
    for line in hlo[hlo.index("ENTRY") :].splitlines()[1:]:
        match = LINE.match(line)
        if match is None:
            break
        root, name, operation, rest = match.groups()
        name = name.lstrip("%")
        arguments = rest[: _end(rest)]
        target, index = TARGET.search(rest), INDEX.search(rest)
        found[name] = Instruction(
            name, operation, tuple(OPERAND.findall(arguments)), target and target.group(1),
            int(index.group(1)) if index else None, root is not None,
        )  # fmt: skip
    return found


def kernels(hlo: str) -> Counter[str]:
    """Calls by kernel; a call of anything else by its whole target."""
    targets = (each.target for each in instructions(hlo).values() if each.target is not None)
    return Counter(target.removeprefix(PREFIX) for target in targets)


def plain_operations(hlo: str) -> Counter[str]:
    """Instructions of the whole module that move or compute something and are no kernel."""
    found = Counter(match.group(3) for match in map(LINE.match, hlo.splitlines()) if match)
    return Counter({name: count for name, count in found.items() if name not in BESIDE})


def writers(hlo: str, places: Mapping[str, int]) -> dict[str, str]:
    """What each output of the module, by its place, comes from, through nothing that copies.

    Returns:
        By the keys of `places`, a kernel, "input" for a parameter given back, or the plain operation that made it.
    """
    held = instructions(hlo)
    root = next(each for each in held.values() if each.is_root)

    def follow(each: Instruction) -> str:
        while each.operation in MOVES and each.operation != "tuple":
            each = held[each.operands[0]]
        if each.target is not None:
            return each.target.removeprefix(PREFIX)
        return "input" if each.operation == "parameter" else each.operation

    return {name: follow(held[root.operands[place]]) for name, place in places.items()}
