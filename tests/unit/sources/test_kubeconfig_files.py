"""Clusters in kubeconfig files: decoding, and validation of untrusted content."""

import base64
from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from milo_discoveryd.model.cluster import FileTarget, Target
from milo_discoveryd.model.contributions import ObjectContribution
from milo_discoveryd.model.observation import Ready
from milo_discoveryd.schema.fields import parse_group
from milo_discoveryd.sources.kind import KINDS, FileObject, Files, IssuerTraits, SourceOptions
from milo_discoveryd.sources.kubeconfig_files import cluster_name
from milo_discoveryd.sources.reading import MalformedError
from tests.support.certificates import ANOTHER_CA, CA


def encoded(pem: str) -> str:
    return base64.b64encode(pem.encode()).decode()


def document(*names: str, user: Any = None, **cluster: Any) -> dict[str, Any]:
    entry = {"server": "https://127.0.0.1:6443", "certificate-authority-data": encoded(CA), **cluster}
    return {
        "current-context": names[0] if names else "",
        "clusters": [{"name": name, "cluster": entry} for name in names],
        "contexts": [{"name": name, "context": {"cluster": name, "user": "u"}} for name in names],
        "users": [{"name": "u", "user": {"token": "CANARY"} if user is None else user}],
    }


def content(*names: str, **parts: Any) -> bytes:
    return yaml.safe_dump(document(*names, **parts)).encode()


def files_of(kind: str, **settings: Any) -> Files:
    found = parse_group(KINDS.load(kind), settings).follow(SourceOptions())
    assert isinstance(found, Files)
    return found


DIRECTORY = files_of("kubeconfig-directory", path="/clusters")
KIND = files_of("kind")


def one(file: str, body: bytes) -> FileObject:
    (found,) = DIRECTORY.read_file(file, body)
    return found


def target(found: FileObject) -> Target:
    (contribution,) = found.contributions
    assert isinstance(contribution.content, Ready)
    return contribution.content.target


def test_kubeconfig_file_becomes_a_cluster_named_after_the_file() -> None:
    found = one("alpha.yaml", content("any"))
    assert target(found) == FileTarget(
        name="alpha",
        uid=found.uid,
        place=("https://127.0.0.1:6443",),
        object_namespace="",
        object_name="alpha.yaml",
        authorities=CA.encode(),
    )
    assert DIRECTORY.context_of(found.key) == ("alpha.yaml", "")


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("a.kubeconfig", "a"),
        ("a.b.yml", "a.b"),
        ("a.conf", "a"),
        ("a.json", "a"),
        ("a", "a"),
        ("a.example", "a.example"),
    ],
)
def test_cluster_name_omits_kubeconfig_file_extension(file: str, name: str) -> None:
    assert cluster_name(file) == name


def test_uid_of_kubeconfig_file_cluster_depends_on_server_and_ca_not_on_credential() -> None:
    uid = one("alpha", content("any")).uid
    assert one("alpha.yaml", content("other", user={"token": "renewed"})).uid == uid
    assert one("alpha", content("any", server="https://127.0.0.1:6444")).uid != uid
    assert one("alpha", content("any", **{"certificate-authority-data": encoded(ANOTHER_CA)})).uid != uid
    assert one("beta", content("any")).uid != uid


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"user": {"exec": {"command": "rm"}}}, "user has exec: the cluster can have only"),
        ({"user": {"auth-provider": {"name": "x"}}}, "auth-provider: Kubernetes removed auth providers"),
        ({"user": {"tokenFile": "/var/run/secrets/token"}}, "user has tokenFile: the cluster can have only"),
        (
            {"user": {"client-certificate": "/c", "client-key": "/k"}},
            "user has client-certificate, client-key: the cluster can have only",
        ),
        ({"user": {"username": "admin", "password": "CANARY"}}, "user has password, username"),
        ({"user": {"token": "CANARY", "as": "system:admin"}}, "impersonates another user"),
        ({"certificate-authority": "/ca", "certificate-authority-data": ""}, "certificate-authority"),
        ({"insecure-skip-tls-verify": True}, "insecure-skip-tls-verify"),
        ({"tls-server-name": "x"}, "tls-server-name"),
        ({"proxy-url": "http://proxy"}, "proxy-url"),
        ({"server": "http://127.0.0.1"}, "is not of the form https://HOST"),
        ({"server": "https://user@host"}, "has a user"),
        ({"certificate-authority-data": "!"}, "is not valid base64"),
        ({"certificate-authority-data": encoded("x")}, "does not contain CA certificates"),
        ({"certificate-authority-data": 5}, "wrong type"),
    ],
)
def test_kubeconfig_with_unsupported_or_invalid_content_is_rejected(change: dict[str, Any], problem: str) -> None:
    found = one("alpha", content("any", **change))
    assert problem in found.problem
    assert not found.contributions
    assert "CANARY" not in found.problem


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"a: [", b"\xff", b"!!python/object:os.system {}", b"a: &a [*a]", content(), b"current-context: x"],
)
def test_file_content_that_is_not_a_kubeconfig_is_rejected(body: bytes) -> None:
    assert one("alpha", body).problem


