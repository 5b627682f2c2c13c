"""The graphs that a profile makes: their inputs, their compiler arguments and the memory that they work in."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..checkpoint.weight_format import WeightFormat
from ..config import BLOCK_SIZE, ModelConfig, RankShape
from ..graph.compiler import decode_options, prefill_options
from ..graph.inputs import GraphInputs, empty_decode, empty_draft, empty_prefill, empty_verify
from ..graph.profile import Profile
from ..ops.attention import segment_blocks

PREFILL, DECODE, VERIFY = "context_encoding_model", "token_generation_model", "speculation_model"
DRAFT = "draft_model"
"""NxDI's tags, and one that it has not."""

FP8_ARGUMENT = "--experimental-unsafe-fp8e4m3fn-as-fp8e4m3"
HLO_ARGUMENTS = "--internal-hlo2tensorizer-options='{}--verify-hlo=true'"
"""What NxDI adds to the arguments that a model gives it."""


@dataclass(frozen=True, slots=True)
class Graph:
    """One compiled graph.

    Attributes:
        bucket: (new tokens, tokens held before) for context encoding, (1, tokens held) for token generation,
            (1 + drafts, tokens held) where drafts are verified, (drafts, tokens held) where they are made.
        inputs: shape of every input by name; all are int32, but for `sampling`, which is fp32.
        states: outputs that are the memory of the next call, beside the tokens and the logits.
        arguments: command line of the compiler.
        scratch_bytes: attention scores (fp32) and probabilities of one segment of one layer, its gathered keys and
            values, and what has been summed, on one rank: what plain operations hold at once. 0 with the NKI kernels,
            which walk over the prefix.
    """

    tag: str
    bucket: tuple[int, int]
    inputs: dict[str, tuple[int, ...]]
    states: int
    arguments: str
    scratch_bytes: int

    @property
    def name(self) -> str:
        new, held = self.bucket
        rows = self.inputs["tokens"][0]
        if self.tag == PREFILL:
            return f"prefill {new} after {held}"
        if self.tag == DECODE:
            return f"decode {rows} to {held}"
        return f"{'draft' if self.tag == DRAFT else 'verify'} {rows} x {new} to {held}"

    @property
    def signature(self) -> str:
        """What the device's loader tells graphs apart by."""
        return str(list(self.inputs.values()))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"name": self.name, "inputs": {name: list(size) for name, size in self.inputs.items()}}


def attention_scratch(
    rows: int, new: int, blocks: int, rank: RankShape, head_dim: int, width: int, kv_width: int
) -> int:
    """Bytes of plain attention of `new` tokens a row over a table of so many blocks and over themselves.

    Args:
        width: bytes of a number of the model's dtype; kv_width: of one that is gathered.
    """
    heads, kv_heads = rank.num_query_heads, rank.num_kv_heads
    segment = segment_blocks(blocks, rows, new, heads, kv_heads, head_dim)
    # At once with the new tokens; of several segments apart from them, beside sums in fp32 of before and after.
    held = segment * BLOCK_SIZE + (new if segment == blocks else 0)
    scores = rows * heads * new * max(held, new) * (4 + width)
    gathered = rows * 2 * held * kv_heads * head_dim * kv_width
    return scores + gathered + (2 * rows * heads * new * head_dim * 4 if segment < blocks else 0)


def graphs(profile: Profile, model: ModelConfig) -> list[Graph]:
    """Every graph of the profile, context encoding first."""
    options, rank = profile.options, model.rank(profile.options.tp_degree)
    states = 2 * len(model.attention_layers) + (4 if options.max_drafts else 2) * len(model.deltanet_layers)
    states += 2 + 2 if options.draft_layer else 0  # its keys and values, and two banks of hidden states
    width, draws = options.torch_dtype.itemsize, bool(options.sampling_candidates)
    coded = model.moe is not None and options.weights != WeightFormat.BF16  # a mixture's MLPs are plain operations
    extra = HLO_ARGUMENTS.format(FP8_ARGUMENT + " " if options.reads_fp8 or coded else "")

    def graph(tag: str, bucket: tuple[int, int], example: GraphInputs) -> Graph:
        compiler = prefill_options if tag == PREFILL else decode_options
        arguments = compiler(options.max_model_len, options.logical_cores).arguments()
        rows, new = example.tokens.shape
        prior = example.table.shape[1] - (new // BLOCK_SIZE if tag == PREFILL else 0)
        widths = width, width + options.fp8_kv  # of gathered ones that are codes, their numbers and they
        plain = options.stages.prefill == "torch"
        scratch = attention_scratch(rows, new, prior, rank, model.head_dim, *widths) if plain else 0
        shapes = {name: tuple(tensor.shape) for name, tensor in example._asdict().items() if tensor is not None}
        return Graph(tag, bucket, shapes, states, f"{arguments} {extra}", scratch)

    prefill = [
        graph(PREFILL, (pair.active, pair.prefix), empty_prefill(pair, options.prefill_commits, draws))
        for pair in options.buckets.prefill
    ]
    decode = [
        graph(DECODE, (1, size), empty_decode(rows, size, options.decode_commits, draws))
        for rows, size in options.decode_graphs
    ]
    drafts = options.max_drafts
    verify = [
        graph(VERIFY, (1 + drafts, size), empty_verify(rows, size, drafts, options.decode_commits, draws))
        for rows, size in options.decode_graphs
        if drafts
    ]
    draft = [graph(DRAFT, (n, size), empty_draft(rows, size, n)) for n, rows, size in options.draft_graphs]
    return prefill + decode + verify + draft
