"""Sequences that are split over devices: context parallelism.

Each device of a mesh axis holds a run of whole segments, in order. Where segments start afresh, all
devices compress theirs at once, and only what ended travels: memories and their descriptors. Where
one recurrence goes on over all devices, see `mc_jax.caching.carry` as well.
"""

import dataclasses
from typing import Any

import jax
from jax import lax

from mc_jax.caching.options import Options
from mc_jax.errors import InputError
from mc_jax.memory.rule import Rule
from mc_jax.typing import Array

EXCHANGES = ("gather", "ring")


@dataclasses.dataclass(frozen=True)
class Context:
    """The mesh axis that a sequence is split over; used inside `jax.shard_map`.

    Attributes:
      axis: its name.
      exchange: gather (each device holds the memories of all) | ring (they are passed on, so that
        it holds those of two at a time).
    """

    axis: str
    exchange: str

    @property
    def index(self) -> Array:
        """Which run of the sequence is here."""
        return lax.axis_index(self.axis)

    @property
    def size(self) -> int:
        """Devices that share the sequence."""
        return lax.axis_size(self.axis)

    def check(self, options: Options, rule: Rule, length: int, window: int) -> None:
        """Check that a sequence can be split so.

        Args:
          options: static options.
          rule: update rule.
          length: tokens of one device.
          window: tokens of the device before that its first one looks back on.

        Raises:
          InputError: naming the option.
        """
        if self.exchange not in EXCHANGES:
            raise InputError("exchange", self.exchange, " | ".join(EXCHANGES))
        if length % options.block_len:
            kind = "segments" if options.caches else "chunks"
            allowed = f"whole {kind} of {options.block_len} tokens on every device"
            raise InputError("context_axis", f"{length} tokens on a device", allowed)
        if length < window:
            allowed = f"at least the {window} tokens on every device that one looks back on"
            raise InputError("context_axis", f"{length} tokens on a device", allowed)
        if options.segmentation == "logarithmic" and options.caches:
            if self.exchange == "ring":
                allowed = "gather for logarithmic segments, whose memories are merged"
                raise InputError("exchange", self.exchange, allowed)
            if options.resets and not rule.merges:
                allowed = (
                    "constant segments, or write_mode='checkpoint': independent logarithmic MLP "
                    "memories are compressed from spans that reach over devices"
                )
                raise InputError("segmentation", options.segmentation, allowed)

    @jax.named_scope("exchange")
    def gather(self, tree: Any) -> Any:
        """Rows of all devices in the order of the sequence."""
        return jax.tree.map(lambda x: lax.all_gather(x, self.axis, tiled=True), tree)

    @jax.named_scope("exchange")
    def from_before(self, tree: Any) -> Any:
        """What the device before holds; zeros on the first one."""
        pairs = [(i, i + 1) for i in range(self.size - 1)]
        return jax.tree.map(lambda x: lax.ppermute(x, self.axis, pairs), tree)

    @jax.named_scope("exchange")
    def passed_on(self, tree: Any) -> Any:
        """What the device before holds, the last one's on the first."""
        pairs = [(i, (i + 1) % self.size) for i in range(self.size)]
        return jax.tree.map(lambda x: lax.ppermute(x, self.axis, pairs), tree)
