"""Precedence of flags, environment and file, and messages about invalid settings."""

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

import pytest

from milo_discoveryd.config import ListenerSettings, Settings, UnixAddress, load
from milo_discoveryd.daemon_errors import ConfigError
from milo_discoveryd.schema.values import InsecureAddress
from milo_discoveryd.sources.single import SingleKind


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config.yaml"


def problems(
    flags: Mapping[str, object] | None = None, environ: Mapping[str, str] | None = None, file: Path | None = None
) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as raised:
        load(flags or {}, environ or {}, file)
    return raised.value.problems


def test_defaults_apply_without_settings() -> None:
    settings = load({}, {}, None)
    assert settings == Settings()
    assert settings.title == "project"
    assert settings.listen == (ListenerSettings(address=UnixAddress(Path("/run/milo-discovery/discovery.sock"))),)
    assert settings.heartbeat_interval == timedelta(seconds=30)
    assert settings.stalled_timeout == timedelta(minutes=5)
    assert settings.watch.silence_limit == timedelta(seconds=90)


def test_settings_precedence_is_flag_then_environment_then_file_then_default(file: Path) -> None:
    file.write_text("mode: single\nlabel_selector: from=file\nsocket: {group: '0', mode: 0600}\nnot_ready_grace: 5s\n")
    environ = {"MILO_DISCOVERYD_LABEL_SELECTOR": "from=environment", "MILO_DISCOVERYD_SOCKET__GROUP": "1"}
    settings = load({"label_selector": "from=flag"}, environ, file)
    assert settings.title == "single"
    assert settings.sources[0].label_selector == "from=flag"
    assert settings.socket.group == "1"
    assert settings.socket.mode == 0o600
    assert settings.not_ready_grace == timedelta(seconds=5)
    assert settings.tombstones == Settings().tombstones


