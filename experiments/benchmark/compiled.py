"""Read the text of a compiled program: traffic between devices, scatters, precision.

The text is that of `jax.stages.Compiled.as_text()`, on any platform.
"""

import collections
import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

# For a ring of n devices: bytes that each sends, over those of the result.
_RING = {
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "reduce-scatter": lambda n: n - 1,
    "all-gather": lambda n: (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1,
}
# Some that are started hold their operand in the result, too: the share that is the result.
_OF_STARTED = {
    "reduce-scatter": lambda n: 1 / (n + 1),
    "all-gather": lambda n: n / (n + 1),
    "collective-permute": lambda n: 1 / 2,
}
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (.+?) ([a-z][a-z\d\-]*)\((.*)")
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\]")


class Instruction(NamedTuple):
    """One line of a program.

    Attributes:
      name: of the instruction.
      result: its type and shape.
      operation: what it does.
      rest: operands and attributes.
    """

    name: str
    result: str
    operation: str
    rest: str

    @property
    def call_target(self) -> str:
        """Return the target of a custom call; empty for other operations."""
        found = re.search(r'custom_call_target="([^"]*)"', self.rest)
        return found[1] if found else ""


def facts(text: str) -> dict[str, Any]:
    """Count what a program says of itself, for JSON."""
    program = instructions(text)
    sent = traffic(program)
    done = collections.Counter(each.operation for each in program)
    calls = [each.call_target for each in program if each.call_target]
    to_host = sum(done[name] for name in ("infeed", "outfeed", "send", "recv"))
    return {
        "sent_bytes": {kind: sum(each) for kind, each in sent.items()},
        "collectives": {kind: len(each) for kind, each in sent.items()},
        "scatters": done["scatter"],
        "loops": done["while"],
        "callbacks": to_host + sum("callback" in call for call in calls),
        "custom_calls": _counted(calls),
        "products": _counted(products(program)),
    }


def instructions(text: str) -> list[Instruction]:
    """Read the lines of a program."""
    found = []
    for line in text.splitlines():
        if parts := _INSTRUCTION.match(line):
            name, result, operation, rest = parts.groups()
            found.append(Instruction(name, result, operation, rest))
    return found


def traffic(program: Sequence[Instruction]) -> dict[str, list[float]]:
    """Compute the bytes that one device sends in each collective, by kind.

    Along rings, without the padding of layouts; a collective in a loop counts once.
    """
    sent: dict[str, list[float]] = {}
    for each in program:
        kind = each.operation.removesuffix("-start")
        if kind not in _RING:
            continue
        devices, size = _group_size(each.rest), _bytes(each.result)
        if each.operation != kind:
            size *= _OF_STARTED.get(kind, lambda n: 1)(devices)
        sent.setdefault(kind, []).append(_RING[kind](devices) * size)
    return sent


def products(program: Sequence[Instruction]) -> list[str]:
    """Name operand type and precision of each product and convolution, such as "f32 highest"."""
    types = {each.name: each.result for each in program}
    found = []
    for each in program:
        called = re.search("gemm|matmul|conv", each.call_target) is not None
        if each.operation not in ("dot", "convolution") and not called:
            continue
        operand = types.get(each.rest.split(",")[0].strip().lstrip("%"), each.result)
        dtype = _ARRAY.search(operand)
        precision = re.search(r'operand_precision"?[:=][\[{]"?(\w+)', each.rest)
        found.append(
            f"{dtype[1] if dtype else '?'} {precision[1].lower() if precision else 'default'}"
        )
    return found


def _counted(names: Sequence[str]) -> dict[str, int]:
    return dict(sorted(collections.Counter(names).items()))


def _bytes(result: str) -> float:
    return sum(_bits(dtype) / 8 * _size(shape) for dtype, shape in _ARRAY.findall(result))


def _size(shape: str) -> int:
    return math.prod(int(length) for length in shape.split(",") if length)


def _bits(dtype: str) -> int:
    digits = re.match(r"[a-z]+(\d+)", dtype)
    return int(digits[1]) if digits else 8


def _group_size(attributes: str) -> int:
    """Find how many devices take part: from lists of them, a grid's shape, or axes of a mesh."""
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", attributes):
        return listed[1].count(",") + 1
    if grid := re.search(r"replica_groups=\[\d+,(\d+)\]", attributes):
        return int(grid[1])
    if mesh := re.search(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}", attributes):
        axes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
        return math.prod(int(axes[name]) for name in re.findall(r"'(\w+)'", mesh[2]))
    if "source_target_pairs=" in attributes:
        return 2
    raise ValueError(f"no devices are named in {attributes!r}.")
