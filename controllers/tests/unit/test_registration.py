"""Registration of reconcilers: invalid ones are rejected before a reconciler runs."""

from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from milo_controllers import (
    Controllers,
    Kind,
    QueuePolicy,
    Rate,
    ReconcileTarget,
    Request,
    Result,
    Watched,
    main,
    watches,
)
from milo_discovery import Fleet
from milo_discovery.testing import FakeDiscovery, eventually

WIDGETS = "example.com/v1/widgets"


def controllers(registry: CollectorRegistry | None = None) -> Controllers:
    return Controllers(Fleet(FakeDiscovery()), registry=registry or CollectorRegistry())


async def works(_request: Request) -> None: ...


async def without_request() -> None: ...


def generator(_request: Request) -> Iterator[None]:
    yield


async def async_generator(_request: Request) -> AsyncIterator[None]:
    yield


async def async_mapper(_change: Watched[Any]) -> list[ReconcileTarget]:
    return []


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"owns": "v1/secrets"}, TypeError, r"widgets: owns= takes a list: write owns=\['v1/secrets'\]"),
        ({"owns": Kind("v1/secrets")}, TypeError, "owns= takes a list"),
        ({"owns": ["secrets"]}, ValueError, "GROUP/VERSION/PLURAL"),
        ({"watches": ["v1/secrets"]}, TypeError, r"watches= takes what watches\(kind, map=...\) returns"),
        ({"workers": 0}, ValueError, "widgets: workers=0"),
        ({"per_cluster": 0}, ValueError, "widgets: per_cluster=0"),
        ({"on": "spec"}, ValueError, "on='s'|on='spec'"),
        ({"on": async_mapper}, TypeError, "async_mapper is async: a predicate"),
        ({"on": 5}, TypeError, 'on=5: write "generation", "labels", "annotations", a function'),
        ({"timeout": 30}, TypeError, r"timeout=30: write timedelta\(seconds=30\)"),
        ({"timeout": 0}, TypeError, r"timeout=0: write timedelta\(seconds=...\) of more than 0, or None for no limit"),
        ({"timeout": timedelta(0)}, ValueError, r"timeout=timedelta\(seconds=0\): .* of more than 0, or None"),
        ({"timeout": timedelta(seconds=-3)}, ValueError, r"widgets: timeout=timedelta\(seconds=-3\): .* more than 0"),
        ({"owns": 5}, TypeError, r"widgets: owns=5: write a list of kinds"),
        ({"owns": [5]}, ValueError, "5 does not name a resource: write GROUP/VERSION/PLURAL"),
        ({"watches": None}, TypeError, r"watches=None: write a list, such as \[watches\(kind, map=function\)\]"),
        ({"workers": "4"}, TypeError, "workers='4': write a number of at least 1"),
        ({"per_cluster": True}, TypeError, "per_cluster=True: write a number of at least 1"),
        ({"queue": 5}, TypeError, r"widgets: queue=5: write QueuePolicy\(max_delay_s=60\)"),
        ({"queue": QueuePolicy(cluster_retries=Rate(0.0, 10.0))}, ValueError, "with rates of more than 0"),
        ({"queue": QueuePolicy(retries=Rate(1.0, 0.5))}, ValueError, "and a burst of 1"),
        ({"while_deleting": "yes"}, TypeError, "while_deleting='yes': write True or False"),
        ({"on_cluster_change": ["labels"]}, TypeError, r"on_cluster_change=\['labels'\]: write True or False"),
        ({"name": 5}, TypeError, "widgets: name=5: write a string of printable characters"),
        ({"name": ""}, ValueError, "name='': write a string of printable characters, 1 to 128 bytes"),
        ({"name": "a\nb"}, ValueError, "printable characters"),
        ({"name": "\ud800"}, ValueError, "printable characters"),
        ({"name": "é" * 65}, ValueError, "1 to 128 bytes"),
    ],
)
async def test_invalid_reconcile_option_is_refused(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        controllers().reconcile(WIDGETS, **options)


@pytest.mark.parametrize("option", [{"on": []}, {"name": "a b"}, {"name": "é" * 64}, {"timeout": None}])
async def test_unusual_reconcile_option_is_accepted(option: dict[str, Any]) -> None:
    controllers().reconcile(WIDGETS, **option)(works)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"clusters": 5}, TypeError, r"clusters=5: write Fleet\(...\) or SingleCluster\(...\)"),
        ({"clusters": FakeDiscovery()}, TypeError, "clusters=<.*: write Fleet"),
        ({"registry": None}, TypeError, r"registry=None: write CollectorRegistry\(\)"),
        ({"resync": 60}, TypeError, r"resync=60: write timedelta\(seconds=60\)"),
        ({"resync": timedelta(0)}, ValueError, r"resync=timedelta\(seconds=0\): .* or None for no resync"),
        ({"max_clusters_in_metrics": -1}, ValueError, "max_clusters_in_metrics=-1: write a number of at least 0"),
        ({"reporting_controller": ""}, ValueError, "reporting_controller='': write a string that is not empty"),
        ({"cache_limits": 1000}, TypeError, r"cache_limits=1000: write CacheLimits\(objects="),
    ],
)
async def test_invalid_option_of_controllers_is_refused(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Controllers(**{"clusters": Fleet(FakeDiscovery()), "registry": CollectorRegistry(), **options})


@pytest.mark.parametrize(
    ("reconciler", "message"),
    [
        (5, "5 cannot be a reconciler"),
        (without_request, "without_request cannot be a reconciler, which is called with one argument"),
        (generator, "generator is a generator"),
        (async_generator, "async_generator is a generator"),
    ],
)
async def test_function_that_cannot_be_a_reconciler_is_refused(reconciler: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        controllers().reconcile(WIDGETS)(reconciler)


async def test_reconcile_decorator_without_a_kind_is_refused() -> None:
    with pytest.raises(TypeError, match=r"write @controllers.reconcile\(KIND\)"):
        controllers().reconcile(works)  # type: ignore[call-overload]


@pytest.mark.parametrize("given", [5, 0.5, "5s", True])
def test_requeue_after_that_is_not_a_timedelta_is_refused(given: Any) -> None:
    with pytest.raises(TypeError, match=r"requeue_after=.*: write timedelta\(seconds="):
        Result(given)


@pytest.mark.parametrize(("grace", "error"), [(5, TypeError), (None, TypeError), (timedelta(seconds=-1), ValueError)])
async def test_invalid_grace_period_is_refused(grace: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"grace=.*: write timedelta\(seconds=.*\) of at least 0"):
        main(controllers(), grace=grace)


async def test_negative_requeue_after_is_accepted() -> None:
    assert Result(timedelta(seconds=-5)).requeue_after == timedelta(seconds=-5)


async def test_async_mapper_and_index_function_are_refused() -> None:
    with pytest.raises(TypeError, match="async_mapper is async: a mapper"):
        watches(WIDGETS, map=async_mapper)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="an index function must be a plain function"):
        controllers().cache(WIDGETS, indexes={"color": async_mapper})  # type: ignore[dict-item]


def test_mapper_that_returns_a_string_is_refused_with_the_string_and_an_example_of_a_valid_result() -> None:
    watched = watches(WIDGETS, map=lambda _change: "red")  # type: ignore[arg-type,return-value]
    with pytest.raises(TypeError, match=r"returned 'red': .* such as \[ReconcileTarget\(name, namespace\)\]"):
        watched.targets(None)  # type: ignore[arg-type]


def test_target_whose_namespace_is_none_is_the_object_without_a_namespace() -> None:
    target = ReconcileTarget("a", {}.get("namespace"))  # type: ignore[arg-type]
    watched = watches(WIDGETS, map=lambda _change: [target])
    assert watched.targets(None) == [ReconcileTarget("a")]  # type: ignore[arg-type]


async def test_kinds_with_the_same_cache_and_different_transforms_are_refused() -> None:
    made = controllers()
    made.cache(Kind(WIDGETS, transform=dict))
    with pytest.raises(ValueError, match="another transform="):
        made.cache(WIDGETS)


async def test_two_indexes_of_a_cache_with_one_name_are_refused() -> None:
    """The second silently replaced the first."""

    def name(found: dict[str, Any]) -> list[str]:
        return [found["metadata"]["name"]]

    made = controllers()
    for _ in range(2):
        made.cache(WIDGETS, indexes={"name": name})
    with pytest.raises(ValueError, match="widgets already has another index 'name': choose another name"):
        made.cache(WIDGETS, indexes={"name": str.split})
    made.cache("v1/configmaps", indexes={"name": str.split})


async def test_metrics_registry_can_be_shared_by_two_controllers_of_the_same_name() -> None:
    registry = CollectorRegistry()
    first, second = controllers(registry), controllers(registry)
    for instance in (first, second):
        instance.reconcile(WIDGETS)(works)
    async with first, second:
        await eventually(lambda: b"workqueue_depth{" in generate_latest(registry))
        lines = generate_latest(registry).decode().splitlines()
    samples = [line.rpartition(" ")[0] for line in lines if not line.startswith("#")]
    assert len(samples) == len(set(samples))


async def test_enqueue_refuses_a_target_without_a_cluster_and_an_unknown_controller() -> None:
    made = controllers()
    made.reconcile(WIDGETS)(works)
    made.reconcile("v1/configmaps")(works)
    with pytest.raises(ValueError, match="has no cluster"):
        made.enqueue(ReconcileTarget("a"))
    for controller in (None, "unknown"):
        with pytest.raises(ValueError, match="pass one of 'widgets', 'configmaps'"):
            made.enqueue(ReconcileTarget("a", "default", "alpha"), controller=controller)
    with pytest.raises(TypeError, match="a name, namespace or cluster that is no string"):
        made.enqueue(ReconcileTarget(["a"], "default", "alpha"), controller="widgets")  # type: ignore[arg-type]
    made.enqueue(
        ReconcileTarget("a", "default", "alpha"), controller="widgets"
    )  # not running: the initial list enqueues each object


async def test_queue_policy_does_not_change_the_limit_per_cluster() -> None:
    made = controllers()
    made.reconcile(WIDGETS, per_cluster=2, queue=QueuePolicy(max_delay_s=1.0))(works)
    [(spec, _)] = made._registration.reconcilers
    assert (spec.per_cluster, spec.policy.max_delay_s) == (2, 1.0)
