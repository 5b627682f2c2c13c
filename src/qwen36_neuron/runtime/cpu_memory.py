"""How this process's allocator treats the large temporary tensors of a step."""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
"""Parameters of glibc's `mallopt`, from malloc.h."""

LARGEST = 1 << 30
"""Bytes up to which an allocation comes from the heap, where freed memory can be used again at once."""

GROWTH = 64 << 20
"""Bytes that the heap grows by at least."""


def keep_freed_memory() -> bool:
    """Let freed memory stay with the process.

    glibc gives an allocation of more than a few megabytes pages of its own and gives them back when it is freed, so
    that every temporary of a prefill is paid for in page faults: a fifth of the time of a prompt.

    Returns:
        Whether the C library took it; others than glibc do not have the call, and nothing is changed.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((M_MMAP_THRESHOLD, LARGEST), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, GROWTH))
    return all(mallopt(parameter, value) == 1 for parameter, value in settings)


def return_freed_memory() -> bool:
    """Give what has been freed back to the operating system, which `keep_freed_memory` puts off.

    Returns:
        Whether the C library took it.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return trim is not None and trim(0) == 1
