"""`train.py plan`."""

import json
from collections.abc import Sequence
from pathlib import Path

from mc_jax.errors import InputError
from mc_jax.files import replace
from mc_jax.planning.plan import plan
from mc_jax.planning.report import describe
from mc_jax.training.cli import Parser, read_config
from mc_jax.training.experiment import check

HELP = """Find out what an experiment needs before renting the devices.

  python train.py plan --config=configs/paper_1b3.py:linear,grm --topology=v5p:4x4x4 \\
      --config.mesh.data=1 --config.mesh.fsdp=64

Compiles the training step for a topology that is not there (it takes libtpu, of
requirements-tpu.txt, and about a minute), and prints for each device its memory against HBM and
what devices exchange, the time of a step at the hardware's limits, and what to change where it
does not fit. Reads no data and computes nothing.

Topologies: v4, v5e, v5p, v6e, tpu7x and whichever libtpu knows, such as v5e:4x8, v6e:16x16.

Exit codes: 0 it fits; 1 it does not; 2 a setting cannot be used.
"""


def plan_command(arguments: Sequence[str]) -> int:
    """Run `train.py plan`; returns the exit code."""
    parser = Parser(HELP)
    parser.add_argument("--config", metavar="FILE", required=True, help="the experiment")
    parser.add_argument("--topology", metavar="CHIP:SHAPE", required=True, help="the devices")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the plan there as well")
    options, overrides = parser.parse_known_args(arguments)
    experiment = check(read_config(options.config, overrides), read_data=False)
    if options.json and not options.json.absolute().parent.is_dir():
        raise InputError("--json", str(options.json), "a file in a folder that exists")
    found = plan(experiment, options.topology)
    print(describe(found, experiment))
    if options.json:
        replace(options.json, json.dumps(found.to_json(), indent=2).encode())
    return 0 if found.fits else 1
