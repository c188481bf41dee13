"""Kernels compiled for TPUs that need not be here: their cost beside the hardware's limit.

    python -m benchmarks.tpu_static
    python -m benchmarks.tpu_static "linear_read ssc" --chips v5e

libtpu's compiler runs anywhere. It writes down every instruction bundle of a kernel;
`benchmarks.llo` counts how often each runs, which over the clock is the static time. Waiting for
HBM is not in it: it stands apart as the time of moving every array once. Per cent of peak is the
useful FLOPs over the static time and the chip's peak. Temporaries are the HBM that the whole
program needs beside its arguments and results. Of a program without kernels, such as XLA's scan,
the time is the compiler's own estimate, waiting included (`benchmarks.xla_cycles`).
"""

import argparse
import glob
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable

from benchmarks import common

# Clock in Hz, matrix FLOP/s in bfloat16 and HBM bytes/s. A v5p has two cores; the compiler has
# already divided a kernel's grid between them where its dimensions are parallel.
CHIPS = {
    "v5e": (1.5e9, 197e12, 819e9),
    "v5p": (1.75e9, 459e12, 2765e9),
    "v6e": (1.75e9, 918e12, 1640e9),
}
TOPOLOGIES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
PACKAGES = ("jax", "jaxlib", "libtpu")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="kernels whose names begin so; all by default")
    parser.add_argument("--chips", nargs="+", choices=CHIPS, default=list(CHIPS))
    parser.add_argument("--compile", metavar="BLOCKS", help=argparse.SUPPRESS)
    return parser.parse_args()


class CompileError(Exception):
    """A kernel that does not compile, with the compiler's words."""


def compile_one(name: str, chip: str, blocks: dict[str, int]) -> None:
    """Compile a kernel and print what the compiler says of memory; runs in a process of its own."""
    import jax
    import numpy as np
    from jax.experimental import topologies
    from jax.experimental.pallas import tpu as pltpu
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    from benchmarks import xla_cycles
    from benchmarks.tpu_kernels import KERNELS

    # Made before the mesh is set, since splash attention puts its mask on a device.
    kernel = KERNELS[name](**({"blocks": blocks} if blocks else {}))
    topology = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGIES[chip])
    mesh = Mesh(np.array(topology.devices[:1]), ("x",))
    with jax.set_mesh(mesh):
        run, args = kernel.build(pltpu.get_tpu_info())
        sharding = NamedSharding(mesh, PartitionSpec())
        args = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), args
        )
        program = jax.jit(run).lower(*args).compile()
    memory, text = program.memory_analysis(), program.as_text()
    assert memory is not None and text is not None
    facts = {"temporaries": memory.temp_size_in_bytes, "vmem": _kernel_vmem(text)}
    print(json.dumps(facts if kernel.pallas else facts | {"cycles": xla_cycles.cycles(text)}))


def _kernel_vmem(text: str) -> int:
    """Most bytes of vector memory that a Pallas kernel of a compiled program uses."""
    calls = text.split('custom_call_target="tpu_custom_call"')[1:]
    used = (call.partition('"used_scoped_memory_configs":')[2].partition("]")[0] for call in calls)
    sizes = (re.findall(r'"memory_space":"1","offset":"\d+","size":"(\d+)"', u) for u in used)
    return max((int(size) for call in sizes for size in call), default=0)


def measure(name: str, chip: str, blocks: dict[str, int] | None = None) -> dict:
    """Everything about one kernel on one chip.

    Args:
      name: of `benchmarks.tpu_kernels`.
      chip: generation of the TPU.
      blocks: sizes that replace those of the kernel's default configuration.

    Raises:
      CompileError: a kernel that does not compile.
    """
    from benchmarks.tpu_kernels import KERNELS

    kernel = KERNELS[name](**({"blocks": blocks} if blocks else {}))
    clock, peak, bandwidth = CHIPS[chip]
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {
            "LIBTPU_INIT_ARGS": f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true",
            "JAX_PLATFORMS": "cpu",
            "TPU_SKIP_MDS_QUERY": "1",
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        }
        command = [sys.executable, "-m", "benchmarks.tpu_static", name, "--chips", chip]
        command += ["--compile", json.dumps(blocks or {})]
        child = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False
        )
        if child.returncode:
            raise CompileError(f"{name} does not compile for {chip}:\n{child.stderr[-3000:]}")
        facts = json.loads(child.stdout.splitlines()[-1])
        counted = facts.pop("cycles", None)
        if counted is None:
            counted = sum(kernel_cycles(folder, part, kernel.arrays) for part in kernel.pallas)
    static = kernel.share * counted / clock
    return {
        "kernel": name,
        "chip": chip,
        "gflop": kernel.flops / 1e9,
        "hbm_mb": kernel.bytes / 1e6,
        "limit_ms": 1e3 * max(kernel.flops / peak, kernel.bytes / bandwidth),
        "static_ms": 1e3 * static,
        "hbm_ms": 1e3 * kernel.bytes / bandwidth,
        "percent_of_peak": 100 * kernel.flops / peak / static,
        **facts,
    }


def kernel_cycles(folder: str, name: str, arrays: Callable[[], int | None]) -> float:
    """Cycles of the one kernel in a folder of dumps whose name contains `name`.

    Args:
      folder: what libtpu wrote.
      name: of the kernel.
      arrays: as of `benchmarks.llo.count`.
    """
    from benchmarks import llo

    paths = glob.glob(f"{folder}/*{name}*-final_bundles.txt")
    paths = [path for path in paths if "schedule-analysis" not in path]
    if len(paths) != 1:
        raise SystemExit(f"found {len(paths)} kernels called {name!r}, expected 1")
    with open(paths[0]) as text:
        try:
            return llo.count(text.read(), arrays=arrays).cycles
        except llo.UnknownBranch:
            return float("nan")  # not guessed


def main() -> None:
    args = arguments()
    if importlib.util.find_spec("libtpu") is None:
        raise SystemExit("libtpu: not installed; requirements-dev.txt brings it to Linux on x86-64")
    if args.compile:
        compile_one(args.names[0], args.chips[0], json.loads(args.compile))
        return
    from benchmarks.tpu_kernels import KERNELS

    names = [n for n in KERNELS if not args.names or any(n.startswith(p) for p in args.names)]
    if not names:
        raise SystemExit(f"names: found {args.names}, allowed: beginnings of {list(KERNELS)}")
    print(f"{'':48}GFLOP  HBM MB  temp MB  VMEM MB  limit ms  static ms  HBM ms  % of peak")
    results = []
    for name in names:
        for chip in args.chips:
            try:
                row = measure(name, chip)
            except CompileError as error:
                raise SystemExit(str(error)) from None
            results.append(row)
            print(
                f"{name:42} {chip:4} {row['gflop']:6.0f} {row['hbm_mb']:7.0f} "
                f"{row['temporaries'] / 1e6:8.1f} {row['vmem'] / 1e6:8.1f} {row['limit_ms']:9.3f} "
                f"{row['static_ms']:10.3f} {row['hbm_ms']:7.3f} {row['percent_of_peak']:10.0f}",
                flush=True,
            )
    whole = not args.names and args.chips == list(CHIPS)
    common.write_results("tpu_static" if whole else None, PACKAGES, {"chips": args.chips}, results)


if __name__ == "__main__":
    main()
