"""A price list: every constant of the cost model as a range, loaded from and saved to JSON.

A file looks like this; what it does not name keeps its published price::

    {"format": "nki-price-list", "version": 1, "name": "trn2.3xlarge, SDK 2.31", "prices": {
        "scalar_table_ns": {"low": 1270, "centre": 1283, "high": 1300, "unit": "ns", "kind": "measured",
                            "source": "probe table_switch, 2026-12-01", "uncertain": "spread of 5 runs"}}}
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from .cost_table import TABLE, Costs, Price

FORMAT, VERSION = "nki-price-list", 1
Level = Literal["low", "centre", "high"]
LEVELS: tuple[Level, ...] = ("low", "centre", "high")
_KEYS = {f.name for f in fields(Price)}


@dataclass(frozen=True)
class PriceList:
    """A name and a price for every constant.

    Attributes:
        name: Where the prices hold, e.g. the machine and the SDK that a calibration ran on.
        prices: Constant -> price. Constants left out have their published price.

    Raises:
        ValueError: a constant that the model does not have, or one in another unit.
    """

    name: str = "published"
    prices: Mapping[str, Price] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key, price in self.prices.items():
            if key not in TABLE:
                raise ValueError(f"'{key}' is not a constant of the cost model; 'qwen36 kernels constants' lists them")
            if price.unit != TABLE[key].unit:
                raise ValueError(f"{key}: unit is '{price.unit}', must be '{TABLE[key].unit}'")
        object.__setattr__(self, "prices", TABLE | dict(self.prices))

    def costs(self, level: Level = "centre") -> Costs:
        """The values with which everything costs least (``low``), most (``high``), or what is most likely."""
        ends = {"low": "high", "high": "low", "centre": "centre"}
        return Costs(**{k: getattr(p, ends[level] if p.rate else level) for k, p in self.prices.items()})

    def having(self, name: str = "", /, **values: float) -> "PriceList":
        """The same list with some constants known exactly."""
        known = {
            k: Price(v, v, v, TABLE[k].unit, self.prices[k].kind, f"given; {self.prices[k].source}")
            if k in TABLE else _unknown(k)
            for k, v in values.items()
        }  # fmt: skip
        return PriceList(name or self.name, {**self.prices, **known})

    def to_dict(self, *, changed: bool = False) -> dict[str, Any]:
        """As plain data; only what differs from the published prices if ``changed``."""
        shown = {k: asdict(p) for k, p in self.prices.items() if not changed or p != TABLE[k]}
        return {"format": FORMAT, "version": VERSION, "name": self.name, "prices": shown}

    def save(self, path: str | Path) -> None:
        """Write JSON."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def from_dict(cls, data: Any) -> "PriceList":
        """The list in plain data.

        Raises:
            ValueError: names the field at fault and what is wrong with it.
        """
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise ValueError(f"not a price list: 'format' must be '{FORMAT}'")
        if data.get("version") != VERSION:
            raise ValueError(f"'version' is {data.get('version')!r}; this program reads {VERSION}")
        extra = sorted(set(data) - {"format", "version", "name", "prices"})
        if extra:
            raise ValueError(f"'{extra[0]}' is not a field of a price list")
        name, entries = data.get("name"), data.get("prices")
        if not isinstance(name, str) or not name:
            raise ValueError(f"'name' is {name!r}; say where the prices hold")
        if not isinstance(entries, dict):
            raise ValueError("'prices' must be an object: constant -> price")
        return cls(name, {key: _price(key, entry) for key, entry in entries.items()})

    @classmethod
    def load(cls, path: str | Path) -> "PriceList":
        """Read JSON.

        Raises:
            ValueError: it is not JSON, or not a valid price list; the message names the file and the field.
        """
        try:
            return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


def _unknown(key: str) -> Price:
    raise ValueError(f"'{key}' is not a constant of the cost model")


def _price(key: str, entry: Any) -> Price:
    if not isinstance(entry, dict):
        raise ValueError(f"{key}: must be an object with low, centre, high, unit, kind and source")
    extra, missing = sorted(set(entry) - _KEYS), sorted(_KEYS - {"uncertain"} - set(entry))
    if extra or missing:
        raise ValueError(
            f"{key}: '{extra[0]}' is not a field of a price" if extra else f"{key}: '{missing[0]}' is missing"
        )
    for text in ("unit", "kind", "source", "uncertain"):
        if not isinstance(entry.get(text, ""), str):
            raise ValueError(f"{key}: '{text}' is {entry[text]!r}; must be text")
    try:
        return Price(**entry)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error
