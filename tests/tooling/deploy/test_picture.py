"""The dashboard as a picture: what was recorded is in it, and nothing sticks out."""

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


def test_more_is_drawn_higher_and_the_grid_says_how_much() -> None:
    drawing = picture(panel(unit="s"), Series("a & b", [(0, 0.1), (1, 0.4)]))
    [line] = drawing.iter(f"{SVG}polyline")
    low, high = heights(line)
    assert high < low
    assert {"■ a & b", "0 s", "100 ms", "400 ms"} <= set(texts(drawing))


def test_what_is_missing_breaks_the_line_and_a_value_alone_is_a_dot() -> None:
    drawing = picture(panel(), Series("a", [(0, 1), (1, 1), (20, 2), (21, 3), (40, 1)]))
    assert len(list(drawing.iter(f"{SVG}polyline"))) == 2
    assert len(list(drawing.iter(f"{SVG}circle"))) == 1


def test_what_stays_the_same_is_drawn_by_its_ends() -> None:
    [line] = picture(panel(), Series("a", [(at, 1) for at in range(50)])).iter(f"{SVG}polyline")
    assert len(heights(line)) == 2


def test_names_that_there_is_no_room_for_are_counted_the_highest_first() -> None:
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
def test_a_tile_has_the_text_and_the_colour_of_the_last_value(
    field: dict[str, Any], value: float, said: str, colour: str
) -> None:
    drawing = picture(panel("stat", **field), Series("operator", [(0, 5), (1, value)]))
    assert texts(drawing) == ["Panel", said, "operator"]
    assert colour in [each.get("fill") for each in drawing.iter(f"{SVG}rect")]


def test_a_panel_without_values_says_so() -> None:
    assert texts(picture(panel(), Series("a", []))) == ["Panel", "No data"]


def test_a_text_without_room_is_cut() -> None:
    drawing = picture({**panel(), "gridPos": {"x": 0, "y": 0, "w": 1, "h": 7}})
    assert texts(drawing)[0] == "Pa…"
    [name] = [text for text in texts(picture(panel(), Series("x" * 99, [(0, 1)]))) if "xx" in text]
    assert name.endswith("x…")


def test_nothing_that_is_written_sticks_out_of_its_panel() -> None:
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


def test_moments_are_marked_and_named() -> None:
    drawing = picture(panel(), Series("a", [(0, 1)]), moments=[(20.3, "the source stops")])
    assert "20 s: the source stops" in texts(drawing)
    assert len([each for each in drawing.iter(f"{SVG}path") if each.get("stroke-dasharray")]) == 1


def test_a_legend_has_the_labels_that_there_are() -> None:
    assert legend("{{pod}} {{reason}}", {"pod": "operator"}) == "operator"
    assert legend("{{pod}} {{reason}}", {"pod": "operator", "reason": "Expired"}) == "operator Expired"


def test_the_picture_in_the_documents_is_of_the_dashboard_that_is_shipped() -> None:
    assert {each["title"] for each in monitoring.dashboard()} <= set(texts(ElementTree.parse(PICTURE).getroot()))
