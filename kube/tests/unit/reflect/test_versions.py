"""Comparison of resource versions."""

import pytest

from milo_kube.reflect.versions import oldest


@pytest.mark.parametrize(
    ("versions", "found"), [(["7", "12", "9"], "7"), (["7"], "7"), (["7", ""], ""), (["7", "opaque"], ""), ([], "")]
)
def test_oldest_version_is_empty_if_any_version_is_opaque(versions: list[str], found: str) -> None:
    assert oldest(versions) == found
