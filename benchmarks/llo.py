"""How often every instruction bundle of a compiled TPU kernel runs.

libtpu writes a kernel's final instruction bundles as text. What they branch on is scalar, assigned
once and known from the grid and the scalar operands, so that it can be executed: this interprets
the scalar instructions and counts bundles. Vector instructions and copies are left out, and so is
waiting for copies.
"""

import dataclasses
import operator
import re
from collections.abc import Callable
from typing import Any, NamedTuple

Operand = Callable[[dict], Any]
Step = Callable[[dict, bool], None]

_BUNDLE = re.compile(r"^\s*(?:0x)?([0-9a-f]+)\s+(?:[A-Z]{2}\s*)*:[\s>]*\{(.*)$")
_ASSIGN = re.compile(r"^(?:%(\w+) = )?([\w.]+)\s*(.*)$", re.S)
_GUARD = re.compile(r"^\((!?%\w+)\)\s*,?\s*(.*)$", re.S)
_REGION = re.compile(r"Start(?:/End empty)? region (\d+)")
_SCALAR = re.compile(r"%(\w+) = inlined_call_operand\.<no memory space>")
_CORE = re.compile(r"= sld (\[smem:\[#\w+\])\] /\* core id \*/")

# Where a run keeps what arrays in scalar memory hold.
_ARRAYS = "arrays"

# Bundles that still run after one that branches.
DELAY_SLOTS = 4


class UnknownBranch(RuntimeError):
    """A branch depends on something that scalar instructions alone do not tell."""


class Branch(NamedTuple):
    """A branch to a region, taken where the predicate holds."""

    predicate: Operand
    region: str


@dataclasses.dataclass
class Bundle:
    """One instruction bundle.

    Attributes:
      steps: its scalar instructions, `step(values, from_loop)`.
      branch: the branch out of it.
      cycles: 1 and the delays that it asks for.
      text: as written.
    """

    steps: list[Step]
    branch: Branch | None
    cycles: int
    text: str


def _operand(text: str) -> Operand:
    text = text.strip()
    if text.startswith("!"):
        inner = _operand(text[1:])
        return lambda values: None if inner(values) is None else not inner(values)
    if text.startswith("%"):
        name = text[1:].split()[0]
        return lambda values: values.get(name)
    number = int(text, 0) if re.fullmatch(r"-?(0x[0-9a-f]+|\d+)", text) else None
    return lambda values: number


def _signed(x: int) -> int:
    x &= 0xFFFFFFFF
    return x - (1 << 32) if x >> 31 else x


def _unsigned(x: int) -> int:
    return int(x) & 0xFFFFFFFF


_LOGIC: dict[str, Callable] = {
    "por": lambda a, b: bool(a or b),
    "pand": lambda a, b: bool(a and b),
    "pnand": lambda a, b: not (a and b),
    "pnor": lambda a, b: not (a or b),
    "pxor": lambda a, b: bool(a) != bool(b),
    "pneg": lambda a: not a,
    "pmov": lambda a: a,
    "smov": lambda a: a,
}
_ARITHMETIC: dict[str, Callable] = {
    "sadd": lambda a, b: a + b,
    "ssub": lambda a, b: a - b,
    "smul": lambda a, b: a * b,
    "smulhi": lambda a, b: (a * b) >> 32,
    "sand": lambda a, b: a & b,
    "sor": lambda a, b: a | b,
    "sxor": lambda a, b: a ^ b,
    "sshll": lambda a, b: a << b if b < 32 else 0,
    "sshrl": lambda a, b: _unsigned(a) >> b,
    "sshra": lambda a, b: a >> b,
    "smin": min,
    "smax": max,
}
_COMPARE = {
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
    "eq": operator.eq,
    "ne": operator.ne,
}


def _function(op: str) -> Callable | None:
    """What a scalar operation computes; None if no branch can depend on it alone."""
    kind, *types = op.split(".")
    if kind in _LOGIC:
        return _LOGIC[kind]
    cast = _unsigned if "u32" in types and kind in ("scmp", "smin", "smax", "smulhi") else _signed
    if kind == "scmp":
        compare = _COMPARE[types[0]]
        return lambda a, b: compare(cast(a), cast(b))
    if kind in _ARITHMETIC:
        basic = _ARITHMETIC[kind]
        return lambda a, b: _signed(basic(cast(a), cast(b)))
    return None


def _split(args: str) -> list[str]:
    """Operands at commas outside of brackets."""
    parts, depth, start = [], 0, 0
    for i, c in enumerate(args):
        depth += c in "(["
        depth -= c in ")]"
        if c == "," and not depth:
            parts.append(args[start:i])
            start = i + 1
    parts.append(args[start:])
    return [part.strip() for part in parts]


def _select(name: str, condition: Operand, if_true: Operand, if_false: Operand) -> Step:
    def step(values: dict, from_loop: bool) -> None:
        chosen = condition(values)
        values[name] = None if chosen is None else (if_true if chosen else if_false)(values)

    return step


def _move(name: Any, value: Operand, guard: Operand | None) -> Step:
    def step(values: dict, from_loop: bool) -> None:
        if guard is None or guard(values):
            values[name] = value(values)

    return step


