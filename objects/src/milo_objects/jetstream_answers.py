"""Answers of JetStream's API, and what they say about a stream. Pure."""

from __future__ import annotations

from typing import Final

import msgspec

from milo_objects.subjects import STREAM_SUBJECTS


class JetStreamError(msgspec.Struct, frozen=True):
    err_code: int = 0
    description: str = ""


class StreamConfig(msgspec.Struct, frozen=True, omit_defaults=True):
    """The settings of a stream that decide whether it loses messages. JetStream leaves out what is false or 0."""

    subjects: frozenset[str] = frozenset()
    max_msgs_per_subject: int = 0
    retention: str = ""
    discard: str = ""
    max_age: int = 0
    max_msgs: int = 0
    allow_msg_ttl: bool = False
    deny_purge: bool = False
    sealed: bool = False
    no_ack: bool = False
    num_replicas: int = 1
    max_msg_size: int = -1

    def problem(self, name: str) -> str:
        """Return which setting would lose messages, and how to change it; empty if none would."""
        subjects = sorted(self.subjects)
        wrong = {
            "subjects": (
                list(STREAM_SUBJECTS) if self.subjects >= set(STREAM_SUBJECTS) else subjects,
                list(STREAM_SUBJECTS),
                f"--subjects '{','.join(STREAM_SUBJECTS)}'",
            ),
            "max_msgs_per_subject": (self.max_msgs_per_subject, 1, "--max-msgs-per-subject=1"),
            "retention": (self.retention, "limits", _NO_OPTION),
            "discard": (self.discard, "new", "--discard=new"),
            "max_age": (self.max_age, 0, "--max-age=0"),
            "max_msgs": (self.max_msgs, -1, "--max-msgs=-1"),
            "allow_msg_ttl": (self.allow_msg_ttl, True, "--allow-msg-ttl"),
            "deny_purge": (self.deny_purge, False, _NO_OPTION),
            "sealed": (self.sealed, False, _NO_OPTION),
            "no_ack": (self.no_ack, False, "--ack"),
        }
        for setting, (present, needed, option) in wrong.items():
            if present != needed:
                remedy = option if option == _NO_OPTION else f"run: nats stream edit {name} {option}"
                return f"the stream {name} has {setting} {present!r}, and {needed!r} is needed; {remedy}"
        return ""


class StreamSequences(msgspec.Struct, frozen=True):
    last_seq: int = 0


class JetStreamAnswer(msgspec.Struct, frozen=True):
    """The answer to a call or to a message; each kind of answer has some of the fields."""

    error: JetStreamError | None = None
    created: str = ""
    config: StreamConfig = StreamConfig()
    state: StreamSequences = StreamSequences()
    num_pending: int = 0
    seq: int = 0

    @classmethod
    def decode(cls, body: bytes) -> JetStreamAnswer:
        """Raises ValueError."""
        try:
            return _ANSWERS.decode(body)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            raise ValueError(f"not an answer of JetStream: {error}") from error


_NO_OPTION: Final = "no option changes it: delete the stream"
_ANSWERS = msgspec.json.Decoder(JetStreamAnswer)
