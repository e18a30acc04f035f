"""Label selectors match as in an API server; an error has the position of the problem."""

from collections.abc import Iterator

import pytest

from milo_kube.label_selector import Requirement, Selector, SelectorError, parse

A_LONG_NAME = "a" * 63


@pytest.mark.parametrize("nothing", ["", " ", "\t\r\n"])
def test_empty_selector_matches_everything(nothing: str) -> None:
    assert parse(nothing) == Selector()
    assert not parse(nothing)
    assert parse(nothing).matches(())


@pytest.mark.parametrize(
    ("selector", "matching", "not_matching"),
    [
        ("a", {"a": ""}, {}),
        ("!a", {}, {"a": ""}),
        ("a=b", {"a": "b"}, {"a": "c"}),
        ("a==b", {"a": "b"}, {}),
        ("a=", {"a": ""}, {}),
        ("a!=b", {"a": "c"}, {"a": "b"}),
        ("a!=b", {}, {"a": "b"}),
        ("a!=", {}, {"a": ""}),
        ("a in (b,c)", {"a": "c"}, {"a": "d"}),
        ("a in (b,c)", {"a": "b"}, {}),
        ("a in (b,)", {"a": ""}, {}),
        ("a in (,)", {"a": ""}, {"a": "b"}),
        ("a in ()", {"a": ""}, {"a": "b"}),
        ("a notin (b,c)", {}, {"a": "b"}),
        ("a notin ()", {"a": "b"}, {"a": ""}),
        ("a>5", {"a": "6"}, {"a": "5"}),
        ("a>5", {"a": "10"}, {}),
        ("a<5", {"a": "4"}, {"a": "5"}),
        ("a<5", {"a": "0004"}, {"a": "1_0"}),
        ("a<5", {"a": "4"}, {"a": "three"}),
        ("a<5", {"a": "4"}, {"a": "\u0663"}),
        ("a>5", {"a": "9223372036854775807"}, {"a": "9223372036854775808"}),
        ("a=b,c", {"a": "b", "c": ""}, {"a": "b"}),
        ("in in (in)", {"in": "in"}, {"in": "notin"}),
        ("notin=notin", {"notin": "notin"}, {}),
        ("example.com/a_B.c-9=x", {"example.com/a_B.c-9": "x"}, {}),
        ("  a\t=\n b ,\r!c ", {"a": "b"}, {"a": "b", "c": ""}),
        (f"a={A_LONG_NAME}", {"a": A_LONG_NAME}, {}),
    ],
)
def test_selector_matches_like_api_server(
    selector: str, matching: dict[str, str], not_matching: dict[str, str]
) -> None:
    for text in (selector, f"{selector},!v,!w,!x,!y,!z"):  # few requirements, and many
        assert parse(text).matches(matching.items())
        assert not parse(text).matches(not_matching.items())


