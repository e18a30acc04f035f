"""The informer of one kind in one cluster."""

from types import SimpleNamespace
from typing import Any

import pytest

from milo_controllers.informer import Informer, InformerSpec
from milo_controllers.kinds import Kind
from milo_controllers.object_cache import CachedObject, Index, object_decoder
from milo_kube.cache_budget import CacheBudget, CacheLimits
from milo_kube.reflect.messages import ObjectChanged
from milo_kube.reflect.reflector import ReflectorPolicy


class Untold(Exception):  # noqa: N818
    def __str__(self) -> str:
        raise self

    __repr__ = __str__


@pytest.mark.parametrize(("error", "told"), [(KeyError("secret"), "KeyError: 'secret'"), (Untold(), "Untold")])
async def test_index_that_fails_for_each_object_of_a_tenant_is_logged_a_few_times(
    caplog: pytest.LogCaptureFixture, error: Exception, told: str
) -> None:
    def fail(_: object) -> list[str]:
        raise error

    kind = Kind("v1/secrets")
    api: Any = SimpleNamespace(name="tenant")
    spec = InformerSpec(kind, {"secret": Index(fail, kind.decode)}, object_decoder())
    listener: Any = SimpleNamespace()
    informer = Informer(api, spec, ReflectorPolicy(), listener=listener, budget=CacheBudget(CacheLimits()))
    for number in range(1000):
        informer.cache.apply(ObjectChanged(CachedObject(f"o{number}", "", "u", "1", b'{"metadata":{}}')))
    assert list(informer.cache.indexed("secret", "x")) == []
    assert 0 < len(caplog.records) <= 10
    assert f"index secret of v1/secrets failed for o0, which is missing from the index: {told}" in caplog.text
