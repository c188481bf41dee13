"""Sequences that are split over devices: context parallelism.

Each device of a mesh axis holds a run of whole segments, in order; or two, one from the front and
one from the back of the sequence, so that all have as many memories to read. Where segments start
afresh, all devices compress theirs at once, and only what ended travels: memories and their
descriptors. Where one recurrence goes on over all devices, see `mc_jax.caching.carry` as well.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from mc_jax.caching.options import Options
from mc_jax.errors import InputError
from mc_jax.memory.rule import Rule
from mc_jax.typing import Array

EXCHANGES = ("gather", "ring")
PLACEMENTS = ("contiguous", "zigzag")


@dataclasses.dataclass(frozen=True)
class Context:
    """The mesh axis that a sequence is split over; used inside `jax.shard_map`.

    Attributes:
      axis: its name.
      exchange: gather (each device holds the memories of all) | ring (they are passed on, so that
        it holds those of two at a time).
      placement: contiguous (device i of D has the i-th of D runs) | zigzag (of 2 D runs the i-th
        and the i-th from the end, in this order).
    """

    axis: str
    exchange: str
    placement: str = "contiguous"

    @property
    def index(self) -> Array:
        """Which device this is."""
        return lax.axis_index(self.axis)

    @property
    def runs(self) -> int:
        """Runs of the sequence that a device has."""
        return 2 if self.placement == "zigzag" else 1

    def run(self, device: Array, which: int) -> Array:
        """Place in the sequence of a device's first (0) or second (1) run."""
        return 2 * self.size - 1 - device if which else device

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
        if self.placement not in PLACEMENTS:
            raise InputError("placement", self.placement, " | ".join(PLACEMENTS))
        balances = options.resets and options.caches and options.segmentation == "constant"
        if self.runs > 1 and not balances:
            allowed = (
                "contiguous: only memories of constant segments that start afresh "
                "(write_mode='independent', with caching) can lie in another order"
            )
            raise InputError("placement", self.placement, allowed)
        if length % (self.runs * options.block_len):
            kind = "segments" if options.caches else "chunks"
            each = "" if self.runs == 1 else ", an even number of them,"
            allowed = f"whole {kind} of {options.block_len} tokens{each} on every device"
            raise InputError("context_axis", f"{length} tokens on a device", allowed)
        if length // self.runs < window:
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

        def one(x: Array) -> Array:
            x = lax.all_gather(x, self.axis, tiled=self.runs == 1)
            if self.runs == 1:
                return x
            x = x.reshape(self.size, 2, -1, *x.shape[2:])
            return jnp.concatenate([x[:, 0], x[::-1, 1]]).reshape(-1, *x.shape[3:])

        return jax.tree.map(one, tree)

    @jax.named_scope("exchange")
    def from_before(self, tree: Any) -> Any:
        """What the device before holds; zeros on the first one."""
        return self._shift(tree, 1)

    @jax.named_scope("exchange")
    def ends_before(self, ends: list[Array]) -> list[Array]:
        """For each run here, of its end in `ends`, that of the run before it; zeros if none is."""
        before = [self._shift(ends[0], 1)]
        if self.runs > 1:
            # The run before a second one is on the next device; on the last one it is the first.
            own = self.index == self.size - 1
            before.append(jnp.where(own, ends[0], self._shift(ends[1], -1)))
        return before

    def _shift(self, tree: Any, by: int) -> Any:
        """What the device `by` places before holds; zeros where there is none."""
        pairs = [(i, i + by) for i in range(self.size) if 0 <= i + by < self.size]
        return jax.tree.map(lambda x: lax.ppermute(x, self.axis, pairs), tree)

    @jax.named_scope("exchange")
    def passed_on(self, tree: Any) -> Any:
        """What the device before holds, the last one's on the first."""
        pairs = [(i, (i + 1) % self.size) for i in range(self.size)]
        return jax.tree.map(lambda x: lax.ppermute(x, self.axis, pairs), tree)


def in_zigzag(x: Array, devices: int) -> Array:
    """Tokens [batch, length] in the order in which zigzag lays them on so many devices."""
    batch, length = x.shape
    runs = x.reshape(batch, 2 * devices, length // (2 * devices))
    front, back = runs[:, :devices], runs[:, : devices - 1 : -1]
    return jnp.stack([front, back], 2).reshape(batch, length)
