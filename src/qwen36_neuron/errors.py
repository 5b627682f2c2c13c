"""Errors that a user can act on."""

from __future__ import annotations


class ConfigError(ValueError):
    """A configuration value that cannot be used.

    Names the field, its value, what is wrong with it and what to do, so that the message alone is enough to fix it.
    """

    def __init__(self, field: str, value: object, problem: str, remedy: str) -> None:
        self.field, self.value, self.problem, self.remedy = field, value, problem, remedy
        super().__init__(f"{field}={value!r}: {problem}. {remedy}.")


class UnsupportedModelError(ConfigError):
    """A checkpoint that is well formed but of a kind that is not supported."""
