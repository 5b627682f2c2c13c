"""The shapes that are compiled, and which one a call takes."""

from __future__ import annotations

from dataclasses import dataclass

from ..config import BLOCK_SIZE
from ..errors import ConfigError


@dataclass(frozen=True, slots=True, order=True)
class PrefillBucket:
    """A context-encoding graph: whole blocks of `active` tokens, after up to `prefix` tokens in whole blocks."""

    active: int
    prefix: int

    @property
    def table_width(self) -> int:
        """Blocks in the graph's block table."""
        return (self.prefix + self.active) // BLOCK_SIZE


@dataclass(frozen=True, slots=True)
class Buckets:
    """All shapes of one artifact.

    Attributes:
        prefill: any pairs, not a full grid: each one is a graph that takes compile time and device memory.
        decode: tokens that a row may hold after a decode step, ascending.
    """

    prefill: tuple[PrefillBucket, ...]
    decode: tuple[int, ...]

    def __post_init__(self) -> None:
        for field, sizes in (
            ("prefill_buckets", [size for pair in self.prefill for size in (pair.active, pair.prefix)]),
            ("decode_buckets", list(self.decode)),
        ):
            wrong = [size for size in sizes if size % BLOCK_SIZE or size < 0]
            if not sizes:
                raise ConfigError(field, list(sizes), "is empty", "List at least one bucket")
            if wrong:
                raise ConfigError(field, wrong, f"must be multiples of {BLOCK_SIZE}", "Round them up")
        if min(pair.active for pair in self.prefill) < BLOCK_SIZE or min(self.decode) < BLOCK_SIZE:
            raise ConfigError("buckets", 0, "a bucket must hold at least one block", f"Use {BLOCK_SIZE} or more")
        if len(set(self.prefill)) < len(self.prefill) or list(self.decode) != sorted(set(self.decode)):
            raise ConfigError(
                "buckets",
                [*self.prefill, *self.decode],
                "the device tells graphs apart by their shapes alone, so two equal ones hide each other",
                "List every bucket once, decode buckets in ascending order",
            )

    @classmethod
    def grid(cls, active: tuple[int, ...], prefix: tuple[int, ...], decode: tuple[int, ...]) -> Buckets:
        """Every active size with every prefix size, and with none."""
        pairs = tuple(PrefillBucket(a, p) for a in sorted(set(active)) for p in sorted({0, *prefix}))
        return cls(pairs, tuple(sorted(set(decode))))

    def check_covers(self, max_model_len: int) -> None:
        """Raises ConfigError unless every step of a sequence of `max_model_len` tokens has a bucket."""
        if self.decode[-1] < max_model_len:
            raise ConfigError(
                "decode_buckets", self.decode, f"do not reach max_model_len={max_model_len}", "Add a larger bucket"
            )
        # The last token of the longest sequence may come as a prefill of its own, after all whole blocks before it.
        deepest = (max_model_len - 1) // BLOCK_SIZE * BLOCK_SIZE
        reach = max(pair.prefix for pair in self.prefill)
        if reach < deepest:
            raise ConfigError(
                "prefill_buckets",
                reach,
                f"no bucket takes the {deepest} tokens that may come before the last chunk of {max_model_len}",
                "Add a bucket with a longer prefix",
            )

    def prefill_for(self, start: int, tokens: int) -> PrefillBucket:
        """The smallest bucket for `tokens` new tokens after `start`; the largest that takes the start if none fits all.

        New tokens are laid out from the start of the block that the first one falls into; what that block holds before
        them takes places of the layout, not of the prefix.

        Raises:
            ConfigError: no bucket takes so long a prefix.
        """
        lead = start % BLOCK_SIZE
        usable = sorted(pair for pair in self.prefill if pair.prefix >= start - lead)
        if not usable:
            raise ConfigError(
                "prefill_buckets", start, "no bucket takes a prefix of so many tokens", "Add a longer one"
            )
        fitting = [pair for pair in usable if pair.active >= lead + tokens]
        if fitting:
            return fitting[0]
        largest = usable[-1].active
        return next(pair for pair in usable if pair.active == largest)

    def decode_for(self, held: int) -> int:
        """The smallest bucket for rows that hold up to `held` tokens after the step."""
        for size in self.decode:
            if size >= held:
                return size
        raise ConfigError("decode_buckets", held, "no bucket holds so many tokens", "Add a larger bucket")
