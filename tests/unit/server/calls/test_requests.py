"""Validation of requests."""

import gc
import tracemalloc
from datetime import timedelta
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from milo_discovery.v1 import discovery_pb2 as pb
from milo_discoveryd.log.filter import EVERYTHING, Filter
from milo_discoveryd.server.calls import requests
from milo_discoveryd.server.calls.grpc_errors import InvalidRequestError
from milo_discoveryd.server.calls.requests import IssueRequest, ListRequest, WatchRequest
from milo_kube.label_selector import parse

DEFAULT_HEARTBEAT_S = 30.0


def watch(**fields: Any) -> WatchRequest:
    return requests.watch(pb.WatchClustersRequest(**fields), DEFAULT_HEARTBEAT_S)


def listing(**fields: Any) -> ListRequest:
    return requests.listing(pb.ListClustersRequest(**fields))


def filtered(**fields: Any) -> Filter:
    return watch(filter=pb.ClusterFilter(**fields)).wanted


def test_empty_watch_request_selects_all_clusters() -> None:
    assert watch() == WatchRequest(EVERYTHING, "", DEFAULT_HEARTBEAT_S, False)


def test_watch_request_fields_are_parsed() -> None:
    asked = watch(
        filter=pb.ClusterFilter(label_selector="env=prod", names=["a", "b"], organizations=["o"]),
        resume_revision="x",
        include_kubeconfigs=True,
        kubeconfig_ttl=timedelta(minutes=5),
        heartbeat_interval=timedelta(seconds=10),
    )
    assert asked == WatchRequest(
        Filter(parse("env=prod"), frozenset({"a", "b"}), frozenset({"o"})), "x", 10.0, True, 300.0
    )


@pytest.mark.parametrize(
    ("asked", "given_s"),
    [
        (timedelta(milliseconds=1), 1.0),
        (timedelta(seconds=1.5), 1.5),
        (timedelta(days=1), 3600.0),
        (Duration(seconds=315_576_000_000), 3600.0),
    ],
)
def test_heartbeat_interval_is_clamped(asked: Any, given_s: float) -> None:
    assert watch(heartbeat_interval=asked).heartbeat_s == given_s


@pytest.mark.parametrize("field", ["heartbeat_interval", "kubeconfig_ttl"])
@pytest.mark.parametrize(
    ("duration", "expected"),
    [
        (Duration(), "0 s"),
        (Duration(seconds=-5), "-5 s"),
        (Duration(nanos=-1_000_000), "-0.001 s"),
        (Duration(seconds=-(2**63)), "-9.22337e+18 s"),
    ],
)
def test_nonpositive_duration_is_rejected(field: str, duration: Duration, expected: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        watch(**{field: duration})
    assert str(refused.value) == f"{field}: {expected} is not a positive duration; leave it out for the default"


def test_request_that_is_too_long_is_not_parsed() -> None:
    limited = requests.limited(pb.WatchClustersRequest.FromString)
    request = pb.WatchClustersRequest(resume_revision="x" * 1_000)
    received = limited(request.SerializeToString())
    assert requests.whole(received) == request
    assert requests.size(received) == request.ByteSize()
    refused = limited(pb.WatchClustersRequest(resume_revision="x" * 80_000).SerializeToString())
    assert requests.size(refused) == 0
    with pytest.raises(InvalidRequestError, match=r"^request: more than 73728 bytes$"):
        requests.whole(refused)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (pb.WatchClustersRequest(resume_revision="x" * 200_000), "resume_revision: longer than any revision"),
        (pb.WatchClustersRequest(subscriber="x" * 200_000), "subscriber: must be at most 253"),
    ],
    ids=["revision", "subscriber"],
)
def test_watch_request_with_a_field_that_is_too_long_is_rejected(
    request_: pb.WatchClustersRequest, message: str
) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        requests.watch(request_, DEFAULT_HEARTBEAT_S)


def test_revision_length_limit_grows_with_the_number_of_sources() -> None:
    request = pb.WatchClustersRequest(resume_revision="x" * 10_000)
    assert requests.watch(request, DEFAULT_HEARTBEAT_S, sources=1000).resume_revision == "x" * 10_000


def test_incarnation_that_is_too_long_is_rejected() -> None:
    long = "1" * 65
    with pytest.raises(InvalidRequestError, match=r"^incarnation: longer"):
        requests.issue(pb.IssueKubeconfigRequest(cluster="a", incarnation=long))
    with pytest.raises(InvalidRequestError, match=r"^incarnation: longer"):
        requests.release(pb.ReleaseClusterRequest(cluster="a", incarnation=long, subscriber="s"))


def test_empty_filter_matches_every_cluster() -> None:
    assert filtered() == EVERYTHING


