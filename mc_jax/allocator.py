"""The C library's memory allocator, told to keep what is freed and to ask for huge pages.

For each call of a compiled program XLA's CPU backend allocates the temporaries in one piece and
frees it afterwards. glibc hands large pieces back to the kernel, which fills fresh ones with zeros
page by page, call after call: a third of a small model's training step. Up to 64 MiB glibc can be
told to keep them; what is larger its threads always hand back, but in huge pages, of 2 MiB instead
of 4 KiB, there is little to do for the kernel.
"""

import ctypes
import os
import platform
import sys
from pathlib import Path

import jax

# What mallopt sets, by the names of glibc's malloc.h, and to what.
_SETTINGS = {
    -4: 0,  # M_MMAP_MAX: no piece of memory is the kernel's to take back alone
    -1: -1,  # M_TRIM_THRESHOLD: however much is free at the end of the heap, it is kept
    -2: 2**26,  # M_TOP_PAD, bytes asked for beyond what is needed
}

_TUNABLES = "GLIBC_TUNABLES"  # read when a program starts, and never again
_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def restart_with_huge_pages() -> None:
    """Start this program again, the same command in the same process, with glibc's huge pages.

    It comes back at once where that cannot help: without glibc 2.35 or later, where the kernel
    gives huge pages to nobody or to everybody, for a platform other than the CPU by JAX_PLATFORMS,
    where only help is asked for, and where GLIBC_TUNABLES is set, as it is after the restart. To be
    called before anything is written or read.
    """
    elsewhere = "cpu" not in (os.environ.get("JAX_PLATFORMS") or "cpu").split(",")
    help_only = {"-h", "--help"} & set(sys.argv)
    if elsewhere or help_only or _TUNABLES in os.environ or not huge_pages_for_the_asking():
        return
    os.environ[_TUNABLES] = "glibc.malloc.hugetlb=1"
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def huge_pages_for_the_asking() -> bool:
    """Whether this glibc can ask for huge pages, and this kernel gives them to those who ask."""
    library, version = platform.libc_ver()
    if library != "glibc" or tuple(map(int, version.split("."))) < (2, 35):
        return False
    try:
        return "[madvise]" in _HUGE_PAGES.read_text()
    except OSError:
        return False


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
