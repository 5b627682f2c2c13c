"""Hybrid APC: which state checkpoints to keep, and which to give up.

Pure Python on token counts and opaque prefix keys: the scheduler uses it, and so does the trace simulator, so what the
simulator measures is what the engine does.
"""

from .boundaries import BoundaryPlanner, Kind, Plan
from .checkpoint import Checkpoint, DropReason
from .config import PolicyConfig
from .cost import PrefillCost
from .keys import Key, Path
from .pool import SlotPool
from .seen import SeenPrefixes

__all__ = [
    "BoundaryPlanner",
    "Checkpoint",
    "DropReason",
    "Key",
    "Kind",
    "Path",
    "Plan",
    "PolicyConfig",
    "PrefillCost",
    "SeenPrefixes",
    "SlotPool",
]
