"""Validation of list and watch parameters, as by a real server."""

import pytest

from milo_sandbox import options
from milo_sandbox.refusals import RefusalError


def code_of_list(**query: str) -> int:
    try:
        options.list_options(query, namespace="")
    except RefusalError as error:
        return error.code
    return 200


def code_of_watch(*, streaming_lists: bool = True, **query: str) -> int:
    try:
        options.watch_options(query, namespace="", streaming_lists=streaming_lists)
    except RefusalError as error:
        return error.code
    return 200


def test_list_without_resource_version_or_at_0_reads_the_latest_version() -> None:
    wanted = options.list_options({"limit": "5"}, namespace="")
    assert (wanted.version, wanted.limit, wanted.continued) == (None, 5, None)
    assert options.list_options({"resourceVersion": "0"}, namespace="").version is None


def test_paged_list_with_a_resource_version_matches_it_exactly() -> None:
    assert options.list_options({"resourceVersion": "7"}, namespace="").match == options.NOT_OLDER_THAN
    assert options.list_options({"resourceVersion": "7", "limit": "5"}, namespace="").match == options.EXACT


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ({"resourceVersionMatch": "Exact"}, 422),
        ({"resourceVersionMatch": "Exact", "resourceVersion": "0"}, 422),
        ({"resourceVersionMatch": "Sometimes", "resourceVersion": "1"}, 422),
        ({"resourceVersionMatch": "Exact", "resourceVersion": "1", "continue": "e30"}, 422),
        ({"sendInitialEvents": "true"}, 422),
        ({"continue": "junk"}, 400),
        ({"continue": "!"}, 400),
        ({"continue": "e30"}, 400),
        ({"limit": "many"}, 400),
        ({"resourceVersion": "abc"}, 400),
        ({"resourceVersion": "-1"}, 400),
        ({"labelSelector": "a in"}, 400),
        ({"fieldSelector": "spec.x=1"}, 400),
        ({"resourceVersionMatch": "NotOlderThan", "resourceVersion": "1"}, 200),
    ],
)
def test_list_options_are_validated(query: dict[str, str], code: int) -> None:
    assert code_of_list(**query) == code


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ({"sendInitialEvents": "true"}, 422),
        ({"sendInitialEvents": "true", "resourceVersionMatch": "Exact"}, 422),
        ({"resourceVersionMatch": "NotOlderThan"}, 422),
        ({"resourceVersion": "abc"}, 500),
        ({"timeoutSeconds": "soon"}, 400),
        ({"sendInitialEvents": "false", "resourceVersionMatch": "NotOlderThan"}, 200),
    ],
)
def test_watch_options_are_validated(query: dict[str, str], code: int) -> None:
    assert code_of_watch(**query) == code


def test_server_without_streaming_lists_rejects_them() -> None:
    query = {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan"}
    assert code_of_watch(**query) == 200
    assert code_of_watch(**query, streaming_lists=False) == 422


def test_continue_token_round_trips() -> None:
    token = options.Continue(7, "alpha").token()
    assert options.list_options({"continue": token}, namespace="").continued == options.Continue(7, "alpha")


def test_list_continuation_with_a_resource_version_is_rejected() -> None:
    token = options.Continue(7, "alpha").token()
    assert code_of_list(**{"continue": token, "resourceVersion": "7"}) == 400
