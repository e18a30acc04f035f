"""Transcripts without what differs between runs: UIDs and versions are numbered in order of appearance.

They leave out what the sandbox lacks by design: managedFields, the wording of messages, and all headers except
those that clients act on.
"""

import json
import re
from pathlib import Path
from typing import Any, Literal, TypeAlias

from tests.end_to_end.scenarios.steps import Mode

Exchange: TypeAlias = dict[str, Any]
Transcript: TypeAlias = list[Exchange]

HEADERS = ("Content-Type", "Retry-After")

_RECORDED = Path(__file__).parent / "recorded"
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")
_LONGEST_JUNK = 10
_LEFT_OUT = frozenset({"managedFields", "message"})


def read(mode: Mode | Literal["lives"]) -> dict[str, Transcript]:
    recorded: dict[str, Transcript] = json.loads((_RECORDED / f"{mode}.json").read_text())
    return recorded


def write(mode: Mode | Literal["lives"], transcripts: dict[str, Transcript]) -> Path:
    path = _RECORDED / f"{mode}.json"
    path.write_text(json.dumps(transcripts, indent=1, sort_keys=True) + "\n")
    return path


def masked(key: str, value: str) -> str:
    """Replace a version or token in a request, since it differs in each run."""
    is_version = key == "resourceVersion" and value.isdigit() and value != "0"
    is_token = key == "continue" and len(value) > _LONGEST_JUNK
    return "..." if is_version or is_token else value


class Normalizer:
    """The numbering of UIDs and versions in one conversation."""

    def __init__(self) -> None:
        self._uids: dict[str, str] = {}
        self._versions: dict[int, str] = {}

    def normalized(self, answer: Any) -> Any:
        """Return a normalized response."""
        match answer:
            case {"type": str(kind), "object": minimal_object}:
                return {"type": kind, "object": self.normalized(minimal_object)}
            case dict():
                return {key: self._field(key, value, answer) for key, value in answer.items() if key not in _LEFT_OUT}
            case list():
                return [self.normalized(item) for item in answer]
            case str() if _TIME.fullmatch(answer):
                return answer if answer.startswith("1970-") else "a time"
            case _:
                return answer

    def _field(self, key: str, value: Any, holder: dict[str, Any]) -> Any:
        match key:
            case "uid":
                return self._uids.setdefault(value, f"uid {len(self._uids) + 1}")
            case "resourceVersion":
                return self._version(value, of_object="uid" in holder)
            case "continue" if value:
                return "a token"
            case "causes":
                # A real server lists some causes twice, and in any order.
                normalized = {json.dumps(self.normalized(cause), sort_keys=True) for cause in value}
                return [json.loads(cause) for cause in sorted(normalized)]
            case _:
                return self.normalized(value)

    def _version(self, value: str, *, of_object: bool) -> str:
        number = int(value)
        if of_object:
            return self._versions.setdefault(number, f"version {len(self._versions) + 1}")
        # Other writes to a real server's etcd have versions too, so a collection's version may be higher than that of
        # an object.
        before = [version for version in self._versions if version <= number]
        return f"{self._versions[max(before)]} or later" if before else "some version"
