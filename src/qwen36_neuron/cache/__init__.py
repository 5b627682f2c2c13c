"""The hybrid cache: how big it is, and where everything in it is."""

from .hybrid import DraftFactors, HybridCache, StateBank
from .spec import CacheSpec, default_slots, slots_starve

__all__ = ["CacheSpec", "DraftFactors", "HybridCache", "StateBank", "default_slots", "slots_starve"]