def test_config_flag_takes_precedence_over_config_environment_variable(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text("mode: single\n")
    file.write_text("mode: project-control-plane\n")
    assert load({}, {"MILO_DISCOVERYD_CONFIG": str(other)}, None).title == "single"
    assert load({}, {"MILO_DISCOVERYD_CONFIG": str(other)}, file).title == "project-control-plane"


def test_unset_flags_and_empty_environment_variables_are_ignored() -> None:
    flags = {"mode": None, "listen": (), "label_selector": None}
    assert load(flags, {"MILO_DISCOVERYD_MODE": ""}, None) == Settings()


def test_empty_flags_do_not_override_settings_file(file: Path) -> None:
    file.write_text("label_selector: a=b\ndiscovery_kubeconfig: /etc/kubeconfig\n")
    settings = load({"mode": "", "label_selector": "", "discovery_kubeconfig": ""}, {}, file)
    assert settings.sources[0].label_selector == "a=b"
    assert settings.sources[0].discovery_kubeconfig == Path("/etc/kubeconfig")


def test_settings_file_without_values_keeps_the_defaults(file: Path) -> None:
    file.write_text("# nothing yet\n")
    assert load({}, {}, file) == Settings()
    file.write_text("mode:\nsocket:\n")
    assert load({}, {}, file) == Settings()


def test_unquoted_strings_in_settings_file_are_not_converted_to_booleans_or_numbers(file: Path) -> None:
    file.write_text("mode: single\nsettings:\n  name: no\n  labels: {on: yes, version: 1.10}\n")
    settings = load({}, {}, file)
    assert settings.sources[0].settings == SingleKind(name="no", labels={"on": "yes", "version": "1.10"})


def test_lists_and_mappings_in_environment_variables_are_comma_separated() -> None:
    settings = load(
        {},
        {
            "MILO_DISCOVERYD_LISTEN": "unix:///run/a.sock, insecure://127.0.0.1:8080",
            "MILO_DISCOVERYD_SETTINGS": "name=a,organization=b",
            "MILO_DISCOVERYD_MODE": "single",
            "MILO_DISCOVERYD_ANNOTATION_PREFIXES": "example.com/,kubernetes.io/display-name",
        },
        None,
    )
    assert [listener.address for listener in settings.listen] == [
        UnixAddress(Path("/run/a.sock")),
        InsecureAddress("127.0.0.1", 8080),
    ]
    assert settings.sources[0].settings == SingleKind(name="a", organization="b")
    assert settings.annotation_prefixes == ("example.com/", "kubernetes.io/display-name")


@pytest.mark.parametrize("around", ["", "discovery:\n"])
@pytest.mark.parametrize(("said", "mode"), [("true", "project-control-plane"), ("false", "project")])
def test_legacy_operator_setting_names_are_accepted(file: Path, around: str, said: str, mode: str) -> None:
    indent = "  " if around else ""
    file.write_text(
        f"{around}{indent}internalServiceDiscovery: {said}\n"
        f"{indent}discoveryKubeconfigPath: /etc/discovery\n{indent}projectKubeconfigPath: ''\n"
    )
    settings = load({}, {}, file)
    assert settings.title == mode
    assert settings.sources[0].discovery_kubeconfig == Path("/etc/discovery")
    assert settings.sources[0].project_kubeconfig is None


def test_setting_under_both_its_legacy_and_its_current_name_is_rejected(file: Path) -> None:
    file.write_text("mode: project\ninternalServiceDiscovery: true\n")
    assert problems(file=file) == (
        f"file {file} line 2 key internalServiceDiscovery: sets the same setting as file {file} line 1 key mode; "
        "remove one",
    )


def test_legacy_internal_service_discovery_setting_must_be_boolean(file: Path) -> None:
    file.write_text("discovery:\n  internalServiceDiscovery: maybe\n")
    assert problems(file=file) == (
        f'file {file} line 2 key discovery.internalServiceDiscovery: "maybe" must be true or false',
    )


def test_flag_overrides_setting_under_legacy_name(file: Path) -> None:
    file.write_text("internalServiceDiscovery: true\n")
    assert load({"mode": "single"}, {}, file).title == "single"


def test_all_invalid_settings_are_reported_at_once_with_their_location(file: Path) -> None:
    file.write_text("tombstones:\n  count: many\nwatch:\n  page_size: 0\nhearbeat_interval: 5s\n")
    found = problems(
        {"mode": "projct", "http_listen": "9464"},
        {"MILO_DISCOVERYD_LOG__LEVEL": "loud", "MILO_DISCOVERYD_LABLE_SELECTOR": "a"},
        file,
    )
    assert sorted(found) == [
        "environment MILO_DISCOVERYD_LABLE_SELECTOR: is not a setting; did you mean MILO_DISCOVERYD_LABEL_SELECTOR?",
        'environment MILO_DISCOVERYD_LOG__LEVEL: "loud" must be one of debug, info, warning, error',
        f'file {file} line 2 key tombstones.count: "many" must be a whole number from 0 to 1000000',
        f'file {file} line 4 key watch.page_size: "0" must be at least 1',
        f"file {file} line 5 key hearbeat_interval: is not a setting; did you mean heartbeat_interval?",
        'flag --http-listen: "9464" must be "off" or HOST:PORT, such as "127.0.0.1:9464" (an IPv6 address in brackets)',
        'flag --mode: "projct" must be one of declarative, kind, kubeconfig-directory, project, project-control-plane, '
        "service-consumer, single",
    ]


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("labelSelector: a=b", "label_selector"),
        ("label-selector: a=b", "label_selector"),
        ("socket: {gruop: x}", "group"),
        ("discovery: {mode: milo}", "internalServiceDiscovery"),
        ("zzz: 1", "valid names are "),
    ],
)
def test_error_for_unknown_key_suggests_nearest_key(file: Path, written: str, meant: str) -> None:
    file.write_text(written)
    (problem,) = problems(file=file)
    assert "is not a setting" in problem
    assert meant in problem


@pytest.mark.parametrize("written", ["tls: {certificate: a}", "owner: milo"])
def test_error_for_listener_setting_at_top_level_suggests_the_listen_setting(file: Path, written: str) -> None:
    file.write_text(written)
    name = written.partition(":")[0]
    assert problems(file=file) == (
        f"file {file} line 1 key {name}: belongs to a listener: write listen: [{{address: ADDRESS, {name}: ...}}]",
    )


def test_daemon_setting_in_variable_with_client_prefix_is_rejected() -> None:
    assert problems({}, {"MILO_DISCOVERY_LISTEN": "unix:///run/d.sock", "MILO_DISCOVERY_MODE": ""}) == (
        "environment MILO_DISCOVERY_LISTEN: is not a variable of the daemon: use MILO_DISCOVERYD_LISTEN",
    )


def test_environment_variables_of_clients_are_ignored() -> None:
    load({}, {"MILO_DISCOVERY_ADDRESS": "unix:///run/d.sock", "MILO_DISCOVERY_TOKEN_FILE": "/run/token"}, None)