@pytest.mark.parametrize("file", ["Alpha", "a b", "..", "x" * 300])
def test_file_whose_name_is_not_a_dns_name_is_refused(file: str) -> None:
    assert "the name of the cluster" in one(file, content("any")).problem


@given(st.binary(max_size=200))
def test_kubeconfig_file_parser_does_not_raise_for_any_bytes(body: bytes) -> None:
    assert one("alpha", body).key == "alpha"


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda of: (
            st.lists(of)
            | st.dictionaries(
                st.sampled_from(
                    ["clusters", "contexts", "users", "name", "cluster", "context", "user", "server", "exec"]
                ),
                of,
            )
        ),
    )
)
def test_kubeconfig_file_parser_reports_a_problem_for_any_invalid_value_of_the_clusters_field(value: Any) -> None:
    body = msgspec.json.encode({**document("any"), "clusters": value})
    assert one("alpha", body).problem


@given(st.integers(min_value=0, max_value=len(content("any"))))
def test_truncated_kubeconfig_file_is_rejected_or_gives_the_same_cluster(length: int) -> None:
    whole = one("alpha", content("any"))
    cut = one("alpha", content("any")[:length])
    assert cut.problem or target(cut).endpoint == target(whole).endpoint or not target(cut).endpoint


def test_kind_mode_reads_a_cluster_from_each_kind_context() -> None:
    found = list(KIND.read_file("config", content("production", "kind-alpha", "kind-beta", "kind-Bad")))
    assert [cluster.key for cluster in found] == ["kind-alpha", "kind-beta", "kind-Bad"]
    assert [target(cluster).name for cluster in found if not cluster.problem] == ["alpha", "beta"]
    assert KIND.context_of("kind-alpha") == ("", "kind-alpha")
    assert KIND.path == "~/.kube/config"


def test_invalid_kind_context_does_not_affect_other_contexts() -> None:
    config = document("kind-alpha", "kind-beta")
    config["clusters"][1]["cluster"] = {"server": "http://plain"}
    alpha, beta = KIND.read_file("config", yaml.safe_dump(config).encode())
    assert not alpha.problem
    assert "https" in beta.problem


def test_kind_mode_ignores_users_of_other_contexts() -> None:
    config = document("kind-alpha")
    config["users"].append({"name": "cloud", "user": {"exec": {"command": "login"}}})
    (alpha,) = KIND.read_file("config", yaml.safe_dump(config).encode())
    assert not alpha.problem


@pytest.mark.parametrize("body", [b"", b"clusters: [", b"contexts: 5"])
def test_unreadable_kubeconfig_of_kind_mode_is_malformed(body: bytes) -> None:
    with pytest.raises(MalformedError):
        list(KIND.read_file("config", body))


@pytest.mark.parametrize("mode", [DIRECTORY, KIND])
def test_cluster_in_two_kubeconfig_files_is_read_from_the_earlier_file(mode: Files) -> None:
    contents = [Ready(uid, "", Target(name="a", uid=uid, place=("https://a",))) for uid in ("1", "2")]
    contributions = [
        ObjectContribution(0, f"file-{order}", str(order), "", order, each) for order, each in enumerate(contents)
    ]
    assert mode.reduce("a", contributions, "") == contents[0]
    assert mode.reduce("a", (), "") is None


@pytest.mark.parametrize("mode", [DIRECTORY, KIND])
def test_restored_kubeconfig_file_cluster_with_unsafe_name_or_endpoint_is_malformed(mode: Files) -> None:
    stored = Target(name="alpha", uid="1", place=("https://a.example/x/",))
    assert mode.restored_place(stored) == ("https://a.example/x",)
    for unsafe in (msgspec.structs.replace(stored, name="../x"), msgspec.structs.replace(stored, place=("http://a",))):
        with pytest.raises(MalformedError):
            mode.restored_place(unsafe)


@pytest.mark.parametrize(
    ("kind", "settings"), [("kubeconfig-directory", {}), ("kind", {"path": ""}), ("kind", {"x": 1})]
)
def test_kubeconfig_file_mode_settings_are_validated(kind: str, settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"is missing|must not be empty|is not a setting"):
        files_of(kind, **settings)


def test_kind_mode_reads_a_file_and_kubeconfig_directory_mode_a_directory() -> None:
    assert DIRECTORY.is_directory
    assert not KIND.is_directory


def test_kind_mode_accepts_only_issuers_of_type_kubeconfig_file() -> None:
    kind = parse_group(KINDS.load("kind"), {})
    assert kind.refusal(IssuerTraits("kubeconfig-file", is_of_cluster=True)) == ""
    assert "use an issuer of type kubeconfig-file" in kind.refusal(
        IssuerTraits("kubeconfig-secret", is_of_cluster=True)
    )


def test_file_of_a_directory_has_few_yaml_nodes() -> None:
    """Found by an attacker: fifty files of 70,000 nodes that changed all the time delayed another by 73 s."""
    assert one("alpha", content(*(f"c{number}" for number in range(200)))).problem == ""
    wide = content("alpha") + b"extensions: {" + b", ".join(b"k%d: 1" % number for number in range(5_000)) + b"}\n"
    assert "too large" in one("alpha", wide).problem
