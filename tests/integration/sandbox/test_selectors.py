"""Label and field selectors."""

import pytest

from milo_sandbox import selectors
from milo_sandbox.refusals import RefusalError

NAMES = {selectors.NAME: "alpha", selectors.NAMESPACE: "work"}
LABELS = {"env": "prod", "tier": "gold", "example.com/size": "12", "empty": ""}


@pytest.mark.parametrize(
    ("text", "selected"),
    [
        ("", True),
        ("env=prod", True),
        ("env==prod", True),
        ("env = prod , tier = gold", True),
        ("env=dev", False),
        ("env!=dev", True),
        ("env!=prod", False),
        ("absent!=prod", True),
        ("env in (prod, dev)", True),
        ("env in (dev)", False),
        ("env notin (dev,staging)", True),
        ("env notin (prod)", False),
        ("absent notin (prod)", True),
        ("absent in (prod)", False),
        ("env", True),
        ("absent", False),
        ("!env", False),
        ("! absent", True),
        ("example.com/size>11", True),
        ("example.com/size>12", False),
        ("example.com/size<13,env", True),
        ("env>1", False),
        ("absent<5", False),
        ("empty=", True),
        ("env=", False),
        ("empty in (,x)", True),
        ("env=prod,tier!=silver,!absent,example.com/size in (12)", True),
        ("in in (x)", False),
    ],
)
def test_label_selector_matches(text: str, selected: bool) -> None:
    assert selectors.parse(text).matches(LABELS, {}.__getitem__) is selected


@pytest.mark.parametrize(
    "text",
    ["=prod", "env=prod,", ",", "env in", "env in prod", "env in (prod", "env prod", "env=a=b", "!", "a/b/c=d",
     "env=sp@ce", "env>many", "env in (a b)"],
)  # fmt: skip
def test_error_for_an_invalid_selector_quotes_the_selector(text: str) -> None:
    with pytest.raises(RefusalError) as error:
        selectors.parse(text)
    assert error.value.code == 400
    assert text in error.value.message


@pytest.mark.parametrize(
    ("text", "selected"),
    [
        ("metadata.name=alpha", True),
        ("metadata.name==alpha", True),
        ("metadata.name!=alpha", False),
        ("metadata.name=beta", False),
        ("metadata.name=alpha,metadata.namespace=work", True),
        ("metadata.namespace=other", False),
    ],
)
def test_field_selector_matches(text: str, selected: bool) -> None:
    assert selectors.parse("", text).matches({}, NAMES.__getitem__) is selected


@pytest.mark.parametrize("text", ["spec.name=x", "metadata.name", "name=x"])
def test_unknown_field_selector_is_rejected(text: str) -> None:
    with pytest.raises(RefusalError):
        selectors.parse("", text)
