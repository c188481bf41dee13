"""Memory that is kept between calls."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import jax

from mc_jax.allocator import keep_freed_memory

# Prints the pages that the kernel fills per use of a large piece of memory, before and after.
PROGRAM = """
import resource
from mc_jax.allocator import keep_freed_memory

def faults():
    start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        bytearray(b"x") * 2**26
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - start) / 4

before = faults()
kept = keep_freed_memory()
faults()
print(int(kept), before, faults())
"""


def test_large_pieces_are_used_again_with_glibc_and_left_alone_with_others():
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=True,
    )
    kept, before, after = map(float, run.stdout.split())
    assert kept == (platform.libc_ver()[0] == "glibc")
    if kept:
        pages = 2**26 / os.sysconf("SC_PAGE_SIZE")
        assert before > pages / 2  # without, this test would show nothing
        assert after < pages / 100


def test_other_backends_are_left_alone(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert not keep_freed_memory()
