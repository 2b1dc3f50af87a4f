"""How this process keeps memory that it will need again."""

import ctypes
import os
import platform

_TRIM, _MMAP = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
_MOST = 2**31 - 1  # what mallopt takes: all blocks below 2 GiB are kept, and 2 GiB at the end of the heap
_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Let this process keep what it frees, to use it again, for as long as it runs; tell whether that could be set.

    By itself glibc gives each block of more than 32 MiB back to the system, which hands it out anew page by page and
    filled with zeros: half of the time of a plain network at the paper's size. Other allocators are left as they are,
    and so is glibc's where the environment sets it.

    Source: mallopt(3).
    """
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in _SETTINGS):
        return False
    set_option = ctypes.CDLL(None).mallopt
    return bool(set_option(_MMAP, _MOST) and set_option(_TRIM, _MOST))
