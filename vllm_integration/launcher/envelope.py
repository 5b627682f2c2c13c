"""`--envelope FILE`: the lengths that `qwen36 gate` accepted a deployment for, out of its result."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import Refusal

FIELDS = {"max_prompt_tokens": "prompt_tokens", "max_completion_tokens": "completion_tokens"}
"""The proxy's limits, by name of the result's."""
RESULT = "gate.json"
"""The result that lies in an artifact's folder, where the artifact is what was accepted."""


def beside(artifact: str | None, *, proxy: bool) -> str | None:
    """The result in an artifact's folder, which holds unless another is named; None without a proxy to keep to it."""
    file = None if artifact is None or not proxy else Path(artifact) / RESULT
    return str(file) if file is not None and file.is_file() else None


def read(file: str, flag: str) -> dict[str, int]:
    """The proxy's limits that a result of `qwen36 gate` comes to.

    Args:
        file: the result, in JSON.
        flag: what messages call it.
    Raises:
        Refusal: there is no such file, it is no such result, or what it looked at was not accepted.
    """
    try:
        result = json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise Refusal(f"{flag} {file} cannot be read: {error}") from error
    except json.JSONDecodeError as error:
        raise Refusal(f"{flag} {file} is not JSON: {error}") from error
    envelope = result.get("envelope") if isinstance(result, dict) else None
    given = {field: envelope.get(key) for field, key in FIELDS.items()} if isinstance(envelope, dict) else {}
    limits = {field: value for field, value in given.items() if type(value) is int and value > 0}
    if len(limits) < len(FIELDS):
        raise Refusal(
            f"{flag} {file} is no result of qwen36 gate: it needs an envelope of {' and '.join(FIELDS.values())}"
        )
    if result.get("accepted") is not True:
        raise Refusal(f"{flag} {file} says that the deployment was not accepted; see its failures")
    return limits


def within(envelope: Mapping[str, int], asked: Mapping[str, Any], names: Mapping[str, str]) -> None:
    """Raises Refusal for a limit that was given beside an envelope and lies beyond it; a tighter one is taken.

    Args:
        names: of the flags, by field.
    """
    for field, most in envelope.items():
        if asked.get(field) is not None and asked[field] > most:
            raise Refusal(f"{names[field]} {asked[field]} goes beyond the {most} tokens that were accepted")
