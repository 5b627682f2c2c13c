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
        "refused", "nki-moe-megakernel, SDK 2.29 (checkMatmultOutputs); AWS's qkv_cte turns 127 rows", disputed=True,
    ),
    Rule(
        "transpose-of-one",
        "TensorE writes PSUM in words of 4 bytes: no transpose of a single row into a 1- or 2-byte type.",
        "transpose an even number of rows, or through a float32 tile",
        "refused", "nki-moe-megakernel, SDK 2.29 (checkMatmultOutputs: 2-byte sub-word write)",
    ),
    Rule(
        "array-tile",
        "A part of the PE array has 32, 64 or 128 rows, and as many columns.",
        "name the next larger size: the operands may fill less of it",
        "refused", "API reference of nc_matmul; AWS's gdn_cte of 64 tokens names 16 rows", disputed=True,
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
        "refused", "nki-moe-megakernel, SDK 2.29; AWS's rotational_topk has tiles of two", disputed=True,
    ),
    Rule(
        "dma-leading",
        "Both sides of a DMA copy that touches SBUF have the same leading count: it is the partition's.",
        "reshape or .ap the HBM side so that its first dimension counts the partitions",
        "refused", "nki-moe-megakernel, SDK 2.29",
    ),
    Rule(
        "dma-flat",
        "Also where SBUF has one partition, HBM has a leading count of one.",
        "reshape or .ap the HBM side so that its first dimension counts the partitions",
        "refused", "nki-moe-megakernel, SDK 2.29; AWS's attention_tkg reads (n,) into (1, n)", disputed=True,
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
        "collective-io",
        "A collective reads and writes the kernel's own tensors, no argument and no result.",
        "copy the argument into a tensor of the kernel's first, and the result out of one",
        "refused", "AWS's tests of collectives, SDK 2.29 (checkCollective); autohelix, SDK 2.32", code="INLA001",
    ),
    Rule(
        "collective-name",
        "A tensor in HBM that a collective reads or writes has a name.",
        "allocate it with name=",
        "refused", "AWS's tests of collectives, SDK 2.29; autohelix, SDK 2.32", code="IBIR440",
    ),
    Rule(
        "collective-tile",
        "A collective reads and writes contiguous memory: whole partitions of a tile, or an unbroken part of HBM.",
        "give it contiguous tiles of their own, and copy",
        "silent", "nki-moe-megakernel, SDK 2.29, of sendrecv; API reference: in SBUF one free dimension",
    ),
    Rule(
        "collective-hbm",
        "A collective's sources are all in private or all in shared HBM, and so are its destinations; on a logical "
        "core of one they are private.",
        "allocate them in nl.hbm, or launch on two cores",
        "refused", "API reference of SDK 2.33", since="2.33",
    ),
    Rule(
        "replica-group",
        "A ReplicaGroup comes in as an argument.",
        "make it where the kernel is launched, and pass it",
        "refused", "autohelix, SDK 2.32; AWS's transformer_tkg makes it inside", disputed=True,
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
        "memset-float",
        "memset fills an integer tensor with an int, also where the float is a whole number.",
        "write the value without a point",
        "refused", "NKI 0.3 migration guide; AWS's cross_partition_copy fills uint32 with 0.0, SDK 2.29", disputed=True,
    ),
    Rule(
        "activation-bias",
        "An activation that only copies takes a number as its bias, no tensor.",
        "add the tensor with VectorE, or use relu where all is positive",
        "refused", "kiln, SDK 2.32; AWS's kernels do it on SDK 2.29", code="IBVF043", disputed=True,
    ),
    Rule(
        "activation-square-sum",
        "No activation_reduce of square with add.",
        "square by an activation or tensor_tensor, then tensor_reduce",
        "refused", "nki-moe-megakernel, SDK 2.29; AWS's rmsnorm_quant does it", code="IXCG864", disputed=True,
    ),
    Rule(
        "gpsimd-arithmetic",
        "GpSimd's tensor_tensor takes 32-bit integers, and power.",
        "let VectorE do it",
        "refused", "nki-moe-megakernel, SDK 2.29; the API reference lists GpSimd", code="IBIR766", disputed=True,
    ),
    Rule(
        "psum-loop",
        "A PSUM tile is touched by one device loop alone, and allocated in its body.",
        "allocate the tile in the body of the loop that fills it, and evict it there",
        "refused", "kiln, SDK 2.32", code="IBIR092",
    ),
    Rule(
        "reduce-size",
        "tensor_reduce folds at most 16,384 elements a partition.",
        "reduce in pieces, then their results",
        "refused", "kiln, SDK 2.32",
    ),
    Rule(
        "instruction-count",
        "A kernel has at most five million instructions; unrolled loops count each turn.",
        "loop in hardware, or split the launch",
        "refused", "nki-moe-megakernel, SDK 2.29; compiler error reference", code="EBVF030",
    ),
    Rule(
        "mixed-placement",
        "Tensors in SBUF, and those in PSUM, have their addresses chosen all by the kernel or all by the compiler.",
        "give address= to all of them or to none",
        "refused", "nki-moe-megakernel, SDK 2.29; AWS's kernels do both", code="EGCA111", disputed=True,
    ),
    Rule(
        "dma-scratch",
        "Where a DMA's address is known at run time alone, the compiler needs room in SBUF for its descriptors.",
        "leave 16 KiB a partition free (what AWS's allocator leaves; the compiler's need is not published)",
        "refused", "kiln, SDK 2.32; AWS's moe_tkg leaves 8 KiB", code="INLA001", disputed=True,
    ),
    Rule(
        "dynamic-sbuf",
        "An engine's operand in SBUF or PSUM has its address fixed at compile time.",
        "read the part again from HBM by a DMA with the offset",
        "refused", "nki-moe-megakernel, SDK 2.29", code="INLA001",
    ),
    Rule(
        "dynamic-transpose",
        "A DMA transpose has no dynamic source.",
        "copy with the offset first, then transpose",
        "refused", "AWS's mlp_tkg (NKI-415), SDK 2.29",
    ),
    Rule(
        "reshaped-store",
        "A store through reshape() of an HBM tensor goes to a temporary.",
        "write through slices or .ap of the tensor itself",
        "silent", "nki-moe-megakernel, SDK 2.29; AWS's kernels do it", disputed=True,
    ),
    Rule(
        "gather-bounds",
        "A gather whose indices are partly out of bounds faults inside a larger graph.",
        "clamp the indices and mask the rows",
        "hang", "aws-neuron-sdk issues 1306 (SDK 2.29) and 1390 (dma_transpose, SDK 2.32)", disputed=True,
    ),
    Rule(
        "scatter-twice",
        "A scatter names no row twice with different values: which one stays is not defined.",
        "give padding distinct scratch rows",
        "silent", "kiln, SDK 2.32",
    ),
    Rule(
        "written-twice",
        "The two cores leave no element of HBM with different values between two rendezvous.",
        "let one core write it, or give each its own",
        "silent", "nki-moe-megakernel, SDK 2.29",
    ),
    Rule(
        "nan-output",
        "No NaN comes out where none went in: it is an exponential that overflowed before it was masked.",
        "mask before the exponential, not after",
        "silent", "nki-moe-megakernel; autohelix",
    ),
    Rule(
        "sendrecv-partitions",
        "sendrecv moves a multiple of 16 partitions.",
        "send a tile of more partitions",
        "refused", "NKI 0.3 release notes; AWS's qkv_tkg sends one", until="2.29", disputed=True,
    ),
    Rule(
        "loop-register",
        "The register of a dynamic loop is no address.",
        "copy it with register_move into another register",
        "refused", "NKI 0.3 release notes", until="2.29",
    ),
    Rule(
        "hwdge-transpose",
        "A hardware-generated DMA transpose has src.shape[0] == 16 and src.shape[-1] == 128.",
        "use dge_mode.swdge or unknown, or a source of that shape",
        "refused", "NKI 0.6 release notes", until="2.31",
    ),
    Rule(
        "reduce-rank",
        "tensor_scalar_reduce takes at most four dimensions.",
        "reshape the operands",
        "refused", "NKI 0.7 release notes", since="2.33",
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
        "tensor-truth",
        "A tensor in an if means that it is given, not what it holds.",
        "pass an explicit flag",
        "silent", "AWS's mlp_tkg asks so whether a tensor is given, SDK 2.29", disputed=True,
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


MAX_INSTRUCTIONS = 5_000_000
RULES: dict[str, Rule] = {r.id: r for r in _TABLE}
