"""The result of one check, and its output lines."""

from collections.abc import Iterator
from typing import Literal, TypeAlias

import msgspec

Level: TypeAlias = Literal["ok", "warn", "fail"]


class Finding(msgspec.Struct, frozen=True):
    level: Level
    subject: str
    """The thing that was checked, such as `discovery permissions` or `http_listen :9464`."""
    message: str
    fix: str = ""

    def lines(self) -> Iterator[str]:
        yield f"{self.level:<5} {self.subject}: {self.message}"
        if self.fix:
            yield f"      -> {self.fix}"


def ok(subject: str, message: str) -> Finding:
    return Finding("ok", subject, message)


def warn(subject: str, message: str, fix: str = "") -> Finding:
    return Finding("warn", subject, message, fix)


def fail(subject: str, message: str, fix: str) -> Finding:
    return Finding("fail", subject, message, fix)
