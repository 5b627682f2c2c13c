"""A suite: prompts, what is checked of their answers, and the limits within which a deployment is accepted."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import jsonschema
import yaml  # type: ignore[import-untyped]

from qwen36_neuron.errors import ConfigError

RESERVED = ("messages", "model", "stream", "n", "max_tokens", "max_completion_tokens")
"""Parameters of a request that a row says otherwise, or that the gate sets."""


@dataclass(frozen=True, slots=True)
class Checks:
    """What must hold of an answer; all that are given.

    Attributes:
        exact: the answer, without white space around it.
        contains: texts that are all in it.
        json_schema: schema of the answer, which is JSON then, alone or in one fenced block.
        label: the right one of the suite's labels. It is not checked row by row, but counted.
    """

    exact: str | None = None
    contains: tuple[str, ...] = ()
    json_schema: Mapping[str, Any] | None = None
    label: str | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One request.

    Attributes:
        id: its name, of its own in the suite.
        messages: of the chat.
        checks: of the answer.
        hard: whether a deployment that fails it is refused whatever else it does.
        max_tokens: of the answer; None for the envelope's.
        parameters: of the request, beside the suite's.
    """

    id: str
    messages: tuple[Mapping[str, Any], ...]
    checks: Checks
    hard: bool = False
    max_tokens: int | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a deployment must reach. Shares are of rows that ran; None is not looked at.

    Attributes:
        hard_failures: hard rows that may fail; one that was skipped has failed.
        pass_rate: rows of which all checks hold.
        agreement: rows whose label, or else whose text, is the reference's.
        precision: of each label: of the rows that were given it, those that have it.
        recall: of each label: of the rows that have it, those that were given it.
        skipped: rows that may be skipped.
        coverage: of the envelope's prompt tokens, what the longest row that ran must have.
    """

    hard_failures: int = 0
    pass_rate: float | None = None
    agreement: float | None = None
    precision: float | None = None
    recall: float | None = None
    skipped: int = 0
    coverage: float = 0.8


@dataclass(frozen=True, slots=True)
class Suite:
    """Everything that a deployment is asked, and what it is held to.

    Attributes:
        name: of the suite; digest: SHA-256 of its file.
        prompt_tokens, completion_tokens: the envelope: rows beyond it are skipped.
        rows: what is asked.
        limits: what must be reached.
        labels: that an answer may have, if rows are labelled.
        label_field: of a JSON answer, the member that holds the label; None to look for one in the text.
        parameters: of every request.
    """

    name: str
    digest: str
    prompt_tokens: int
    completion_tokens: int
    rows: tuple[Row, ...]
    limits: Limits = Limits()
    labels: tuple[str, ...] = ()
    label_field: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=lambda: {"temperature": 0})

    @classmethod
    def load(cls, file: Path) -> Suite:
        """Read a suite in YAML or JSON.

        Raises:
            ConfigError: naming the field, its value, what is wrong and what to do.
        """
        try:
            text = file.read_text(encoding="utf-8")
            raw = yaml.safe_load(text)
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError("suite", str(file), f"cannot be read ({error})", "Give a YAML or JSON file") from error
        return cls.parse(file.stem, raw, hashlib.sha256(text.encode()).hexdigest())

    @classmethod
    def parse(cls, name: str, raw: Any, digest: str = "") -> Suite:
        """Build from what the file holds; raises ConfigError as `load` does."""
        known = ("name", "envelope", "rows", "limits", "labels", "label_field", "parameters")
        given = _object("suite", raw, known, required=("envelope", "rows"))
        budgets = ("prompt_tokens", "completion_tokens")
        envelope = _object("envelope", given["envelope"], budgets, required=budgets)
        prompt, completion = (_count(f"envelope.{key}", envelope[key], 1) for key in budgets)
        labels = _texts("labels", given.get("labels", []))
        if len({label.casefold() for label in labels}) < len(labels):
            raise ConfigError("labels", list(labels), "names one twice", "Remove it")
        rows = given["rows"]
        if not isinstance(rows, list) or not rows:
            raise ConfigError("rows", rows, "must be a list of rows, one at least", "Add one")
        made = tuple(_row(f"rows[{index}]", row, labels, completion) for index, row in enumerate(rows))
        names = [row.id for row in made]
        if twice := sorted({one for one in names if names.count(one) > 1}):
            raise ConfigError("rows.id", twice[0], "names two rows", "Give each a name of its own")
        label_field = given.get("label_field")
        if label_field is not None and not labels:
            raise ConfigError("label_field", label_field, "says nothing without labels", "Give labels too")
        parameters = _parameters("parameters", given.get("parameters", {"temperature": 0}))
        limits = _limits(given.get("limits", {}))
        if (limits.precision, limits.recall) != (None, None) and not any(row.checks.label for row in made):
            raise ConfigError("limits", given["limits"], "needs rows with a label", "Label them, or remove the limit")
        return cls(
            name=str(given.get("name", name)),
            digest=digest,
            prompt_tokens=prompt,
            completion_tokens=completion,
            rows=made,
            limits=limits,
            labels=labels,
            label_field=None if label_field is None else str(label_field),
            parameters=parameters,
        )


def _row(where: str, raw: Any, labels: Sequence[str], most: int) -> Row:
    known = ("id", "prompt", "messages", "hard", "max_tokens", "parameters", "expect")
    given = _object(where, raw, known, required=("id",))
    if ("prompt" in given) == ("messages" in given):
        raise ConfigError(where, given["id"], "needs a prompt or messages, and not both", "Give one of the two")
    messages = given.get("messages", [{"role": "user", "content": given.get("prompt")}])
    if not isinstance(messages, list) or not messages or not all(isinstance(one, dict) for one in messages):
        raise ConfigError(f"{where}.messages", messages, "must be a list of messages", "Correct it")
    if "prompt" in given and not isinstance(given["prompt"], str):
        raise ConfigError(f"{where}.prompt", given["prompt"], "must be a text", "Put it into quotes")
    hard = given.get("hard", False)
    if not isinstance(hard, bool):
        raise ConfigError(f"{where}.hard", hard, "must be true or false", "Correct it")
    tokens = given.get("max_tokens")
    if tokens is not None and _count(f"{where}.max_tokens", tokens, 1) > most:
        raise ConfigError(f"{where}.max_tokens", tokens, f"goes beyond the envelope's {most}", "Lower it")
    return Row(
        id=str(given["id"]),
        messages=tuple(messages),
        checks=_checks(f"{where}.expect", given.get("expect", {}), labels),
        hard=hard,
        max_tokens=tokens,
        parameters=_parameters(f"{where}.parameters", given.get("parameters", {})),
    )


def _checks(where: str, raw: Any, labels: Sequence[str]) -> Checks:
    given = _object(where, raw, tuple(one.name for one in fields(Checks)))
    contains = given.get("contains", [])
    schema = given.get("json_schema")
    if schema is not None:
        try:
            jsonschema.validators.validator_for(schema).check_schema(schema)
        except (jsonschema.SchemaError, TypeError, AttributeError) as error:
            problem = f"is no JSON schema ({getattr(error, 'message', error)})"
            raise ConfigError(f"{where}.json_schema", schema, problem, "Correct it") from error
    label = given.get("label")
    if label is not None and label not in labels:
        raise ConfigError(f"{where}.label", label, "is none of the suite's labels", f"Known: {', '.join(labels)}")
    exact = given.get("exact")
    if exact is not None and not isinstance(exact, str):
        raise ConfigError(f"{where}.exact", exact, "must be a text", "Put it into quotes")
    texts = _texts(f"{where}.contains", [contains] if isinstance(contains, str) else contains)
    return Checks(None if exact is None else exact.strip(), texts, schema, label)


def _limits(raw: Any) -> Limits:
    counts = ("hard_failures", "skipped")
    given = _object("limits", raw, tuple(one.name for one in fields(Limits)))
    for key, value in given.items():
        if key in counts:
            _count(f"limits.{key}", value, 0)
        elif isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise ConfigError(f"limits.{key}", value, "must be a share", "Use 0 to 1")
    return Limits(**given)


def _parameters(where: str, raw: Any) -> dict[str, Any]:
    if not isinstance(raw, dict):
        raise ConfigError(where, raw, "must hold parameters of a request", "Use a form like {temperature: 0}")
    for key in RESERVED:
        if key in raw:
            raise ConfigError(f"{where}.{key}", raw[key], "is set by the gate", "Remove it; rows have max_tokens")
    return raw


def _object(where: str, raw: Any, known: Sequence[str], required: Sequence[str] = ()) -> dict[str, Any]:
    if not isinstance(raw, dict):
        raise ConfigError(where, raw, "must hold fields and values", f"Known: {', '.join(known)}")
    for key in raw:
        if key not in known:
            raise ConfigError(f"{where}.{key}", raw[key], "is not known", f"Known: {', '.join(known)}")
    for key in required:
        if key not in raw:
            raise ConfigError(f"{where}.{key}", None, "is missing", "Add it")
    return raw


def _count(where: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(where, value, f"must be a whole number of at least {least}", "Correct it")
    return value


def _texts(where: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(one, str) and one for one in value):
        raise ConfigError(where, value, "must be a list of texts", "Put each into quotes")
    return tuple(value)
