"""The mixture of experts: which experts a token has, and what they make of it."""

from .naive import experts, route

__all__ = ["experts", "route"]
