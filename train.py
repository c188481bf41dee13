"""Train a memory-caching language model, or go on with a run that was begun.

  python train.py
      the default job (configs/default.py), in runs/default

  python train.py --config=configs/NAME.py
      another experiment, in runs/NAME; NAME.py:TEXT calls its get_config("TEXT")

  python train.py --config=configs/NAME.py --config.model.dim=256 --config.train.steps=50
      the same with other settings; configs/base.py lists them all. A small train.steps cuts the
      job short.

  python train.py plan --config=configs/NAME.py --topology=v5p:4x4x4
      whether it fits on devices that are not here, and what it costs; plan --help says more

  python train.py sweep --sweep=configs/sweeps/NAME.py
      many runs, evaluated and compared, with a table and a picture; sweep --help says more

  python train.py --config=configs/NAME.py --config.mesh.fsdp=8 --config.mesh.tensor=4
      what the devices share; docs/scale.md tells data, fsdp, context and tensor

The run's folder receives config.json, checkpoints/, metrics.jsonl, tensorboard/ and curves.png.
The same command again goes on where the run was stopped, by whatever: Ctrl-C and SIGTERM finish
the step and save it (a second one leaves at once), and after kill -9 or a crash the run goes on
from the last checkpoint; the losses are those of a run that was never stopped. A finished run goes
on when config.train.steps is raised.

Exit codes: 0 the run is finished; 1 it diverged; 2 a setting, a file or the workdir cannot be
used; 3 another host was lost; 130 and 143 it was stopped by Ctrl-C or SIGTERM and has been saved.
"""

import os
import sys
from pathlib import Path

from mc_jax.allocator import restart_with_huge_pages
from mc_jax.planning.cli import plan_command
from mc_jax.sweeps.cli import sweep_command
from mc_jax.training import DivergedError, HostLostError, hosts, join, train
from mc_jax.training.cli import Parser, default_folder, read_config, run

COMMANDS = {"plan": plan_command, "sweep": sweep_command}
DEFAULT_CONFIG = os.path.relpath(Path(__file__).parent / "configs" / "default.py")


@hosts.not_held_up()
def main() -> int:
    """Run the experiment that the command line describes; returns the exit code."""
    if sys.argv[1:2] and sys.argv[1] in COMMANDS:
        return COMMANDS[sys.argv[1]](sys.argv[2:])
    parser = Parser(__doc__)
    parser.add_argument("--config", default=DEFAULT_CONFIG, metavar="FILE", help="the experiment")
    parser.add_argument("--workdir", metavar="FOLDER", help="the run's; default runs/<config name>")
    group = parser.add_argument_group("several hosts, each running the same command")
    group.add_argument(
        "--distributed", action="store_true", help="they are found by Cloud TPU, GKE or SLURM"
    )
    group.add_argument("--coordinator", metavar="HOST:PORT", help="else where the first listens")
    group.add_argument("--processes", type=int, metavar="N", help="how many there are")
    group.add_argument("--process", type=int, metavar="I", help="which this one is, from 0")
    arguments, overrides = parser.parse_known_args()
    join(arguments.distributed, arguments.coordinator, arguments.processes, arguments.process)
    config = read_config(arguments.config, overrides)
    workdir = Path(arguments.workdir or f"runs/{default_folder(arguments.config)}")
    try:
        outcome = train(config, workdir)
    except DivergedError as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 1
    except HostLostError as error:
        print(f"train.py: {error}", file=sys.stderr, flush=True)
        # Leaving in order would wait for the host that is lost.
        os._exit(hosts.HOST_LOST)
    if outcome.signal:
        print(f"{outcome.signal.name}: saved step {outcome.step}; the same command goes on from it")
        return 128 + outcome.signal
    return 0


if __name__ == "__main__":
    restart_with_huge_pages()
    run(main)
