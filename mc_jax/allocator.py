"""The C library's memory allocator, told to keep what is freed.

For each call of a compiled program XLA's CPU backend allocates the temporaries in one piece and
frees it afterwards. glibc hands pieces of more than 32 MiB back to the kernel, which fills fresh
ones with zeros page by page, call after call: for a small memory layer 15 to 30% of the time.
"""

import ctypes
import platform

import jax

# What mallopt sets, by the names of glibc's malloc.h, and to what.
_SETTINGS = {
    -4: 0,  # M_MMAP_MAX: no piece of memory is the kernel's to take back alone
    -1: -1,  # M_TRIM_THRESHOLD: however much is free at the end of the heap, it is kept
    -2: 2**26,  # M_TOP_PAD, bytes asked for beyond what is needed
}


def keep_freed_memory() -> bool:
    """On JAX's CPU backend keep freed memory in this process, for its next allocation.

    The process then holds on to its peak memory. To be called before the first large allocation.

    Returns:
      Whether it was done: not for another backend, and not with a C library other than glibc.
    """
    if jax.default_backend() != "cpu" or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all([mallopt(name, value) for name, value in _SETTINGS.items()])
