"""Where a figure comes from: what every result file says about how it was made."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

Kind = Literal["measured", "modelled"]

_PACKAGES = ("torch", "transformers", "vllm", "numpy")
_REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Provenance:
    """How a result was made.

    Attributes:
        kind: "measured" on the machine named, or "modelled", computed from a model of another one.
        command: the command line that makes it again.
        commit: of the source when this process began; ends in "-dirty" where tracked files differed from it.
        date: UTC, to the second.
        machine: processor, cores that this process may use, memory in GiB, operating system.
        packages: versions of what the figures depend on.
    """

    kind: Kind
    command: str
    commit: str
    date: str
    machine: dict[str, Any]
    packages: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def provenance(kind: Kind, arguments: Sequence[str] | None = None) -> Provenance:
    """The provenance of a result of this process.

    Args:
        kind: "measured" or "modelled".
        arguments: the command line; this process's own by default.
    """
    return Provenance(
        kind=kind,
        command=_command(sys.argv if arguments is None else arguments),
        commit=_STARTED_FROM,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=machine(),
        packages=_versions(),
    )


def machine() -> dict[str, Any]:
    """This machine, without anything that names it."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
    }


def _command(arguments: Sequence[str]) -> str:
    """The command line, without the folders of this machine."""
    program, *rest = arguments
    first = "qwen36" if Path(program).name == "qwen36" else f"python {_portable(program)}"
    return " ".join([first, *map(_portable, rest)])


def _portable(argument: str) -> str:
    """An argument without the folders of the machine it was given on."""
    name, equals, value = argument.rpartition("=")
    path = Path(value)
    if not path.is_absolute():
        return argument
    inside = path.resolve().is_relative_to(_REPOSITORY)
    return name + equals + (str(path.resolve().relative_to(_REPOSITORY)) if inside else path.name)


def _commit(repository: Path) -> str:
    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(repository), *words], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


_STARTED_FROM = _commit(_REPOSITORY)
"""Asked at once: by the end of a long run the files may be of a later commit than the code that ran."""


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    fields = dict(reversed([[part.strip() for part in line.split(":", 1)] for line in lines if ":" in line]))
    family = f" (family {fields['cpu family']}, model {fields['model']})" if "cpu family" in fields else ""
    return fields.get("model name", platform.processor() or "unknown") + family


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