@pytest.mark.parametrize(
    ("selector", "problem"),
    [
        ("a=b,", "expected a label key, found the end of the selector, at character 5"),
        (",a", "expected a label key, found ',', at character 1"),
        ("a,,b", "expected a label key, found ',', at character 3"),
        ("!", "expected a label key, found the end of the selector, at character 2"),
        ("!!a", "expected a label key, found '!', at character 2"),
        ("!a=b", "expected ',' or the end of the selector, found '=', at character 3"),
        ("a=b c", "expected ',' or the end of the selector, found 'c', at character 5"),
        ("a===b", "expected a label value, found '=', at character 4"),
        ("a !b", "expected ',', the end of the selector or one of = == != in notin > <, found '!', at character 3"),
        ("a b", "expected ',', the end of the selector or one of = == != in notin > <, found 'b', at character 3"),
        ("a in b", "expected '(' after in or notin, found 'b', at character 6"),
        ("a in", "expected '(' after in or notin, found the end of the selector, at character 5"),
        ("a in (b", "expected ',' or ')', found the end of the selector, at character 8"),
        ("a in (b c)", "expected ',' or ')', found 'c', at character 9"),
        ("a in (!b)", "expected a label value, found '!', at character 7"),
        ("a>", "expected a whole number, found the end of the selector, at character 3"),
        ("a>x", "expected a whole number from 0 to 9223372036854775807, found 'x', at character 3"),
        ("a>-1", "expected a whole number from 0 to 9223372036854775807, found '-1', at character 3"),
        ("a>9223372036854775808", "expected a whole number from 0 to"),
        ("a>" + "0" * 64, "expected a whole number from 0 to"),
        ("a\u00a0=b", "label key 'a\\xa0' must be up to 63 letters"),
        ("-a", "label key '-a' must be up to 63 letters"),
        (A_LONG_NAME + "a", "label key"),
        ("/a", "the prefix of label key '/a' must be a lowercase DNS name, at character 1"),
        ("a/b/c", "the prefix of label key 'a/b/c' must be a lowercase DNS name, at character 1"),
        ("Example.com/a", "must be a lowercase DNS name"),
        ("a" * 254 + "/a", "must be a lowercase DNS name"),
        ("example.com/", "label key 'example.com/' must be up to 63 letters"),
        ("a=b.", "label value 'b.' must be up to 63 letters"),
        ("a=" + A_LONG_NAME + "a", "label value"),
        ("a=b/c", "label value 'b/c' must be up to 63 letters, digits, '-', '_' or '.', beginning and ending with"),
        ("x=a||y=b", "label value 'a||y' must be"),
    ],
)
def test_invalid_selector_names_problem_and_position(selector: str, problem: str) -> None:
    with pytest.raises(SelectorError) as refused:
        parse(selector)
    assert problem in str(refused.value)


@pytest.mark.parametrize("selector", ["{}", "a={}", "a>{}", "a {}", "{}/a", "a=b {}", "(,{}"])
def test_error_quotes_the_beginning_of_a_long_word(selector: str) -> None:
    with pytest.raises(SelectorError) as refused:
        parse(selector.format("x" * 8_000))
    assert len(str(refused.value)) < 250


@pytest.mark.parametrize(
    ("selector", "canonical"),
    [
        ("b==1,a", "a,b in (1)"),
        ("a in (y,x)", "a in (x,y)"),
        ("a!=x", "a notin (x)"),
        ("!b, a>07", "!b,a>7"),
        ("a<3", "a<3"),
        ("a=", "a in ()"),
        ("a in (b,)", "a in (,b)"),
    ],
)
def test_equivalent_selectors_have_the_same_canonical_text(selector: str, canonical: str) -> None:
    assert str(parse(selector)) == canonical
    assert str(parse(canonical)) == canonical


def test_requirement_is_parsed_into_key_operator_and_values() -> None:
    assert parse("a notin (b)").requirements == (Requirement("a", "notin", ("b",)),)


@pytest.mark.parametrize(("labels", "expected"), [("a=1,b=2,c=3", True), ("a=1,b=2", False), ("b=2,c=3", False)])
def test_selector_matches_if_all_requirements_hold(labels: str, expected: bool) -> None:
    pairs = [(key, value) for key, _, value in (label.partition("=") for label in labels.split(","))]
    assert parse("a=1,b,c!=4,c").matches(pairs) is expected


class CountedPairs(tuple[tuple[str, str], ...]):
    """Labels that count how many times they are read."""

    reads = 0

    def __iter__(self) -> Iterator[tuple[str, str]]:
        type(self).reads += 1
        return super().__iter__()


def test_many_requirements_read_the_labels_once() -> None:
    # A caller chooses 64 requirements, and a tenant a thousand labels.
    labels = CountedPairs((f"label-{number}", "") for number in range(1000))
    CountedPairs.reads = 0
    assert parse(",".join(f"!missing-{number}" for number in range(64))).matches(labels)
    assert CountedPairs.reads == 1
