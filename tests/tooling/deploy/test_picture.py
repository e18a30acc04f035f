"""The rendering of the dashboard as SVG."""

from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.tooling.deploy import monitoring
from tests.tooling.deploy.dashboard import PICTURE
from tests.tooling.deploy.picture import Recorded, Series, drawn, legend

SVG = "{http://www.w3.org/2000/svg}"
MAPPED = {"0": {"text": "stale", "color": "red"}, "1": {"text": "streaming", "color": "green"}}
THRESHOLDS = {"steps": [{"color": "red", "value": None}, {"color": "blue", "value": 10}]}


def panel(kind: str = "timeseries", unit: str = "short", **defaults: Any) -> dict[str, Any]:
    place = {"x": 0, "y": 0, "w": 5, "h": 7}
    return {"type": kind, "title": "Panel", "gridPos": place, "fieldConfig": {"defaults": {"unit": unit, **defaults}}}


def picture(one: dict[str, Any], *series: Series, moments: Sequence[tuple[float, str]] = ()) -> ElementTree.Element:
    return ElementTree.fromstring(drawn([one], Recorded(60.0, {one["title"]: series}, moments)))


def texts(drawing: ElementTree.Element) -> list[str]:
    return [each.text or "" for each in drawing.iter(f"{SVG}text")]


def heights(line: ElementTree.Element) -> list[float]:
    return [float(point.partition(",")[2]) for point in line.get("points", "").split()]


def test_picture_draws_higher_values_higher_with_a_labeled_grid() -> None:
    drawing = picture(panel(unit="s"), Series("a & b", [(0, 0.1), (1, 0.4)]))
    [line] = drawing.iter(f"{SVG}polyline")
    low, high = heights(line)
    assert high < low
    assert {"■ a & b", "0 s", "100 ms", "400 ms"} <= set(texts(drawing))


def test_picture_breaks_lines_at_missing_values() -> None:
    drawing = picture(panel(), Series("a", [(0, 1), (1, 1), (20, 2), (21, 3), (40, 1)]))
    assert len(list(drawing.iter(f"{SVG}polyline"))) == 2
    assert len(list(drawing.iter(f"{SVG}circle"))) == 1


def test_picture_draws_constant_values_by_their_ends() -> None:
    [line] = picture(panel(), Series("a", [(at, 1) for at in range(50)])).iter(f"{SVG}polyline")
    assert len(heights(line)) == 2


def test_picture_counts_series_without_room() -> None:
    drawing = picture(panel(), *(Series(f"WatchClusters CODE_NUMBER_{each}", [(0, each)]) for each in range(9)))
    names = [text for text in texts(drawing) if text.startswith(("■", "and"))]
    assert names[0] == "■ WatchClusters CODE_NUMBER_8"
    assert names[-1] == f"and {9 - (len(names) - 1)} more"


@pytest.mark.parametrize(
    ("field", "value", "said", "colour"),
    [
        ({"mappings": [{"options": MAPPED}], "thresholds": THRESHOLDS}, 1, "streaming", "#56a64b"),
        ({"mappings": [{"options": MAPPED}], "thresholds": THRESHOLDS}, 0, "stale", "#d44a3a"),
        ({"thresholds": THRESHOLDS}, 9, "9", "#d44a3a"),
        ({"thresholds": THRESHOLDS}, 10, "10", "#3274d9"),
    ],
    ids=["mapped", "mapped from nought", "below the threshold", "on the threshold"],
)
def test_picture_tile_shows_the_last_value_in_its_color(
    field: dict[str, Any], value: float, said: str, colour: str
) -> None:
    drawing = picture(panel("stat", **field), Series("operator", [(0, 5), (1, value)]))
    assert texts(drawing) == ["Panel", said, "operator"]
    assert colour in [each.get("fill") for each in drawing.iter(f"{SVG}rect")]


def test_picture_panel_without_values_says_so() -> None:
    assert texts(picture(panel(), Series("a", []))) == ["Panel", "No data"]


def test_picture_cuts_long_text() -> None:
    drawing = picture({**panel(), "gridPos": {"x": 0, "y": 0, "w": 1, "h": 7}})
    assert texts(drawing)[0] == "Pa…"
    [name] = [text for text in texts(picture(panel(), Series("x" * 99, [(0, 1)]))) if "xx" in text]
    assert name.endswith("x…")


def test_picture_text_stays_inside_its_panel() -> None:
    names = ("operator", "DISENGAGED NOT_READY", "WatchClusters INVALID_ARGUMENT", "x" * 99)
    drawing = picture({**panel(unit="ops"), "title": "A title " * 9}, *(Series(each, [(0, 987)]) for each in names))
    [_, frame] = drawing.iter(f"{SVG}rect")
    left, wide = (float(frame.get(each, "0")) for each in ("x", "width"))
    for text in drawing.iter(f"{SVG}text"):
        width = len(text.text or "") * float(text.get("font-size", "0")) * 0.55
        before = {"start": 0.0, "middle": width / 2, "end": width}[text.get("text-anchor", "")]
        begin = float(text.get("x", "0")) - before
        assert left <= begin, text.text
        assert begin + width <= left + wide, text.text


def test_picture_marks_and_names_events() -> None:
    drawing = picture(panel(), Series("a", [(0, 1)]), moments=[(20.3, "the source stops")])
    assert "20 s: the source stops" in texts(drawing)
    assert len([each for each in drawing.iter(f"{SVG}path") if each.get("stroke-dasharray")]) == 1


def test_picture_legend_has_the_labels_of_series() -> None:
    assert legend("{{pod}} {{reason}}", {"pod": "operator"}) == "operator"
    assert legend("{{pod}} {{reason}}", {"pod": "operator", "reason": "Expired"}) == "operator Expired"


def test_picture_in_the_docs_shows_the_shipped_dashboard() -> None:
    assert {each["title"] for each in monitoring.dashboard()} <= set(texts(ElementTree.parse(PICTURE).getroot()))
