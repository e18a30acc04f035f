"""The settings of one rule: whom it is for, and what it gives."""

import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Self

from pydantic import BeforeValidator, Field, model_validator

from milo_discoveryd.config import values
from milo_discoveryd.config.fields import Group, selector_text

EVERYBODY = "everybody"
ALL, NONE = "all", "none"
_MOST_VALUES = 1000
_SAN = re.compile(r"(dns|uri|email|ip):\S+")
_NAME = re.compile(r"[a-z0-9.*-]{1,253}")


def _several(value: object) -> tuple[object, ...]:
    """One, or a list of them."""
    several = (value,) if isinstance(value, str | int) else values.words(value)
    if not several:
        raise ValueError("names none: leave it out where it doesn't matter")
    return several


def _san(value: object) -> str:
    text = str(value)
    if not _SAN.fullmatch(text):
        raise ValueError('must be "uri:", "dns:", "email:" or "ip:" and a name, such as "uri:spiffe://prod/ns/shop/*"')
    whole = text.removesuffix("*")
    if "*" in whole or (whole != text and not re.fullmatch(r"uri:[a-z]+://[^/]+/(.*/)?", whole)):
        raise ValueError(
            'has a "*" where it can\'t stand: only in place of the last parts of a URI, as in "uri:spiffe://prod/ns/*"'
        )
    return text


def _account(value: object) -> str:
    text = str(value)
    if "*" in text or not text.isprintable() or not text.strip():
        raise ValueError(
            "must be a whole name: there are no patterns here; all service accounts of a namespace are the group "
            '"system:serviceaccounts:<namespace>"'
        )
    return text


def _cluster(value: object) -> str:
    text = str(value)
    if not _NAME.fullmatch(text):
        raise ValueError('must be the name of a project, or some of it with "*" for the rest, such as "shop-*"')
    return text


def _ttl(value: object) -> timedelta | None:
    if value is None:
        return None
    return values.duration(value, least=timedelta(seconds=1), most=timedelta(hours=24))


_Several = BeforeValidator(_several)
_Most = Field(max_length=_MOST_VALUES)
_Id = Annotated[int, Field(ge=0, le=2**32 - 2)]
_Text = Annotated[str, Field(min_length=1, max_length=253)]
_Account = Annotated[str, BeforeValidator(_account), Field(max_length=1024)]


class Who(Group):
    """All that is set must be true of a caller; of several values for one thing, any."""

    listener: Annotated[tuple[_Text, ...], _Several, _Most] = ()
    """By its name."""
    uid: Annotated[tuple[_Id, ...], _Several, _Most] = ()
    """Of the process that connected, as are group ids. Known at listeners with peer_credentials."""
    gid: Annotated[tuple[_Id, ...], _Several, _Most] = ()
    san: Annotated[tuple[Annotated[str, BeforeValidator(_san), Field(max_length=2048)], ...], _Several, _Most] = ()
    """Of the client's certificate. Known at listeners with tls."""
    user: Annotated[tuple[_Account, ...], _Several, _Most] = ()
    """Whose bearer token it is, as are groups. Known at listeners with tokens."""
    group: Annotated[tuple[_Account, ...], _Several, _Most] = ()

    @property
    def is_everybody(self) -> bool:
        return not any(getattr(self, field) for field in Who.model_fields)


class Clusters(Group):
    """All that is set must be true of a cluster."""

    label_selector: Annotated[str, BeforeValidator(selector_text)] = ""
    organizations: Annotated[tuple[_Text, ...], _Several, _Most] = ()
    names: Annotated[tuple[Annotated[str, BeforeValidator(_cluster)], ...], _Several, _Most] = ()


def _who(value: object) -> object:
    if value == EVERYBODY:
        return Who()
    if isinstance(value, Mapping | Who) and value != {}:
        return value
    raise ValueError(f'must be "{EVERYBODY}", or say who, by some of {", ".join(Who.model_fields)}')


def _clusters(value: object) -> object:
    if value == ALL:
        return Clusters()
    if value == NONE:
        return None
    if isinstance(value, Mapping) and not str(value.get("label_selector", ALL) or "").strip():
        raise ValueError(
            f'has an empty label_selector, which every cluster matches: drop it, or write "clusters: {ALL}"'
        )
    if isinstance(value, Mapping | Clusters) and value != {}:
        return value
    raise ValueError(f'must be "{ALL}", "{NONE}", or say which, by some of {", ".join(Clusters.model_fields)}')


class Rule(Group):
    name: Annotated[str, BeforeValidator(values.cluster_name)]
    """What the audit and `check --as` call it."""
    who: Annotated[Who, BeforeValidator(_who)]
    clusters: Annotated[Clusters | None, BeforeValidator(_clusters)]
    """None: it takes them away from whom it is for."""
    kubeconfigs: bool = False
    """Whether it gives any. The next three are about these."""
    sources: Annotated[tuple[_Text, ...], _Several, _Most] = ()
    """Of kubeconfigs.sources, by name; none is any."""
    max_ttl: Annotated[timedelta | None, BeforeValidator(_ttl)] = None
    """The longest life that is asked for."""
    kubeconfigs_per_minute: Annotated[int | None, Field(ge=1, le=1_000_000)] = None
    """For each caller that it is for, as is the next."""
    streams: Annotated[int | None, Field(ge=1, le=100_000)] = None

    @model_validator(mode="after")
    def _speaks_of_what_it_gives(self) -> Self:
        if not self.kubeconfigs:
            for setting in ("sources", "max_ttl", "kubeconfigs_per_minute"):
                if getattr(self, setting):
                    raise ValueError(f'has {setting}, and gives no kubeconfigs: write "kubeconfigs: true", or drop it')
        return self


def ordered(rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
    """The first that a caller meets counts, so none may stand behind one that everybody meets."""
    names = [rule.name for rule in rules]
    if len(set(names)) < len(names):
        raise ValueError("must give each of its rules another name")
    everybody = next((place for place, rule in enumerate(rules) if rule.who.is_everybody), len(rules))
    if behind := names[everybody + 1 :]:
        raise ValueError(
            f"has rules behind {names[everybody]!r}, which is for everybody, so that they never count: move it to the "
            f"end, behind {', '.join(behind)}"
        )
    return rules
