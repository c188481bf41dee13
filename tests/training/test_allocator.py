"""Memory that is kept between calls."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from mc_jax import allocator
from mc_jax.allocator import keep_freed_memory, restart_with_huge_pages

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

# The same for one call of a compiled program with temporaries of 144 MB, and its arguments.
RESTARTED = """
import resource, sys
from mc_jax.allocator import keep_freed_memory, restart_with_huge_pages
restart_with_huge_pages()
import jax, jax.numpy as jnp
keep_freed_memory()
call = jax.jit(lambda x: (x @ x.T) @ x)
x = jnp.ones((6000, 8))
call(x).block_until_ready()
start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
call(x).block_until_ready()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - start, *sys.argv[1:])
"""


def output(program: str, *arguments: str, **tunables: str) -> str:
    """What a program prints that has these tunables of glibc's and no others."""
    kept = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=Path(__file__).parents[2],
        env=kept | {"JAX_PLATFORMS": "cpu"} | tunables,
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_large_pieces_are_used_again_with_glibc_and_left_alone_with_others():
    kept, before, after = map(float, output(PROGRAM).split())
    assert kept == (platform.libc_ver()[0] == "glibc")
    if kept:
        pages = 2**26 / os.sysconf("SC_PAGE_SIZE")
        assert before > pages / 2  # without, this test would show nothing
        assert after < pages / 100


def test_other_backends_are_left_alone(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert not keep_freed_memory()


needs_huge_pages = pytest.mark.skipif(
    not allocator.huge_pages_for_the_asking(),
    reason="needs glibc 2.35, and madvise in /sys/kernel/mm/transparent_hugepage/enabled: "
    "elsewhere programs never start again",
)


@needs_huge_pages
def test_a_restarted_program_has_its_arguments_and_takes_little_of_the_kernels_time():
    def faults(**tunables: str) -> int:
        count, arguments = output(RESTARTED, "--some=flag", "a b", **tunables).split(maxsplit=1)
        assert arguments == "--some=flag a b\n"
        return int(count)

    pages = 6000**2 * 4 / os.sysconf("SC_PAGE_SIZE")
    assert faults(GLIBC_TUNABLES="glibc.malloc.hugetlb=0") > pages / 2  # left as the user set it
    assert faults() < pages / 20


@pytest.fixture
def started(monkeypatch, tmp_path):
    """Programs started in the place of this one, where that would help."""
    commands = []
    monkeypatch.setattr(os, "execv", lambda path, command: commands.append((path, command)))
    monkeypatch.setattr(sys, "orig_argv", ["python", "-O", "train.py", "--workdir=a b"])
    monkeypatch.setattr(sys, "argv", ["train.py", "--workdir=a b"])
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setattr(allocator, "_HUGE_PAGES", tmp_path / "enabled")
    allocator._HUGE_PAGES.write_text("always [madvise] never\n")
    # As a first value, so that what a restart leaves in the environment is taken back.
    monkeypatch.setenv("GLIBC_TUNABLES", "")
    monkeypatch.delenv("GLIBC_TUNABLES")
    monkeypatch.setenv("JAX_PLATFORMS", "")
    return commands


def test_a_restart_is_the_same_command_and_happens_once(started):
    restart_with_huge_pages()
    assert started == [(sys.executable, [sys.executable, "-O", "train.py", "--workdir=a b"])]
    assert os.environ["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1"
    restart_with_huge_pages()
    assert len(started) == 1


@pytest.mark.parametrize("enabled", ["[always] madvise never", "always madvise [never]", None])
def test_no_restart_where_asking_changes_nothing(started, enabled):
    allocator._HUGE_PAGES.unlink()
    if enabled:
        allocator._HUGE_PAGES.write_text(enabled)
    restart_with_huge_pages()
    assert not started


@pytest.mark.parametrize("library", [("", ""), ("glibc", "2.34"), ("musl", "1.2")])
def test_no_restart_with_another_library(started, monkeypatch, library):
    monkeypatch.setattr(platform, "libc_ver", lambda: library)
    restart_with_huge_pages()
    assert not started


def test_no_restart_for_another_platform(started, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    restart_with_huge_pages()
    assert not started
    monkeypatch.setenv("JAX_PLATFORMS", "cuda,cpu")
    restart_with_huge_pages()
    assert started


def test_no_restart_for_help(started, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "sweep", "--help"])
    restart_with_huge_pages()
    assert not started


# A program of the repository up to the moment when it would start again.
UP_TO_THE_RESTART = """
import os, runpy, sys
os.execv = lambda path, command: (print(command[-1], flush=True), os._exit(0))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@needs_huge_pages
@pytest.mark.parametrize("program", ["train.py", "eval.py"])
def test_the_programs_restart(program):
    assert output(UP_TO_THE_RESTART, program, "--workdir=none") == "--workdir=none\n"
