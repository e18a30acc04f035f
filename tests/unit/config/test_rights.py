"""Validation of authorization rules in the configuration."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from milo_discoveryd.config import Settings, load
from milo_discoveryd.daemon_errors import ConfigError

BASE: dict[str, Any] = {"name": "shop", "who": {"uid": 1000}, "clusters": "all"}


def loaded(directory: Path, *rules: object, **others: object) -> Settings:
    file = directory / "config.yaml"
    file.write_text(yaml.safe_dump({"rights": list(rules), **others}))
    return load({}, {}, file)


def refusal(directory: Path, *rules: object, **others: object) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        loaded(directory, *rules, **others)
    return [problem.partition("key rights")[2] for problem in raised.value.problems]


def test_rights_default_to_no_rules(tmp_path: Path) -> None:
    assert loaded(tmp_path).rights == ()


def test_rights_rule_is_parsed(tmp_path: Path) -> None:
    (rule,) = loaded(
        tmp_path,
        {
            "name": "shop",
            "who": {
                "listener": "api",
                "uid": [1000, 0],
                "gid": 7,
                "san": ["uri:spiffe://prod/ns/shop/*", "dns:shop.example.com"],
                "user": "system:serviceaccount:shop:operator",
                "group": "system:serviceaccounts:shop",
            },
            "clusters": {"label_selector": "env=prod", "organizations": "acme", "names": ["shop-*", "bank"]},
            "kubeconfigs": True,
            "issuers": "viewer",
            "max_ttl": "5m",
            "kubeconfigs_per_minute": 60,
            "streams": 3,
        },
        listen=[{"address": "unix:///tmp/d.sock", "name": "api"}],
        kubeconfigs={"issuers": [{"name": "viewer", "type": "token-file", "path": "/token"}]},
    ).rights
    assert (rule.who.uid, rule.who.gid, rule.who.listener) == ((1000, 0), (7,), ("api",))
    assert rule.clusters is not None
    assert (rule.clusters.names, rule.clusters.organizations) == (("shop-*", "bank"), ("acme",))
    assert (rule.kubeconfigs, rule.issuers, rule.streams, rule.kubeconfigs_per_minute) == (True, ("viewer",), 3, 60)
    assert rule.max_ttl is not None
    assert rule.max_ttl.total_seconds() == 300


def test_rule_accepts_keywords_everybody_all_and_none(tmp_path: Path) -> None:
    kept_out, everybody = loaded(
        tmp_path, {**BASE, "clusters": "none"}, {"name": "rest", "who": "everybody", "clusters": "all"}
    ).rights
    assert kept_out.clusters is None
    assert not kept_out.who.is_everybody
    assert everybody.who.is_everybody
    assert not everybody.kubeconfigs


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        ({"name": "Shop"}, '[0].name: "Shop" must be up to 63 lowercase letters'),
        ({"who": {}}, '[0].who: must be "everybody", or a mapping with at least one of listener, uid'),
        ({"who": "nobody"}, '[0].who: "nobody" must be "everybody", or a mapping with'),
        ({"who": {"uid": []}}, "[0].who.uid: is empty: set a value, or omit it for the default"),
        ({"who": {"uid": "root"}}, '[0].who.uid[0]: "root" must be a whole number'),
        ({"who": {"uid": -1}}, '[0].who.uid[0]: "-1" must be at least 0'),
        ({"who": {"uid": list(range(1001))}}, "[0].who.uid: must have at most 1000 values"),
        ({"who": {"uuid": 1}}, "[0].who.uuid: is not a setting; did you mean uid?"),
        ({"who": {"san": "spiffe://prod"}}, '[0].who.san[0]: "spiffe://prod" must begin with "uri:", "dns:"'),
        ({"who": {"san": "uri:spiffe://*"}}, '[0].who.san[0]: "uri:spiffe://*" has a misplaced "*"'),
        ({"who": {"san": "uri:spiffe://prod*"}}, 'has a misplaced "*"'),
        ({"who": {"san": "uri:spiffe://a/*/b"}}, 'has a misplaced "*"'),
        ({"who": {"san": "dns:*.example.com"}}, 'has a misplaced "*"'),
        ({"who": {"user": "system:*"}}, '[0].who.user[0]: "system:*" must be a complete name'),
        (
            {"who": {"listener": "web"}},
            '[0].who.listener: "web" is not the name of an item of listen; configured: unix:',
        ),
        ({"clusters": {}}, '[0].clusters: must be "all", "none", or a mapping of label_selector'),
        (
            {"clusters": {"sources": "dns"}},
            '[0].clusters.sources: "dns" is not the name of a source; configured: none',
        ),
        ({"kubeconfigs": True, "as": {"groups": ["a"]}}, "[0].as.user: is missing"),
        ({"kubeconfigs": True, "as": {"user": "a\nb"}}, "must be a complete name, of printable ASCII text"),
        ({"kubeconfigs": True, "as": {"user": "a", "extra": {"A": "b"}}}, "keys must be lowercase"),
        ({"kubeconfigs": False, "as": {"user": "a"}}, 'has `as`, but not "kubeconfigs: true"'),
        ({"clusters": "some"}, '[0].clusters: "some" must be "all", "none"'),
        ({"clusters": {"names": []}}, "[0].clusters.names: is empty"),
        ({"clusters": {"names": "Shop_1"}}, '[0].clusters.names[0]: "Shop_1" must be the name of a project'),
        (
            {"clusters": {"label_selector": " "}},
            "[0].clusters: has an empty label_selector, which matches every cluster",
        ),
        ({"clusters": {"label_selector": "a b"}}, '[0].clusters.label_selector: "a b" must be a Kubernetes label'),
        ({"issuers": "viewer"}, '[0]: has `issuers`, but not "kubeconfigs: true"'),
        ({"max_ttl": "5m"}, '[0]: has `max_ttl`, but not "kubeconfigs: true"'),
        ({"kubeconfigs": True, "max_ttl": "5"}, '[0].max_ttl: "5" must be a duration with its unit'),
        ({"kubeconfigs": True, "issuers": "v"}, '[0].issuers: "v" is not the name of an item of kubeconfigs.issuers'),
        ({"kubeconfigs": "maybe"}, '[0].kubeconfigs: "maybe" must be true or false'),
        ({"streams": 0}, '[0].streams: "0" must be at least 1'),
        ({"color": "red"}, "[0].color: is not a setting; valid names are name, who,"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_invalid_rights_rule_is_reported_with_config_path(
    tmp_path: Path, said: dict[str, object], complaint: str
) -> None:
    (problem,) = refusal(tmp_path, {**BASE, **said})
    assert complaint in problem


def test_duplicate_rule_names_are_rejected(tmp_path: Path) -> None:
    (problem,) = refusal(tmp_path, BASE, BASE)
    assert "has several rules with the name" in problem


def test_rule_after_a_catch_all_rule_is_rejected(tmp_path: Path) -> None:
    (problem,) = refusal(tmp_path, {"name": "rest", "who": "everybody", "clusters": "none"}, BASE)
    assert "has rules after 'rest', which matches every caller" in problem
    assert "shop would never apply; move 'rest' to the end" in problem
