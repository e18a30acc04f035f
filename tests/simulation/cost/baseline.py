"""The figures that are compared with those of earlier commits, and their file."""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from tests.simulation.cost.meter import Meter
from tests.simulation.cost.paths import PATHS, long_life, measure

FILE = Path(__file__).with_name("baseline.json")
HINT = "if this is intended, run `./dev python -m tests.simulation.cost --rewrite`, and give the reason in the commit"
IS_COMPARABLE = sys.version_info[:2] == (3, 11)
"""Whether figures are comparable with the baseline: other versions of Python inline some calls."""
MANY = 20
TOLERANCE = 0.05
"""Tolerated relative difference of calls and elements; a difference of one is tolerated too. Calls of expensive
functions must be equal.
"""
CLUSTERS, CHANGES = 20_000, 6
"""Size of the long life: its objects would exceed `watch.objects_limit` if the budget counted each change again."""

Figure = int | float | dict[str, int | float]
"""A number of calls or elements, or the number of calls of each expensive function."""
Figures = Mapping[str, Figure]


def path_figures(name: str) -> dict[str, Figure]:
    """Return the figures of a path with one subscriber, and their increase for each further subscriber."""
    path, clusters = PATHS[name]
    one, many = measure(path, clusters, 1), measure(path, clusters, MANY)
    functions = one.functions.keys() | many.functions.keys()
    figures: dict[str, Figure] = {
        "calls": one.calls,
        "calls_per_subscriber": _further(one.calls, many.calls),
        "elements": one.elements,
        "elements_per_subscriber": _further(one.elements, many.elements),
        "functions": {function: one.functions[function] for function in sorted(functions)},
        "functions_per_subscriber": {
            function: further
            for function in sorted(functions)
            if (further := _further(one.functions[function], many.functions[function]))
        },
    }
    return {f"{name}.{key}": figure for key, figure in figures.items() if figure}


def long_life_figures(meter: Meter) -> dict[str, Figure]:
    return {"long_life.calls_of_callback": meter.longest, "long_life.elements_of_callback": meter.most_elements}


def all_figures() -> dict[str, Figure]:
    figures = long_life_figures(long_life(CLUSTERS, CHANGES))
    for name in PATHS:
        figures |= path_figures(name)
    return figures


def differences(before: Figures, now: Figures) -> Iterator[str]:
    """Yield the figures that changed by more than the tolerance, as `key before → now`."""
    for key in sorted(before.keys() | now.keys()):
        was, is_ = before.get(key, 0), now.get(key, 0)
        if isinstance(was, dict) or isinstance(is_, dict):
            yield from _of_functions(key, was or {}, is_ or {})
        elif abs(is_ - was) > max(1, TOLERANCE * was):
            yield f"{key} {was:g} → {is_:g}"


def _of_functions(key: str, was: Any, is_: Any) -> Iterator[str]:
    for function in sorted(was.keys() | is_.keys()):
        if was.get(function, 0) != is_.get(function, 0):
            yield f"{key}.{function} {was.get(function, 0):g} → {is_.get(function, 0):g}"


def read() -> dict[str, Figure]:
    return msgspec.json.decode(FILE.read_bytes(), type=dict[str, Figure])


def write(figures: Figures) -> None:
    """Write the baseline, with a line for each figure."""
    lines = [f"  {_shown(key)}: {_shown(figures[key])}" for key in sorted(figures)]
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def _further(one: int, many: int) -> float:
    each = round((many - one) / (MANY - 1), 2)
    return int(each) if each.is_integer() else each


def _shown(value: Any) -> str:
    return msgspec.json.format(msgspec.json.encode(value), indent=0).decode()
