"""Everything that can be known to go wrong before hours of compiling: one list of findings, with a remedy each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from ..config import BLOCK_SIZE, ModelConfig
from ..errors import ConfigError
from ..graph.profile import Profile
from ..planning.plan import GIB, Plan, plan_profile
from .graphs import PREFILL, Graph, graphs

SMALLEST_PREFILL = 128
SPILLING_PREFILL = 2048
SQUARE_FAILS_FROM = 1024
LARGE_PREFIX, SMALL_FOR_LARGE_PREFIX = 16384, 256


@dataclass(frozen=True, slots=True)
class Finding:
    """A value that will fail (`fatal`), or that works and costs more than it has to."""

    fatal: bool
    field: str
    value: object
    problem: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.field}={self.value!r}: {self.problem}. {self.remedy}."


@dataclass(frozen=True, slots=True)
class Checked:
    """A profile for a model, with all that follows from it."""

    profile: Profile
    model: ModelConfig
    plan: Plan
    graphs: list[Graph]
    findings: list[Finding]

    def require(self) -> None:
        """Raises ConfigError listing every fatal finding."""
        fatal = [finding for finding in self.findings if finding.fatal]
        if fatal:
            listed = "".join(f"\n  {finding}" for finding in fatal)
            raise ConfigError("profile", self.profile.name, f"cannot be compiled:{listed}\n", "Correct the profile")


def check(profile: Profile, model: ModelConfig, allow_long: bool = False) -> Checked:
    """Derive the memory and the graphs, and look for everything known to fail. Findings are listed, not raised.

    Args:
        allow_long: sequences may be longer than the model was made for.
    Raises:
        ConfigError: the model cannot be split or run in these sizes at all.
    """
    plan, listed = plan_profile(profile, model, allow_long), graphs(profile, model)
    findings = [
        *_memory(plan),
        *_buckets(profile),
        *_compiler(profile),
        *_kernels(profile, model),
        *_graphs(plan, listed),
    ]
    return Checked(profile, model, plan, listed, findings)


def _memory(plan: Plan) -> Iterator[Finding]:
    try:
        plan.check()
    except ConfigError as error:
        yield Finding(True, error.field, error.value, error.problem, error.remedy)


def _kernels(profile: Profile, model: ModelConfig) -> Iterator[Finding]:
    try:
        profile.options.check_model(model)
    except ConfigError as error:
        yield Finding(True, error.field, error.value, error.problem, error.remedy)


def _buckets(profile: Profile) -> Iterator[Finding]:
    options = profile.options
    for pair in options.buckets.prefill:
        name = [pair.active, pair.prefix]
        if pair.active < SMALLEST_PREFILL:
            remedy = f"Use {SMALLEST_PREFILL} or more"
            yield Finding(True, "prefill_buckets", name, "NxDI takes fewer new tokens for token generation", remedy)
        if pair.prefix > options.positions:
            problem = f"no sequence of max_model_len={options.max_model_len} has such a prefix"
            yield Finding(True, "prefill_buckets", name, problem, f"Use a prefix of {options.positions} at most")
        if pair.table_width > options.num_blocks - 1 + pair.active // BLOCK_SIZE:
            problem = f"names {pair.table_width} blocks, of num_blocks={options.num_blocks}"
            yield Finding(True, "prefill_buckets", name, problem, "Use a shorter prefix, or raise num_blocks")
    if options.buckets.decode[-1] > options.positions:
        problem = f"no sequence of max_model_len={options.max_model_len} gets so long"
        yield Finding(True, "decode_buckets", options.buckets.decode[-1], problem, f"Use {options.positions} at most")
    if not any(pair.prefix == 0 for pair in options.buckets.prefill):
        problem = "every new request would read an empty prefix"
        yield Finding(False, "prefill_buckets", "no prefix of 0", problem, "Add a bucket with prefix 0")


def _compiler(profile: Profile) -> Iterator[Finding]:
    """What others have met with this model family; the published figures are in the messages."""
    for pair in profile.options.buckets.prefill:
        name = [pair.active, pair.prefix]
        if pair.active == pair.prefix >= SQUARE_FAILS_FROM:
            problem = "the compiler fails on square buckets (NCC_ITIN902; published for 1024, 2048 and 4096)"
            yield Finding(True, "prefill_buckets", name, problem, "Use a prefix of 1536, 3072 or 6144 instead")
        if pair.active <= SMALL_FOR_LARGE_PREFIX and pair.prefix >= LARGE_PREFIX:
            problem = (
                "the compiler fails on so few new tokens after such a prefix (NCC_ITIN902; published for 256 x 16384)"
            )
            yield Finding(True, "prefill_buckets", name, problem, "Use 512 new tokens or more with such a prefix")
        if pair.active >= SPILLING_PREFILL:
            problem = "SBUF spills make it slower than two of half the size (published: 2048 is 2.8 x slower than 1024)"
            yield Finding(False, "prefill_buckets", name, problem, "Use 1024")


def _graphs(plan: Plan, listed: list[Graph]) -> Iterator[Finding]:
    for signature, count in Counter(graph.signature for graph in listed).items():
        if count > 1:
            same = [graph.name for graph in listed if graph.signature == signature]
            problem = "have the same input shapes, so the device's loader would mistake one for the other"
            yield Finding(True, "buckets", same, problem, "Change the sizes of one")
    for graph in listed:
        if graph.scratch_bytes > plan.machine.reserve_bytes:
            field = "prefill_buckets" if graph.tag == PREFILL else "decode_buckets"
            problem = (
                f"its attention works in {graph.scratch_bytes / GIB:.2f} GiB a rank (modelled), "
                f"{plan.machine.reserve_bytes / GIB:.0f} GiB are held back for graphs"
            )
            yield Finding(True, field, graph.name, problem, "Use fewer new tokens, or fewer sequences, at this length")
