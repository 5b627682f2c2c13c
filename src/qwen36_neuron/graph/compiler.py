"""Arguments of neuronx-cc, every one of them written out, for each kind of graph."""

from __future__ import annotations

from dataclasses import dataclass

LONG_CONTEXT = 32 * 1024
"""Tokens from which AWS's own models take the long-context arguments."""


@dataclass(frozen=True, slots=True)
class CompilerOptions:
    """What differs between the graphs.

    Attributes:
        optimize: the -O level. Context encoding is compiled at 1, in modules; a decode graph at 2, whole, because calls
            between modules would show in the time of a token.
        collective_tiles: pieces that a collective is cut into to overlap with arithmetic; a decode step is too small.
        logical_cores: physical cores that one logical core joins (LNC).
        long_context: fewer DMA descriptors and copies at the price of some speed, for 32K tokens and more.
        vectorize_dma: join strided transfers; at 128K context encoding it spills.
        scratchpad_page_mib: page size of the scratchpad in device memory; None for the compiler's own.
    """

    optimize: int
    collective_tiles: int
    logical_cores: int
    long_context: bool = False
    vectorize_dma: bool = True
    scratchpad_page_mib: int | None = None

    def arguments(self) -> str:
        """The command line. NxDI adds the verification of the HLO, and the FP8 option where weights are FP8.

        `--modular-flow-mac-threshold`, which NxDI's defaults give context encoding, is left out on purpose: with it
        the compiler fails on graphs with DeltaNet layers (NCC_IBTN006).
        """
        tensorizer = ["--enable-ccop-compute-overlap", f"--cc-pipeline-tiling-factor={self.collective_tiles}"]
        if self.vectorize_dma:
            tensorizer.append("--vectorize-strided-dma")
        arguments = [
            "--auto-cast=none",
            "--model-type=transformer",
            f"--tensorizer-options='{' '.join(tensorizer)}'",
            f"--lnc={self.logical_cores}",
            f"-O{self.optimize}",
        ]
        if self.long_context:
            arguments += ["--internal-disable-fma-on-ios", "--disable-mixed-precision-accumulation"]
        if self.scratchpad_page_mib is not None:
            arguments.append(f"--hbm-scratchpad-page-size={self.scratchpad_page_mib}")
        return " ".join(arguments)


def prefill_options(max_model_len: int, logical_cores: int) -> CompilerOptions:
    """For context encoding."""
    long = max_model_len >= LONG_CONTEXT
    spills = logical_cores == 2 and max_model_len >= 4 * LONG_CONTEXT
    return CompilerOptions(1, 2, logical_cores, long, not spills, 1024 if long else None)


def decode_options(max_model_len: int, logical_cores: int) -> CompilerOptions:
    """For token generation."""
    long = max_model_len >= LONG_CONTEXT
    return CompilerOptions(2, 1, logical_cores, long, True, 1024 if long else None)
