"""Memory that is kept between calls."""

import platform
import subprocess
import sys

import pytest

# Pages that the kernel fills per use of a large array, before and after.
PROGRAM = """
import resource
from mc_jax.allocator import keep_freed_memory

def faults():
    start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        bytearray(b"x") * 2**26
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - start) / 4

before = faults()
assert keep_freed_memory()
faults()
print(before, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator is meant")
def test_large_arrays_reuse_their_memory():
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        check=True,
        env={"JAX_PLATFORMS": "cpu"},
    )
    before, after = map(float, run.stdout.split())
    pages = 2**26 / 4096
    assert before > pages / 2  # without, this test would show nothing
    assert after < pages / 100
