"""The controllers reference lists the attributes and fields of the classes that authors of controllers use."""

import re
from pathlib import Path

import pytest

REFERENCE = (Path(__file__).parents[3] / "docs/controllers-reference.md").read_text()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ApiError", ["`status`", "`reason`", "`retry_after_s`"]),
        ("ReconcileTarget", ["ReconcileTarget(name: str, namespace: str = '', cluster: str | None = None)"]),
        ("Watched", ["`name`", "`namespace`", "`cluster`", "`clusters`", "`is_deleted`", "`object`", "`before`"]),
    ],
)
def test_controllers_reference_documents_attributes_and_fields(name: str, expected: list[str]) -> None:
    found = re.search(rf"^### {name}\n(.*?)^##", REFERENCE, re.DOTALL | re.MULTILINE)
    assert found is not None
    assert [text for text in expected if text not in found[1]] == []
