"""Kill a run ten times with kill -9 at random moments, and compare it with one left alone.

    python -m benchmarks.kill_resume                    # about 4 minutes on 2 cores

Eight kills come at a random step, while it computes or while a checkpoint is being written; two
come at a random moment of a start. Every number of every step, but for the speed, and the
parameters at the end have to be the same bit for bit, and every step has to be there once.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from mc_jax.training import load
from mc_jax.training.metrics import is_time

ROOT = Path(__file__).resolve().parent.parent


class Job:
    """One training run: the same command again and again, in one workdir."""

    def __init__(self, workdir: Path, config: str, *overrides: str):
        self.workdir = workdir
        self._command = [
            sys.executable,
            str(ROOT / "train.py"),
            f"--config={config}",
            f"--workdir={workdir}",
            *overrides,
        ]

    def start(self) -> subprocess.Popen:
        """Start or go on; what it prints goes to workdir's log."""
        self.workdir.mkdir(parents=True, exist_ok=True)
        with (self.workdir / "log.txt").open("a") as log:
            return subprocess.Popen(self._command, cwd=ROOT, stdout=log, stderr=log)

    def finish(self) -> None:
        """Run to the end."""
        if self.start().wait():
            raise RuntimeError(f"the run failed:\n{(self.workdir / 'log.txt').read_text()}")

    def signal_at(self, step: int, number: signal.Signals, delay: float = 0.0) -> int:
        """Start, send a signal `delay` seconds after metrics.jsonl has reached a step, and wait.

        Returns:
          The exit code.
        """
        process = self.start()
        while self.last_step() < step:
            if process.poll() is not None:
                raise RuntimeError(f"the run ended:\n{(self.workdir / 'log.txt').read_text()}")
            time.sleep(0.005)
        time.sleep(delay)
        process.send_signal(number)
        return process.wait()

    def kill_after(self, seconds: float) -> None:
        """Start, and kill -9 after some time."""
        process = self.start()
        time.sleep(seconds)
        process.kill()
        process.wait()

    def last_step(self) -> int:
        """The last step in metrics.jsonl, 0 if there is none; a line being written counts not."""
        path = self.workdir / "metrics.jsonl"
        if not path.exists():
            return 0
        with path.open("rb") as file:
            file.seek(max(path.stat().st_size - 4096, 0))
            lines = file.read().split(b"\n")[:-1]
        return json.loads(lines[-1])["step"] if lines else 0

    def checkpoint(self) -> int:
        """The newest complete checkpoint, 0 if there is none."""
        names = [path.name for path in (self.workdir / "checkpoints").glob("*")]
        return max((int(name) for name in names if name.isdecimal()), default=0)


def differences(run: Path, reference: Path, steps: int) -> list[str]:
    """What two runs of `steps` steps do not agree on; an empty list if they are the same."""
    ours, theirs = _records(run), _records(reference)
    found = incomplete(ours, theirs, steps)
    # JSON writes a number so that it reads back the same, bit for bit.
    found += [f"{a} != {b}" for a, b in zip(ours, theirs, strict=False) if a != b]
    params, expected = load(run, "latest").params, load(reference, "latest").params
    same = jax.tree.map(lambda a, b: np.array_equal(a, b), params, expected)
    if not all(jax.tree.leaves(same)):
        found.append("the parameters at the end differ")
    return found


def incomplete(ours: list[dict], theirs: list[dict], steps: int) -> list[str]:
    """Which of two runs' records have not every step once."""
    return [
        f"the {name} run has not every step once"
        for name, records in (("killed", ours), ("undisturbed", theirs))
        if [record["step"] for record in records] != list(range(1, steps + 1))
    ]


def _records(workdir: Path) -> list[dict]:
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return [{k: v for k, v in record.items() if not is_time(k)} for record in records]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default=str(ROOT / "configs" / "tiny.py"))
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    # Checkpoints come so often that several kills fall into the writing of one.
    overrides = (
        f"--config.train.steps={arguments.steps}",
        f"--config.train.eval_every={max(arguments.steps // 8, 1)}",
        "--config.train.checkpoint_every=15",
        "--config.train.tensorboard=False",
    )
    with tempfile.TemporaryDirectory() as folder:
        reference = Job(Path(folder) / "undisturbed", arguments.config, *overrides)
        began = time.time()
        reference.finish()
        print(f"undisturbed: {arguments.steps} steps in {time.time() - began:.0f} s", flush=True)

        job = Job(Path(folder) / "killed", arguments.config, *overrides)
        starts = {arguments.kills // 3, 2 * arguments.kills // 3}
        targets = sorted(rng.sample(range(1, arguments.steps * 9 // 10), arguments.kills))
        for kill, target in enumerate(targets):
            if kill in starts:
                seconds = rng.uniform(0, 6)
                job.kill_after(seconds)
                moment = f"{seconds:.1f} s after its start"
            else:
                # Never below what is done, or there would be nothing to wait for.
                step = max(target, job.last_step() + 1)
                job.signal_at(step, signal.SIGKILL, delay=rng.uniform(0, 0.05))
                moment = f"at step {job.last_step()}"
            left = f"checkpoint {job.checkpoint()}"
            if any((job.workdir / "checkpoints").glob("*tmp*")):
                left += ", and one half written"
            print(f"kill {kill + 1}: {moment}; left {left}", flush=True)
        job.finish()

        found = differences(job.workdir, reference.workdir, arguments.steps)
        losses = _records(job.workdir)
    for line in found:
        print(line)
    if not found:
        print(
            f"{len(losses)} of {arguments.steps} steps, all losses the same bit for bit after "
            f"{arguments.kills} kills; last loss {losses[-1]['loss']}"
        )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
