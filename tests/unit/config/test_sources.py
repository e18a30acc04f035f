"""The setting `sources`: several sources of clusters."""

import json
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from milo_discoveryd.config import Settings, load
from milo_discoveryd.daemon_errors import ConfigError

DECLARED = {
    "resource": {"version": "v1", "plural": "things"},
    "endpoint": {"template": "https://a.test/{metadata.name}"},
}
TWO = """
sources:
  - name: milo
    kind: project
    label_selector: env=prod
    project_kubeconfig: /project
  - name: dns
    kind: service-consumer
    discovery_kubeconfig: /provider
    settings: {services: [dns.example.com]}
"""


def problems(directory: Path, text: str) -> list[str]:
    file = directory / "config.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as raised:
        load({}, {}, file)
    return [str(problem).partition("key ")[2] for problem in raised.value.problems]


def test_each_cluster_source_has_its_own_settings(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(TWO)
    settings = load({}, {}, file)
    milo, dns = settings.sources
    assert [milo.name, dns.name] == ["milo", "dns"]
    assert (milo.kind, milo.label_selector, milo.project_kubeconfig) == ("project", "env=prod", Path("/project"))
    assert (dns.kind, dns.label_selector, dns.discovery_kubeconfig) == ("service-consumer", "", Path("/provider"))
    assert settings.title == "sources"


def test_empty_flags_do_not_override_sources_in_settings_file(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(f"listen: [unix:///run/other/discovery.sock]{TWO}")
    kubeconfigs: dict[str, object] = dict.fromkeys(("discovery_kubeconfig", "project_kubeconfig"), "")
    settings = load({"mode": "", "label_selector": "", "listen": ("",), **kubeconfigs}, {}, file)
    assert [source.name for source in settings.sources] == ["milo", "dns"]
    assert [str(listener.address) for listener in settings.listen] == ["unix:///run/other/discovery.sock"]


def test_settings_without_sources_have_one_unnamed_source() -> None:
    settings = load({"mode": "single"}, {}, None)
    assert [(source.name, source.kind) for source in settings.sources] == [("", "single")]
    assert settings.title == "single"


def test_single_source_in_sources_list_keeps_its_name(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("sources: [{name: milo, kind: single}]")
    assert [(source.name, source.kind) for source in load({}, {}, file).sources] == [("milo", "single")]


@pytest.mark.parametrize(
    ("flat", "item"),
    [
        ({}, {"kind": "project"}),
        (
            {"label_selector": "a=b", "discovery_kubeconfig": "/d", "credentials": "t"},
            {"kind": "project", "label_selector": "a=b", "discovery_kubeconfig": "/d", "credentials": "t"},
        ),
        (
            {"mode": "project-control-plane", "internal_address_template": "{uid}.test"},
            {"kind": "project-control-plane", "settings": {"address_template": "{uid}.test"}},
        ),
        (
            {"mode": "single", "settings": {"name": "one", "labels": {"a": "b"}}},
            {"kind": "single", "settings": {"name": "one", "labels": {"a": "b"}}},
        ),
        ({"mode": "declarative", "settings": DECLARED}, {"kind": "declarative", "settings": DECLARED}),
    ],
)
def test_top_level_settings_configure_a_single_unnamed_source(
    tmp_path: Path, flat: dict[str, Any], item: dict[str, Any]
) -> None:
    def loaded(given: dict[str, Any]) -> Settings:
        issuers = {"issuers": [{"name": "t", "type": "token-file", "path": "/t"}]}
        (tmp_path / "config.yaml").write_text(json.dumps({"kubeconfigs": issuers, **given}))
        return load({}, {}, tmp_path / "config.yaml")

    (unnamed,), (named,) = loaded(flat).sources, loaded({"sources": [{"name": "a", **item}]}).sources
    assert replace(named, name="") == unnamed


def test_bearer_tokens_are_reviewed_by_the_watched_server_unless_another_is_configured() -> None:
    watched = {"discovery_kubeconfig": "/d"}
    assert load(watched, {}, None).token_review.kubeconfig == Path("/d")
    assert load({**watched, "token_review.kubeconfig": "/r"}, {}, None).token_review.kubeconfig == Path("/r")


def test_each_setting_beside_the_sources_that_contain_it_is_one_problem(tmp_path: Path) -> None:
    first, second = problems(tmp_path, "internal_address_template: https://x\nsettings: {}\nsources: [{name: a}]")
    assert {text.partition(":")[0] for text in (first, second)} == {"internal_address_template", "settings"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"mode: project{TWO}", "mode: has no effect together with file "),
        ("sources: [{name: a}, {}]", "sources: has several items, each of which needs a `name`"),
        ("sources: []", "sources: must have at least 1 value"),
        ("sources: [{name: a, kind: project}, {name: a, kind: single}]", "sources: "),
        ("sources: [{name: a, kind: nonsense}]", 'sources[0].kind: "nonsense" must be one of'),
        (
            "sources: [{name: a, kind: project, settings: {x: y}}]",
            "sources[0].settings.x: is not a setting of kind project; no settings are valid here",
        ),
        (
            "internal_address_template: '{uid}'",
            'internal_address_template: "{uid}" is not a setting of kind project; no settings are valid here',
        ),
        ("sources: [{name: a, kind: project, settings: no}]", "sources[0].settings: "),
        ("sources: [{name: a, kind: service-consumer}]", "sources[0].settings.services: is missing"),
        ("mode: service-consumer", 'mode: "service-consumer" requires `settings`: services is missing'),
        ("sources: [{name: a, kind: project, credentials: none}]", 'sources: "none" is not the name of an item of'),
    ],
)
def test_invalid_sources_are_rejected_with_config_path(tmp_path: Path, text: str, expected: str) -> None:
    (problem,) = problems(tmp_path, text)
    assert problem.startswith(expected)


KUBECONFIGS = """
kubeconfigs:
  issuers: [{name: t, type: token-file, path: /t%s}]
"""


def test_credential_issuer_must_name_its_sources_if_several_are_configured(tmp_path: Path) -> None:
    complaint = "kubeconfigs.issuers: t: set the issuer's `sources`, because several sources are configured"
    assert problems(tmp_path, TWO + KUBECONFIGS % "") == [complaint]
    (problem,) = problems(tmp_path, TWO + KUBECONFIGS % ", sources: [mlo]")
    assert problem == 'kubeconfigs.issuers: t: "mlo" is not the name of a source; configured: milo, dns'


def test_project_kubeconfig_issuer_for_several_sources_is_rejected(tmp_path: Path) -> None:
    source = "{name: p, type: project-kubeconfig, share_discovery_identity: true, sources: [milo, dns]}"
    (problem,) = problems(tmp_path, f"{TWO}\nkubeconfigs: {{issuers: [{source}]}}")
    complaint = "an issuer of type project-kubeconfig serves only one source: name this source in `sources`"
    assert problem == f"kubeconfigs.issuers: p: {complaint}"


@pytest.mark.parametrize(
    "source",
    [
        "name: s, type: token-request, namespace: n, service_account: s",
        "name: s, type: kubeconfig-secret",
    ],
)
def test_credential_issuer_of_sources_on_different_servers_requires_kubeconfig(tmp_path: Path, source: str) -> None:
    text = f"{TWO}\nkubeconfigs: {{issuers: [{{{source}, sources: [milo, dns]%s}}]}}"
    (problem,) = problems(tmp_path, text % "")
    complaint = "its sources differ in `discovery_kubeconfig`: set the issuer's `kubeconfig`"
    assert problem == f"kubeconfigs.issuers: s: {complaint}"
    file = tmp_path / "config.yaml"
    file.write_text(text % ", kubeconfig: /infrastructure")
    assert load({}, {}, file).kubeconfigs.issuers


FILES = """
sources:
  - name: milo
    kind: project
  - name: files
    kind: kubeconfig-directory
    settings: {path: /etc/clusters}
kubeconfigs:
  issuers:
    - name: milo
      type: token-file
      path: /token
      sources: [milo]
    - name: files
      type: kubeconfig-file
      sources: [files]
"""


def test_kubeconfig_directory_is_accepted_as_cluster_source(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(FILES)
    settings = load({}, {}, file)
    assert [source.kind for source in settings.sources] == ["project", "kubeconfig-directory"]


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("    settings: {path: /etc/clusters}", "    settings: {}", "line 7 key sources[1].settings"),
        ("{path: /etc/clusters}", "{path: /etc/clusters, x: y}", "line 7 key sources[1].settings"),
        (
            "kind: kubeconfig-d",
            "label_selector: a=b\n    kind: kubeconfig-d",
            "line 5 key sources: files: label_selector",
        ),
        (
            "kind: kubeconfig-d",
            "credentials: milo\n    kind: kubeconfig-d",
            "line 5 key sources: files: credentials",
        ),
        (
            "sources: [milo]",
            "sources: [milo, files]",
            "line 10 key kubeconfigs.issuers: milo: files: files decide where",
        ),
        (
            "sources: [files]",
            "sources: [milo]",
            "line 14 key kubeconfigs.issuers: files: milo: an issuer of type kubeconfig-file serves only sources",
        ),
        (
            "sources: [files]",
            "sources: [none]",
            'line 14 key kubeconfigs.issuers: files: "none" is not',
        ),
    ],
)
def test_cluster_source_errors_have_line_number(tmp_path: Path, before: str, after: str, told: str) -> None:
    assert before in FILES
    file = tmp_path / "config.yaml"
    file.write_text(FILES.replace(before, after, 1))
    with pytest.raises(ConfigError) as raised:
        load({}, {}, file)
    assert any(told in str(problem) for problem in raised.value.problems), raised.value.problems


