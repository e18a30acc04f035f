"""Settings of an authorization rule: the callers that it matches, and the access that it grants."""

import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated

from msgspec import field

from milo_discoveryd.schema import values
from milo_discoveryd.schema.fields import Group, ListOf, Nested, Parser, Text, Whole, selector_text, span

EVERYBODY = "everybody"
ALL, NONE = "all", "none"
_MOST_VALUES = 1000
_SAN = re.compile(r"(dns|uri|email|ip):\S+")
_EXTRA_KEY = re.compile(r"[a-z0-9][a-z0-9./_-]{0,252}")
_NAME = re.compile(r"([a-z0-9*-]{1,63}#)?[a-z0-9.*-]{1,253}")


def _several(value: object) -> tuple[object, ...]:
    """Return the items of a list, or a single value as a tuple."""
    several = (value,) if isinstance(value, str | int) else values.words(value)
    if not several:
        raise ValueError("is empty: set a value, or omit it for the default")
    return several


def _san(value: object) -> str:
    text = str(value)
    if not _SAN.fullmatch(text):
        raise ValueError('must begin with "uri:", "dns:", "email:" or "ip:", such as "uri:spiffe://prod/ns/shop/*"')
    whole = text.removesuffix("*")
    if "*" in whole or (whole != text and not re.fullmatch(r"uri:[a-z]+://[^/]+/(.*/)?", whole)):
        raise ValueError(
            'has a misplaced "*", which may only replace the last segments of a URI, as in "uri:spiffe://prod/ns/*"'
        )
    return text


def _account(value: object) -> str:
    text = str(value)
    if "*" in text or not text.isprintable() or not text.strip():
        raise ValueError(
            "must be a complete name of printable characters, not a pattern; all service accounts of a namespace are "
            'in the group "system:serviceaccounts:<namespace>"'
        )
    return text


def _cluster(value: object) -> str:
    text = str(value)
    if not _NAME.fullmatch(text):
        raise ValueError('must be the name of a project, or a pattern with "*" such as "shop-*" or "eu#shop-*"')
    return text


def _one_or_more(item: Parser) -> ListOf:
    return ListOf(item, split=_several, most=_MOST_VALUES)


_Ids = Annotated[tuple[int, ...], _one_or_more(Whole(0, 2**32 - 2))]
_Texts = Annotated[tuple[str, ...], _one_or_more(Text(least=1, most=253))]
_Accounts = Annotated[tuple[str, ...], _one_or_more(Text(most=1024, form=_account))]


class Who(Group, frozen=True, kw_only=True):
    """Conditions for a caller. For every field that is set, at least one of its values must match."""

    listener: _Texts = ()
    """Names of the listeners that receive the call. Default: any."""
    uid: _Ids = ()
    """UID of the connecting process, at listeners with `peer_credentials`. Default: any."""
    gid: _Ids = ()
    """GID of the connecting process, primary or supplementary, at listeners with `peer_credentials`. Default: any."""
    san: Annotated[tuple[str, ...], _one_or_more(Text(most=2048, form=_san))] = ()
    """Subject alternative name of the client certificate, at listeners with `tls`:
    `uri:spiffe://prod/ns/shop/sa/operator`, `dns:shop.example.com`. A URI may end with `/*`. Default: any."""
    user: _Accounts = ()
    """User of the bearer token, at listeners with `tokens`: `system:serviceaccount:shop:operator`. Default: any."""
    group: _Accounts = ()
    """Group of the bearer token's user, at listeners with `tokens`: `system:serviceaccounts:shop`. Default: any."""

    @property
    def is_everybody(self) -> bool:
        return not any(getattr(self, field) for field in Who.__struct_fields__)


class ClusterSelection(Group, frozen=True, kw_only=True):
    """Conditions for a cluster. Every field that is set must match."""

    label_selector: Annotated[str, selector_text] = ""
    """Label selector of the clusters, in the syntax of `kubectl -l`. Default: any."""
    organizations: _Texts = ()
    """Organizations of the clusters. Default: any."""
    names: Annotated[tuple[str, ...], _one_or_more(_cluster)] = ()
    """Names of the clusters (`SOURCE#NAME` if `sources` have names), or patterns: `*` matches anything but `#`.
    Default: any."""
    sources: _Texts = ()
    """Names of the `sources` of the clusters. Default: any."""


def _who(value: object) -> object:
    if value == EVERYBODY:
        return Who()
    if isinstance(value, Mapping | Who) and value != {}:
        return value
    raise ValueError(f'must be "{EVERYBODY}", or a mapping with at least one of {", ".join(Who.__struct_fields__)}')


