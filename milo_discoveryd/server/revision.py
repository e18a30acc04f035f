"""Revisions as subscribers see them: opaque to them, and proof to us of what they had read."""

import re

import msgspec

_FORM = re.compile(r"([0-9a-f]{16})\.([0-9]{1,18})\.([0-9a-z]{1,16})(?:\.part([0-9]{1,9}))?")


class Position(msgspec.Struct, frozen=True):
    """How far a reader came, in which run of the daemon, through which filter."""

    epoch: str
    revision: int
    fingerprint: str
    part: int | None = None
    """It had read so many parts of a snapshot, which are worth nothing to anybody who comes back."""

    def __str__(self) -> str:
        return f"{self.epoch}.{self.revision}.{self.fingerprint}{'' if self.part is None else f'.part{self.part}'}"


def parse(text: str) -> Position | None:
    """None for anything that this program didn't write: to be answered by a snapshot, never by an error."""
    form = _FORM.fullmatch(text)
    if form is None:
        return None
    epoch, revision, fingerprint, part = form.groups()
    return Position(epoch, int(revision), fingerprint, None if part is None else int(part))
