"""The probes: every open question, in the order in which a device is asked."""

from __future__ import annotations

from .ask_engines import UNITS
from .ask_memory import ADDRESSES
from .ask_tensor import BANKS
from .probe import Probe, Timing

PROBES: dict[str, Probe] = {probe.name: probe for probe in (*ADDRESSES, *BANKS, *UNITS)}

TIMINGS: dict[str, Timing] = {timing.name: timing for probe in PROBES.values() for timing in probe.timings}
