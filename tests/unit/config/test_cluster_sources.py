"""The setting `sources`: several sources of clusters."""

from pathlib import Path

import pytest

from milo_discoveryd.config import load
from milo_discoveryd.daemon_errors import ConfigError

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


def problems(folder: Path, text: str) -> list[str]:
    file = folder / "config.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as raised:
        load({}, {}, file)
    return [str(problem).partition("key ")[2] for problem in raised.value.problems]


def test_settings_are_those_of_each_source(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(TWO)
    settings = load({}, {}, file)
    milo, dns = settings.by_source.values()
    assert list(settings.by_source) == ["milo", "dns"]
    assert (milo.mode, milo.label_selector, milo.project_kubeconfig) == ("project", "env=prod", Path("/project"))
    assert (dns.mode, dns.label_selector, dns.discovery_kubeconfig) == ("service-consumer", "", Path("/provider"))
    assert settings.title == "sources"


def test_sources_are_configured_beside_the_empty_flags_of_the_sidecar(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(f"listen: [unix:///run/other/discovery.sock]{TWO}")
    kubeconfigs: dict[str, object] = dict.fromkeys(("discovery_kubeconfig", "project_kubeconfig"), "")
    settings = load({"mode": "", "label_selector": "", "listen": ("",), **kubeconfigs}, {}, file)
    assert list(settings.by_source) == ["milo", "dns"]
    assert [str(each.address) for each in settings.listen] == ["unix:///run/other/discovery.sock"]


def test_single_source_has_no_name() -> None:
    settings = load({"mode": "single"}, {}, None)
    assert settings.by_source == {"": settings}
    assert settings.title == "single"


def test_one_source_in_the_list_has_no_name(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("sources: [{name: milo, kind: single}]")
    assert {name: of.mode for name, of in load({}, {}, file).by_source.items()} == {"": "single"}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (f"mode: project{TWO}", "mode: is a setting of the one source; set it in the items of sources"),
        ("sources: [{name: a, kind: project}, {name: a, kind: single}]", "sources: "),
        ("sources: [{name: a, kind: nonsense}]", 'sources: item 1.kind: "nonsense" must be one of'),
        ("sources: [{name: a, kind: project, settings: {x: y}}]", "sources: item 1.settings: kind project has no"),
        ("sources: [{name: a, kind: project, settings: no}]", "sources: item 1.settings: "),
        ("sources: [{name: a, kind: service-consumer}]", "sources: item 1.settings: Object missing required field"),
        ("mode: service-consumer", 'mode: "service-consumer" needs settings; set it as the kind of one of sources'),
        ("sources: [{name: a, kind: project, credentials: none}]", 'sources: "none" is not the name of one of'),
    ],
)
def test_faulty_sources_are_reported(tmp_path: Path, text: str, told: str) -> None:
    (problem,) = problems(tmp_path, text)
    assert problem.startswith(told)


KUBECONFIGS = """
kubeconfigs:
  sources: [{name: t, type: token-file, path: /t%s}]
"""


def test_credentials_name_the_sources_whose_clusters_they_serve(tmp_path: Path) -> None:
    complaint = "kubeconfigs.sources: t: set cluster_sources, because there are several sources"
    assert problems(tmp_path, TWO + KUBECONFIGS % "") == [complaint]
    (problem,) = problems(tmp_path, TWO + KUBECONFIGS % ", cluster_sources: [mlo]")
    assert problem == 'kubeconfigs.sources: t: "mlo" is not one of sources; configured: milo, dns'


def test_kubeconfig_of_several_sources_is_refused(tmp_path: Path) -> None:
    source = "{name: p, type: project-kubeconfig, share_discovery_identity: true, cluster_sources: [milo, dns]}"
    (problem,) = problems(tmp_path, f"{TWO}\nkubeconfigs: {{sources: [{source}]}}")
    assert problem == "kubeconfigs.sources: p: a project-kubeconfig is of one source; name one in cluster_sources"
