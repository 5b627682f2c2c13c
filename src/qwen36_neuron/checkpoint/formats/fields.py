"""Reading a quantisation configuration key by key, so that none is accepted and then ignored."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from ...errors import ConfigError

ROOT = "quantization_config"


def words(text: str) -> tuple[str, ...]:
    """The names in a text."""
    return tuple(text.split())


class Fields:
    """The keys of one object. Each must be taken, or be among those that say only how the checkpoint was made.

    Args:
        raw: the object.
        path: its name, for errors.
    Raises:
        ConfigError: it is not an object.
    """

    def __init__(self, raw: object, path: str = ROOT) -> None:
        if not isinstance(raw, Mapping):
            raise ConfigError(path, raw, "must be an object", "Correct config.json")
        self._left = dict(raw)
        self.path = path

    def take(self, name: str, default: Any = None) -> Any:
        """A value; `default` where it is missing or null."""
        value = self._left.pop(name, None)
        return default if value is None else value

    def one_of(self, name: str, allowed: Collection[Any], default: Any = None, remedy: str = "") -> Any:
        """A value that must be one of those implemented; the default counts among them.

        Raises:
            ConfigError: it is another one.
        """
        value = self.take(name, default)
        if not any(value == each and type(value) is type(each) for each in (*allowed, default)):
            known = ", ".join(sorted(repr(each) for each in allowed))
            raise self.error(name, value, f"is not served: {known} is", remedy or "Use another checkpoint of the model")
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        """True or false. Raises ConfigError for anything else."""
        value = self.take(name, default)
        if not isinstance(value, bool):
            raise self.error(name, value, "must be true or false", "Correct config.json")
        return value

    def names(self, name: str) -> tuple[str, ...]:
        """A list of texts, empty where it is missing. Raises ConfigError for anything else."""
        value = self.take(name, [])
        if not isinstance(value, list | tuple) or not all(isinstance(each, str) for each in value):
            raise self.error(name, value, "must be a list of names", "Correct config.json")
        return tuple(value)

    def all(self, known: Collection[str]) -> dict[str, Any]:
        """All values. Raises ConfigError for a key that is not among those known."""
        values = {name: self.take(name) for name in known if name in self._left}
        self.finish()
        return values

    def error(self, name: str, value: object, problem: str, remedy: str) -> ConfigError:
        """An error that names a key by its whole path."""
        return ConfigError(f"{self.path}.{name}", value, problem, remedy)

    def finish(self, notes: Collection[str] = ()) -> None:
        """Raise ConfigError for the first key that was not taken.

        Args:
            notes: keys that say how the checkpoint was made, and nothing about how it is read.
        """
        for name in sorted(self._left):
            if name not in notes and self._left[name] not in (None, {}, []):
                problem = "is not known, and might change what the weights mean"
                raise self.error(name, self._left[name], problem, "Use another checkpoint of the model")
