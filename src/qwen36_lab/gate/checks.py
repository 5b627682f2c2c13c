"""Whether an answer is what a row expects."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import jsonschema

from .suite import Checks

_FENCED = re.compile(r"\A```(?:json)?\s*\n(.*)\n```\Z", re.DOTALL | re.IGNORECASE)


def failures(checks: Checks, answer: str) -> list[str]:
    """What does not hold of an answer, in words; the label is not among it."""
    found = []
    if checks.exact is not None and answer.strip() != checks.exact:
        found.append(f"is {_short(answer.strip())}, not {_short(checks.exact)}")
    found += [f"does not contain {_short(text)}" for text in checks.contains if text not in answer]
    if checks.json_schema is not None:
        try:
            jsonschema.validate(parsed(answer), checks.json_schema)
        except ValueError as error:
            found.append(f"is not JSON: {error}")
        except jsonschema.ValidationError as error:
            found.append(f"does not match the schema at {error.json_path}: {error.message}")
    return found


def parsed(answer: str) -> Any:
    """The JSON value of an answer, alone or in one fenced block; raises ValueError where it is none."""
    text = answer.strip()
    fenced = _FENCED.match(text)
    return json.loads(fenced.group(1) if fenced else text)


def label_of(answer: str, labels: Sequence[str], field: str | None) -> str | None:
    """The label that an answer gives.

    Args:
        labels: those that there are; upper and lower case are the same.
        field: the member of a JSON answer that holds it; None for the text itself.
    Returns:
        The one that the text is, or the only one that is in it as a word; None for none, or for several.
    """
    text = answer.strip()
    if field is not None:
        try:
            value = parsed(answer)
        except ValueError:
            return None
        text = str(value.get(field, "")) if isinstance(value, dict) else ""
    exact = [label for label in labels if label.casefold() == text.casefold()]
    if exact or field is not None:
        return exact[0] if exact else None
    named = [label for label in labels if re.search(rf"(?<!\w){re.escape(label)}(?!\w)", text, re.IGNORECASE)]
    return named[0] if len(named) == 1 else None


def _short(text: str) -> str:
    shown = text if len(text) <= 60 else f"{text[:57]}..."
    return json.dumps(shown, ensure_ascii=False)
