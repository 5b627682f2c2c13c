"""Grammars that would fail late: refused while a request is read, before the engine core has it.

vLLM parses a grammar when it reads a request and compiles it in the engine core, where a failure ends the request with
status 500. What passes here compiles there, in bounded time, and never comes to a point where no token may follow.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from vllm.exceptions import VLLMValidationError
from vllm.v1.structured_output.backend_xgrammar import STRING_SUPPORTED_FORMATS

if TYPE_CHECKING:
    import xgrammar
    from vllm.sampling_params import SamplingParams, StructuredOutputsParams

MAX_GRAMMAR_CHARS = 1 << 18
"""Longest text of a parsed grammar. The time to compile one grows with it: about a second at this length."""

_UNSUPPORTED = {
    "integer": ("multipleOf",),
    "number": ("multipleOf",),
    "array": ("uniqueItems", "contains", "minContains", "maxContains"),
    "object": ("patternProperties", "propertyNames"),
}
"""Keywords of JSON Schema by type that xgrammar would leave out of the grammar without a word."""


def check_grammar(params: SamplingParams) -> None:
    """Raises VLLMValidationError, naming the problem, for structured outputs that would fail in the engine core.

    Grammars of another back end than xgrammar are left to vLLM's own check.
    """
    wanted = params.structured_outputs
    if wanted is None:
        return
    for name in ("allowed_token_ids", "bad_words"):
        if getattr(params, name):
            raise VLLMValidationError(
                f"{name} cannot be combined with structured outputs: together they may allow no token at all",
                parameter=name,
            )
    if wanted._backend != "xgrammar":
        return
    kind, text = _specification(wanted)
    if kind is not None:
        _check(kind, text)


def unsupported_feature(schema: Any) -> str | None:
    """The first keyword of a JSON Schema that xgrammar cannot enforce, with its place, or None."""
    for place, node in _objects(schema, "$"):
        types = node.get("type")
        for kind in types if isinstance(types, list) else [types]:
            for keyword in _UNSUPPORTED.get(kind, ()) if isinstance(kind, str) else ():
                if keyword in node:
                    return f"{keyword} at {place}"
        if types == "string":
            if node.get("format", "email") not in STRING_SUPPORTED_FORMATS:
                return f"format {node['format']!r} at {place}"
            if ("pattern" in node or "format" in node) and ("minLength" in node or "maxLength" in node):
                return f"a pattern or format beside minLength or maxLength at {place}"
    return None


def _objects(node: Any, place: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if isinstance(node, dict):
        yield place, node
        for name, member in node.items():
            yield from _objects(member, f"{place}.{name}")
    elif isinstance(node, list):
        for index, member in enumerate(node):
            yield from _objects(member, f"{place}[{index}]")


def _specification(wanted: StructuredOutputsParams) -> tuple[str | None, str]:
    if wanted.json is not None:
        return "json", wanted.json if isinstance(wanted.json, str) else json.dumps(wanted.json)
    for kind in ("regex", "grammar", "structural_tag"):
        text = getattr(wanted, kind)
        if text is not None:
            return kind, text
    return None, ""  # A choice is a grammar by now; a JSON object needs no check.


@lru_cache(maxsize=256)
def _check(kind: str, text: str) -> None:
    try:
        grammar = _parse(kind, text)
    except Exception as error:
        raise VLLMValidationError(f"the {kind} of structured outputs is refused: {_reason(error)}") from None
    size = len(str(grammar))
    if size > MAX_GRAMMAR_CHARS:
        raise VLLMValidationError(
            f"the {kind} of structured outputs is too complex: its grammar has {size} characters, and at most "
            f"{MAX_GRAMMAR_CHARS} are allowed. Use fewer properties, alternatives or levels"
        )
    stuck = _endless_rule(grammar)
    if stuck is not None:
        raise VLLMValidationError(
            f"the {kind} of structured outputs can never be fulfilled: rule {stuck!r} of its grammar refers to itself "
            "without an end. Make the reference optional"
        )


def _parse(kind: str, text: str) -> xgrammar.Grammar:
    import xgrammar

    if kind == "json":
        for _, node in _objects(json.loads(text), "$"):
            if isinstance(node.get("pattern"), str):  # In a schema, xgrammar passes over some that it cannot do.
                xgrammar.Grammar.from_regex(node["pattern"])
        return xgrammar.Grammar.from_json_schema(text)
    if kind == "regex":
        return xgrammar.Grammar.from_regex(text)
    if kind == "grammar":
        return xgrammar.Grammar.from_ebnf(text)
    tag = json.loads(text)
    if "structures" not in tag:
        return xgrammar.Grammar.from_structural_tag(text)
    items = [
        xgrammar.StructuralTagItem(begin=one["begin"], schema=json.dumps(one["schema"]), end=one["end"])
        for one in tag["structures"]
    ]
    return xgrammar.Grammar.from_structural_tag(items, tag["triggers"])


def _reason(error: Exception) -> str:
    """xgrammar's message without the time and place in its source that it puts first."""
    text = str(error).strip() or type(error).__name__
    head, found, tail = text.partition(": ")
    return tail if found and ".cc" in head else text


