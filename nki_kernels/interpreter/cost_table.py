"""Every price of the cost model as (low, centre, high), with its source. Nothing here was measured by this project.

Measured, by others, on Trainium2:

``voyager`` = Joejoedesu/voyager-compiler, docs/trainium-{isa,operand,dependency}-model.md and the calibration files in
src/voyager_compiler/trainium: one core, neuronx-cc 2.22, isolated instructions read from device profiles;
``mega`` = KevGomes1403/nki-moe-megakernel, nki_kernels/specs/{deltanet_decode_opt,round_megakernel_perf}.md: device
profiles of decode kernels on a trn2.3xlarge, two cores a rank;
``y`` = yahavb/trn2-matmul-bench: large products on a trn2.48xlarge.

Documented: ``arch`` = NKI Trainium2 architecture guide; ``arch1`` = that of Trainium1; ``isa-2.26`` = latency tables
of the SDK 2.26 ``nki.isa`` reference, dropped from later ones; ``perf`` = NKI performance guide;
``dma`` = NKI DMA overview and bandwidth guide; ``dge`` = NKI descriptor generation guide; ``engsel`` = engine selection
notes of the NKI API reference; ``topk`` = cost planner of AWS's public rotational top-k kernel.
"""

import math
from dataclasses import dataclass, field, fields
from typing import Any, Literal

Kind = Literal["measured", "documented", "inferred"]
KINDS: tuple[Kind, ...] = ("measured", "documented", "inferred")
_RATES = ("GHz", "bytes/ns", "of bandwidth")


@dataclass(frozen=True)
class Price:
    """One constant of the model, as a range. ``low`` is the number that is least, not the price that is.

    Attributes:
        low, centre, high: ``low <= centre <= high``, finite, not negative, in ``unit``.
        unit: Unit. What has a unit of speed (GHz, bytes/ns) costs less the larger it is.
        kind: ``measured`` by the source on hardware; ``documented`` by AWS; ``inferred``: neither, to be calibrated.
        source: Where it comes from.
        uncertain: What is not known, in words; empty if the three are equal.

    Raises:
        ValueError: the values are no range, or a range says nothing of what is uncertain.
    """

    low: float
    centre: float
    high: float
    unit: str
    kind: Kind
    source: str
    uncertain: str = ""

    def __post_init__(self) -> None:
        for at in ("low", "centre", "high"):
            value = getattr(self, at)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
                raise ValueError(f"{at} is {value!r}; give a number that is not negative")
        if not self.low <= self.centre <= self.high:
            raise ValueError(f"low {self.low:g}, centre {self.centre:g}, high {self.high:g}: must not decrease")
        if self.rate and not self.low:
            raise ValueError(f"low is 0 {self.unit}; a speed is more than that")
        if self.kind not in KINDS:
            raise ValueError(f"kind is {self.kind!r}; one of {', '.join(KINDS)}")
        if not self.source or not self.unit:
            raise ValueError("source and unit must not be empty")
        if self.low != self.high and not self.uncertain:
            raise ValueError(f"{self.low:g} to {self.high:g} is a range; say in 'uncertain' what is not known")

    @property
    def rate(self) -> bool:
        """A speed: the larger it is, the less things cost."""
        return self.unit in _RATES


def _exact(value: float, unit: str, kind: Kind, source: str) -> Any:
    return field(default=value, metadata={"price": Price(value, value, value, unit, kind, source)})


def _range(low: float, centre: float, high: float, unit: str, kind: Kind, source: str, uncertain: str) -> Any:
    return field(default=centre, metadata={"price": Price(low, centre, high, unit, kind, source, uncertain)})


