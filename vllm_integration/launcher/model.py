"""The checkpoint that is to be served: a folder, or a Hugging Face id that is in the local cache."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen36_neuron.checkpoint.locate import NO_FOLDER, locate
from qwen36_neuron.config import ModelConfig
from qwen36_neuron.errors import ConfigError

from .errors import Refusal


@dataclass(frozen=True, slots=True)
class Model:
    """A checkpoint folder.

    Attributes:
        folder: the path as it was given, or the snapshot of an id in the cache.
        name: what clients call it by default.
    """

    folder: Path
    name: str

    @property
    def described(self) -> bool:
        """Whether its config.json, which `check` has read, says what kind of model it is."""
        return _names_a_kind(json.loads((self.folder / "config.json").read_text(encoding="utf-8")))


def find(model: str, revision: str | None, named: str) -> Model:
    """The folder of a checkpoint that is on this machine.

    Args:
        model: a folder, or an id such as Qwen/Qwen3.6-27B.
        revision: branch, tag or commit of an id.
        named: the flag that gave it.
    Raises:
        Refusal: there is none.
    """
    try:
        folder = locate(model, revision)
    except ConfigError as error:
        if error.field == "revision":
            raise Refusal(f"--revision is for a Hugging Face id; {named} {model} is a folder") from error
        if error.problem == NO_FOLDER:
            raise Refusal(f"{named}: {NO_FOLDER}: {model}") from error
        remedy = error.remedy.replace("`", "")
        raise Refusal(f"{named}: {model} {error.problem}. {remedy}") from error
    return Model(folder, folder.resolve().name if Path(model).is_dir() else model)


def check(model: Model, named: str) -> str | None:
    """Read `config.json` as the server will, and give what is worth knowing about it.

    Raises:
        Refusal: it describes no model that can be served.
    """
    file = model.folder / "config.json"
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise Refusal(f"{named}: {file} is not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise Refusal(f"{named}: {file} is not a JSON object")
    if not _names_a_kind(raw):
        return f"{file} names no model_type, which vLLM will ask for"
    try:
        ModelConfig.from_pretrained(model.folder)
    except ConfigError as error:
        raise Refusal(f"{named} {model.folder}: {error}") from error
    return None


def _names_a_kind(config: Mapping[str, Any]) -> bool:
    return "model_type" in config or "text_config" in config
