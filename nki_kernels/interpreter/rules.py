"""The rules of the real compiler and runtime beyond the limits of single instructions: one entry each, with its source.

An entry says what is refused or silently wrong, from which SDK on, what to write instead, and who saw it. Instructions
call :func:`~.context.refuse` where a rule is broken; the static check does the same for source.
"""

from dataclasses import dataclass
from typing import Literal, NoReturn

from .errors import KernelError
from .target import SDKS, Sdk, Target

Effect = Literal["refused", "silent", "hang"]


@dataclass(frozen=True)
class Rule:
    """A rule.

    Attributes:
        id: Its name, in messages and in docs/kernels.md.
        says: The rule, in a sentence.
        remedy: What to write instead.
        effect: What breaking it does on a device: a compile error, wrong results without a word, or a hang.
        code: The SDK's error code, where one was reported.
        source: Who saw it, and on which SDK.
        since, until: First and last SDK it holds for.
        disputed: A kernel of AWS's breaks it and is right where AWS tests it: enforced by "cautious" checks alone.
    """

    id: str
    says: str
    remedy: str
    effect: Effect
    source: str
    code: str = ""
    since: Sdk = "2.29"
    until: Sdk = "2.33"
    disputed: bool = False

    def holds(self, target: Target) -> bool:
        """Whether a compilation for ``target`` enforces it."""
        if target.checks == "instruction" or (self.disputed and target.checks != "cautious"):
            return False
        return SDKS.index(self.since) <= SDKS.index(target.sdk) <= SDKS.index(self.until)

    def message(self, detail: str, target: Target) -> str:
        """``detail`` with the remedy, the rule's name, the target and the error code."""
        code = f"NCC_{self.code}" if self.code else self.effect
        return f"{detail}: {self.remedy} [rule {self.id}, SDK {target.sdk}, {code}]"


class RuleError(KernelError):
    """A kernel broke a rule of :data:`RULES`.

    Attributes:
        broken: The rule.
    """

    def __init__(self, broken: Rule, instruction: str, operand: str, rule: str) -> None:
        self.broken = broken
        super().__init__(instruction, operand, rule)


def raise_broken(rule: Rule, target: Target, instruction: str, operand: str, detail: str) -> NoReturn:
    """Raise :class:`RuleError`."""
    raise RuleError(rule, instruction, operand, rule.message(detail, target))


def rules_of(target: Target) -> frozenset[str]:
    """Names of the rules that a compilation for ``target`` enforces."""
    return frozenset(r.id for r in RULES.values() if r.holds(target))


