"""Which kernels the graphs of each stage are made with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Literal

from ..devices import NeuronKernels
from ..errors import ConfigError
from ..ops.kernels import check_choice

Stage = Literal["prefill", "decode", "verify"]


@dataclass(frozen=True, slots=True)
class StageKernels:
    """The kernels of each stage.

    "torch" is plain operations; "nki" makes convolution, delta rule, attention, gated norm and, in FP8, MLPs NKI
    kernels; "fused" is "nki" with the feed-forward block, an attention layer (but for FP8 keys and values), and a
    DeltaNet mixer's projections in one kernel each, norms and sums over ranks inside; a feed-forward block and the next
    mixer's input projections are one where they are of one number format. There are none of these for prompts. With a
    fused stage the head is a kernel in the graphs of all.

    Attributes:
        prefill: of prompts; "torch" or "nki".
        decode: of one token a row, and of graphs that draft, in which nothing is fused.
        verify: of a token and drafts a row.
    """

    prefill: NeuronKernels
    decode: NeuronKernels
    verify: NeuronKernels

    def __post_init__(self) -> None:
        for stage, choice in asdict(self).items():
            check_choice(choice, "neuron", f"kernels.{stage}")
        if self.prefill == "fused":
            remedy = "Use prefill: nki, or kernels: fused for all stages that have them"
            raise ConfigError("kernels.prefill", "fused", "there are no fused kernels of prompts", remedy)
        plain = [stage for stage, choice in asdict(self).items() if choice == "torch"]
        if len(plain) not in (0, 3):
            problem = "plain operations write padding to the memory's scratch entry, which the kernels need to be zero"
            raise ConfigError(f"kernels.{plain[0]}", "torch", problem, "Use torch in all stages, or nki here")

    @classmethod
    def of(cls, choice: NeuronKernels | StageKernels) -> StageKernels:
        """One choice for all stages; "fused" for those that have such kernels, and "nki" for prompts."""
        if isinstance(choice, StageKernels):
            return choice
        return cls("nki" if choice == "fused" else choice, choice, choice)

    @classmethod
    def read(cls, raw: object) -> NeuronKernels | StageKernels:
        """A choice for all stages, or one a stage, as a profile says it; the one choice wherever that says the same.

        Raises:
            ConfigError: a stage is missing or unknown, or a value cannot be used.
        """
        if isinstance(raw, str):
            check_choice(raw, "neuron")
            return raw  # type: ignore[return-value]
        stages = [field.name for field in fields(cls)]
        if not isinstance(raw, Mapping):
            remedy = f"Use torch, nki or fused, or say one of them for each of {', '.join(stages)}"
            raise ConfigError("kernels", raw, "is not known", remedy)
        for stage in raw:
            if stage not in stages:
                raise ConfigError(f"kernels.{stage}", raw[stage], "is no stage", f"Stages: {', '.join(stages)}")
        for stage in stages:
            if stage not in raw:
                raise ConfigError(f"kernels.{stage}", None, "is missing", "Give every stage, or one choice for all")
        found = cls(**raw)
        return found.decode if found == cls.of(found.decode) else found

    @property
    def fused(self) -> bool:
        """Whether a stage's kernels are fused, and so weights are held as these take them."""
        return "fused" in (self.decode, self.verify)

    def __str__(self) -> str:
        return ", ".join(f"{stage} {choice}" for stage, choice in asdict(self).items())
