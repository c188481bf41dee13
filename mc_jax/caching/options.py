"""How memories are cached and read: the options of the core that are not the rule's."""

import dataclasses

from mc_jax.errors import InputError
from mc_jax.typing import Array

AGGREGATIONS = ("none", "residual", "grm", "soup", "ssc")
GATES = ("context", "shared_query", "position", "none")
SEGMENTATIONS = ("constant", "logarithmic")
WRITE_MODES = ("independent", "checkpoint")
POOLED = ("keys", "values")


@dataclasses.dataclass(frozen=True)
class Options:
    """Static options of one call; see `mc_jax.memory_caching`.

    Raises:
      InputError: an option has a value that is not allowed, or two do not go together.
    """

    aggregation: str
    segment_len: int
    segmentation: str
    write_mode: str
    gate: str
    top_k: int
    chunk_len: int
    pooled: str = "keys"
    route_every: int = 1

    def __post_init__(self) -> None:
        """Check every option before anything is computed."""
        for field, allowed in (
            ("aggregation", AGGREGATIONS),
            ("segmentation", SEGMENTATIONS),
            ("write_mode", WRITE_MODES),
            ("gate", GATES),
            ("pooled", POOLED),
        ):
            if getattr(self, field) not in allowed:
                raise InputError(field, getattr(self, field), " | ".join(allowed))
        for field in ("segment_len", "top_k", "chunk_len", "route_every"):
            value = getattr(self, field)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InputError(field, value, "an integer >= 1")
        if self.caches and self.segment_len % self.chunk_len:
            raise InputError(
                "segment_len", self.segment_len, f"a multiple of chunk_len={self.chunk_len}"
            )
        if self.aggregation == "ssc" and self.gate == "none":
            raise InputError(
                "gate", "none", "context | shared_query | position: ssc selects memories by score"
            )
        if self.pooled != "keys" and not self.routed:
            needed = "keys, or an aggregation and a gate that read it: grm | soup | ssc with "
            raise InputError("pooled", self.pooled, needed + "gate = context | shared_query")
        if self.routes_blocks:
            self._check_blocks()

    def _check_blocks(self) -> None:
        if self.aggregation != "ssc" or not self.routed or self.segmentation != "constant":
            allowed = (
                "1, or aggregation='ssc' with gate = context | shared_query and "
                "segmentation='constant': others select no memories by content"
            )
            raise InputError("route_every", self.route_every, allowed)
        if self.segment_len % self.route_every:
            allowed = f"a divisor of segment_len={self.segment_len}"
            raise InputError("route_every", self.route_every, allowed)

    @property
    def caches(self) -> bool:
        """Whether memories are kept at all; without, segments play no part."""
        return self.aggregation != "none"

    @property
    def gated(self) -> bool:
        """Whether reads are weighted by scores; otherwise every weight is 1."""
        return self.aggregation in ("grm", "soup", "ssc") and self.gate != "none"

    @property
    def selected(self) -> int | None:
        """Cached memories that a token reads; None for all that it sees."""
        return self.top_k if self.aggregation == "ssc" else None

    @property
    def routes_blocks(self) -> bool:
        """Whether the first token of a block selects memories for all of its tokens."""
        return self.route_every > 1

    @property
    def routed(self) -> bool:
        """Whether scores come from the descriptors of the segments' content."""
        return self.gated and self.gate in ("context", "shared_query")

    def pooled_of(self, k: Array, v: Array) -> Array:
        """Which of keys and values the descriptors are means of."""
        return v if self.pooled == "values" else k

    @property
    def block_len(self) -> int:
        """Tokens between two points at which the running state is looked at."""
        return self.segment_len if self.caches else self.chunk_len

    @property
    def resets(self) -> bool:
        """Whether every segment starts from the initial state."""
        return self.caches and self.write_mode == "independent"

    @property
    def one_segment_each(self) -> bool:
        """Whether no memory holds more than one segment."""
        return self.resets and self.segmentation == "constant"
