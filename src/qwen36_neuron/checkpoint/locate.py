"""Where a checkpoint is on this machine: a folder, or a Hugging Face id that is in the local cache."""

from __future__ import annotations

import json
import re
from pathlib import Path

from ..errors import ConfigError

_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)

NO_FOLDER = "no such folder"
"""What is wrong with a word that is neither a folder nor of an id's form."""


def locate(model: str, revision: str | None = None, *, sizes_only: bool = False) -> Path:
    """The folder of a checkpoint; nothing is downloaded.

    Args:
        model: a folder, or an id such as Qwen/Qwen3.6-27B.
        revision: branch, tag or commit of an id.
        sizes_only: config.json is enough, and may be given itself: no weights are read.
    Raises:
        ConfigError: there is none, or it is not whole; names the command that downloads an id.
    """
    path = Path(model)
    if sizes_only and path.is_file():
        return path
    if path.is_dir():
        if revision is not None:
            raise ConfigError("revision", revision, f"is for a Hugging Face id; {model} is a folder", "Leave it out")
        if not (path / "config.json").is_file():
            raise ConfigError(
                "model", model, "has no config.json, so it is no checkpoint", "Give a checkpoint's folder"
            )
        return path
    if not _ID.fullmatch(model):
        raise ConfigError("model", model, NO_FOLDER, "Give a checkpoint's folder, or a Hugging Face id")
    return _cached(model, revision, sizes_only)


def _cached(model: str, revision: str | None, sizes_only: bool) -> Path:
    from huggingface_hub import try_to_load_from_cache

    download = f"hf download {model}" + (f" --revision {revision}" if revision else "")
    found = try_to_load_from_cache(model, "config.json", revision=revision)
    if not isinstance(found, str):
        problem = "is neither a folder nor in the cache of Hugging Face"
        raise ConfigError("model", model, problem, f"Download it first: `{download}`")
    folder = Path(found).parent
    if not sizes_only and (missing := _missing(folder)):
        some = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise ConfigError("model", model, f"is in the cache without {some}", f"Download the rest: `{download}`")
    return folder


def _missing(folder: Path) -> list[str]:
    """Files of a snapshot without which it cannot be run."""
    wanted = {"tokenizer.json"}
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        wanted |= set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    elif not any(folder.glob("*.safetensors")):
        wanted.add("model.safetensors")
    return sorted(name for name in wanted if not (folder / name).is_file())
