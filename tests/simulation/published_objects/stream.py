"""A JetStream stream on virtual time: the last message of each subject, expected sequences, expiry, purges."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from milo_objects.messages import StoredMessage
from milo_objects.stream_commands import Purge, WriteMessage
from milo_objects.subjects import ClusterSubject


class Conflict(Exception):  # noqa: N818  (an answer)
    """The last sequence of the subject is another one than expected."""


class Full(Exception):  # noqa: N818  (an answer)
    """The stream has its maximum of bytes."""


class Entry(NamedTuple):
    stored: StoredMessage
    expires_at: float | None
    size: int


class Stream:
    def __init__(self, changed: Callable[[], None], written: Callable[[WriteMessage], None]) -> None:
        self.created = "1"
        self.last_sequence = 0
        self.messages: dict[str, Entry] = {}
        self.most: int | None = None
        self.ignores_expected = False
        self._changed = changed
        self._written = written
        self._undo: list[tuple[int, Mapping[str, Entry]]] = []

    def write(self, command: WriteMessage, now: float) -> int:
        self.expire(now)
        subject = str(command.subject)
        last = self.messages.get(subject)
        if (0 if last is None else last.stored.sequence) != command.expected and not self.ignores_expected:
            raise Conflict
        size = _size(command)
        # As a server does: a replacement that is not shorter needs room beside the message that it replaces.
        if (last is None or size >= last.size) and self.most is not None and self.size + size >= self.most:
            raise Full
        self._remember()
        self.last_sequence += 1
        self._written(command)
        expires_at = None if command.ttl_s is None else now + command.ttl_s
        self.messages.pop(subject, None)  # the order of the dict is that of the sequences
        self.messages[subject] = Entry(StoredMessage(subject, self.last_sequence, *command.encoded), expires_at, size)
        self._changed()
        return self.last_sequence

    @property
    def size(self) -> int:
        return sum(entry.size for entry in self.messages.values())

    def purge(self, command: Purge) -> None:
        self._remember()
        prefix = command.scope.objects.removesuffix("*.*")
        for subject, entry in [*self.messages.items()]:
            is_object = subject.startswith(prefix) and not subject.endswith(".state")
            if is_object and entry.stored.sequence < command.below:
                del self.messages[subject]

    def of_cluster(self, cluster: str, now: float) -> list[StoredMessage]:
        self.expire(now)
        subject = ClusterSubject(cluster)
        prefix = subject.contents.removesuffix(">")
        return [
            entry.stored for name, entry in self.messages.items() if name.startswith(prefix) or name == str(subject)
        ]

    def scopes_and_clusters(self, now: float) -> list[StoredMessage]:
        self.expire(now)
        return [
            entry.stored
            for name, entry in self.messages.items()
            if name.startswith("milo.clusters.") or name.endswith(".state")
        ]

    def after(self, sequence: int, now: float) -> StoredMessage | None:
        """Return the first message with a higher sequence."""
        self.expire(now)
        return next((entry.stored for entry in self.messages.values() if entry.stored.sequence > sequence), None)

    def expire(self, now: float) -> None:
        for subject, entry in [*self.messages.items()]:
            if entry.expires_at is not None and entry.expires_at <= now:
                del self.messages[subject]

    def lose_power(self, writes: int) -> None:
        """Lose the last writes, which were acknowledged and not yet synced to the disk."""
        if self._undo:
            sequence, messages = self._undo[max(0, len(self._undo) - writes)]
            self.last_sequence, self.messages = sequence, dict(messages)
            self._undo.clear()

    def recreate(self) -> None:
        self.created = str(int(self.created) + 1)
        self.last_sequence, self.messages = 0, {}
        self._undo.clear()

    def _remember(self) -> None:
        self._undo.append((self.last_sequence, dict(self.messages)))
        del self._undo[:-8]


def _size(command: WriteMessage) -> int:
    """Return the bytes of the headers and the body of a message."""
    headers = {
        **command.encoded.headers,
        "Nats-Expected-Last-Subject-Sequence": str(command.expected),
        **({} if command.ttl_s is None else {"Nats-TTL": f"{int(command.ttl_s)}s"}),
    }
    return sum(len(f"{name}: {value}\r\n") for name, value in headers.items()) + len(command.encoded.body)
