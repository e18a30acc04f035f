"""A meter of callbacks: calls of the product's functions, calls of expensive C functions, and elements read.

It runs on virtual time with callbacks in FIFO order, so each count is exact.
"""

import asyncio
import cProfile
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from random import Random
from types import CodeType
from typing import Any

from tests.simulation.cost.elements import Reads
from tests.simulation.seeded.loop import VirtualLoop

_TESTS = str(Path(__file__).parents[2])
_EXPENSIVE = {
    "FromString": "parse",
    "SerializeToString": "serialize",
    "builtins.sorted": "sort",
    "'sort' of 'list'": "sort",
    "builtins.sum": "sum",
    "'join' of 'bytes'": "join",
    "digest": "digest",
    "msgspec._core.json_encode": "encode",
    "msgspec._core.msgpack_encode": "encode",
    "'encode' of 'msgspec": "encode",
    "msgspec._core.json_decode": "decode",
    "msgspec._core.msgpack_decode": "decode",
    "'decode' of 'msgspec": "decode",
}
"""Expensive C functions, by a part of their name in a profile, and the names under which they are counted."""
_EXPENSIVE_IN_PYTHON = {"JSONDecoder.decode": "decode", "JSONEncoder.encode": "encode", "deepcopy": "copy"}
"""Expensive functions of the standard library, and the names under which they are counted."""


class Meter:
    """Counts for a block of callbacks, and the maximum of a single callback."""

    def __init__(self, reads: Reads, *, counts_functions: bool = True) -> None:
        """`counts_functions`: whether to count expensive C functions too, which takes longer."""
        self.calls = 0
        self.longest = 0
        """Calls of the callback that made the most calls."""
        self.functions: Counter[str] = Counter()
        self.elements = 0
        self.most_elements = 0
        """Elements read by the callback that read the most elements."""
        self._reads = reads
        self._counts_functions = counts_functions
        self._profile = cProfile.Profile()

    @property
    def stack(self) -> str:
        """The stack of a callback that read too many elements."""
        return self._reads.stack

    def run(self, callback: Callable[[], object]) -> None:
        self._reads.count = 0
        self._profile.enable(subcalls=self._counts_functions, builtins=self._counts_functions)
        try:
            callback()
        finally:
            self._profile.disable()
        entries: list[Any] = self._profile.getstats()
        self._profile.clear()
        calls = sum([entry.callcount for entry in entries if _is_product(entry.code)])
        self.calls += calls
        self.longest = max(self.longest, calls)
        if self._counts_functions:
            self._count_functions(entries)
        self.elements += self._reads.count
        self.most_elements = max(self.most_elements, self._reads.count)

    def _count_functions(self, entries: Iterable[Any]) -> None:
        for entry in entries:
            if isinstance(entry.code, str) or entry.code.co_filename.startswith(_TESTS):
                continue
            for called in entry.calls or ():
                if name := _expensive(called.code):
                    self.functions[name] += called.callcount


class InOrder(Random):
    """A deterministic source of numbers, so that no count depends on how many were drawn before."""

    def random(self) -> float:
        return 0.5

    def shuffle(self, x: Any) -> None:
        pass


class MeteredLoop(VirtualLoop):
    """A loop on virtual time that runs callbacks in FIFO order, under a meter while one is set."""

    def __init__(self) -> None:
        super().__init__(InOrder())
        self.meter: Meter | None = None

    def run_callback(self, handle: asyncio.Handle) -> None:
        if self.meter is None:
            handle._run()
        else:
            self.meter.run(handle._run)


@cache
def _directories() -> tuple[str, ...]:
    packages = [module for name, module in sys.modules.items() if name.startswith("milo_") and "." not in name]
    return tuple(str(Path(module.__file__).parent) for module in packages if module.__file__)


@cache
def _is_in_product(file: str) -> bool:
    return file.startswith(_directories())


def _is_product(code: CodeType | str) -> bool:
    return not isinstance(code, str) and _is_in_product(code.co_filename)


@cache
def _expensive(function: CodeType | str) -> str | None:
    if not isinstance(function, str):
        return None if _is_product(function) else _EXPENSIVE_IN_PYTHON.get(function.co_qualname)
    return next((name for part, name in _EXPENSIVE.items() if part in function), None)
