"""Limits of one Trainium2 physical core (NeuronCore-v3) that the checks enforce."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Hardware:
    """Sizes and limits.

    Sources: the NKI documentation's Trainium2 architecture guide and ``nl.tile_size`` reference, except
    ``sbuf_bytes``: the usable bytes a partition in the compiler's public target description (224 KiB less 16 KiB less
    8 bytes); the documents give only the physical 224 KiB. ``dma_scratch_bytes``: what AWS's allocator leaves free.
    """

    partitions: int = 128
    sbuf_bytes: int = 212984
    psum_banks: int = 8
    psum_bank_bytes: int = 2048
    stationary_free: int = 128
    moving_free: int = 512
    bn_stats_free: int = 512
    max_free_dims: int = 4
    max_free_size: int = 65535
    max_stride: int = 32767
    max_dma_sources: int = 16
    max_reduce: int = 16384
    dma_scratch_bytes: int = 16384


HW = Hardware()


class TileSize:
    """What ``nl.tile_size`` says on every target; see :class:`~.language.TargetTileSize`."""

    pmax = HW.partitions
    psum_fmax = HW.psum_bank_bytes // 4
    psum_bank_fmax = HW.psum_bank_bytes // 4
    psum_bank_fmax_bytes = HW.psum_bank_bytes
    psum_fmax_bytes = HW.psum_banks * HW.psum_bank_bytes
    gemm_stationary_fmax = HW.stationary_free
    gemm_moving_fmax = HW.moving_free
    bn_stats_fmax = HW.bn_stats_free
    sbuf_fmax_bytes = HW.sbuf_bytes
    sbuf_fmax = HW.sbuf_bytes // 4
    sbuf_size_bytes = HW.sbuf_bytes * HW.partitions
    total_available_sbuf_size = HW.sbuf_bytes
    # The documents name these two without a value; 32 bytes is the read granularity of a DMA-friendly row (estimate).
    psum_min_align = 4
    sbuf_min_align = 32
