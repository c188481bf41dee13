"""How often every instruction bundle of a compiled TPU kernel runs.

libtpu writes a kernel's final instruction bundles as text. What they branch on is scalar, assigned
once and known from the grid and the scalar operands, so that it can be executed: this interprets
the scalar instructions and counts bundles. Vector instructions and copies are left out, and so is
waiting for copies.
"""

import dataclasses
import re
from collections.abc import Callable
from typing import Any, NamedTuple

_BUNDLE = re.compile(r"^\s*(?:0x)?([0-9a-f]+)\s+(?:[A-Z]{2}\s*)*:[\s>]*\{(.*)$")
_ASSIGN = re.compile(r"^(?:%(\w+) = )?([\w.]+)\s*(.*)$", re.S)
_REGION = re.compile(r"Start(?:/End empty)? region (\d+)")
_NAME = re.compile(r"%(\w+)")

# Bundles that still run after one that branches.
DELAY_SLOTS = 4


class UnknownBranch(RuntimeError):
    """A branch depends on something that scalar instructions alone do not tell."""


@dataclasses.dataclass
class Bundle:
    """One instruction bundle.

    Attributes:
      steps: scalar instructions, `step(values, from_loop)`.
      branch: (predicate, region) of a branch out of it.
      cycles: 1 and the delays it asks for.
      text: as written.
    """

    steps: list[Callable]
    branch: tuple[Callable, str] | None
    cycles: int
    text: str


def _operand(text: str) -> Callable[[dict], Any]:
    text = text.strip()
    if text.startswith("%"):
        name = text[1:].split()[0]
        return lambda values: values.get(name)
    if text.startswith("!%"):
        name = text[2:]
        return lambda values: None if values.get(name) is None else not values[name]
    try:
        number = int(text, 0)
    except ValueError:
        return lambda values: None
    return lambda values: number


def _signed(x: int) -> int:
    x &= 0xFFFFFFFF
    return x - (1 << 32) if x >> 31 else x


def _unsigned(x: int) -> int:
    return int(x) & 0xFFFFFFFF


_OPS: dict[str, Callable] = {
    "sadd": lambda a, b: a + b,
    "ssub": lambda a, b: a - b,
    "smul": lambda a, b: a * b,
    "sand": lambda a, b: _unsigned(a) & _unsigned(b),
    "sor": lambda a, b: _unsigned(a) | _unsigned(b),
    "sxor": lambda a, b: _unsigned(a) ^ _unsigned(b),
    "sshll": lambda a, b: _unsigned(a) << b if b < 32 else 0,
    "sshrl": lambda a, b: _unsigned(a) >> b,
    "sshra": lambda a, b: _signed(a) >> b,
    "smin": lambda a, b: min(a, b),
    "smax": lambda a, b: max(a, b),
    "por": lambda a, b: bool(a or b),
    "pand": lambda a, b: bool(a and b),
    "pnand": lambda a, b: not (a and b),
    "pnor": lambda a, b: not (a or b),
    "pxor": lambda a, b: bool(a) != bool(b),
}
_COMPARE = {
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
}


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
    return [p.strip() for p in parts]