@dataclass(frozen=True)
class Costs:
    """One value of every price: the centre, unless made by :meth:`~.price_list.PriceList.costs`."""

    # Clocks
    tensor_ghz: float = _exact(2.4, "GHz", "documented", "arch")
    vector_ghz: float = _exact(0.96, "GHz", "documented", "arch; voyager's laws: 1.042 ns an element")
    scalar_ghz: float = _exact(1.2, "GHz", "documented", "arch; voyager's laws: 0.833 ns an element")
    gpsimd_ghz: float = _exact(1.2, "GHz", "documented", "arch; voyager's affine_select: 0.846 ns an element")

    # Every engine
    min_cycles: float = _exact(64, "cycles", "documented", "isa-2.26: MIN_II")
    semaphore_ns: float = _range(
        37, 60, 100, "ns", "inferred", "voyager's hand-over after a copy 37, a transpose 48, a computation 100",
        "fitted by its authors on kernels; on top of the time after which a dependent may start",
    )  # fmt: skip
    step_bytes: float = _exact(16, "bytes", "measured", "voyager: copies on ScalarE; arch1 has the same bound")
    step_factor: float = _exact(
        2.0, "x", "measured", "voyager: 0.867 ns an element becomes 1.743 from 16 bytes of step"
    )
    wide_step_bytes: float = _exact(64, "bytes", "measured", "voyager: from here the factor grows")
    widest_step_bytes: float = _exact(96, "bytes", "measured", "voyager: to here")
    wide_step_factor: float = _exact(2.9, "x", "measured", "voyager: 2.50 ns an element at 96 bytes of step")

    # TensorE
    tensor_issue_ns: float = _range(
        7, 7, 60, "ns", "measured", "voyager: float32 products 7.2 + 1.70 ns a column",
        "mega reckons 50 to 74 ns for every further instruction when hundreds of small ones are added",
    )  # fmt: skip
    tensor_min_cycles: float = _range(
        0, 64, 64, "cycles", "documented", "isa-2.26: MIN_II, where nothing is loaded",
        "mega: a load and a transpose of 2 columns every 62 ns, so less when one is loaded",
    )  # fmt: skip
    tensor_fp32_passes: float = _exact(
        4.09, "x", "measured", "voyager: 1.7035 ns a column; perf: a quarter of the rate"
    )
    tensor_fp32_onezero_passes: float = _range(
        2, 2, 4.09, "x", "documented", "arch names the hint's gain 2x for a float32 operand", "never measured",
    )  # fmt: skip
    tensor_fp32_transpose_passes: float = _exact(
        2, "x", "measured", "voyager: a 128 x 128 transpose issues every 168 ns, its load and two passes; arch: 2x"
    )
    tensor_short_k: float = _exact(64, "rows", "measured", "voyager: K = 64 against K = 128")
    tensor_short_k_fp32: float = _range(
        1, 1.95, 1.95, "x", "measured", "voyager: K = 64, M = 128, N = 512 float32: 1,707 ns where K = 128 takes 860",
        "one shape; its authors do not carry it over to others",
    )  # fmt: skip
    tensor_short_k_bf16: float = _range(
        1, 1, 2, "x", "inferred", "documented: rows left idle cost nothing", "K <= 64 was not measured in bfloat16",
    )  # fmt: skip
    tensor_step_factor: float = _range(
        1, 2.2, 2.2, "x", "measured", "voyager: float32 moving, a step of 16 bytes or more: 3.75 ns a column",
        "measured in float32 only",
    )  # fmt: skip
    tensor_load_cycles: float = _range(
        32,
        80,
        128,
        "cycles",
        "measured",
        "what a LoadStationary adds: 62 to 96 by how long TensorE was busy in three of mega's kernels; y: at most 74",
        "128 rows take 128 cycles, of which some pass behind the product before; voyager's transposes: all 128 or more",
    )
    tensor_fp32_load_cycles: float = _range(
        0, 0, 256, "cycles", "measured", "voyager's law of float32 products leaves no room; its SwiGLU keeps it",
        "two loads a product; whether its probes shared a stationary, for which the compiler drops the load",
    )  # fmt: skip
    tensor_ready_ns: float = _range(
        184,
        203,
        381,
        "ns",
        "measured",
        "voyager: a bfloat16 product may be read after 203 ns + 1.99 x its service",
        "float32: 184 in a stream, 381 cold",
    )
    tensor_ready_factor: float = _exact(2, "x", "measured", "voyager: of the service, bfloat16; see tensor_ready_ns")
    tensor_fp32_ready_factor: float = _range(
        1.5,
        1.5,
        2,
        "x",
        "measured",
        "voyager: float32 in a stream: 2.53 ns a column, 2,765 ns at K = 64, a transpose 377 ns",
        "2 when cold",
    )
    tensor_tile_share: float = _range(
        0.25, 0.72, 1, "x", "measured", "mega: products on four rotating column tiles move 1.38 columns a cycle",
        "part of a product's time for which another on other rows or columns of the array must wait; one case",
    )  # fmt: skip
    tensor_throttle: float = _range(
        1, 1.15, 1.35, "x", "measured", "y: all cores at once lose 14 %; mega: half of the time at 1.69 x",
        "a limit of power: depends on what the chip's other cores do and how densely products follow; one core: 1",
    )  # fmt: skip

    # VectorE
    vector_ready_ns: float = _range(
        143, 156, 161, "ns", "measured", "voyager: a dependent may start after 136 to 161 ns + the service", "by form"
    )
    vector_issue_ns: float = _range(
        0, 26, 60, "ns", "inferred", "voyager: a 32 x 32 transpose issues every 93 ns, 26 beyond its 64 cycles",
        "what an instruction holds VectorE beyond its service was not measured for others",
    )  # fmt: skip
    vector_memset_ready_ns: float = _exact(58, "ns", "measured", "voyager: 58 + 0.83 ns an element")
    vector_memset: float = _exact(0.8, "cycles an element", "measured", "voyager: any type, SBUF or PSUM")
    vector_copy_fp32: float = _exact(
        0.5,
        "cycles an element",
        "measured",
        "voyager: copy and tensor_scalar, float32 in SBUF, to any float type: 0.52 ns",
    )
    vector_copy_16bit: float = _exact(0.26, "cycles an element", "measured", "voyager: bfloat16 to bfloat16: 0.27 ns")
    vector_copy_16bit_step: float = _exact(0.5, "cycles an element", "documented", "arch: 16-bit, strided")
    vector_copy_widen: float = _exact(0.77, "cycles an element", "measured", "voyager: bfloat16 to float32: 0.80 ns")
    vector_copy_int: float = _exact(0.64, "cycles an element", "measured", "voyager: int32: 0.67 ns")
    vector_psum: float = _exact(1, "cycles an element", "measured", "voyager: any instruction that reads PSUM: 1.04 ns")
    vector_psum_16bit: float = _range(
        0.5, 1, 1, "cycles an element", "documented", "arch: half, if all is 16-bit", "the compiler refuses such a tile"
    )
    vector_two_input: float = _exact(
        1, "cycles an element", "measured", "voyager: tensor_tensor float32: 1.04 ns; mega"
    )
    vector_two_input_16bit: float = _exact(0.5, "cycles an element", "measured", "voyager: all bfloat16: 0.52 ns")
    vector_scalar_tensor_tensor: float = _range(
        1, 1, 2, "cycles an element", "measured", "mega: every VectorE instruction about 1 ns a column",
        "voyager did not measure it; isa-2.26 has 2",
    )  # fmt: skip
    vector_reduce: float = _exact(1, "cycles an element", "measured", "voyager: tensor_reduce, any input: 1.04 ns")
    vector_reduce_16bit: float = _range(
        0.5, 1, 1, "cycles an element", "documented", "isa-2.26: half, for add and max of bfloat16 to bfloat16",
        "measured only to float32",
    )  # fmt: skip
    vector_scan: float = _exact(2, "cycles an element", "measured", "voyager: tensor_tensor_scan: 2.08 ns")
    vector_scan_seed_ns: float = _exact(60, "ns", "measured", "voyager: if the seed is a tensor")
    vector_reciprocal: float = _exact(6, "cycles an element", "measured", "voyager: 6.25 ns; the reference says 8")
    vector_predicated: float = _range(
        1.07,
        1.07,
        2,
        "cycles an element",
        "measured",
        "voyager: 1.11 ns from a scalar",
        "from a tensor: isa-2.26 has 2",
    )
    vector_shuffle_mask_ns: float = _exact(13, "ns", "measured", "voyager: loading the mask of nc_stream_shuffle")
    vector_transpose_ns: float = _exact(93, "ns", "measured", "voyager: a 32 x 32 transpose holds VectorE")
    vector_transpose_turn_ns: float = _exact(
        141, "ns", "measured", "voyager: more when the pair of quadrants is not the one before's"
    )
    vector_transpose_ready_ns: float = _exact(233, "ns", "measured", "voyager: until a dependent may start")
    vector_readout_cycles: float = _exact(64, "cycles", "documented", "isa-2.26: reading accumulation registers out")
    vector_search_cycles: float = _exact(
        144, "cycles", "measured", "topk; mega: 16.3 us over 15,520 elements: max8, find_index8, match_replace8"
    )

    # ScalarE
    scalar_issue_ns: float = _exact(92, "ns", "measured", "voyager: independent instructions, beyond their service")
    scalar_function_ready_ns: float = _range(
        276, 291, 296, "ns", "measured", "voyager: functions: a dependent may start after this + the service", "by form"
    )
    scalar_affine_ready_ns: float = _range(
        185,
        202,
        218,
        "ns",
        "measured",
        "voyager: activation copy: a dependent may start after this + the service",
        "by type",
    )
    scalar_copy_ready_ns: float = _range(
        187, 189, 193, "ns", "measured", "voyager: tensor_copy and tensor_scalar, likewise", "by type"
    )
    scalar_psum_gain_ns: float = _range(
        22, 35, 45, "ns", "measured", "voyager: less, from PSUM: functions 291 to 251, copies 202 to 162, 189 to 167",
        "by form",
    )  # fmt: skip
    scalar_operand_ns: float = _exact(91, "ns", "measured", "voyager: each scale or bias that is a tensor, beyond that")
    scalar_psum: float = _range(
        1, 1.02, 1.16, "cycles an element", "measured", "voyager: from PSUM: copies 0.84 to 0.87 ns, exp 0.97",
        "by function; silu up to 1.6",
    )  # fmt: skip
    scalar_reduce_ns: float = _range(
        0, 201, 294, "ns", "measured", "voyager: from the end of the service until the sum can be read out",
        "whether other instructions can run in it",
    )  # fmt: skip
    scalar_readout_ns: float = _exact(185, "ns", "measured", "voyager: reading the sum out holds ScalarE")
    scalar_readout_ready_ns: float = _exact(279, "ns", "measured", "voyager: until a dependent may start")
    scalar_table_ns: float = _exact(1283, "ns", "measured", "mega, voyager: loading a set of functions; see ACT_SETS")
    scalar_plain_table_ns: float = _range(
        0, 1283, 1283, "ns", "measured", "mega: activation copy and square run with the table of rsqrt",
        "whether they need it, or run with every table",
    )  # fmt: skip

    # GpSimd
    pool_fixed_cycles: float = _exact(
        150, "cycles", "measured", "voyager: affine_select 127 ns + 0.85 an element; isa-2.26"
    )
    pool_ready_ns: float = _exact(50, "ns", "measured", "voyager: affine_select, until a dependent may start")
    pool_element: float = _range(
        1, 1, 2, "cycles an element", "inferred", "copies and fills, as VectorE in isa-2.26", "not measured on trn2"
    )
    pool_gather: float = _range(
        2, 4, 8, "cycles an element", "inferred", "gathers, partition reduction", "not documented"
    )
    pool_int: float = _range(1, 2, 4, "cycles an element", "inferred", "32-bit integer tensor_tensor", "not documented")
    pool_rsqrt: float = _exact(4, "cycles an element", "documented", "engsel: 4x slower than ScalarE")

    # DMA
    dma_engines: float = _exact(16, "engines a core", "documented", "arch")
    dma_partitions: float = _exact(8, "partitions an engine", "documented", "dma")
    dma_bytes_ns: float = _exact(23, "bytes/ns", "documented", "dma: effective rate of an engine")
    dma_run_bytes: float = _range(
        110,
        200,
        256,
        "bytes",
        "measured",
        "mega: packets under 64 bytes 10.4 ns each on an engine; runs of 512 to 1,024 at 240 GB/s, of 4,096 at 267",
        "a run takes the time of this much more: 110 by the streams, 176 to 237 by the packets",
    )
    dma_issue_ns: float = _range(
        300, 600, 610, "ns", "measured", "voyager: 599 for a load, 609 for a store, one resource for the whole core",
        "dge: two generators a core, so 300 each",
    )  # fmt: skip
    dma_swdge_ns: float = _range(
        620, 650, 785, "ns", "measured", "mega: GpSimd for an instruction whose descriptors it makes", "by instruction"
    )
    dma_swdge_row_ns: float = _range(
        0, 0.85, 1, "ns a descriptor", "measured", "mega: 20 instructions of 512 runs 21.75 us, 2 of 128 1.32 us", "fit"
    )
    dma_indirect_ns: float = _range(
        1000, 1035, 1100, "ns", "measured", "mega: GpSimd for an indirect instruction, 60 in 62.1 us", "by rows"
    )
    dma_load_start_ns: float = _exact(1044, "ns", "measured", "voyager: from HBM: dispatch 751, payload 293")
    dma_load_notify_ns: float = _exact(315, "ns", "measured", "voyager: from HBM: until a dependent may start")
    dma_store_start_ns: float = _exact(728, "ns", "measured", "voyager: to HBM: dispatch 566, payload 162")
    dma_store_notify_ns: float = _exact(
        355, "ns", "measured", "voyager: to HBM; mega: a store of 2 KiB 1,781 ns in all"
    )
    dma_transpose_hbm: float = _exact(0.9, "of bandwidth", "documented", "dma: at most 90 % of bandwidth from HBM")
    dma_transpose_sbuf: float = _range(
        0.25, 0.5, 0.5, "of bandwidth", "documented", "dma: at most 50 % SBUF to SBUF",
        "never measured: the document says at most",
    )  # fmt: skip
    hbm_bytes_ns: float = _range(
        240,
        305,
        390,
        "bytes/ns",
        "measured",
        "mega: a core of two: 318 in a megakernel, 300 to 318 over 20 us; a layer alone 240 to 267",
        "240 to 390 by the burst's length, who makes the descriptors, what else runs; 362 is an eighth of the chip",
    )

    # Between cores
    sendrecv_ns: float = _range(
        600, 1000, 2000, "ns", "measured", "mega: 4 KiB moved in 354 ns, awaited for 197 to 243; 2,850 with a barrier",
        "what lies between the call and the transfer",
    )  # fmt: skip
    barrier_ns: float = _range(
        600, 1500, 3100, "ns", "measured", "mega: 598 ns the mean of 978, 3,084 the one on the critical path",
        "how much of it is waiting for the other core",
    )  # fmt: skip

    # Between ranks
    all_reduce_ns: float = _range(
        14800, 15100, 17500, "ns", "measured", "mega: 8 KiB in SBUF over 4 ranks, inside a kernel: 13,331 + 1,800",
        "17.5 us at 64 ranks (jinhuang12/vllm-neuron); through HBM, and a reduce_scatter, not measured",
    )  # fmt: skip
    all_gather_least_ns: float = _range(22000, 24500, 27000, "ns", "measured", "mega: 8 bytes in all", "by run")
    all_gather_ns: float = _range(
        27000, 34000, 34000, "ns", "measured", "mega: 8 KiB in all, a ring",
        "whether it was of what each rank brings; other forms of it not measured",
    )  # fmt: skip
    collective_bytes: float = _exact(8192, "bytes", "measured", "mega: the size of which the prices are")
    collective_bytes_ns: float = _range(
        25, 100, 180, "bytes/ns", "measured", "jinhuang12/vllm-neuron: an all-reduce over 64 ranks: 17.5 us + 100 GB/s",
        "beyond 8 KiB; inside a chip not measured",
    )  # fmt: skip
    collective_trigger_ns: float = _exact(
        1800, "ns", "measured", "mega: of an all-reduce's time, that in which the queue that triggers it is held"
    )

    # Sequencer
    register_ns: float = _exact(68, "ns", "measured", "voyager: a register move")
    register_load_ns: float = _exact(297, "ns", "measured", "mega: 120 loads of a register from memory, 35.6 us")
    loop_ns: float = _range(68, 200, 1000, "ns", "inferred", "an iteration of a loop on the device", "not documented")

    # A launch of its own
    launch_ns: float = _range(
        9400, 12700, 16500, "ns", "measured", "voyager: 9,403; mega: 12.6 to 13.1 us before, 3.4 after",
        "by size of the program; not part of a kernel's price, and nothing inside a larger graph",
    )  # fmt: skip


TABLE: dict[str, Price] = {f.name: f.metadata["price"] for f in fields(Costs)}

ACT_PLAIN = frozenset({"copy", "square", "abs", "sign", "relu"})
"""Activation functions of the table of ``rsqrt`` that may not need it; ``mega`` saw copy and square."""

ACT_SETS: dict[str, str] = dict.fromkeys(ACT_PLAIN | {"rsqrt"}, "rsqrt")
"""Activation function -> table. ``mega`` saw {copy, square, rsqrt}, sigmoid, silu, exp and softplus; a function that is
not named here is taken to have a table of its own."""
