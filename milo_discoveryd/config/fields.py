"""What the settings are made of: groups, and the kinds of field that several of them have."""

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


def span(least: str, most: str) -> BeforeValidator:
    anything = partial(values.duration, least=timedelta(), most=timedelta.max)
    return BeforeValidator(partial(values.duration, least=anything(least), most=anything(most)))


def one_of(*choices: str) -> BeforeValidator:
    return BeforeValidator(values.one_of(*choices))
