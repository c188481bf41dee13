"""Tests that need several devices run in a process that has them."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def passes(file, devices, request=None):
    """Assert that the tests of tests/on_devices/`file` pass on so many CPU devices.

    Args:
      file: its name.
      devices: how many.
      request: of pytest, whose `--all` is passed on.
    """
    options = ["--all"] if request and request.config.getoption("--all") else []
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    run = subprocess.run(
        [*command, f"tests/on_devices/{file}", *options],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
