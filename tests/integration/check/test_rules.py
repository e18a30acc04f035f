"""Findings of `check` about authorization rules."""

from pathlib import Path
from typing import Any

import yaml

from milo_discoveryd.check.finding import Finding
from milo_discoveryd.check.rules import check_rules
from milo_discoveryd.config import load

API = {"address": "unix:///tmp/a.sock", "name": "api"}
PROVING = {"address": "unix:///tmp/b.sock", "name": "proving", "peer_credentials": True, "tokens": True}


def found(directory: Path, *rights: dict[str, Any], **others: object) -> list[Finding]:
    file = directory / "config.yaml"
    file.write_text(yaml.safe_dump({"listen": [API, PROVING], "rights": list(rights), **others}))
    return list(check_rules(load({}, {}, file)))


def rule(name: str, who: object, clusters: object = "all", **others: object) -> dict[str, Any]:
    return {"name": name, "who": who, "clusters": clusters, **others}


def test_check_without_rules_reports_no_findings(tmp_path: Path) -> None:
    assert found(tmp_path) == []


def test_check_lists_rules_that_can_match(tmp_path: Path) -> None:
    findings = found(tmp_path, rule("one", {"uid": 1, "listener": "proving"}), rule("two", {"group": "g"}))
    assert [finding.level for finding in findings] == ["ok"]
    assert findings[0].message.startswith("one, two;")


def test_rule_that_never_matches_is_a_warning(tmp_path: Path) -> None:
    findings = found(
        tmp_path,
        rule("one", {"uid": 1, "listener": "api"}),
        rule("two", {"san": "dns:a"}),
        rule("three", {"user": "u"}),
    )
    assert [finding.level for finding in findings] == ["warn", "warn"]
    assert findings[0].message.startswith("rule one never matches: it requires uid")
    assert findings[1].message.startswith("rule two never matches: it requires san")
    assert "peer_credentials" in findings[0].fix


def test_limited_rule_with_a_fleet_wide_credential_is_a_warning(tmp_path: Path) -> None:
    few = {"names": ["shop-*"]}
    (none,) = found(tmp_path, rule("few", "everybody", few, kubeconfigs=True))
    assert none.level == "ok"
    sources = [
        {"name": "file", "type": "token-file", "path": "/token"},
        {"name": "bound", "type": "token-request", "namespace": "n", "service_account": "a"},
        {"name": "loose", "type": "token-request", "namespace": "n", "service_account": "a", "bound": False},
        {"name": "each", "type": "exec", "command": "/bin/mint", "per_cluster": True},
        {"name": "own", "type": "token-file", "path": "/own", "hand_out": False},
        {"name": "signed", "type": "client-certificate", "ca_certificate": "/ca", "ca_key": "/key", "common_name": "a"},
        {
            "name": "named",
            "type": "client-certificate",
            "ca_certificate": "/ca",
            "ca_key": "/key",
            "common_name": "{uid}",
        },
    ]
    wide, _ = found(tmp_path, rule("few", "everybody", few, kubeconfigs=True), kubeconfigs={"issuers": sources})
    assert wide.level == "warn"
    assert "credentials of file, loose, signed are" in wide.message
    (fine,) = found(
        tmp_path,
        rule("few", {"uid": 1}, few, kubeconfigs=True, issuers=["bound", "each", "named"]),
        rule("none", {"uid": 2}, "none", kubeconfigs=True),
        rule("all", "everybody", kubeconfigs=True),
        kubeconfigs={"issuers": sources},
    )
    assert fine.level == "ok"
