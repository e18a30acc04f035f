"""Reads timestamps of messages."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from google.protobuf.timestamp_pb2 import Timestamp


def time(message: Message, name: str) -> datetime | None:
    if not message.HasField(name):
        return None
    stamp: Timestamp = getattr(message, name)
    with suppress(ValueError, OverflowError):  # A time out of range counts as unknown: an error would end the watch.
        return stamp.ToDatetime(tzinfo=UTC)
    return None