def _load(name: str, place: tuple[str, str]) -> Step:
    """A load; what an index picks from an array is what `count` was told of arrays."""
    array = "%" in place[1]

    def step(values: dict, from_loop: bool) -> None:
        found = values.get(place)
        values[name] = values[_ARRAYS]() if found is None and array else found

    return step


def _phi(name: str, first: Operand, again: Operand) -> Step:
    def step(values: dict, from_loop: bool) -> None:
        values[name] = (again if from_loop else first)(values)

    return step


def _instruction(text: str) -> Step | Branch | None:
    """A scalar instruction or branch; None for whatever no branch depends on."""
    found = _ASSIGN.match(text)
    if not found:
        return None
    name, op, args = found.groups()
    kind, guard = op.split(".")[0], None
    guarded = _GUARD.match(args)
    if guarded:
        guard, args = _operand(guarded.group(1)), guarded.group(2)
    parts = _split(args)
    if kind == "sbr":
        region = re.search(r"target = \$region(\d+)", args)
        return Branch(guard or (lambda values: True), region.group(1)) if region else None
    if kind in ("sst", "sld"):
        place = ("smem", parts[0].rpartition("]")[0])
        if kind == "sst":
            return _move(place, _operand(parts[0].rpartition("]")[2]), guard)
        return _load(name, place)
    if not name or name[0] not in "sp":
        return None
    if kind in ("sphi", "pphi"):
        return _phi(name, *map(_operand, parts[:2]))
    if op == "scalar_select":
        return _select(name, *map(_operand, parts[:3]))
    if kind in ("smov", "pmov") and parts[0].startswith("("):
        # "(p, a), b": b replaces a where p holds.
        condition, kept = map(_operand, _split(parts[0][1:-1]))
        return _select(name, condition, _operand(parts[1]), kept)
    function = _function(op)
    if function is None:
        return None
    operands = [_operand(part) for part in parts]

    def value(values: dict) -> Any:
        got = [operand(values) for operand in operands]
        return None if None in got else function(*got)

    return _move(name, value, guard)


class Program(NamedTuple):
    """A kernel as parsed.

    Attributes:
      bundles: its instruction bundles.
      regions: the bundle that each region starts at.
      operands: names of scalar operands.
      core_ids: where in scalar memory a core of several finds its number.
    """

    bundles: list[Bundle]
    regions: dict[str, int]
    operands: list[str]
    core_ids: list[tuple[str, str]]


def parse(text: str) -> Program:
    """A kernel's final bundles."""
    lines: list[str] = []
    for line in text.splitlines():
        if _BUNDLE.match(line):
            lines.append(line)
        elif lines:
            lines[-1] += " " + line.strip()
    bundles = []
    regions: dict[str, int] = {}
    operands: list[str] = []
    core_ids: list[tuple[str, str]] = []
    for index, line in enumerate(lines):
        body = line.partition("{")[2]
        for region in _REGION.findall(body):
            regions.setdefault(region, index)
        operands += _SCALAR.findall(body)
        core_ids += [("smem", place) for place in _CORE.findall(body)]
        bundles.append(_bundle(re.sub(r"/\*.*?\*/", " ", body)))
    return Program(bundles, regions, operands, core_ids)


def _bundle(body: str) -> Bundle:
    parts = [part.strip(" }") for part in body.split(";;")]
    # A loop's values stand at the head of its first bundle, wherever they are written there.
    found = [_instruction(part) for part in sorted(parts, key=lambda part: "phi" not in part)]
    return Bundle(
        [step for step in found if step is not None and not isinstance(step, Branch)],
        next((step for step in found if isinstance(step, Branch)), None),
        1 + sum(int(delay) for delay in re.findall(r"[vs]delay (\d+)", body)),
        body.strip(),
    )


class Cost(NamedTuple):
    """What one run of a kernel takes.

    Attributes:
      cycles: bundles that run, and the delays they ask for.
      bundles: bundles of the program.
    """

    cycles: int
    bundles: int


def count(
    text: str, scalars: int = 0, core: int = 0, arrays: Callable[[], int | None] = lambda: None
) -> Cost:
    """Cost of a kernel.

    Args:
      text: its final bundles.
      scalars: value of its scalar operands.
      core: the core that runs it, on a chip with several.
      arrays: called for every number that is read from an array in scalar memory; None where it
        is not known.

    Raises:
      UnknownBranch: a branch depends on vectors, or on arrays that are not known.
    """
    bundles, regions, operands, core_ids = parse(text)
    values: dict = dict.fromkeys(operands, scalars) | dict.fromkeys(core_ids, core)
    values[_ARRAYS] = arrays
    at, back, cycles = 0, False, 0
    pending: list[int] = []  # bundles before a branch is taken, and where to
    while at < len(bundles):
        bundle = bundles[at]
        cycles += bundle.cycles
        for step in bundle.steps:
            step(values, back)
        if bundle.branch is not None:
            predicate, region = bundle.branch
            taken = predicate(values)
            if taken is None:
                raise UnknownBranch(bundle.text[:200])
            if taken:
                pending = [DELAY_SLOTS + 1, regions[region]]
        back, following = False, at + 1
        if pending:
            pending[0] -= 1
            if not pending[0]:
                following, back, pending = pending[1], pending[1] <= at, []
        at = following
    return Cost(cycles, len(bundles))