def _clusters(value: object) -> object:
    if value == ALL:
        return ClusterSelection()
    if value == NONE:
        return None
    if isinstance(value, Mapping) and not str(value.get("label_selector", ALL) or "").strip():
        raise ValueError(
            f'has an empty label_selector, which matches every cluster: remove it, or write "clusters: {ALL}"'
        )
    if isinstance(value, Mapping | ClusterSelection) and value != {}:
        return value
    raise ValueError(f'must be "{ALL}", "{NONE}", or a mapping of {", ".join(ClusterSelection.__struct_fields__)}')


def _extra(value: object) -> tuple[tuple[str, tuple[str, ...]], ...]:
    if not isinstance(value, Mapping):
        raise ValueError("must map keys to a value or a list of values")  # noqa: TRY004 - parsers raise ValueError
    found: list[tuple[str, tuple[str, ...]]] = []
    for key, given in value.items():
        several = tuple(map(str, _several(given)))
        if not _EXTRA_KEY.fullmatch(str(key)) or not all(map(_is_header_value, several)):
            raise ValueError(
                f'{str(key)[:80]!r} or a value of it is invalid: keys must be lowercase letters, digits and "./_-", '
                "and values printable ASCII text"
            )
        found.append((str(key), several))
    return tuple(found)


def _impersonated_name(value: object) -> str:
    text = str(value)
    if not _is_header_value(text) or text.strip() != text:
        raise ValueError("must be a complete name, of printable ASCII text, without spaces at its ends")
    return text


def _is_header_value(text: str) -> bool:
    return bool(text) and text.isascii() and text.isprintable()


class ActingUser(Group, frozen=True, kw_only=True):
    """The user that callers act as in clusters."""

    user: Annotated[str, Text(most=1024, form=_impersonated_name)]
    """User impersonated by requests, such as `shop-operator`."""
    groups: Annotated[tuple[str, ...], _one_or_more(Text(most=1024, form=_impersonated_name))] = ()
    """Groups impersonated by requests. Default: only `system:authenticated`."""
    extra: Annotated[tuple[tuple[str, tuple[str, ...]], ...], _extra] = ()
    """Extra fields impersonated by requests: keys, each with a value or a list. Default: none."""


class RuleSettings(Group, frozen=True, kw_only=True):
    name: Annotated[str, values.cluster_name]
    """Name of the rule, in audit events and in `check --as`."""
    who: Annotated[Who, Nested(Who, _who)]
    """`everybody`, or conditions that a caller must all meet. Any value of a condition is enough to meet it."""
    clusters: Annotated[ClusterSelection | None, Nested(ClusterSelection, _clusters)]
    """`all`, `none` (the caller is denied), or conditions that a cluster must all meet."""
    kubeconfigs: bool = False
    """`true` to issue kubeconfigs to these callers, as limited by `issuers`, `max_ttl` and `kubeconfigs_per_minute`."""
    issuers: _Texts = ()
    """Names of the permitted `kubeconfigs.issuers`; the first that matches a cluster serves it. Default: all."""
    as_: Annotated[ActingUser | None, Nested(ActingUser)] = field(default=None, name="as")
    """The user that callers impersonate in clusters, which is set in their kubeconfigs. API servers deny the requests
    unless the identity of the issuer may impersonate this user. Default: no impersonation."""
    max_ttl: Annotated[timedelta, span("1s", "24h")] | None = None
    """Maximum lifetime requested from a credential issuer; issuers with a fixed lifetime ignore it. Default:
    `kubeconfigs.max_ttl`."""
    kubeconfigs_per_minute: Annotated[int | None, Whole(1, 1_000_000)] = None
    """Maximum kubeconfigs per minute and caller, and maximum burst. Default: `limits.kubeconfigs_per_minute`."""
    streams: Annotated[int | None, Whole(1, 100_000)] = None
    """Maximum open streams of a caller. Default: `limits.streams_per_caller`."""

    def __post_init__(self) -> None:
        if not self.kubeconfigs:
            for setting in ("issuers", "as_", "max_ttl", "kubeconfigs_per_minute"):
                if getattr(self, setting):
                    raise ValueError(
                        f'has `{setting.rstrip("_")}`, but not "kubeconfigs: true": add it, or remove the setting '
                        f"{setting.rstrip('_')}"
                    )


def ordered(rules: tuple[RuleSettings, ...]) -> None:
    """Check that names are unique, and that no rule follows a rule that matches every caller: it would never apply."""
    names = [rule.name for rule in rules]
    if (name := values.repeated(names)) is not None:
        raise ValueError(f"has several rules with the name {name!r}")
    everybody = next((place for place, rule in enumerate(rules) if rule.who.is_everybody), len(rules))
    if behind := names[everybody + 1 :]:
        raise ValueError(
            f"has rules after {names[everybody]!r}, which matches every caller: {', '.join(behind)} would "
            f"never apply; move {names[everybody]!r} to the end"
        )