def test_equal_filters_share_one_object() -> None:
    assert filtered(names=["a"]) is filtered(names=["a"])


def test_invalid_selector_is_rejected_with_position() -> None:
    with pytest.raises(InvalidRequestError) as refused:
        filtered(label_selector="a=b,")
    problem = "expected a label key, found the end of the selector, at character 5"
    assert str(refused.value) == f"filter.label_selector: {problem}"


@pytest.mark.parametrize("field", ["names", "organizations"])
def test_empty_name_in_filter_is_rejected(field: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        filtered(**{field: ["a", ""]})
    assert str(refused.value).startswith(f"filter.{field}: ")


def test_filter_larger_than_64_kib_is_rejected() -> None:
    with pytest.raises(InvalidRequestError, match=r"^filter: .*65536"):
        filtered(names=[f"project-{index}" for index in range(10_000)])


def test_large_filter_is_accepted() -> None:
    assert len(filtered(names=[f"project-{index}" for index in range(4000)]).names) == 4000


@pytest.mark.parametrize(("size", "given"), [(0, 500), (1, 1), (5000, 5000), (5001, 5000), (2**31 - 1, 5000)])
def test_page_size_is_clamped(size: int, given: int) -> None:
    assert listing(page_size=size) == ListRequest(EVERYTHING, given, "")


def test_list_request_fields_are_parsed() -> None:
    asked = listing(filter=pb.ClusterFilter(names=["a"]), page_token="t")
    assert asked == ListRequest(Filter(names=frozenset({"a"})), 500, "t")


def test_negative_page_size_is_rejected() -> None:
    with pytest.raises(InvalidRequestError, match="page_size: -1 is negative; leave it out for 500"):
        listing(page_size=-1)


def test_oversized_page_token_is_rejected() -> None:
    with pytest.raises(InvalidRequestError, match=r"^page_token: "):
        listing(page_token="x" * 257)


def test_valid_cluster_name_is_unchanged() -> None:
    assert requests.name("apollo", "name") == "apollo"
    assert requests.name("a" * 317, "name") == "a" * 317


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "cluster: empty; give the name of a cluster"),
        ("a" * 318, "cluster: longer than the name of a cluster can be (317 characters)"),
    ],
)
def test_invalid_cluster_name_is_rejected(text: str, expected: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        requests.name(text, "cluster")
    assert str(refused.value) == expected


def issue(**fields: Any) -> IssueRequest:
    return requests.issue(pb.IssueKubeconfigRequest(cluster="apollo", **fields))


def test_issue_request_names_cluster() -> None:
    assert issue() == IssueRequest("apollo", None, "", False)


def test_issue_request_fields_are_parsed() -> None:
    asked = issue(ttl=timedelta(minutes=5), incarnation="i", format=pb.KUBECONFIG_FORMAT_EXEC)
    assert asked == IssueRequest("apollo", 300.0, "i", True)
    assert not issue(format=pb.KUBECONFIG_FORMAT_EMBEDDED).as_command


def test_issue_request_with_unknown_format_is_rejected() -> None:
    with pytest.raises(InvalidRequestError) as refused:
        issue(format=7)
    assert str(refused.value) == "format: 7 is not one of EMBEDDED (1) and EXEC (2)"


def test_issue_request_with_nonpositive_ttl_is_rejected() -> None:
    with pytest.raises(InvalidRequestError, match="ttl: -1 s is not a positive duration"):
        issue(ttl=Duration(seconds=-1))


def test_filter_with_too_many_requirements_or_values_is_rejected() -> None:
    many = ",".join(f"k{number}" for number in range(requests.MAX_REQUIREMENTS + 1))
    with pytest.raises(InvalidRequestError, match=r"^filter\.label_selector: 65 requirements"):
        filtered(label_selector=many)
    assert len(filtered(label_selector=many.rpartition(",")[0]).selector.requirements) == 64
    names = [str(number) for number in range(requests.MAX_VALUES + 1)]
    too_many = "^filter: names, organizations and sources have 5001 values together; the limit is 5000$"
    with pytest.raises(InvalidRequestError, match=too_many):
        filtered(names=names)
    with pytest.raises(InvalidRequestError, match=too_many):
        filtered(organizations=names)
    assert len(filtered(names=names[:2500], sources=names[:2500]).sources) == 2500
    with pytest.raises(InvalidRequestError, match=too_many):
        filtered(names=names[:2500], sources=names[:2501])


def test_memory_estimate_of_a_request_counts_each_value_of_its_filter() -> None:
    """In memory, a short name takes about 40 times its size in the request."""
    request = pb.WatchClustersRequest(resume_revision="x" * 100)
    assert requests.kept_bytes(request) == 3 * request.ByteSize()
    short = [f"{number:x}" for number in range(1, 1001)]
    value, in_selector = requests.VALUE_BYTES, requests.SELECTOR_VALUE_BYTES
    for wanted, kept in (
        (pb.ClusterFilter(names=short, organizations=short[:500], sources=short[500:]), 2000 * value),
        (pb.ClusterFilter(label_selector=f"env in ({','.join(short)})"), requests.SELECTOR_BYTES + 1000 * in_selector),
    ):
        request = pb.WatchClustersRequest(filter=wanted)
        assert requests.kept_bytes(request) == 3 * request.ByteSize() + kept


@pytest.mark.parametrize(
    "requirement",
    [
        "a{}",
        "!a{}",
        "a{}=b{}",
        "a{}!=b{}",
        "a{}>10{}",
        "a{} notin (b{},c{})",
        "a{} in (b{},c{},d{})",
        "a!=b{}",
        "a>10{}",
    ],
)
@pytest.mark.parametrize("count", [20, 50, 64])
def test_filter_of_a_selector_takes_no_more_memory_than_is_counted(requirement: str, count: int) -> None:
    texts = [",".join(requirement.format(*[f"{number}-{at}"] * 4) for at in range(count)) for number in range(20)]
    if ">" in requirement:
        texts = [text.replace("-", "0") for text in texts]
    asked = [pb.WatchClustersRequest(filter=pb.ClusterFilter(label_selector=text)) for text in texts]
    counted = sum(map(requests.kept_bytes, asked)) - sum(2 * request.ByteSize() for request in asked)
    requests._cached.cache_clear()
    gc.collect()
    tracemalloc.start()
    try:
        filters = [requests.watch(request, 1.0).wanted for request in asked]
        for each in filters:
            assert each.matches
            assert each.fingerprint
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        requests._cached.cache_clear()
    assert taken <= counted


def test_long_selector_is_rejected_before_parsing(monkeypatch: pytest.MonkeyPatch) -> None:
    longest = f"env in ({'x' * 60})".ljust(requests.MAX_SELECTOR_LENGTH)
    assert len(filtered(label_selector=longest).selector.requirements) == 1
    monkeypatch.setattr(requests, "parse", lambda text: pytest.fail("the selector was parsed"))
    with pytest.raises(InvalidRequestError, match=r"^filter\.label_selector: 8193 characters"):
        filtered(label_selector=f"{longest} ")


def test_large_filter_is_not_cached() -> None:
    names = [f"a-rather-long-name-{number}" for number in range(1000)]
    assert filtered(names=names) == Filter(names=frozenset(names))
    assert filtered(names=names) is not filtered(names=names)
    assert filtered(names=["a"]) is filtered(names=["a"])


def test_unvalidated_cluster_name_is_truncated() -> None:
    assert requests.truncated_name("alpha") == "alpha"
    assert requests.truncated_name("x" * 300_000) == "x" * 317


# --- releases ---


def test_watch_request_with_confirm_releases_is_parsed_with_its_subscriber_name() -> None:
    asked = watch(confirm_releases=True, subscriber="dns-operator-7d9f/1", filter=pb.ClusterFilter(names=["a"]))
    assert asked.subscriber == "dns-operator-7d9f/1"
    assert asked.wanted == Filter(names=frozenset({"a"}), confirms_releases=True)
    assert watch(confirm_releases=True, subscriber="s").wanted == Filter(confirms_releases=True)


def test_subscriber_name_is_ignored_without_confirm_releases() -> None:
    assert watch(subscriber="not a name") == watch()


@pytest.mark.parametrize("text", ["", "white space", "x" * 254, "line\nbreak", "é"])
def test_invalid_subscriber_is_rejected(text: str) -> None:
    with pytest.raises(InvalidRequestError, match="subscriber"):
        watch(confirm_releases=True, subscriber=text)


def test_release_request_fields_are_parsed() -> None:
    request = pb.ReleaseClusterRequest(cluster="a", incarnation="e.1", subscriber="s")
    assert requests.release(request) == requests.ReleaseRequest("a", "e.1", "s")


def test_release_without_incarnation_is_rejected() -> None:
    with pytest.raises(InvalidRequestError, match="incarnation"):
        requests.release(pb.ReleaseClusterRequest(cluster="a", subscriber="s"))


def test_filter_with_an_unknown_source_is_rejected() -> None:
    requests.known_sources(Filter(sources=frozenset({"eu"})), ["eu", "us"])
    with pytest.raises(InvalidRequestError, match="unknown source 'asia'; configured: eu, us"):
        requests.known_sources(Filter(sources=frozenset({"asia"})), ["eu", "us"])
    with pytest.raises(InvalidRequestError, match="configured: none with a name that this caller may see"):
        requests.known_sources(Filter(sources=frozenset({"asia"})), [""])
