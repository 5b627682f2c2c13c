"""The network, a block a file, written once for both devices."""

from .decoder import Qwen36Model
from .layers import LayerFactory, SingleRank
from .state import StepState

__all__ = ["LayerFactory", "Qwen36Model", "SingleRank", "StepState"]
