"""The mixture of experts: which experts a token has, and what they make of it."""

from .naive import experts, route
from .static import BlockPlan, Stack, static_experts

__all__ = ["BlockPlan", "Stack", "experts", "route", "static_experts"]
