"""The hybrid cache: how big it is, and where everything in it is."""

from .hybrid import HybridCache
from .spec import CacheSpec

__all__ = ["CacheSpec", "HybridCache"]
