"""Where an expert's weights lie in a partition's run: what the kernels of experts and their packing agree on."""

from dataclasses import dataclass

TILE = 128


@dataclass(frozen=True)
class ExpertRow:
    """An expert's weights on one partition, in elements: gates and ups, with codes their scales, then down.

    Attributes:
        inner: Intermediate channels, in `blocks` of `width`.
        lines: hidden / 128.
        factors: Bytes of scales, 0 without codes: fp32 of gates and ups by block, then of the lines of down.
        down: Where down begins.
        size: Elements in all.
    """

    inner: int
    blocks: int
    width: int
    lines: int
    factors: int
    down: int
    size: int


def expert_row(inner: int, lines: int, codes: bool) -> ExpertRow:
    """The order of an expert of `inner` channels, a multiple of 32 up to 128, or of 128."""
    width = min(inner, TILE)
    fits = inner > 0 and width % 32 == 0 and inner % width == 0
    assert fits, f"{inner} intermediate channels, must be a multiple of 32 up to 128, or of 128: pad with zeros"
    blocks = inner // width
    factors = 4 * (2 * blocks + lines) if codes else 0
    down = 2 * inner * lines + factors
    return ExpertRow(
        inner=inner, blocks=blocks, width=width, lines=lines, factors=factors, down=down,
        size=down + blocks * lines * TILE,
    )  # fmt: skip


def inner_of(size: int, lines: int, codes: bool) -> int:
    """Intermediate channels of an expert whose partitions have `size` elements."""
    inner = 32
    while expert_row(inner, lines, codes).size < size:
        inner = inner + (32 if inner < TILE else TILE)
    assert expert_row(inner, lines, codes).size == size, f"{size} elements a partition are no expert's of {lines} lines"
    return inner
