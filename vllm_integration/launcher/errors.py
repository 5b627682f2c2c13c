"""What ends a start before anything runs."""

from __future__ import annotations


class Refusal(Exception):
    """A start that cannot be: the flag, its value and what to do. The launcher prints it and ends with status 2."""
