"""The settings of one rule: whom it is for, and what it gives."""

import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated

from milo_discoveryd.config import values
from milo_discoveryd.config.fields import Group, ListOf, Nested, Parser, Text, Whole, selector_text, span

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


def _some(item: Parser) -> ListOf:
    return ListOf(item, split=_several, most=_MOST_VALUES)


_Ids = Annotated[tuple[int, ...], _some(Whole(0, 2**32 - 2))]
_Texts = Annotated[tuple[str, ...], _some(Text(least=1, most=253))]
_Accounts = Annotated[tuple[str, ...], _some(Text(most=1024, form=_account))]


class Who(Group, frozen=True, kw_only=True):
    """All that is set must be true of a caller; of several values for one thing, any."""

    listener: _Texts = ()
    """Names of listeners. None is any."""
    uid: _Ids = ()
    """Of the process that connected, at listeners with `peer_credentials`. None is any."""
    gid: _Ids = ()
    """A group of this process: its own, or one that it is a member of besides. None is any."""
    san: Annotated[tuple[str, ...], _some(Text(most=2048, form=_san))] = ()
    """Of the client's certificate, at listeners with `tls`: `uri:spiffe://prod/ns/shop/sa/operator`,
    `dns:shop.example.com`. A URI may end with `/*`, for all below it. None is any."""
    user: _Accounts = ()
    """Whose bearer token it is, at listeners with `tokens`: `system:serviceaccount:shop:operator`. None is any."""
    group: _Accounts = ()
    """Of that user: `system:serviceaccounts:shop`. None is any."""

    @property
    def is_everybody(self) -> bool:
        return not any(getattr(self, field) for field in Who.__struct_fields__)


class Clusters(Group, frozen=True, kw_only=True):
    """All that is set must be true of a cluster."""

    label_selector: Annotated[str, selector_text] = ""
    """Its labels, as `kubectl -l` takes it. None is any."""
    organizations: _Texts = ()
    """Its organization: one of these. None is any."""
    names: Annotated[tuple[str, ...], _some(_cluster)] = ()
    """Its name: one of these, in which `*` stands for any characters. None is any."""


def _who(value: object) -> object:
    if value == EVERYBODY:
        return Who()
    if isinstance(value, Mapping | Who) and value != {}:
        return value
    raise ValueError(f'must be "{EVERYBODY}", or say who, by some of {", ".join(Who.__struct_fields__)}')


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
    raise ValueError(f'must be "{ALL}", "{NONE}", or say which, by some of {", ".join(Clusters.__struct_fields__)}')


class Rule(Group, frozen=True, kw_only=True):
    name: Annotated[str, values.cluster_name]
    """What the audit and `check --as` call it."""
    who: Annotated[Who, Nested(Who, _who)]
    """`everybody`, or some of what follows. All that is said must be true of a caller, and of several values any."""
    clusters: Annotated[Clusters | None, Nested(Clusters, _clusters)]
    """`all`, `none`, which takes them away from whom it is for, or some of what follows. All that is said must be true
    of a cluster."""
    kubeconfigs: bool = False
    """`true` to give any. The next three are about these."""
    sources: _Texts = ()
    """Of `kubeconfigs.sources`, those that there may be credentials from; the first of them that is for a cluster
    serves it. None is all."""
    max_ttl: Annotated[timedelta, span("1s", "24h")] | None = None
    """The longest life that a source is asked for. One that can't be told gives what it gives. None is
    `kubeconfigs.max_ttl`."""
    kubeconfigs_per_minute: Annotated[int | None, Whole(1, 1_000_000)] = None
    """Handed out to one caller, on streams and by calls. As many may be had at once. None is
    `limits.kubeconfigs_per_minute`."""
    streams: Annotated[int | None, Whole(1, 100_000)] = None
    """That one caller has open at once. None is `limits.streams_per_caller`."""

    def __post_init__(self) -> None:
        if not self.kubeconfigs:
            for setting in ("sources", "max_ttl", "kubeconfigs_per_minute"):
                if getattr(self, setting):
                    raise ValueError(f'has {setting}, and gives no kubeconfigs: write "kubeconfigs: true", or drop it')


def ordered(rules: tuple[Rule, ...]) -> None:
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
