"""The checkpoint that is to be served: a folder, or a Hugging Face id that is in the local cache."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from qwen36_neuron.config import ModelConfig
from qwen36_neuron.errors import ConfigError

from .errors import Refusal

_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


@dataclass(frozen=True, slots=True)
class Model:
    """A checkpoint folder.

    Attributes:
        folder: the path as it was given, or the snapshot of an id in the cache.
        name: what clients call it by default.
    """

    folder: Path
    name: str


def find(model: str, revision: str | None, named: str) -> Model:
    """The folder of a checkpoint that is on this machine.

    Args:
        model: a folder, or an id such as Qwen/Qwen3.6-27B.
        revision: branch, tag or commit of an id.
        named: the flag that gave it.
    Raises:
        Refusal: there is none.
    """
    folder = Path(model)
    if folder.is_dir():
        if revision is not None:
            raise Refusal(f"--revision is for a Hugging Face id; {named} {model} is a folder")
        if not (folder / "config.json").is_file():
            raise Refusal(f"{named}: {model} has no config.json, so it is no checkpoint")
        return Model(folder, folder.resolve().name)
    if not _ID.fullmatch(model):
        raise Refusal(f"{named}: no such folder: {model}")
    return Model(_cached(model, revision, named), model)


def _cached(model: str, revision: str | None, named: str) -> Path:
    from huggingface_hub import try_to_load_from_cache

    download = f"hf download {model}" + (f" --revision {revision}" if revision else "")
    found = try_to_load_from_cache(model, "config.json", revision=revision)
    if not isinstance(found, str):
        where = f"is neither a folder nor in the cache of Hugging Face. Download it first: {download}"
        raise Refusal(f"{named}: {model} {where}")
    folder = Path(found).parent
    if missing := _missing(folder):
        some = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise Refusal(f"{named}: {model} is in the cache without {some}. Download the rest: {download}")
    return folder


def _missing(folder: Path) -> list[str]:
    """Files of a snapshot without which it cannot be served."""
    wanted = {"tokenizer.json"}
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        wanted |= set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    elif not any(folder.glob("*.safetensors")):
        wanted.add("model.safetensors")
    return sorted(name for name in wanted if not (folder / name).is_file())


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
    if "model_type" not in raw and "text_config" not in raw:
        return f"{file} names no model_type, which vLLM will ask for"
    try:
        ModelConfig.from_pretrained(model.folder)
    except ConfigError as error:
        raise Refusal(f"{named} {model.folder}: {error}") from error
    return None
