"""What the TPU compiler itself expects of a program without Pallas kernels.

It writes its estimate beside every operation that takes time, waiting for HBM included, as its own
scheduler uses it. A loop's operations stand in the program once; how often they run is the number
that the loop's condition compares its counter with.
"""

import re

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_ESTIMATE = re.compile(r'"estimated_cycles":"(\d+)"')
_WHILE = re.compile(r" while\(.*condition=%([\w.\-]+), body=%([\w.\-]+)")
_CONSTANT = re.compile(r" s32\[\]\S* constant\((\d+)\)")


def cycles(text: str) -> int:
    """Estimated cycles of a compiled program.

    Args:
      text: its HLO as text.

    Raises:
      ValueError: a loop whose number of steps its condition does not say.
    """
    lines: dict[str, list[str]] = {}
    entry = name = ""
    for line in text.splitlines():
        found = _COMPUTATION.match(line)
        if found:
            name = found.group(2)
            entry = name if found.group(1) else entry
        lines.setdefault(name, []).append(line)

    def trips(condition: str) -> int:
        constants = [int(n) for line in lines[condition] for n in _CONSTANT.findall(line)]
        if len(constants) != 1:
            raise ValueError(f"{condition}: found {constants}, expected one number of steps")
        return constants[0]

    def total(computation: str) -> int:
        body = lines[computation]
        own = sum(int(n) for line in body for n in _ESTIMATE.findall(line))
        loops = (match for line in body for match in _WHILE.findall(line))
        return own + sum(trips(condition) * total(inner) for condition, inner in loops)

    return total(entry)
