"""From a status on the wire to a typed error."""

from __future__ import annotations

import grpc
import pytest

from milo_discovery import Unavailable
from milo_discovery._status import status_error


@pytest.mark.parametrize(
    "trailers",
    [None, (), (("other", "x"),), (("grpc-status-details-bin", b"\xff not a Status"),)],
    ids=["none", "empty", "unrelated", "garbled"],
)
def test_a_status_without_readable_details_is_still_that_status(trailers):
    error = status_error(grpc.StatusCode.UNAVAILABLE, "gone", trailers)
    assert isinstance(error, Unavailable)
    assert (error.message, error.reason, error.violations, error.retry_after) == ("gone", "", (), None)


def test_a_status_without_a_message_has_its_name_for_one():
    assert str(status_error(grpc.StatusCode.UNAVAILABLE, None, None)) == "UNAVAILABLE"
