"""Tool arguments: text that the model wrote, as the types that the tool's JSON schema declares.

A parameter's value is written without quotes, so its text alone does not tell a number from a string of digits. The
schema does: what may only be a string stays the text that it is, and anything else becomes the first of null, boolean,
number, array or object that the schema allows and the text spells. Text that spells nothing allowed stays text, for the
caller to refuse.
"""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Iterator
from typing import Any, NoReturn
from urllib.parse import unquote

Types = frozenset[str]
ANY: Types = frozenset({"null", "boolean", "integer", "number", "string", "array", "object"})


class _Number(str):
    """A number as it was spelled, until the schema has said whether it is one."""


class Parameters:
    """The schema of a function's parameters.

    Args:
        root: JSON schema of the parameters' object; anything else declares nothing.
    """

    def __init__(self, root: Any) -> None:
        self._root = root if isinstance(root, dict) else {}

    def names(self) -> set[str]:
        """Parameters that are declared by name."""
        return {name for part in self._parts(self._root) for name in _mapping(part, "properties")}

    def is_plain_text(self, name: str) -> bool:
        """Whether the parameter is any string and nothing else, so that its text can be passed on as it comes."""
        schema = self._member(self._root, name)
        return self._types(schema) == {"string"} and not any(self._choices(schema))

    def value(self, name: str, text: str) -> Any:
        """The parameter's value, as JSON has it."""
        return self._read(text, self._member(self._root, name))

    # ---- schemas -----------------------------------------------------------------------------------------------------

    def _parts(self, schema: Any, seen: frozenset[str] = frozenset()) -> Iterator[dict[str, Any]]:
        """The schema and all that it refers to or is put together from."""
        if not isinstance(schema, dict):
            return
        yield schema
        reference = schema.get("$ref")
        if isinstance(reference, str) and reference not in seen:
            yield from self._parts(self._resolve(reference), seen | {reference})
        for key in ("allOf", "anyOf", "oneOf"):
            for branch in _sequence(schema, key):
                yield from self._parts(branch, seen)

    def _resolve(self, reference: str) -> Any:
        """What a reference within the document points to (RFC 6901); None if nothing."""
        if not reference.startswith("#"):
            return None
        found: Any = self._root
        for step in unquote(reference[1:]).split("/")[1:]:
            step = step.replace("~1", "/").replace("~0", "~")
            if isinstance(found, list) and step.isdigit() and int(step) < len(found):
                found = found[int(step)]
            elif isinstance(found, dict):
                found = found.get(step)
            else:
                return None
        return found

    def _member(self, schema: Any, name: str) -> Any:
        """The schema of an object's member."""
        declared = [
            properties[name] for part in self._parts(schema) if name in (properties := _mapping(part, "properties"))
        ]
        return _one_of(declared or [part.get("additionalProperties") for part in self._parts(schema)])

    def _item(self, schema: Any, index: int) -> Any:
        """The schema of an array's item."""
        found = []
        for part in self._parts(schema):
            prefix = _sequence(part, "prefixItems")
            found.append(prefix[index] if index < len(prefix) else part.get("items"))
        return _one_of(found)

    def _types(self, schema: Any, seen: frozenset[str] = frozenset()) -> Types:
        """The JSON types that the schema allows."""
        if not isinstance(schema, dict):
            return ANY
        allowed = ANY
        kind = schema.get("type")
        if kind is not None:
            named = {kind} if isinstance(kind, str) else set(_sequence(schema, "type"))
            allowed &= _widened(named & ANY) or ANY
        elif "properties" in schema:
            allowed &= {"object"}
        elif "items" in schema or "prefixItems" in schema:
            allowed &= {"array"}
        for values in ([schema["const"]] if "const" in schema else [], _sequence(schema, "enum")):
            if values:
                allowed &= _widened({_type_of(value) for value in values})
        reference = schema.get("$ref")
        if isinstance(reference, str) and reference not in seen:
            allowed &= self._types(self._resolve(reference), seen | {reference})
        for branch in _sequence(schema, "allOf"):
            allowed &= self._types(branch, seen)
        for key in ("anyOf", "oneOf"):
            branches = _sequence(schema, key)
            if branches:
                allowed &= frozenset[str]().union(*(self._types(branch, seen) for branch in branches))
        return allowed | {"null"} if schema.get("nullable") is True else allowed

    def _choices(self, schema: Any) -> Iterator[Any]:
        """The values that are listed one by one."""
        for part in self._parts(schema):
            yield from _sequence(part, "enum")
            if "const" in part:
                yield part["const"]

    # ---- values ------------------------------------------------------------------------------------------------------

    def _read(self, text: str, schema: Any) -> Any:
        """The value that a text spells."""
        types = self._types(schema)
        word = text.strip()
        listed = [choice for choice in self._choices(schema) if isinstance(choice, str)]
        for choice in (text, word):
            if choice in listed:
                return choice
        if types == {"string"}:
            return text
        exact = "string" in types
        if "null" in types and (word == "null" or (word == "None" and not exact)):
            return None
        if "boolean" in types and (word if exact else word.lower()) in ("true", "false"):
            return word.lower() == "true"
        if types & {"integer", "number"}:
            number = _number(word, exact)
            if number is not None and ("number" in types or isinstance(number, int)):
                return number
        parsed = _parsed(word) if types & {"array", "object"} or not exact else None
        if isinstance(parsed, list | dict) and _type_of(parsed) in types:
            return self._conform(parsed, schema)
        if isinstance(parsed, str) and not isinstance(parsed, _Number) and not exact and parsed != text:
            return self._read(parsed, schema)
        return text

    def _conform(self, value: Any, schema: Any) -> Any:
        """A value inside an array or object, with the types that are declared for it."""
        if isinstance(value, list):
            return [self._conform(item, self._item(schema, i)) for i, item in enumerate(value)]
        if isinstance(value, dict):
            return {name: self._conform(item, self._member(schema, name)) for name, item in value.items()}
        types = self._types(schema)
        if isinstance(value, _Number):
            number = _number(value, exact=True)
            if number is None or (not types & {"integer", "number"} and "string" in types):
                return str(value)
            return number
        if isinstance(value, str) and "string" not in types:
            return self._read(value, schema)
        if isinstance(value, bool) and "boolean" not in types and "string" in types:
            return "true" if value else "false"
        return value


