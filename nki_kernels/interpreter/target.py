"""What a kernel is compiled for: an SDK release, a logical core, and how far reports of refusals are believed."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal, get_args

from .hardware import HW

Sdk = Literal["2.29", "2.30", "2.31", "2.32", "2.33"]
SDKS: tuple[Sdk, ...] = get_args(Sdk)
Checks = Literal["instruction", "compiler", "cautious"]
_NKI: dict[str, tuple[int, int]] = {"2.29": (0, 3), "2.30": (0, 4), "2.31": (0, 5), "2.32": (0, 6), "2.33": (0, 7)}


@dataclass(frozen=True)
class Target:
    """What to compile for.

    Attributes:
        sdk: Neuron SDK release.
        lnc: Physical cores of a logical core, 1 or 2; a launch must name the same number. None: whatever it names.
        checks: "instruction": only the limits of single instructions. "compiler": also the rules of ``rules.RULES``
            that no kernel of AWS's breaks. "cautious": all of them, also those reported by users that AWS's own kernels
            break: right there, where their authors tested them, and wrong or refused elsewhere.
        transposes_dma_on_tensor_engine: The compiler turns DMA transposes into TensorE's and keeps a PSUM bank for
            them: seven are left.

    Raises:
        ValueError: an unknown release, LNC degree or set of checks.
    """

    sdk: Sdk = "2.31"
    lnc: int | None = None
    checks: Checks = "cautious"
    transposes_dma_on_tensor_engine: bool = False

    def __post_init__(self) -> None:
        if self.sdk not in SDKS:
            raise ValueError(f"sdk={self.sdk!r} is not a release that is known. Use one of: {', '.join(SDKS)}")
        if self.lnc not in (None, 1, 2):
            raise ValueError(f"lnc={self.lnc!r} is not a logical core's size. Use 1, 2 or None")
        if self.checks not in get_args(Checks):
            raise ValueError(f"checks={self.checks!r} is not known. Use one of: {', '.join(get_args(Checks))}")

    @property
    def nki(self) -> tuple[int, int]:
        """NKI version of the release."""
        return _NKI[self.sdk]

    @property
    def traces(self) -> bool:
        """Kernels are traced by running them in Python (from NKI 0.7 on) instead of parsed."""
        return self.nki >= (0, 7)

    @property
    def psum_banks(self) -> int:
        """Banks that a kernel may fill."""
        return HW.psum_banks - self.transposes_dma_on_tensor_engine

    def reaches(self, sdk: str) -> bool:
        """Whether the release is ``sdk`` or later."""
        return SDKS.index(self.sdk) >= SDKS.index(sdk)


_current: ContextVar[Target] = ContextVar("nki_target", default=Target())  # noqa: B039 (immutable)


def current_target() -> Target:
    """The target of launches made now."""
    return _current.get()


@contextmanager
def compiling_for(target: Target) -> Iterator[Target]:
    """Launches made inside are compiled for ``target``."""
    token = _current.set(target)
    try:
        yield target
    finally:
        _current.reset(token)
