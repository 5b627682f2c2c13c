"""What a rank of a trn2.3xlarge (two physical cores) does in a second, and how long a piece of work takes it.

Peaks are documented (667 TFLOPS bf16 and 2.9 TB/s a chip of 8 cores, VectorE 128 lanes at 0.96 GHz). Each of the two
efficiencies comes from one published measurement of another implementation of the 27B on this machine.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

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
        hbm_efficiency: published: 54.2 ms a token decoding in bf16, where reading the weights takes 18.5.
        collective: seconds before a collective moves anything: the kernels' price of an all-reduce over four ranks.
    """

    tensor: float = 667e12 / 8 * CORES
    hbm: float = 2.9e12 / 8 * CORES
    vector: float = 0.96e9 * 128 * CORES
    tensor_efficiency: float = 0.53
    hbm_efficiency: float = 0.34
    collective: float = Costs.all_reduce_ns * 1e-9

    def at(self, level: Level) -> Rates:
        """The same with the kernels' prices at their cheapest, centre or dearest."""
        return replace(self, collective=PriceList().costs(level).all_reduce_ns * 1e-9)

    def ideal(self) -> Rates:
        """The same with every engine at its peak: what no implementation can be faster than."""
        return replace(self, tensor_efficiency=1.0, hbm_efficiency=1.0, collective=0.0)


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of a step on one rank. Its resources work at the same time, so the slowest decides.

    Attributes:
        flops: of TensorE.
        hbm_bytes: read and written.
        vector_elements: fp32 elements through VectorE, counted once an operation.
        fixed: seconds that depend on none of these: a priced kernel, or a latency.
        fixed_bound: what `fixed` is bound by.
    """

    name: str
    flops: float = 0.0
    hbm_bytes: float = 0.0
    vector_elements: float = 0.0
    fixed: float = 0.0
    fixed_bound: str = "latency"

    def times(self, rates: Rates) -> dict[str, float]:
        """Seconds that each resource is busy."""
        return {
            "TensorE": self.flops / (rates.tensor * rates.tensor_efficiency),
            "HBM": self.hbm_bytes / (rates.hbm * rates.hbm_efficiency),
            "VectorE": self.vector_elements / rates.vector,
        }

    def seconds(self, rates: Rates) -> float:
        """How long it takes."""
        return max(self.times(rates).values()) + self.fixed

    def bound(self, rates: Rates) -> str:
        """What decides that."""
        times = self.times(rates)
        slowest = max(times, key=lambda name: times[name])
        return slowest if times[slowest] >= self.fixed else self.fixed_bound
