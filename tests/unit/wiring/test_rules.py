"""Conversion of settings to authorization rules."""

from pathlib import Path

import yaml

from milo_discoveryd.config import load
from milo_discoveryd.identity.caller import Caller
from milo_discoveryd.rights.rights import Grant, Terms
from milo_discoveryd.rights.scope import ALL_CLUSTERS, NO_CLUSTERS
from milo_discoveryd.wiring.rules import rights
from tests.unit.fleet.fleets import cluster

CONFIG = """
listen: [{address: "unix:///tmp/d.sock", name: api}]
kubeconfigs: {issuers: [{name: viewer, type: token-file, path: /token}]}
rights:
- name: kept-out
  who: {uid: 7}
  clusters: none
- name: shop
  who: {listener: api, san: "uri:spiffe://prod/ns/shop/*"}
  clusters: {label_selector: env=prod, organizations: acme, names: "shop-*"}
  kubeconfigs: true
  issuers: viewer
  max_ttl: 5m
  kubeconfigs_per_minute: 60
  streams: 3
- name: rest
  who: everybody
  clusters: all
  kubeconfigs: true
"""


def test_caller_gets_grant_of_first_matching_rule(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(CONFIG)))
    made = rights(load({}, {}, file).rights)
    assert made.grant_for(Caller(listener="api", uid=7)) == Grant(rule="kept-out", scope=NO_CLUSTERS, terms=None)
    shop = made.grant_for(Caller(listener="api", sans=("uri:spiffe://prod/ns/shop/sa/operator",)))
    assert shop is not None
    assert (shop.rule, shop.streams) == ("shop", 3)
    assert shop.terms == Terms(issuers=frozenset({"viewer"}), max_ttl_s=300.0, per_minute=60)
    assert shop.scope.matches(cluster("shop-1", labels={"env": "prod"}, organization="acme"))
    assert not shop.scope.matches(cluster("shop-1", labels={"env": "prod"}, organization="nasa"))
    assert made.grant_for(Caller(listener="api")) == Grant(rule="rest", scope=ALL_CLUSTERS, terms=Terms())


def test_caller_without_configured_rules_has_full_access() -> None:
    assert rights(()).grant_for(Caller(listener="api")) == Grant()
