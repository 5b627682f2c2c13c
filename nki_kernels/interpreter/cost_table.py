"""Every constant of the cost model, with its source. Nothing here was measured by this project.

Sources by short name: ``arch`` = NKI Trainium2 architecture guide; ``arch1`` = NKI Trainium/Inferentia2 architecture
guide; ``isa-2.26`` = latency tables of the SDK 2.26 ``nki.isa`` reference, dropped from later ones; ``perf`` = NKI
performance guide; ``dma`` = NKI DMA overview and bandwidth guide; ``dge`` = NKI descriptor generation guide;
``engsel`` = engine selection notes of the NKI API reference; ``topk`` = cost planner of AWS's
public rotational top-k kernel.
"""

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Constant:
    """One constant.

    Attributes:
        value: In ``unit``.
        unit: Unit.
        source: Where it comes from.
        estimate: True if no document gives it: an inference, to be calibrated on hardware.
    """

    value: float
    unit: str
    source: str
    estimate: bool = False


TABLE: dict[str, Constant] = {
    # Clocks
    "tensor_ghz": Constant(2.4, "GHz", "arch"),
    "vector_ghz": Constant(0.96, "GHz", "arch"),
    "scalar_ghz": Constant(1.2, "GHz", "arch"),
    "gpsimd_ghz": Constant(1.2, "GHz", "arch"),
    # Every engine
    "min_cycles": Constant(64, "cycles", "isa-2.26: MIN_II"),
    "dependent_cycles": Constant(100, "cycles", "arch1: static overhead of back-to-back dependent instructions"),
    "semaphore_ns": Constant(200, "ns", "cross-engine semaphore hop, not documented", estimate=True),
    "strided_bytes": Constant(16, "bytes", "arch1: a larger innermost stride halves the access rate"),
    "strided_factor": Constant(2, "x", "arch1, trn1 text"),
    # TensorE
    "fp32_passes": Constant(4, "x", "perf: float32 matmul runs at a quarter of the bfloat16 rate"),
    "fp32_onezero_passes": Constant(2, "x", "arch names the hint's gain 2x for a float32 operand", estimate=True),
    "fp32_transpose_passes": Constant(2, "x", "arch: float32 transpose mode twice as fast as float32 matmul"),
    "load_stationary_factor": Constant(0.25, "cycles a column", "arch1: LoadStationary up to 4x faster, in background"),
    # VectorE
    "dve_16bit_contiguous": Constant(4, "elements a cycle", "arch: perf mode, 16-bit SBUF to SBUF"),
    "dve_16bit_strided": Constant(2, "elements a cycle", "arch: perf mode, strided"),
    "dve_16bit_psum": Constant(2, "elements a cycle", "arch: perf mode with one side in PSUM"),
    "dve_fp32": Constant(1, "elements a cycle", "isa-2.26; the data-path table allows 2", estimate=True),
    "dve_two_input": Constant(2, "cycles an element", "isa-2.26: tensor_tensor, scans, scalar_tensor_tensor"),
    "dve_reciprocal": Constant(8, "cycles an element", "current nki.isa reference"),
    "dve_readout_cycles": Constant(64, "cycles", "isa-2.26: reading accumulation registers out"),
    "dve_search_cycles": Constant(144, "cycles", "topk: fixed overhead of max8, find_index8, match_replace8"),
    # ScalarE
    "act_readout_cycles": Constant(64, "cycles", "isa-2.26: activation with reduce_res"),
    # GpSimd
    "pool_fixed_cycles": Constant(150, "cycles", "isa-2.26: iota, affine_select, local_gather"),
    "pool_gather": Constant(4, "cycles an element", "gathers and partition reduction", estimate=True),
    "pool_int": Constant(2, "cycles an element", "32-bit integer tensor_tensor", estimate=True),
    "pool_rsqrt": Constant(4, "cycles an element", "engsel: 4x slower than ScalarE"),
    # DMA
    "dma_engines": Constant(16, "engines a core", "arch"),
    "dma_partitions": Constant(8, "partitions an engine", "dma"),
    "dma_bytes_ns": Constant(23, "bytes/ns an engine", "dma: effective rate"),
    "dma_start_ns": Constant(1300, "ns", "dma: semaphore to start"),
    "dma_run_bytes": Constant(256, "bytes", "efficiency is run / (run + this)", estimate=True),
    "dma_hwdge_issue_ns": Constant(600, "ns", "dge: an instruction on its trigger queue"),
    "dma_swdge_issue_ns": Constant(1000, "ns", "GpSimd time to make descriptors, not documented", estimate=True),
    "dma_transpose_hbm": Constant(0.9, "x", "dma: at most 90 % of bandwidth from HBM"),
    "dma_transpose_sbuf": Constant(0.5, "x", "dma: at most 50 % SBUF to SBUF"),
    "hbm_bytes_ns": Constant(362, "bytes/ns a core", "2.9 TB/s a chip over 8 cores", estimate=True),
    # Between cores
    "sendrecv_ns": Constant(1500, "ns", "not documented", estimate=True),
    "barrier_ns": Constant(1500, "ns", "not documented", estimate=True),
    # Sequencer
    "register_ns": Constant(50, "ns", "register moves and loop iterations, not documented", estimate=True),
}


