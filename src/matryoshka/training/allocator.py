"""Memory that is freed stays with the process, so that the next step need not ask the system for it again.

A step on a CPU allocates and frees the same large tensors every time. glibc takes such blocks from the system one by
one and gives them back at once, and touching fresh pages costs more than much of the arithmetic.
"""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # <malloc.h>


def keep_freed_memory() -> None:
    """Have malloc take all blocks from its heap and keep what is freed; where there is no glibc, nothing changes."""
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
