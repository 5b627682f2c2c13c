"""Reading the fields of a JSON object, with errors that name them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from .errors import ConfigError


class Fields:
    """Typed access to raw JSON fields, with errors that name the field.

    Args:
        raw: the object.
        path: what stands before a field in an error, such as `rope_parameters.`.
    """

    def __init__(self, raw: Mapping[str, Any], path: str = "") -> None:
        self.raw, self.path = raw, path

    def get(self, field: str, default: Any = None) -> Any:
        value = self.raw.get(field)
        value = default if value is None else value
        if value is None:
            raise self.error(field, None, "is missing", "Use the config.json published with the checkpoint")
        return value

    def size(self, field: str, default: int | None = None, minimum: int = 1) -> int:
        value = self.get(field, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            raise self.error(field, value, f"must be an integer of at least {minimum}", "Correct config.json")
        return value

    def number(self, field: str, default: float | None = None) -> float:
        value = self.get(field, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise self.error(field, value, "must be a positive number", "Correct config.json")
        return float(value)

    def flag(self, field: str, default: bool) -> bool:
        value = self.get(field, default)
        if not isinstance(value, bool):
            raise self.error(field, value, "must be true or false", "Correct config.json")
        return value

    def error(self, field: str, value: object, problem: str, remedy: str) -> ConfigError:
        """An error that names a field by its whole path."""
        return ConfigError(f"{self.path}{field}", value, problem, remedy)
