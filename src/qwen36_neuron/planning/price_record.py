"""Prices of kernels that the interpreter has found, kept with this package: it takes half a minute for some of them.

A price is read where the interpreter and the sources of its kernel are what they were, by their digest; elsewhere the
interpreter prices again. So an estimate never has an old price of a new kernel. `scripts/record_prices.py` makes it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

RECORD = Path(__file__).with_name("prices.json")

Price = tuple[tuple[float, float, float], str]
"""Seconds at the cheapest, centre and dearest prices, and what binds."""

_collected: dict[str, Any] | None = None


def read(name: str, sizes: tuple[Any, ...], modules: tuple[str, ...]) -> Price | None:
    """The price of a launch; None if there is none, or it is one of other sources.

    Args:
        name, sizes: of the launch: what makes its arguments, and with which sizes.
        modules: of `nki_kernels`, the kernel's.
    """
    entry = _entries().get(_key(name, sizes))
    if entry is None or entry["digest"] != digest(modules):
        return None
    if _collected is not None:
        _collected[_key(name, sizes)] = entry
    low, centre, high = entry["seconds"]
    return (low, centre, high), entry["binds"]


def add(name: str, sizes: tuple[Any, ...], modules: tuple[str, ...], price: Price) -> None:
    """Keep a price that was not recorded, while `collecting`."""
    if _collected is not None:
        entry = {"seconds": list(price[0]), "binds": price[1], "digest": digest(modules)}
        _collected[_key(name, sizes)] = entry


@contextmanager
def collecting() -> Iterator[dict[str, Any]]:
    """Every price that is asked for inside, for `write`."""
    global _collected
    _collected = {}
    try:
        yield _collected
    finally:
        _collected = None


def write(entries: dict[str, Any], provenance: dict[str, Any]) -> None:
    """Make these the record."""
    record = {"modelled": True, "provenance": provenance, "entries": dict(sorted(entries.items()))}
    RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    _entries.cache_clear()


@cache
def digest(modules: tuple[str, ...]) -> str:
    """Of the sources of kernels, of what they import of their package, and of the interpreter."""
    import nki_kernels  # imported on use, as the kernels are

    folder = Path(nki_kernels.__file__).parent
    files = set((folder / "interpreter").rglob("*.py"))
    left = [folder / f"{module}.py" for module in modules]
    while left:
        file = left.pop()
        if file not in files:
            files.add(file)
            left += [folder / f"{name}.py" for name in re.findall(r"^from \.(\w+) import", file.read_text(), re.M)]
    found = hashlib.sha256()
    for file in sorted(files):
        found.update(file.relative_to(folder).as_posix().encode() + file.read_bytes())
    return found.hexdigest()[:16]


def _key(name: str, sizes: tuple[Any, ...]) -> str:
    return f"{name}({', '.join(map(str, sizes))})"


@cache
def _entries() -> dict[str, Any]:
    if not RECORD.is_file():
        return {}
    entries: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8"))["entries"]
    return entries
