"""Received header fields."""

import sys

from milo_kube.http.headers import Headers


def fields(name: str, value: str) -> Headers:
    headers = Headers()
    headers.add(name.encode(), value.encode())
    return headers


def test_received_headers_are_not_interned() -> None:
    """Python 3.12.1 and others never free interned strings: a peer could fill the memory."""
    for value in ("a value that nobody else sends", "long " * 1_000):
        [(name, received)] = fields("X-Never-Sent-Before", value.strip()).items()
        for text in (name, received):
            equal = "".join(list(text))
            assert sys.intern(equal) is equal, "an equal string was interned before"


def test_identical_short_headers_of_two_responses_share_their_strings() -> None:
    [(one_name, one)], [(other_name, other)] = (fields("X-Equal", "some value").items() for _ in range(2))
    assert one_name is other_name
    assert one is other
