"""Two hosts train one model, and one of them is killed with kill -9, ten times.

    python -m benchmarks.kill_hosts             # about 8 minutes on 2 cores

Hosts are processes of this machine with two CPU devices each. The other host has to end with a
message within a minute. The run then goes on, in turn, as one process with four devices and as two
with two; in the end its losses are those of a run that was left alone, to 1e-6, every step once.
Results: benchmarks/results/kill_hosts.json.
"""

import argparse
import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import common
from benchmarks.kill_resume import ROOT, Job, incomplete
from mc_jax.training.metrics import read

PACKAGES = ("jax", "jaxlib", "orbax-checkpoint")
PATIENCE = 60
MESH = ("--config.mesh.data=1", "--config.mesh.fsdp=2", "--config.mesh.context=2")


class Cluster(Job):
    """One training run on several hosts."""

    def start_hosts(self, hosts: int, devices: int = 4, differ: str = "") -> list[subprocess.Popen]:
        """Start or go on; what hosts print goes to logs of theirs.

        Args:
          hosts: how many.
          devices: in all.
          differ: an argument that only the last host gets.
        """
        self.workdir.mkdir(parents=True, exist_ok=True)
        each = f"--xla_force_host_platform_device_count={devices // hosts}"
        flags = f"{os.environ.get('XLA_FLAGS', '')} {each}"
        with contextlib.closing(socket.socket()) as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        processes = []
        for host in range(hosts):
            join = [f"--coordinator={address}", f"--processes={hosts}", f"--process={host}"]
            last = [differ] if differ and host == hosts - 1 else []
            with self.log(host).open("a") as log:
                processes.append(
                    subprocess.Popen(
                        [*self._command, *(join if hosts > 1 else []), *last],
                        cwd=ROOT,
                        stdout=log,
                        stderr=log,
                        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
                    )
                )
        return processes

    def log(self, host: int) -> Path:
        """What a host prints."""
        return self.workdir / f"log-{host}.txt"

    def wait_for(self, step: int, processes: list[subprocess.Popen]) -> None:
        """Return when metrics.jsonl has reached a step."""
        while self.last_step() < step:
            if any(process.poll() is not None for process in processes):
                raise RuntimeError(f"a host ended:\n{self.log(0).read_text()[-3000:]}")
            time.sleep(0.005)

    def finish_on(self, hosts: int) -> None:
        """Run to the end."""
        codes = [process.wait() for process in self.start_hosts(hosts)]
        if any(codes):
            raise RuntimeError(f"exit codes {codes}:\n{self.log(0).read_text()[-3000:]}")

    def kill_one(self, step: int, victim: int, rng: random.Random) -> tuple[int, float, str]:
        """Start two hosts, kill one after a step, and wait for the other.

        Returns:
          The other's exit code, the seconds until it ended, and the last lines that it printed.
        """
        processes = self.start_hosts(2)
        self.wait_for(step, processes)
        time.sleep(rng.uniform(0, 0.05))
        processes[victim].kill()
        began = time.monotonic()
        other = processes[1 - victim]
        try:
            code = other.wait(2 * PATIENCE)
        finally:
            for process in processes:
                process.kill()
                process.wait()
        text = self.log(1 - victim).read_text().strip()
        return code, time.monotonic() - began, text[-6000:]

    def terminate_one(self, step: int, host: int) -> list[int]:
        """Start two hosts, send one of them SIGTERM after a step; returns the exit codes."""
        processes = self.start_hosts(2)
        self.wait_for(step, processes)
        processes[host].send_signal(signal.SIGTERM)
        return [process.wait(PATIENCE) for process in processes]


def last_words(said: str) -> str:
    """The message of a host that ended: ours, or that of JAX's service before its stack."""
    lines = [
        line
        for line in said.splitlines()
        if not line.lstrip().startswith("@") and ("lost" in line or "error" in line.lower())
    ]
    return (lines or said.splitlines())[-1][:200]


def worst_difference(run: Path, reference: Path, steps: int) -> float:
    """Largest relative difference of a loss.

    Raises:
      RuntimeError: a step is missing or there twice.
    """
    ours, theirs = (read(folder / "metrics.jsonl") for folder in (run, reference))
    missing = incomplete(ours, theirs, steps)
    if missing:
        raise RuntimeError("; ".join(missing))
    losses = [np.array([record["loss"] for record in records]) for records in (ours, theirs)]
    return float(np.max(np.abs(losses[0] - losses[1]) / losses[1]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = common.parse(parser, "seed")
    rng = random.Random(options.seed)
    overrides = (
        f"--config.train.steps={options.steps}",
        "--config.train.eval_every=60",
        "--config.train.checkpoint_every=5",
        "--config.train.tensorboard=False",
        *MESH,
    )
    with tempfile.TemporaryDirectory() as folder:
        reference = Cluster(Path(folder) / "undisturbed", "configs/tiny.py:mqar", *overrides)
        reference.finish_on(2)
        run = Cluster(Path(folder) / "killed", "configs/tiny.py:mqar", *overrides)
        rows: list[dict[str, Any]] = []
        for kill in range(options.kills):
            room = options.steps * (kill + 1) // (options.kills + 1)
            step = max(rng.randint(1, room), run.last_step() + 2)
            code, seconds, said = run.kill_one(step, kill % 2, rng)
            rows.append(
                {
                    "killed": kill % 2,
                    "step": step,
                    "exit_code": code,
                    "seconds": round(seconds, 1),
                    "goes_on_with": 1 if kill % 2 else 2,
                    "said": last_words(said),
                }
            )
            print(f"kill {kill + 1}: {rows[-1]}", flush=True)
            if kill % 2:
                # A few steps on another number of hosts, stopped by SIGTERM.
                (single,) = run.start_hosts(1)
                run.wait_for(run.last_step() + 1, [single])
                single.send_signal(signal.SIGTERM)
                single.wait()
        run.finish_on(1)
        worst = worst_difference(run.workdir, reference.workdir, options.steps)
    print(f"{options.steps} steps, each once; losses within {worst:.1e} of the undisturbed run's")
    settings = {"steps": options.steps, "mesh": MESH, "seed": options.seed}
    common.write_results(
        "kill_hosts" if options.whole else None,
        PACKAGES,
        settings | {"largest_relative_difference_of_a_loss": worst},
        rows,
    )
    late = any(row["seconds"] > PATIENCE or row["exit_code"] == 0 for row in rows)
    return int(late or worst > 1e-6)


if __name__ == "__main__":
    sys.exit(main())
