"""What a compiled program does, read off its text: how often, how long, and what devices exchange.

The text is the compiler's own, after partitioning: the program of one device.
"""

import collections
import math
import re
from collections.abc import Mapping
from typing import NamedTuple

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2}
_BYTES |= {"s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([\w\-]+)\((.*)")
_ARRAY = re.compile(r"\b(\w+)\[([\d,]*)\]")
_CALLED = re.compile(r"\b(?:calls|body|true_computation|false_computation|to_apply)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


class Instruction(NamedTuple):
    """A line of the text."""

    shape: str
    op: str
    rest: str  # operands and attributes


class Collective(NamedTuple):
    """An exchange between devices, and how often it happens.

    Attributes:
      kind: one of `KINDS`.
      size: bytes of its result (of a reduce-scatter, of what is reduced).
      group: devices that take part.
      times: in one run of the program.
    """

    kind: str
    size: int
    group: int
    times: int

    @property
    def sent(self) -> float:
        """Bytes that a device sends, in all, on a ring."""
        share = (self.group - 1) / self.group
        ways = {"all-reduce": 2 * share, "collective-permute": 1.0}.get(self.kind, share)
        return self.times * self.size * ways


class Program:
    """A compiled program."""

    def __init__(self, text: str):
        """Read the text of `jax.stages.Compiled.as_text`."""
        self._computations: dict[str, list[Instruction]] = {}
        current: list[Instruction] = []
        for line in text.splitlines():
            start = _COMPUTATION.match(line)
            if start:
                current = self._computations[start[2]] = []
                if start[1]:
                    entry = start[2]
                continue
            found = _INSTRUCTION.match(line)
            if found:
                current.append(Instruction(*found.groups()[1:]))
        self._times: dict[str, int] = collections.Counter()
        self._visit(entry, 1)

    def _visit(self, name: str, times: int) -> None:
        """Count how often every computation runs."""
        self._times[name] += times
        for instruction in self._computations.get(name, ()):
            trips = 1
            if instruction.op == "while":
                trips = self._trips(instruction)
            branches = _BRANCHES.search(instruction.rest)
            called = _CALLED.findall(instruction.rest)
            called += re.findall(r"%?([\w.\-]+)", branches[1]) if branches else []
            for other in called:
                self._visit(other, times * trips)

    def _trips(self, loop: Instruction) -> int:
        """Repetitions of a loop that counts from 0, as `jax.lax.scan` does."""
        known = re.search(r'known_trip_count":?\{"?n"?:"?(\d+)', loop.rest)
        if known:
            return int(known[1])
        condition = re.search(r"condition=%?([\w.\-]+)", loop.rest)
        lines = self._computations[condition[1]] if condition else []
        limits = [
            int(line.rest.split(")")[0])
            for line in lines
            if line.op == "constant" and line.shape.startswith("s32[]")
        ]
        return max(limits, default=1)

    def collectives(self) -> list[Collective]:
        """Every exchange."""
        found = []
        for name, instructions in self._computations.items():
            for line in instructions:
                op = line.op.removesuffix("-start")
                if op not in KINDS or not self._times[name]:
                    continue
                size = array_bytes(line.shape)
                group = group_size(line.rest)
                if line.op.endswith("-start"):
                    # The result holds the operand, too.
                    size = {
                        "all-gather": size * group // (group + 1),
                        "collective-permute": size // 2,
                    }.get(op, size)
                elif op == "reduce-scatter":
                    size *= group
                # On a TPU a reduce-scatter is an all-reduce inside a fusion of that name.
                kind = "reduce-scatter" if "all-reduce-scatter" in name else op
                found.append(Collective(kind, size, group, self._times[name]))
        return found

    def cycles(self) -> float:
        """The compiler's estimate for all that it compiled itself: not for kernels, exchanges."""
        total = 0.0
        for name, instructions in self._computations.items():
            for line in instructions:
                estimate = re.search(r'"estimated_cycles":"(\d+)"', line.rest)
                if estimate and int(estimate[1]) < 2**62:
                    total += self._times[name] * int(estimate[1])
        return total


def array_bytes(shape: str) -> int:
    """Bytes of all arrays in a shape such as "(bf16[8,128]{1,0}, f32[])"."""
    return sum(
        math.prod(map(int, filter(None, sizes.split(",")))) * _BYTES.get(kind, 0)
        for kind, sizes in _ARRAY.findall(shape)
    )


def group_size(attributes: str) -> int:
    """Devices of one group of an exchange."""
    pairs = re.search(r"source_target_pairs=\{(.*?)\}\}", attributes)
    if pairs:
        return pairs[1].count("{")
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", attributes)
    if listed:
        return listed[1].count(",") + 1
    counted = re.search(r"replica_groups=\[(\d+),(\d+)\]", attributes)
    if counted:
        return int(counted[2])
    # Devices may be listed in between, in an order of their own: `device_ids=([4,16]T(1,0))`.
    named = re.search(r"replica_groups=mesh\[(.*?)\](?:, device_ids=\S+)? \{(.*?)\}", attributes)
    if named:
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", named[2]))
    if "replica_groups=" in attributes.replace("replica_groups={}", ""):
        raise ValueError(f"groups of an exchange in a form that is not known: {attributes[:300]}")
    return 1


def totals(collectives: list[Collective]) -> Mapping[str, tuple[int, float]]:
    """Number and bytes sent of every kind that occurs."""
    found = {}
    for kind in KINDS:
        those = [c for c in collectives if c.kind == kind and c.group > 1]
        if those:
            found[kind] = sum(c.times for c in those), sum(c.sent for c in those)
    return found