def test_value_of_an_unknown_setting_is_not_printed(file: Path) -> None:
    file.write_text("token: hunter2\n")
    assert "hunter2" not in "".join(problems({}, {"MILO_DISCOVERYD_TOKEN": "hunter2"}, file))


def test_kubernetes_service_variables_are_ignored() -> None:
    environ = {
        "MILO_DISCOVERYD_SERVICE_HOST": "10.0.0.1",
        "MILO_DISCOVERYD_SERVICE_PORT_METRICS": "9464",
        "MILO_DISCOVERYD_PORT": "tcp://10.0.0.1:9464",
        "MILO_DISCOVERYD_PORT_9464_TCP_ADDR": "10.0.0.1",
        "MILO_DISCOVERYD_PORT_9464_TCP": "tcp://10.0.0.1:9464",
    }
    assert load({}, environ, None) == Settings()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("mode: project\nmode: single\n", 'line 2: has the key "mode" twice (first on line 1)'),
        ("mode: [project\n", "is not YAML"),
        ("- mode\n", "must be a mapping of settings to values"),
        ("socket: 0660\n", "line 1 key socket: must be a mapping of settings to values"),
        ("\xff", "is not UTF-8 text"),
    ],
)
def test_malformed_settings_file_is_rejected(file: Path, content: str, complaint: str) -> None:
    file.write_bytes(content.encode("latin-1"))
    (problem,) = problems(file=file)
    assert problem.startswith(f"file {file}")
    assert complaint in problem


def test_missing_settings_file_is_reported(file: Path) -> None:
    assert problems(file=file) == (f"file {file}: cannot be read: No such file or directory",)


def test_invalid_items_of_list_setting_are_each_reported() -> None:
    found = problems({"listen": ("unix:relative", "0.0.0.0:80", "insecure://127.0.0.1:80")})
    assert len(found) == 2
    assert found[0].startswith('flag --listen: "unix:relative" must be')
    assert found[1].startswith(
        'flag --listen: "0.0.0.0:80" is a TCP address without `tls`: use a Unix socket, or set certificate, key'
    )


def test_duplicate_or_missing_listener_addresses_are_rejected() -> None:
    assert "several listeners with the address unix:///a" in problems({"listen": ("unix:///a", "unix:///a")})[0]
    assert "at least one address" in problems({}, {"MILO_DISCOVERYD_LISTEN": ","}, None)[0]


def test_address_template_without_name_and_uid_is_rejected(file: Path) -> None:
    file.write_text(
        "mode: project-control-plane\nsettings: {address_template: '{namespace}.svc', namespace_template: milo}\n"
    )
    (problem,) = problems(file=file)
    assert "gives all projects the same address: use {name} or {uid}" in problem
    assert "line 2 key settings" in problem
    file.write_text("mode: project-control-plane\ninternal_address_template: milo.example.com\n")
    (problem,) = problems(file=file)
    assert "line 2 key internal_address_template" in problem
    file.write_text("mode: project-control-plane\nsettings: {namespace_template: 'milo-{uid}'}\n")
    assert load({}, {}, file).title == "project-control-plane"


def test_settings_are_immutable() -> None:
    with pytest.raises(AttributeError, match="immutable"):
        load({}, {}, None).mode = "single"  # type: ignore[misc]


def test_invalid_selector_is_reported_with_position() -> None:
    (problem,) = problems({"label_selector": "env in prod"})
    assert problem.startswith('flag --label-selector: "env in prod" must be a Kubernetes label selector: expected')


def test_long_invalid_value_is_truncated_in_error() -> None:
    (problem,) = problems({"mode": "x" * 1000})
    assert f'"{"x" * 77}..." must be one of' in problem


def test_unknown_flag_raises_key_error() -> None:
    with pytest.raises(KeyError):
        load({"no_such_flag": "x"}, {}, None)


@pytest.mark.parametrize(
    ("objects_mib", "sources", "response_mib"), [(1, 1, 1), (16, 1, 8), (160, 1, 32), (160, 3, 10)]
)
def test_response_may_have_a_part_of_the_memory_of_objects(objects_mib: int, sources: int, response_mib: int) -> None:
    settings = load({}, {"MILO_DISCOVERYD_WATCH__OBJECTS_LIMIT": f"{objects_mib}MiB"}, None)
    assert settings.watch.response_limit(sources) >> 20 == response_mib
