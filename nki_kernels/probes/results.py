"""What a run of the probes found, as an object and as a JSON file that the next run goes on from."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from .table import PROBES, TIMINGS

FORMAT, VERSION = "trn2-probes", 1

Kind = Literal["measured", "modelled"]
Where = Literal["alone", "inside"]
Status = Literal["started", "right", "wrong", "refused", "failed", "hung", "skipped"]

WHERES: tuple[Where, ...] = get_args(Where)


@dataclass(frozen=True)
class Measure:
    """A timing's figure.

    Attributes:
        ns: of one repeat: the median of several differences of a long run and a short one; modelled, the centre.
        low, high: the middle half of them; modelled, the ends of the price list.
        samples: how many differences; 1 where modelled.
    """

    ns: float
    low: float
    high: float
    samples: int = 1

    def __post_init__(self) -> None:
        for name in ("ns", "low", "high"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise ValueError(f"{name} is {value!r}; must be a number")
        if not self.low <= self.ns <= self.high:
            raise ValueError(f"low {self.low:g}, ns {self.ns:g}, high {self.high:g}: must not decrease")
        if isinstance(self.samples, bool) or not isinstance(self.samples, int) or self.samples < 1:
            raise ValueError(f"samples is {self.samples!r}; must be a whole number of at least 1")


@dataclass(frozen=True)
class Answer:
    """What became of one probe in one place.

    Attributes:
        probe, where: which.
        status: "started" while it runs; "hung" where it did not end.
        error: largest error as a part of the largest value, of all its runs.
        message: what is to be known besides, such as a refusal's text.
        rule: the interpreter's rule that refuses it, if one does.
        seconds: wall time, compilation included.
        call_us: median wall time of a call, the host's part included; None where not measured.
        timings: by name.
    """

    probe: str
    where: Where
    status: Status
    error: float | None = None
    message: str = ""
    rule: str = ""
    seconds: float = 0.0
    call_us: float | None = None
    timings: Mapping[str, Measure] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.probe not in PROBES:
            raise ValueError(f"probe is {self.probe!r}, which there is not")
        if self.where not in WHERES:
            raise ValueError(f"where is {self.where!r}; one of {', '.join(WHERES)}")
        if self.status not in get_args(Status):
            raise ValueError(f"status is {self.status!r}; one of {', '.join(get_args(Status))}")
        for name in self.timings:
            if name not in TIMINGS:
                raise ValueError(f"timings: '{name}' is no timing of a probe")

    @property
    def key(self) -> str:
        return key(self.probe, self.where)


def key(probe: str, where: Where) -> str:
    """Under which an answer is kept."""
    return f"{probe}, {where}"


@dataclass
class Results:
    """Answers and where they are from.

    Attributes:
        kind: "measured" on a device, or "modelled" by the interpreter.
        device: in words.
        logical_cores: physical cores of a launch.
        provenance: command, commit, machine and versions of the run.
        answers: by `key`.
    """

    kind: Kind
    device: str
    logical_cores: int
    provenance: dict[str, Any] = field(default_factory=dict)
    answers: dict[str, Answer] = field(default_factory=dict)

    def timings(self) -> dict[str, Measure]:
        """Figures of the probes whose values were right; alone where it ran alone."""
        found: dict[str, Measure] = {}
        for where in reversed(WHERES):
            for answer in self.answers.values():
                if answer.where == where and answer.status == "right":
                    found.update(answer.timings)
        return found

    def save(self, path: Path) -> None:
        """Write JSON, whole or not at all: a run may be ended at any moment."""
        content = {"format": FORMAT, "version": VERSION, **{f.name: getattr(self, f.name) for f in fields(self)}}
        content["answers"] = {name: asdict(answer) for name, answer in self.answers.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(".new")
        beside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        os.replace(beside, path)

    @classmethod
    def load(cls, path: Path) -> Results:
        """Read JSON.

        Raises:
            ValueError: it is no such file, or a field is wrong; the message names the file and the field.
        """
        try:
            return cls._from(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}: {error}") from error

    @classmethod
    def _from(cls, data: Any) -> Results:
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise ValueError(f"not the results of probes: 'format' must be '{FORMAT}'")
        if data.get("version") != VERSION:
            raise ValueError(f"'version' is {data.get('version')!r}; this program reads {VERSION}")
        known = {f.name for f in fields(cls)}
        if wrong := sorted((set(data) - {"format", "version"}) ^ known):
            raise ValueError(f"'{wrong[0]}' is {'missing' if wrong[0] in known else 'not known'}")
        if data["kind"] not in get_args(Kind):
            raise ValueError(f"'kind' is {data['kind']!r}; one of {', '.join(get_args(Kind))}")
        if data["logical_cores"] not in (1, 2):
            raise ValueError(f"'logical_cores' is {data['logical_cores']!r}; must be 1 or 2")
        if not isinstance(data["answers"], dict):
            raise ValueError("'answers' must be an object")
        answers = {name: _answer(name, entry) for name, entry in data["answers"].items()}
        return cls(data["kind"], str(data["device"]), data["logical_cores"], dict(data["provenance"]), answers)


def _answer(name: str, entry: Any) -> Answer:
    if not isinstance(entry, dict):
        raise ValueError(f"answers: '{name}' must be an object")
    try:
        timings = {timing: Measure(**measure) for timing, measure in dict(entry.get("timings", {})).items()}
        answer = Answer(**{**entry, "timings": timings})
    except (TypeError, ValueError) as error:
        raise ValueError(f"answers: '{name}': {error}") from error
    if answer.key != name:
        raise ValueError(f"answers: '{name}' holds '{answer.key}'")
    return answer
