"""``nki.isa``: the instructions, an engine a module. Every one takes its destination first and returns nothing."""

from typing import Any

from ..enums import (
    DgeMode,
    DmaEngine,
    Engine,
    MatmulPerfMode,
    NcVersion,
    OobMode,
    ReduceCmd,
)
from ..errors import KernelError, NotSimulatedError
from ..registers import Register, register_alloc, register_load, register_move, register_store
from .dma import dma_copy
from .dma_math import dma_compute, dma_transpose
from .gpsimd import (
    affine_select,
    dropout,
    iota,
    local_gather,
    nc_n_gather,
    nonzero_with_count,
    rng,
    sequence_bounds,
    set_rng_seed,
    tensor_partition_reduce,
    topk,
)
from .scalar_engine import activation, activation_reduce
from .sync import core_barrier, get_nc_sub_version, get_nc_version, sendrecv
from .tensor_engine import nc_matmul, nc_transpose
from .vector_engine import (
    memset,
    nc_stream_shuffle,
    reciprocal,
    scalar_tensor_tensor,
    tensor_copy,
    tensor_copy_predicated,
    tensor_scalar,
    tensor_tensor,
    tensor_tensor_scan,
)
from .vector_reduce import (
    bn_aggr,
    bn_stats,
    range_select,
    select_reduce,
    tensor_reduce,
    tensor_scalar_cumulative,
    tensor_scalar_reduce,
)
from .vector_search import max8, nc_find_index8, nc_match_replace8


def _trn3(name: str) -> Any:
    def refuse(*_: Any, **__: Any) -> None:
        raise NotSimulatedError(name, "", "exists on trn3 only")

    refuse.__name__ = name
    return refuse


activate2 = _trn3("activate2")
exponential = _trn3("exponential")
quantize_mx = _trn3("quantize_mx")
nc_matmul_mx = _trn3("nc_matmul_mx")

# Deprecated names; the first two are also modules here, so they live only in the installed surface.
ALIASES: dict[str, Any] = {
    "tensor_engine": Engine.tensor,
    "vector_engine": Engine.vector,
    "scalar_engine": Engine.scalar,
    "gpsimd_engine": Engine.gpsimd,
    "unknown_engine": Engine.unknown,
}

SURFACE: dict[str, Any] = {
    f.__name__: f
    for f in (
        activation, activation_reduce, affine_select, bn_aggr, bn_stats, core_barrier, dma_compute, dma_copy,
        dma_transpose, dropout, get_nc_sub_version, get_nc_version, iota, local_gather, max8, memset, nc_find_index8,
        nc_match_replace8, nc_matmul, nc_n_gather, nc_stream_shuffle, nc_transpose, nonzero_with_count, range_select,
        reciprocal, register_alloc, register_load, register_move, register_store, rng, scalar_tensor_tensor,
        select_reduce, sendrecv, sequence_bounds, set_rng_seed, tensor_copy, tensor_copy_predicated,
        tensor_partition_reduce, tensor_reduce, tensor_scalar, tensor_scalar_cumulative, tensor_scalar_reduce,
        tensor_tensor, tensor_tensor_scan, topk, activate2, exponential, quantize_mx, nc_matmul_mx,
    )
}  # fmt: skip
ENUMS: dict[str, Any] = {
    "engine": Engine,
    "reduce_cmd": ReduceCmd,
    "dge_mode": DgeMode,
    "oob_mode": OobMode,
    "matmul_perf_mode": MatmulPerfMode,
    "nc_version": NcVersion,
    "dma_engine": DmaEngine,
}
SURFACE |= ENUMS | ALIASES | {"VirtualRegister": Register, "NkiValidationError": KernelError}
