"""A command line read into what was asked for, and the help text."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from ..flags import FlagError
from .errors import Refusal
from .options import GROUPS, Alias, Option, options

PROGRAM = "qwen36 serve"

_NBSP = "\N{NO-BREAK SPACE}"

_UNBROKEN = 48
"""Defaults of fewer characters stay on one line of help."""


@dataclass(frozen=True, slots=True)
class ParsedArguments:
    """What a command line says.

    Attributes:
        values: by field, of the flags that were given.
        names: by field, the flag as it was written, for messages.
        rest: what follows `--`, for vLLM.
        notes: what the user should know, such as a flag's new name.
    """

    values: dict[str, Any]
    names: dict[str, str]
    rest: tuple[str, ...]
    notes: tuple[str, ...]


def parse(arguments: Sequence[str]) -> ParsedArguments:
    """Read a command line. `--help` prints the help and ends the process with status 0.

    Raises:
        Refusal: a flag that is not known, lacks its value or does not take it.
    """
    own: list[str] = list(arguments)
    rest: tuple[str, ...] = ()
    if "--" in own:
        cut = own.index("--")
        own, rest = own[:cut], tuple(own[cut + 1 :])
    asked = argparse.Namespace(values={}, names={}, notes=[])
    _, left = _parser().parse_known_args(own, asked)
    for word in left:
        if word.startswith("-") and word != "-":
            raise Refusal(unknown(word))
    if left and "model" not in asked.values:
        asked.values["model"], asked.names["model"] = left.pop(0), "MODEL"
    if left:
        raise Refusal(unknown(left[0]))
    return ParsedArguments(asked.values, asked.names, rest, tuple(asked.notes))


def unknown(word: str) -> str:
    """What to say about an argument that nobody knows."""
    flag = word.split("=", 1)[0]
    known = [name for option in options() for name in (*option.names, *option.negatives, *_old(option))]
    near = difflib.get_close_matches(flag.replace("_", "-"), known, n=1, cutoff=0.6)
    guess = f" (did you mean {near[0]}?)" if near and flag.startswith("-") else ""
    return f"unknown argument '{flag}'{guess}; see --help, and put vLLM's own flags after --"


def _old(option: Option) -> list[str]:
    return [alias.name for alias in option.aliases]


class _Parser(argparse.ArgumentParser):
    """Refuses instead of ending the process, in the words of this launcher."""

    def error(self, message: str) -> NoReturn:
        lacks = re.fullmatch(r"argument ([^/:]+)\S*: expected one argument", message)
        raise Refusal(f"{lacks[1]} needs a value" if lacks else message)

    def format_help(self) -> str:
        return super().format_help().replace(_NBSP, " ")


class _Formatter(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=36, width=116)


class _Give(argparse.Action):
    """Keeps a flag's value and the name that it was given by."""

    def __init__(self, option_strings: Sequence[str], dest: str, *, option: Option, alias: Alias | None, **how: Any):
        super().__init__(option_strings, argparse.SUPPRESS, **how)
        self.option, self.alias = option, alias

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        named, flag = option_string or "", self.option.flag
        if self.alias is not None:
            namespace.notes.append(f"{named} is {self.alias.instead} now; this name goes with the next release")
        try:
            namespace.values[flag.field] = self._value(named, values)
        except FlagError as error:
            raise Refusal(str(error)) from error
        namespace.names[flag.field] = named

    def _value(self, named: str, text: Any) -> Any:
        if self.nargs == 0:
            return self.alias.value if self.alias else named not in self.option.negatives
        read = (self.alias and self.alias.parse) or self.option.read
        return read(named, text) if read else self.option.flag.parse(text, named)


def _parser() -> _Parser:
    parser = _Parser(
        prog=PROGRAM,
        usage=f"{PROGRAM} --model DIR [options] [-- vLLM flags]",
        description="Serves a Qwen3.6 checkpoint: vLLM with this project's plugin on an inner port, the chat proxy in "
        "front of it. Ctrl-C or SIGTERM lets running requests end and then stops both. What follows -- is passed to "
        "'vllm serve' as it is.",
        formatter_class=_Formatter,
        allow_abbrev=False,
        add_help=False,
    )
    groups = {name: parser.add_argument_group(name) for name in GROUPS}
    for option in options():
        group, flag = groups[option.group], option.flag
        how: dict[str, Any] = {"nargs": 0} if flag.kind == "bool" else {"metavar": option.metavar}
        default = f"(default: {option.default})" if option.default else ""
        if len(default) < _UNBROKEN:
            default = default.replace(" ", _NBSP)
        text = f"{flag.help} {default}".strip().replace("%", "%%")
        group.add_argument(
            *option.names, *option.negatives, action=_Give, dest=flag.field, option=option, alias=None, help=text, **how
        )
        for alias in option.aliases:
            valueless: dict[str, Any] = {"nargs": 0} if alias.value is not None else {}
            group.add_argument(
                alias.name,
                action=_Give,
                dest=flag.field,
                option=option,
                alias=alias,
                help=argparse.SUPPRESS,
                **valueless,
            )
    groups[GROUPS[-1]].add_argument("--help", "-h", action=_Help, nargs=0, help="this text")
    return parser


class _Help(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        sys.stdout.write(parser.format_help())
        raise SystemExit(0)
