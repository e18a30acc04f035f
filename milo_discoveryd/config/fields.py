"""What the settings are made of: groups, and the kinds of field that several of them have.

The docstring of a setting is what the documents say of it: `./dev gen` takes it from here. Of one that is nothing by
default, a sentence that begins with "None is" says what that comes to. Why a value is what it is stands in a comment.
"""

from datetime import timedelta
from functools import partial

from pydantic import BaseModel, BeforeValidator, ConfigDict

from milo_discoveryd.config import values
from milo_discoveryd.model import selector


class Group(BaseModel):
    """Settings that belong together. An unknown key is an error: a misspelt one would be a setting not obeyed."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=False)


def selector_text(value: object) -> str:
    text = str(value)
    try:
        selector.parse(text)
    except selector.SelectorError as error:
        raise ValueError(f"must be a Kubernetes label selector: {error}") from None
    return text


_any_duration = partial(values.duration, least=timedelta(), most=timedelta.max)


def span(least: str, most: str) -> BeforeValidator:
    return BeforeValidator(partial(values.duration, least=_any_duration(least), most=_any_duration(most)))


def span_or_off(least: str, most: str) -> BeforeValidator:
    return BeforeValidator(partial(values.duration_or_off, least=_any_duration(least), most=_any_duration(most)))


def one_of(*choices: str) -> BeforeValidator:
    return BeforeValidator(partial(values.one_of, choices=choices))