def _mapping(schema: dict[str, Any], key: str) -> dict[str, Any]:
    value = schema.get(key)
    return value if isinstance(value, dict) else {}


def _sequence(schema: dict[str, Any], key: str) -> list[Any]:
    value = schema.get(key)
    return value if isinstance(value, list) else []


def _one_of(schemas: list[Any]) -> Any:
    """A schema that allows what any of them allows; None where there is none."""
    found = [schema for schema in schemas if isinstance(schema, dict)]
    return {"anyOf": found} if len(found) > 1 else found[0] if found else None


def _widened(types: set[str]) -> Types:
    """Every integer is a number."""
    return frozenset(types | {"integer"} if "number" in types else types)


def _type_of(value: Any) -> str:
    if value is None:
        return "null"
    for kind, name in ((bool, "boolean"), (int, "integer"), (float, "number"), (str, "string"), (list, "array")):
        if isinstance(value, kind):
            return name
    return "object"


def _number(word: str, exact: bool) -> int | float | None:
    """The number that `word` spells, in JSON's way if `exact`, else in Python's too; integral ones are integers."""
    try:
        value = json.loads(word, parse_constant=_refuse)
    except (ValueError, RecursionError):
        if exact or "_" in word:
            return None
        try:
            value = int(word)
        except ValueError:
            try:
                value = float(word)
            except ValueError:
                return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value


def _parsed(word: str) -> Any:
    """The JSON value that `word` spells, or the Python literal, numbers as they are spelled; None if neither."""
    try:
        return json.loads(word, parse_int=_Number, parse_float=_Number, parse_constant=_refuse)
    except (ValueError, RecursionError):
        pass
    try:
        # Through JSON, so that what has no form in JSON (sets, bytes, tuples as keys) is found out.
        literal = json.dumps(ast.literal_eval(word), allow_nan=False)
        return json.loads(literal, parse_int=_Number, parse_float=_Number)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None


def _refuse(name: str) -> NoReturn:
    raise ValueError(name)
