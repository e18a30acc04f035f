"""The rendering of the dashboard as SVG."""

from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

from tests.tooling.deploy import monitoring
from tests.tooling.deploy.dashboard import PICTURE
from tests.tooling.deploy.picture import Recorded, Series, drawn

SVG = "{http://www.w3.org/2000/svg}"


def picture(one: dict[str, Any], *series: Series, moments: Sequence[tuple[float, str]] = ()) -> ElementTree.Element:
    return ElementTree.fromstring(drawn([one], Recorded(60.0, {one["title"]: series}, moments)))


def texts(drawing: ElementTree.Element) -> list[str]:
    return [element.text or "" for element in drawing.iter(f"{SVG}text")]


def test_picture_in_the_docs_shows_the_shipped_dashboard() -> None:
    assert {panel["title"] for panel in monitoring.dashboard()} <= set(texts(ElementTree.parse(PICTURE).getroot()))