def _instruction(text: str) -> Callable | tuple | None:
    found = _ASSIGN.match(text.strip())
    if not found:
        return None
    name, op, args = found.groups()
    predicate = None
    guard = re.match(r"^\((!?%\w+)\)\s*,?\s*(.*)$", args, re.S)
    if guard:
        predicate, args = _operand(guard.group(1)), guard.group(2)
    parts = _split(args)
    kind, *rest = op.split(".")
    if kind == "sbr":
        region = re.search(r"target = \$region(\d+)", args)
        return (predicate or (lambda values: True), region.group(1) if region else None)
    if kind in ("sst", "sld"):
        place = re.search(r"smem:\[(.*)\]", parts[0])
        key = place.group(1) if place else parts[0]
        if kind == "sst":
            value = _operand(parts[0].split("]")[-1] or parts[-1])

            def store(values, _):
                if predicate is None or predicate(values):
                    values[("smem", key)] = value(values)

            return store
        return lambda values, _: values.__setitem__(name, values.get(("smem", key)))
    if not name or name[0] not in "sp":
        return None
    if kind in ("sphi", "pphi"):
        first, again = (_operand(p) for p in parts[:2])
        return lambda values, back: values.__setitem__(name, (again if back else first)(values))
    if kind in ("smov", "pmov") and parts[0].startswith("("):
        condition, a = _split(parts[0][1:-1])
        condition, a, b = _operand(condition), _operand(a), _operand(parts[1])

        def move(values, _):
            c = condition(values)
            values[name] = None if c is None else (b if c else a)(values)

        return move
    if op == "scalar_select":
        condition, a, b = (_operand(p) for p in parts[:3])

        def select(values, _):
            c = condition(values)
            values[name] = None if c is None else (a if c else b)(values)

        return select
    if kind == "scmp":
        compare = _COMPARE[rest[0]]
        cast = _unsigned if "u32" in rest else _signed
        function = lambda a, b: compare(cast(a), cast(b))  # noqa: E731
    elif kind == "pneg":
        function = lambda a: not a  # noqa: E731
    elif kind in ("smov", "pmov"):
        function = lambda a: a  # noqa: E731
    elif kind in _OPS:
        basic = _OPS[kind]
        if kind[0] == "p":
            function = basic
        elif "u32" in rest and kind in ("smin", "smax"):
            function = lambda a, b: basic(_unsigned(a), _unsigned(b))  # noqa: E731
        else:
            function = lambda a, b: _signed(basic(_signed(a), _signed(b)))  # noqa: E731
    else:
        return None
    operands = [_operand(p) for p in parts]

    def run(values, _):
        if predicate is not None and not predicate(values):
            return
        got = [o(values) for o in operands]
        values[name] = None if any(g is None for g in got) else function(*got)

    return run


def parse(text: str) -> tuple[list[Bundle], dict[str, int], dict[str, str]]:
    """Bundles, the bundle that each region starts at, and the scalar operands."""
    lines: list[str] = []
    for line in text.splitlines():
        if _BUNDLE.match(line):
            lines.append(line)
        elif lines:
            lines[-1] += " " + line.strip()
    bundles, regions, operands = [], {}, {}
    for index, line in enumerate(lines):
        body = _BUNDLE.match(line).group(2)
        for region in _REGION.findall(body):
            regions.setdefault(region, index)
        clean = re.sub(r"/\*.*?\*/", " ", body).strip().rstrip("}").strip()
        steps, branch, cycles = [], None, 1
        # A loop's values stand at the head of its first bundle, wherever they are written there.
        parts = sorted(clean.split(";;"), key=lambda part: "phi" not in part)
        for part in parts:
            part = part.strip().rstrip("}").strip()
            if not part:
                continue
            operand = re.match(r"%(\w+) = inlined_call_operand\.<no memory space>", part)
            if operand:
                operands[operand.group(1)] = part
                continue
            delay = re.search(r"[vs]delay (\d+)", part)
            if delay:
                cycles += int(delay.group(1))
            step = _instruction(part)
            if isinstance(step, tuple):
                branch = step
            elif step is not None:
                steps.append(step)
        bundles.append(Bundle(steps, branch, cycles, clean))
    return bundles, regions, operands


class Cost(NamedTuple):
    """What one run of a kernel takes.

    Attributes:
      cycles: bundles that run, and the delays they ask for.
      bundles: bundles of the program.
    """

    cycles: int
    bundles: int


def count(text: str, scalars: int = 0) -> Cost:
    """Cost of a kernel.

    Args:
      text: its final bundles.
      scalars: value of its scalar operands.

    Raises:
      UnknownBranch: a branch depends on vectors or on arrays in scalar memory.
    """
    bundles, regions, operands = parse(text)
    values: dict = dict.fromkeys(operands, scalars)
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
