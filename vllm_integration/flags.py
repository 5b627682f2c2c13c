"""The fields of a settings dataclass as command-line flags: their names, types, defaults and help in one place.

A field `max_concurrent: int = 256` is the flag `--max-concurrent N`; a bool is `--name` and `--no-name`; a tuple of
strings is one comma-separated value. The help is the field's entry under "Attributes:" in the class's docstring.
Nothing here imports torch or vLLM.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import math
import re
import types
from collections.abc import Sequence
from fractions import Fraction
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

Kind = Literal["bool", "int", "float", "str", "list"]

REQUIRED = dataclasses.MISSING
"""Default of a flag that has none."""


class FlagError(argparse.ArgumentTypeError):
    """A value that a flag does not take. Names the flag, the value and what is taken. argparse shows it as it is."""


@dataclasses.dataclass(frozen=True, slots=True)
class Flag:
    """One field, as a command line sees it.

    Attributes:
        field: its name in the dataclass.
        kind: what its text is read as.
        default: its value when it is not given, or REQUIRED.
        help: what it means.
        choices: the texts that are taken, where they are few.
    """

    field: str
    kind: Kind
    default: Any
    help: str
    choices: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return "--" + self.field.replace("_", "-")

    @property
    def negative(self) -> str:
        """The flag that turns a bool off."""
        return "--no-" + self.field.replace("_", "-")

    @property
    def metavar(self) -> str:
        if self.choices:
            return "|".join(self.choices)
        return {"int": "N", "float": "X", "list": "A,B,..."}.get(self.kind, "TEXT")

    def parse(self, text: str, named: str | None = None) -> Any:
        """The value that `text` means.

        Args:
            named: the flag to name in an error, where it was given by another name.
        Raises:
            FlagError: it means none.
        """
        named = named or self.name
        if self.choices and text not in self.choices:
            raise FlagError(f"{named} must be {either(self.choices)}, not '{text}'")
        if self.kind == "int":
            return parse_whole(named, text)
        if self.kind == "float":
            return parse_number(named, text)
        if self.kind == "list":
            return tuple(filter(None, (part.strip() for part in text.split(","))))
        return text

    def render(self, value: Any) -> list[str]:
        """The words of a command line that give the flag this value."""
        if self.kind == "bool":
            return [self.name if value else self.negative]
        if self.kind == "list":
            return [f"{self.name}={','.join(value)}"]  # one word, since the list may be empty
        text = f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)
        return [f"{self.name}={text}"] if text.startswith("-") else [self.name, text]


def flags(settings: type, leave_out: Sequence[str] = ()) -> list[Flag]:
    """The flags of a dataclass's fields, in their order.

    Args:
        leave_out: fields that are set another way.
    Raises:
        TypeError: a field's type has no form on a command line, or the docstring does not say what it means.
    """
    texts, hints = attribute_texts(settings), get_type_hints(settings)
    made = []
    for field in dataclasses.fields(settings):
        if field.name in leave_out:
            continue
        if field.name not in texts:
            raise TypeError(f"{settings.__name__}.{field.name} has no entry under 'Attributes:' in the docstring")
        kind, choices = _kind(settings, field.name, hints[field.name])
        default = field.default if field.default_factory is REQUIRED else field.default_factory()
        made.append(Flag(field.name, kind, default, texts[field.name], choices))
    return made


def _kind(settings: type, name: str, hint: Any) -> tuple[Kind, tuple[str, ...]]:
    if get_origin(hint) in (Union, types.UnionType):
        some = [part for part in get_args(hint) if part is not types.NoneType]
        hint = some[0] if len(some) == 1 else hint
    if get_origin(hint) is Literal and all(isinstance(choice, str) for choice in get_args(hint)):
        return "str", get_args(hint)
    if get_origin(hint) in (tuple, list, frozenset) and get_args(hint)[0] is str:
        return "list", ()
    kinds: dict[Any, Kind] = {bool: "bool", int: "int", float: "float", str: "str"}
    if hint not in kinds:
        raise TypeError(f"{settings.__name__}.{name}: {hint} has no form on a command line")
    return kinds[hint], ()


@cache
def attribute_texts(settings: type) -> dict[str, str]:
    """What the docstring says of each attribute under "Attributes:", on one line, without the full stop at its end.

    What it says of None is what holds when a flag is not given.
    """
    texts: dict[str, str] = {}
    name, inside = "", False
    for line in inspect.cleandoc(settings.__doc__ or "").splitlines():
        if not line.startswith(" ") and line.strip():
            inside = line.startswith("Attributes:")
        elif inside and (start := re.match(r" {4}(\w+): (.*)", line)):
            name, texts[start[1]] = start[1], start[2].strip()
        elif inside and line.strip() and name:
            texts[name] += " " + line.strip()
    return {name: re.sub(r"\bNone(?: for)?\b", "if not given:", text.removesuffix(".")) for name, text in texts.items()}


def either(choices: Sequence[str]) -> str:
    """`a, b or c`."""
    return " or ".join(filter(None, (", ".join(choices[:-1]), choices[-1])))


def parse_whole(named: str, text: str, minimum: int | None = None) -> int:
    """A whole number of at least 0, written out or as vLLM takes it: 16k is 16,000, 16K is 16,384, 1.5k is 1,500.

    Raises:
        FlagError: it is none, or is less than `minimum`.
    """
    matched = re.fullmatch(r"([0-9]{1,18})(?:K|M|G|T)?|([0-9]{1,15}(?:\.[0-9]{1,12})?)[kmgt]", text)
    unit = text[-1:] if text[-1:].isalpha() else ""
    number = Fraction(matched[1] or matched[2]) if matched else Fraction(1, 2)
    if unit:
        number *= (1000 if unit.islower() else 1024) ** ("_kmgt".index(unit.lower()) if matched else 0)
    if number.denominator != 1:
        raise FlagError(f"{named} must be a whole number, not '{text}'")
    if minimum is not None and number < minimum:
        raise FlagError(f"{named} must be at least {minimum}, not {text}")
    return int(number)


def parse_number(named: str, text: str) -> float:
    """A finite number.

    Raises:
        FlagError: it is none.
    """
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise FlagError(f"{named} must be a number, not '{text}'")
    return number