_TABLE: tuple[Rule, ...] = (
    Rule(
        "index-tile",
        "The index of a scalar_offset lies at offset 0 of a tile that holds one element a partition; a slice of a "
        "wider tile has its address fixed at compile time, right alone and wrong inside a model.",
        "copy the index into a (1, 1) tile of its own, by DMA from HBM or by an engine",
        "silent", "nki-moe-megakernel, SDK 2.29", disputed=True,
    ),
    Rule(
        "odd-transpose",
        "TensorE writes PSUM in words of 4 bytes: a transpose into a 1- or 2-byte type begins on a word and has an "
        "even number of elements a row.",
        "transpose an even number of rows, or through a float32 tile",
        "refused", "nki-moe-megakernel, SDK 2.29 (checkMatmultOutputs: 2-byte sub-word write)",
    ),
    Rule(
        "psum-view",
        "A PSUM tile keeps the element size that it was allocated with.",
        "allocate a PSUM tile of the type that is written",
        "refused", "no kernel of AWS's views a PSUM tile as a type of another size",
    ),
    Rule(
        "psum-tile",
        "A PSUM tile fits one bank, 2 KiB a partition.",
        "allocate one tile a bank",
        "refused", "nki-moe-megakernel, SDK 2.29",
    ),
    Rule(
        "dma-leading",
        "Both sides of a DMA copy that touches SBUF have the same leading count: it is the partition's.",
        "reshape or .ap the HBM side so that its first dimension counts the partitions",
        "refused", "nki-moe-megakernel, SDK 2.29",
    ),
    Rule(
        "constant-argument",
        "A constant array comes in as a kernel argument (or a .npy file), not as a numpy array from the module.",
        "make it an argument of the kernel",
        "refused", "NKI language guide: kernels are pure functions of their arguments; the parser knows no numpy",
    ),
    Rule(
        "launch-grid",
        "A launch names as many programs as a logical core has physical ones.",
        "launch as kernel[lnc](...)",
        "refused", "SDK 2.31 release notes; autohelix, SDK 2.32", code="ILLC059", since="2.31",
    ),
    Rule(
        "sendrecv-tile",
        "sendrecv fills whole tiles: one that writes a strided part of a tile delivers nothing.",
        "send from and receive into contiguous tiles of their own, then copy",
        "silent", "nki-moe-megakernel, SDK 2.29", disputed=True,
    ),
    Rule(
        "accumulate",
        "A matmul without accumulate= adds to whatever a matmul left in the tile before, also after that was read.",
        "pass accumulate=False for the first product of a sum and True for the rest, or allocate a tile for each sum",
        "silent", "kiln, SDK 2.32",
    ),
    Rule(
        "returned-handles",
        "A kernel returns every HBM tensor that it writes; a store to one that it does not return is dropped.",
        "return the tensor, beside the other results",
        "silent", "nki-moe-megakernel; aws-samples, SDK 2.29",
    ),
    Rule(
        "front-end",
        "The parsing front end knows no starred element, no unpacking into attributes, no index on a literal, no "
        "function inside another (but the body of a loop from SDK 2.32 on) and no comprehension.",
        "write it out in names and module-level functions",
        "refused", "nki-moe-megakernel, SDK 2.29; kiln, SDK 2.32; none is in a kernel of AWS's", until="2.32",
    ),
    Rule(
        "none-compare",
        "In a traced kernel == None compares a tensor's elements.",
        "pass an explicit flag beside the optional tensor",
        "silent", "NKI 0.7 release notes", since="2.33",
    ),
    Rule(
        "sdk-api",
        "A function, method or argument exists from a release on, or until one.",
        "use what both releases have, or compile for a release that has it",
        "refused", "API stubs and release notes of NKI 0.3 to 0.7",
    ),
    Rule(
        "old-package",
        "neuronxcc.nki is the package of the first NKI: an error in a kernel since SDK 2.30, and its baremetal returns "
        "zeros on SDK 2.32.",
        "import nki",
        "refused", "NKI 0.4 release notes; nki-samples issue 134, SDK 2.32",
    ),
    Rule(
        "dynamic-copy",
        "A DMA copy between HBM tensors has a dynamic offset on one side at most.",
        "read into SBUF with one offset and write from there with the other",
        "refused", "no kernel of AWS's has one on both sides",
    ),
)  # fmt: skip
# First and last release of what not all of them have: functions, methods of tensors, arguments as "function.argument".
API_SPAN: dict[str, tuple[Sdk, Sdk]] = {
    **dict.fromkeys(
        ("permute", "broadcast", "expand_dim", "squeeze_dim", "reshape_dim", "flatten_dims", "rearrange", "slice",
         "select", "vector_select", "is_contiguous", "is_indirect"), ("2.31", "2.33"),
    ),
    **dict.fromkeys(("fori_loop", "while_loop", "topk"), ("2.32", "2.33")),
    "dynamic_range": ("2.29", "2.32"),
    "dma_compute.oob_mode": ("2.30", "2.33"),
    "tensor_scalar_reduce.reduce_cmd": ("2.32", "2.33"),
    "tensor_scalar_reduce.reduce_init": ("2.32", "2.33"),
    "tensor_scalar_reduce.reduce_res_negate": ("2.32", "2.33"),
}  # fmt: skip


def span_error(name: str, target: Target) -> str:
    """Why a release lacks a function, method or argument; empty if it has it."""
    since, until = API_SPAN.get(name, ("2.29", "2.33"))
    if not target.reaches(since):
        return f"{name} came with SDK {since}"
    if target.reaches(until) and target.sdk != until:
        return f"{name} went after SDK {until}"
    return ""


RULES: dict[str, Rule] = {r.id: r for r in _TABLE}
