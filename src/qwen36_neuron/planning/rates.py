"""What a rank of a trn2.3xlarge (two physical cores) does in a second, and how long a piece of work takes it.

Peaks are documented (667 TFLOPS bf16 and 2.9 TB/s a chip of 8 cores, VectorE 128 lanes at 0.96 GHz). Each of the two
efficiencies comes from one published measurement of another implementation of the 27B on this machine.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf

from nki_kernels.interpreter.cost_table import Costs
from nki_kernels.interpreter.price_list import Level, PriceList

CORES = 2
"""Physical cores of a rank at LNC=2."""


@dataclass(frozen=True, slots=True)
class Rates:
    """Rates of one rank.

    Attributes:
        tensor: bf16 FLOP/s of TensorE.
        hbm: bytes/s.
        vector: fp32 elements/s of VectorE, one operation each.
        tensor_efficiency: published: MLPs take 4 % of the time of prefill at 418 tokens/s, 96 us a token, where TensorE
            needs 51.
        hbm_efficiency: of plain operations between the products, and of their attention. Published: 54.2 ms a token
            decoding in bf16, where reading the weights takes 18.5.
        stream_efficiency: of weights of a few tokens. Published: 305 of 362 bytes a ns and core.
        feed: weights/s that TensorE takes of a few tokens, whose loads nothing hides: what binds FP8 weights. Published
            timings, see `nki_kernels.weight_stream`: 227 a ns and core.
        half_layer: seconds that the plain operations of a mixer, or of a feed-forward block, take of a few tokens
            beside reading weights and summing over ranks, the host's share in them. From one published figure: 19.7 ms
            a token of a dense 8B in bf16 at four ranks (36 layers; weights 6.2, sums 1.1).
        collective: seconds before a collective moves anything: the kernels' price of an all-reduce over four ranks.
    """

    tensor: float = 667e12 / 8 * CORES
    hbm: float = 2.9e12 / 8 * CORES
    vector: float = 0.96e9 * 128 * CORES
    tensor_efficiency: float = 0.53
    hbm_efficiency: float = 0.34
    stream_efficiency: float = 0.84
    feed: float = 227e9 * CORES
    half_layer: float = 172e-6
    collective: float = Costs.all_reduce_ns * 1e-9

    def at(self, level: Level) -> Rates:
        """The same with the kernels' prices at their cheapest, centre or dearest."""
        return replace(self, collective=PriceList().costs(level).all_reduce_ns * 1e-9)

    def ideal(self) -> Rates:
        """The same with every engine at its peak."""
        peaks = {"tensor_efficiency": 1.0, "hbm_efficiency": 1.0, "stream_efficiency": 1.0, "feed": inf}
        return replace(self, **peaks, half_layer=0.0, collective=0.0)


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of a step on one rank. Its resources work at the same time, so the slowest decides.

    Attributes:
        flops: of TensorE.
        hbm_bytes: read and written.
        vector_elements: fp32 elements through VectorE, counted once an operation.
        fixed: seconds that depend on none of these: a priced kernel, or a latency.
        fixed_bound: what `fixed` is bound by.
        fed: weights of a byte, which TensorE may take slower than HBM brings them; their bytes are among the others.
        streams: the bytes are weights, read in long runs.
        priced: `fixed` is the price of kernels, which is all of it: their resources are for the roofline alone.
        needed_bytes: what of the bytes any implementation reads and writes; None for all.
        needed_flops: what of the FLOPs any implementation computes; None for all.
    """

    name: str
    flops: float = 0.0
    hbm_bytes: float = 0.0
    vector_elements: float = 0.0
    fixed: float = 0.0
    fixed_bound: str = "latency"
    fed: float = 0.0
    streams: bool = False
    priced: bool = False
    needed_bytes: float | None = None
    needed_flops: float | None = None

    def times(self, rates: Rates) -> dict[str, float]:
        """Seconds that each resource is busy."""
        rate = rates.hbm * (rates.stream_efficiency if self.streams else rates.hbm_efficiency)
        return {
            "TensorE": self.flops / (rates.tensor * rates.tensor_efficiency),
            "HBM": (self.hbm_bytes - self.fed) / rate + self.fed / min(rate, rates.feed),
            "VectorE": self.vector_elements / rates.vector,
        }

    def seconds(self, rates: Rates) -> float:
        """How long it takes."""
        return self.fixed if self.priced else max(self.times(rates).values()) + self.fixed

    def bound(self, rates: Rates) -> str:
        """What decides that."""
        if self.priced:
            return self.fixed_bound
        times = self.times(rates)
        slowest = max(times, key=lambda name: times[name])
        if times[slowest] < self.fixed:
            return self.fixed_bound
        feeding = slowest == "HBM" and 2 * self.fed / rates.feed > times[slowest]
        return "TensorE's feed" if feeding else slowest


def roofline(phases: list[Phase], rates: Rates) -> tuple[float, str]:
    """Seconds below which no implementation can do the work of these phases, and the resource that says so.

    Both at their peak and at the same time, nothing waiting for anything.
    """
    moved = sum(phase.hbm_bytes if phase.needed_bytes is None else phase.needed_bytes for phase in phases) / rates.hbm
    needed = sum(phase.flops if phase.needed_flops is None else phase.needed_flops for phase in phases)
    multiplied = needed / rates.tensor
    return max((moved, "HBM"), (multiplied, "TensorE"))
