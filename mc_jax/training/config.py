"""Every setting of training: its default, what it means, and the check that it can be used."""

import dataclasses
import math

from ml_collections import ConfigDict

from mc_jax.errors import InputError
from mc_jax.settings import Settings


@dataclasses.dataclass(frozen=True)
class TrainConfig(Settings):
    """How a model is trained. Keys of `config.train`."""

    # Optimizer updates. May be raised later to go on with a finished run; the cosine then spans
    # the new number.
    steps: int = 1000
    # Workdir of a run whose latest parameters a new run starts from; empty for random ones. Those
    # that the other run does not have start at random.
    init_from: str = ""
    # A regular expression that is found in the names of the parameters that are trained, such as
    # "score" for the gates; the others stay as they are. Empty for all.
    trainable: str = ""
    # Peak learning rate of AdamW.
    learning_rate: float = 1e-3
    # Share of the steps over which the learning rate rises linearly.
    warmup_fraction: float = 0.05
    # Where the cosine ends, as a share of the peak.
    final_lr_fraction: float = 0.1
    # Decoupled weight decay, on matrices only.
    weight_decay: float = 0.1
    # Decay of AdamW's first and second moment.
    beta1: float = 0.9
    beta2: float = 0.95
    # Largest global norm of the gradient; 0 turns clipping off.
    clip_norm: float = 1.0
    # Microbatches that a batch is split into, to save memory: the update is that of the batch.
    grad_accum: int = 1
    # Steps between two lines of metrics.jsonl (and points of TensorBoard); a line holds the
    # values of its own step.
    log_every: int = 1
    # Steps between two measurements of the held-out loss, each with a checkpoint, for the best
    # is kept. The end of the run is always measured.
    eval_every: int = 200
    # Steps between two checkpoints.
    checkpoint_every: int = 200
    # Minutes after which one is due, whatever the steps, looked at every tenth step; 0 for none.
    checkpoint_minutes: float = 0.0
    # Latest checkpoints that are kept, besides the one with the best held-out loss.
    keep_checkpoints: int = 2
    # Updates in a row that may be left out because the gradient is not finite; 0 ends the run at
    # the first one.
    skip_nonfinite: int = 0
    # Minutes in one phase (waiting for data, a step, a checkpoint) after which a warning says
    # which, and what every thread is doing; 0 for never. Compiling a large model takes minutes.
    stuck_minutes: float = 30.0
    # First and last step of a profile, written to workdir/profile; () for none.
    profile: tuple[int, ...] = ()
    # Whether to write workdir/tensorboard.
    tensorboard: bool = True
    # Weights & Biases project to write to; empty for none.
    wandb_project: str = ""

    GROUP = "train"

    def __post_init__(self) -> None:
        """Check every value.

        Raises:
          InputError: a value that is not allowed.
        """
        super().__post_init__()
        for name in ("steps", "grad_accum", "log_every", "eval_every", "checkpoint_every"):
            self._check(name, getattr(self, name) >= 1, "an integer >= 1")
        self._check("keep_checkpoints", self.keep_checkpoints >= 1, "an integer >= 1")
        self._check("learning_rate", 0 < self.learning_rate < math.inf, "a finite number > 0")
        for name in ("warmup_fraction", "final_lr_fraction"):
            self._check(name, 0 <= getattr(self, name) <= 1, "a number from 0 to 1")
        for name in ("beta1", "beta2"):
            self._check(name, 0 <= getattr(self, name) < 1, "a number from 0 up to, not with, 1")
        for name in ("weight_decay", "clip_norm", "checkpoint_minutes", "stuck_minutes"):
            self._check(name, 0 <= getattr(self, name) < math.inf, "a finite number >= 0")

        self._check("skip_nonfinite", self.skip_nonfinite >= 0, "an integer >= 0")
        steps = self.profile
        usable = not steps or (len(steps) == 2 and 1 <= steps[0] <= steps[1] <= self.steps)
        allowed = f"(first step, last step) up to train.steps={self.steps}, or () for no profile"
        self._check("profile", usable, allowed)

    def _check(self, name: str, usable: bool, allowed: str) -> None:
        if not usable:
            raise InputError(self._path(name), getattr(self, name), allowed)


def default_config() -> ConfigDict:
    """Every key of `config.train` with its default; the comments stand beside the fields above."""
    return ConfigDict(dataclasses.asdict(TrainConfig()))
