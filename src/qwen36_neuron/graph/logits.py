"""Logits that are fetched from the device only when somebody reads them: a row is as wide as the vocabulary."""

from __future__ import annotations

from collections.abc import Sequence

import torch


class Logits:
    """Rows of one call's logits, wherever they are.

    Args:
        held: [rows, places, vocab], on the device or not.
        rows: those meant.
    """

    def __init__(self, held: torch.Tensor, rows: Sequence[int]) -> None:
        self._held = held
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, index: int) -> Logits:
        """One of the rows alone; nothing is fetched."""
        return Logits(self._held, [self._rows[index]])

    def fetch(self) -> torch.Tensor:
        """fp32 [rows * places, vocab] on the host."""
        return torch.cat([self._held[row].to("cpu") for row in self._rows])
