"""Reading what the compiler made: the text of a scheduled HLO module, as `Compiled.as_text()` gives it.

    %while.1 = (s32[], f32[8,128]{1,0:T(8,128)}) while(%tuple.2), condition=%cond, body=%body, metadata={...}
     name       type                              opcode operands  attributes

In a scheduled module the instructions of a computation stand in the order in which they start.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_INSTRUCTION = re.compile(r"^\s+(ROOT )?%[^\s=]+ = ")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([^\s(]+) \(.*\{$")
_CALLED = re.compile(
    r"(?:calls|to_apply|body|condition|called_computations?|branch_computations)=(\{[^}]*\}|%[^\s,)]+)"
)
_ARRAY = re.compile(r"\b(pred|token|[a-z]+\d+[a-z0-9]*)\[([\d,]*)\]")


@dataclass(frozen=True)
class Instruction:
    """One line. `type` and `attributes` are text; `operands` are names."""

    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    literal: str
    attributes: str
    is_root: bool

    @property
    def called(self) -> tuple[str, ...]:
        """The computations that it calls."""
        return tuple(name for found in _CALLED.findall(self.attributes) for name in re.findall(r"%([^\s,}]+)", found))

    def attribute(self, name: str) -> str | None:
        """The text of `name=...` up to the next comma, or of its quoted value."""
        found = re.search(rf'(?:^|[\s,{{]){re.escape(name)}="?([^\s,"}}]+)', self.attributes)
        return found[1] if found else None


@dataclass(frozen=True)
class Module:
    """Computations by name, each in the order of its schedule, and the name of the one that runs first."""

    computations: Mapping[str, tuple[Instruction, ...]]
    entry: str


def parse_module(text: str) -> Module:
    """The module of a text that `Compiled.as_text()` wrote."""
    lines: dict[str, list[str]] = {}
    entry = current = ""
    for line in text.splitlines():
        if _INSTRUCTION.match(line):
            lines[current].append(line)
        elif found := _COMPUTATION.match(line):
            current = found[2]
            lines[current] = []
            entry = current if found[1] else entry
        elif current and lines[current] and line != "}":
            lines[current][-1] += line  # a kernel's metadata goes over several
    return Module({name: tuple(map(_instruction, of)) for name, of in lines.items()}, entry)


def _instruction(line: str) -> Instruction:
    stripped = line.strip()
    left, _, right = stripped.removeprefix("ROOT ").partition(" = ")
    cut = _closing(right) if right.startswith("(") else right.index(" ")
    kind, rest = right[:cut], right[cut:].lstrip()
    opcode, _, _ = rest.partition("(")
    end = len(opcode) + _closing(rest[len(opcode) :])
    inside = rest[len(opcode) + 1 : end - 1]
    operands = tuple(re.findall(r"%([^\s,()]+)", inside))
    attributes, is_root = rest[end:].lstrip(", "), stripped.startswith("ROOT ")
    return Instruction(left.lstrip("%"), kind, opcode, operands, inside, attributes, is_root)


def _closing(text: str) -> int:
    """Behind the parenthesis that closes the first one."""
    depth = 0
    for at, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0 and character == ")":
            return at + 1
    raise AssertionError(f"no closing parenthesis: {text[:80]}")


def array_bytes(kind: str) -> list[int]:
    """Bytes of every array in the text of a type: `(f32[2,8], u32[])` has 64 and 4."""
    return [
        math.prod(int(size) for size in sizes.split(",") if size) * _item_bits(dtype) // 8
        for dtype, sizes in _ARRAY.findall(kind)
    ]


def _item_bits(dtype: str) -> int:
    if dtype in ("pred", "token"):
        return 8 if dtype == "pred" else 0
    return int(re.sub(r"^[a-z]+(\d+).*", r"\1", dtype))


def executions(module: Module) -> dict[str, int | None]:
    """How often each computation runs in one run of the entry; None where a loop's turns are not known."""
    times: dict[str, int | None] = dict.fromkeys(module.computations, 0)

    def visit(name: str, count: int | None) -> None:
        before = times[name]
        times[name] = None if count is None or before is None else before + count
        for instruction in module.computations[name]:
            turns = trip_count(module, name, instruction) if instruction.opcode == "while" else 1
            for called in instruction.called:
                visit(called, None if count is None or turns is None else count * turns)

    visit(module.entry, 1)
    return times


def trip_count(module: Module, computation: str, loop: Instruction) -> int | None:
    """The turns of a `while` that counts up from a constant by a constant to a constant; None for any other."""
    condition, body = (_named(loop, what) for what in ("condition", "body"))
    compared = _value(module, condition, _root(module, condition).name, ())
    match compared:
        case ("less", ("element", index, 0), limit):
            pass
        case _:
            return None
    start = _initial(module, computation, loop, index)
    if isinstance(limit, tuple) and limit[0] == "element" and limit[2] == 0:
        limit = _initial(module, computation, loop, limit[1])
    result = _root(module, body)
    if result.opcode != "tuple" or not isinstance(start, int) or not isinstance(limit, int):
        return None
    match _value(module, body, result.operands[index], ()):
        case ("element", after, int(step)) if after == index and step > 0:
            return max(0, -((start - limit) // step))
    return None


def _root(module: Module, computation: str) -> Instruction:
    return next(one for one in module.computations[computation] if one.is_root)


def _named(instruction: Instruction, what: str) -> str:
    found = re.search(rf"{what}=%([^\s,]+)", instruction.attributes)
    assert found is not None
    return found[1]


def _initial(module: Module, computation: str, loop: Instruction, index: int) -> Any:
    made = _find(module, computation, loop.operands[0])
    return _value(module, computation, made.operands[index], ()) if made.opcode == "tuple" else None


def _find(module: Module, computation: str, name: str) -> Instruction:
    return next(one for one in module.computations[computation] if one.name == name)


def _value(module: Module, computation: str, name: str, arguments: tuple[Any, ...]) -> Any:
    """What a scalar is: an int; ("element", k, n), element k of the loop's state plus n; ("less", a, b); or None."""
    made = _find(module, computation, name)
    if made.opcode == "constant":
        return int(made.literal) if made.literal.lstrip("-").isdigit() else None
    if made.opcode == "parameter":
        number = int(made.literal)
        return arguments[number] if number < len(arguments) else "state"
    operands = [_value(module, computation, operand, arguments) for operand in made.operands]
    match made.opcode:
        case "get-tuple-element" if operands == ["state"]:
            return ("element", int(made.attribute("index") or 0), 0)
        case "copy" | "bitcast" | "reshape" | "convert":
            return operands[0]
        case "fusion":
            return _value(module, made.called[0], _root(module, made.called[0]).name, tuple(operands))
        case "compare" if made.attribute("direction") == "LT":
            return ("less", *operands)
        case "add":
            return _sum(*operands)
    return None


def _sum(left: Any, right: Any) -> Any:
    if isinstance(left, int) and isinstance(right, int):
        return left + right
    if isinstance(left, int):
        left, right = right, left
    if isinstance(left, tuple) and left[0] == "element" and isinstance(right, int):
        return ("element", left[1], left[2] + right)
    return None