@dataclass(frozen=True)
class Costs:
    """The constants' values, by name; replace some with ``dataclasses.replace`` to calibrate."""

    tensor_ghz: float = TABLE["tensor_ghz"].value
    vector_ghz: float = TABLE["vector_ghz"].value
    scalar_ghz: float = TABLE["scalar_ghz"].value
    gpsimd_ghz: float = TABLE["gpsimd_ghz"].value
    min_cycles: float = TABLE["min_cycles"].value
    dependent_cycles: float = TABLE["dependent_cycles"].value
    semaphore_ns: float = TABLE["semaphore_ns"].value
    strided_bytes: float = TABLE["strided_bytes"].value
    strided_factor: float = TABLE["strided_factor"].value
    fp32_passes: float = TABLE["fp32_passes"].value
    fp32_onezero_passes: float = TABLE["fp32_onezero_passes"].value
    fp32_transpose_passes: float = TABLE["fp32_transpose_passes"].value
    load_stationary_factor: float = TABLE["load_stationary_factor"].value
    dve_16bit_contiguous: float = TABLE["dve_16bit_contiguous"].value
    dve_16bit_strided: float = TABLE["dve_16bit_strided"].value
    dve_16bit_psum: float = TABLE["dve_16bit_psum"].value
    dve_fp32: float = TABLE["dve_fp32"].value
    dve_two_input: float = TABLE["dve_two_input"].value
    dve_reciprocal: float = TABLE["dve_reciprocal"].value
    dve_readout_cycles: float = TABLE["dve_readout_cycles"].value
    dve_search_cycles: float = TABLE["dve_search_cycles"].value
    act_readout_cycles: float = TABLE["act_readout_cycles"].value
    pool_fixed_cycles: float = TABLE["pool_fixed_cycles"].value
    pool_gather: float = TABLE["pool_gather"].value
    pool_int: float = TABLE["pool_int"].value
    pool_rsqrt: float = TABLE["pool_rsqrt"].value
    dma_engines: float = TABLE["dma_engines"].value
    dma_partitions: float = TABLE["dma_partitions"].value
    dma_bytes_ns: float = TABLE["dma_bytes_ns"].value
    dma_start_ns: float = TABLE["dma_start_ns"].value
    dma_run_bytes: float = TABLE["dma_run_bytes"].value
    dma_hwdge_issue_ns: float = TABLE["dma_hwdge_issue_ns"].value
    dma_swdge_issue_ns: float = TABLE["dma_swdge_issue_ns"].value
    dma_transpose_hbm: float = TABLE["dma_transpose_hbm"].value
    dma_transpose_sbuf: float = TABLE["dma_transpose_sbuf"].value
    hbm_bytes_ns: float = TABLE["hbm_bytes_ns"].value
    sendrecv_ns: float = TABLE["sendrecv_ns"].value
    barrier_ns: float = TABLE["barrier_ns"].value
    register_ns: float = TABLE["register_ns"].value


assert {f.name for f in fields(Costs)} == set(TABLE)