_REFERENCE, _SEQUENCE, _CHOICES, _REPEAT = 4, 5, 6, 8
"""Kinds of expressions in xgrammar's serialized grammars that contain others. Version 16 of the format."""


def _endless_rule(grammar: xgrammar.Grammar) -> str | None:
    """A rule that the grammar uses and that derives no finite text, or None.

    Such a rule, as in `a ::= a`, may allow no next token at all. Those that do derive one are found by marking, from
    the terminals up, each expression once (Hopcroft and Ullman, Introduction to Automata Theory, lemma 4.1).
    """
    form = json.loads(grammar.serialize_json())
    if form["__VERSION__"] != "v16":
        raise RuntimeError(f"xgrammar serializes grammars as {form['__VERSION__']}, and this reads v16")
    data = form["grammar_expr_data"]
    kinds = [data[start] for start in form["grammar_expr_indptr"]]
    parts = [data[start + 2 : start + 2 + data[start + 1]] for start in form["grammar_expr_indptr"]]
    bodies = [rule[1] for rule in form["rules"]]

    parents: list[list[int]] = [[] for _ in kinds]
    references: list[list[int]] = [[] for _ in bodies]
    missing = [0] * len(kinds)
    ready: list[int] = []
    for index, kind in enumerate(kinds):
        if kind in (_SEQUENCE, _CHOICES):
            missing[index] = len(parts[index]) if kind == _SEQUENCE else 1
            for part in parts[index]:
                parents[part].append(index)
        elif kind == _REFERENCE or (kind == _REPEAT and parts[index][1] > 0):
            missing[index] = 1
            references[parts[index][0]].append(index)
        if missing[index] == 0:
            ready.append(index)
    named: list[list[int]] = [[] for _ in kinds]
    for rule, body in enumerate(bodies):
        named[body].append(rule)
    finite = [False] * len(bodies)
    while ready:
        index = ready.pop()
        users = list(parents[index])
        for rule in named[index]:
            finite[rule] = True
            users += references[rule]
        for user in users:
            missing[user] -= 1
            if missing[user] == 0:
                ready.append(user)

    used, waiting = set(), [form["root_rule_id"]]
    while waiting:
        rule = waiting.pop()
        if rule in used:
            continue
        used.add(rule)
        if not finite[rule]:
            return str(form["rules"][rule][0])
        inside = [bodies[rule]]
        while inside:
            index = inside.pop()
            if kinds[index] in (_REFERENCE, _REPEAT):
                waiting.append(parts[index][0])
            elif kinds[index] in (_SEQUENCE, _CHOICES):
                inside += parts[index]
    return None