def test_kind_mode_rejects_api_server_settings(tmp_path: Path) -> None:
    assert load({"mode": "kind"}, {}, None).title == "kind"
    with pytest.raises(
        ConfigError, match="does not apply to sources of kind kind, which have no API server: remove this setting"
    ):
        load({"mode": "kind", "label_selector": "a=b"}, {}, None)
    file = tmp_path / "config.yaml"
    file.write_text("mode: kind\nkubeconfigs: {issuers: [{name: t, type: token-file, path: /t}]}")
    with pytest.raises(ConfigError, match="use an issuer of type kubeconfig-file"):
        load({}, {}, file)


RULE = """
rights:
  - {name: shop, who: everybody, clusters: {names: ["%s"]}}
"""


@pytest.mark.parametrize("name", ["milo#shop-1", "dns#shop-*", "milo#*", "*#*-prod", "m*#*"])
def test_rule_accepts_cluster_names_that_match_a_source(tmp_path: Path, name: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(TWO + RULE % name)
    (rule,) = load({}, {}, file).rights
    assert rule.clusters is not None
    assert rule.clusters.names == (name,)


@pytest.mark.parametrize("name", ["shop-1", "shop-*", "mlo#shop-1", "*-prod", "m*", "*", "shop-*#*"])
def test_rule_cluster_name_that_matches_no_source_is_rejected(tmp_path: Path, name: str) -> None:
    (problem,) = problems(tmp_path, TWO + RULE % name)
    assert problem == f'rights[0].clusters.names: "{name}" matches no cluster: it must begin with milo# or dns# or *#'


def test_rule_cluster_name_with_source_prefix_is_rejected_if_sources_have_no_names(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, RULE % "milo#shop-1")
    assert (
        problem
        == 'rights[0].clusters.names: "milo#shop-1" matches no cluster: names contain # only if sources have names'
    )
