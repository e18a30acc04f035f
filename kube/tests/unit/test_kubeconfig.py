"""The kubeconfig reader: what each policy accepts, and that errors quote no value."""

import base64
import json
import time
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milo_kube import act_as, kubeconfig
from milo_kube.act_as import ActAs
from milo_kube.kubeconfig import (
    LOCAL,
    MAX_BYTES,
    RECEIVED,
    SELF_CONTAINED,
    SERVER,
    STATED,
    KubeconfigError,
    Policy,
    merged,
    parse,
)
from tests.support.giant_keys import GiantPair

V1 = "client.authentication.k8s.io/v1"
CANARY = "canary-7c41e0"
PLUGIN = {"apiVersion": V1, "command": "login", "args": ["-x"], "env": [{"name": "A", "value": "b"}]}
EXACT = Policy(cluster=frozenset({"server"}), user=frozenset({"token"}), is_exact=True)


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def document(cluster: Any = None, user: Any = None, context: Any = None) -> dict[str, Any]:
    return {
        "current-context": "here",
        "clusters": [{"name": "c", "cluster": {"server": "https://a.test/x/", **(cluster or {})}}],
        "users": [{"name": "u", "user": {"token": "t"} if user is None else user}],
        "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u", **(context or {})}}],
    }


def content(**parts: Any) -> bytes:
    return json.dumps(document(**parts)).encode()


def refused(policy: Policy, body: bytes, context: str | None = None) -> str:
    with pytest.raises(KubeconfigError) as raised:
        parse(body).select(policy, context)
    assert CANARY not in str(raised.value)
    return str(raised.value)


def test_local_kubeconfig_accepts_files_proxy_and_exec_plugin() -> None:
    cluster = {"certificate-authority": "ca", "proxy-url": "http://p:1", "tls-server-name": "n", "extensions": [{}, 5]}
    user = {"tokenFile": "f", "token": "older", "client-certificate": "cert", "client-key": "key", "exec": PLUGIN}
    found = parse(content(cluster=cluster, user=user, context={"namespace": "ns"})).select(LOCAL)
    assert (found.cluster, found.namespace, found.server) == ("c", "ns", "https://a.test/x")
    assert (found.authorities_file, found.proxy_url, found.tls_server_name) == ("ca", "http://p:1", "n")
    assert (found.token, found.token_file, found.certificate_file, found.key_file) == ("", "f", "cert", "key")
    assert found.plugin is not None
    assert (found.plugin.command, found.plugin.args, found.plugin.env) == ("login", ("-x",), {"A": "b"})
    assert found.extensions == ({},)


@pytest.mark.parametrize("policy", [LOCAL, STATED, RECEIVED])
def test_inline_data_is_read_under_every_policy_that_allows_a_user(policy: Policy) -> None:
    cluster = {"certificate-authority-data": encoded("CA")}
    user = {"client-certificate-data": encoded("CERT"), "client-key-data": encoded("KEY"), "token": " t "}
    found = parse(content(cluster=cluster, user=user)).select(policy)
    assert (found.authorities, found.certificate, found.key, found.token) == (b"CA", b"CERT", b"KEY", "t")
    assert found.has_user
    assert CANARY not in repr(parse(content(user={"token": CANARY})).select(policy))


def test_server_policy_ignores_the_user_of_a_kubeconfig() -> None:
    found = parse(content(user={"exec": {"command": "rm"}, "as": "admin"})).select(SERVER)
    assert (found.server, found.has_user, found.plugin) == ("https://a.test/x", False, None)


def test_received_kubeconfig_may_have_no_cluster() -> None:
    body = json.dumps({**document(), "clusters": None}).encode()
    assert parse(body).select(RECEIVED).server == ""
    assert "has no cluster 'c'; it has: none" in refused(STATED, body)


@pytest.mark.parametrize(
    ("policy", "parts", "problem"),
    [
        (LOCAL, {"cluster": {"insecure-skip-tls-verify": True}}, "set certificate-authority-data"),
        (LOCAL, {"user": {"username": CANARY, "password": CANARY}}, "user has password, username: API servers"),
        (LOCAL, {"user": {"as": CANARY, "as-uid": CANARY}}, "impersonates another user"),
        (LOCAL, {"user": {"unheard-of": CANARY}}, "user has unheard-of: not supported"),
        (LOCAL, {"user": {"token": 5}}, "token with the wrong type: it must be a string"),
        (LOCAL, {"user": {"exec": "rm"}}, "exec with the wrong type: it must be a mapping"),
        (LOCAL, {"user": {"token": f"{CANARY} x"}}, "not a bearer token"),
        (LOCAL, {"user": {"client-key-data": "!"}}, "client-key-data that is not valid base64"),
        (LOCAL, {"user": {"client-key-data": encoded("x")}}, "only one of a client certificate and its key"),
        (LOCAL, {"user": {"client-key-data": encoded("x"), "client-certificate": "f"}}, "use data or files for both"),
        (LOCAL, {"user": {"exec": {**PLUGIN, "apiVersion": "v1"}}}, "whose apiVersion is not"),
        (LOCAL, {"user": {"exec": {**PLUGIN, "command": ""}}}, "without a command"),
        (LOCAL, {"user": {"exec": {**PLUGIN, "interactiveMode": "Always"}}}, "needs a terminal"),
        (LOCAL, {"user": {"exec": {**PLUGIN, "stdin": "x"}}}, "fields that are not supported"),
        (LOCAL, {"user": {"exec": {**PLUGIN, "args": [5]}}}, "not a list of"),
        (LOCAL, {"user": {"exec": {**PLUGIN, "env": {"A": "b"}}}}, "not a list of"),
        (LOCAL, {"user": {"exec": {**PLUGIN, "env": ["A"]}}}, "not a list of"),
        (LOCAL, {"cluster": {"proxy-url": f"socks5://{CANARY}@p"}}, "SOCKS is not supported"),
        (LOCAL, {"cluster": {"proxy-url": "http://p:port"}}, "proxy-url that is not"),
        (LOCAL, {"cluster": {"server": "https://a:port"}}, "is not a URL"),
        (LOCAL, {"cluster": {"server": "ftp://a"}}, "is not https://HOST"),
        (LOCAL, {"cluster": {"server": f"https://{CANARY}@a"}}, "has a user, a query or a fragment"),
        (LOCAL, {"cluster": {"server": "https://a/../b"}}, "an ambiguous path"),
        (LOCAL, {"cluster": {"server": "https://a/łódź"}}, "an ambiguous path"),
        *(
            (LOCAL, {"cluster": {"tls-server-name": name}}, 'cluster "c" has a tls-server-name that is not a hostname')
            for name in ("a..b", f"{'a' * 64}.b", "a\0", "a b")
        ),
        (LOCAL, {"context": {"namespace": 5}}, "namespace with the wrong type"),
        (STATED, {"user": {"tokenFile": "/etc/passwd"}}, "user has tokenFile: the cluster can have only"),
        (STATED, {"cluster": {"tls-server-name": "x"}}, 'cluster "c" has tls-server-name'),
        (EXACT, {"context": {"namespace": "n"}}, "fields that are not supported: ['namespace']"),
        (EXACT, {"user": {"token": f"{CANARY}\n"}}, "not a bearer token"),
    ],
)
def test_field_that_a_policy_forbids_is_rejected_without_quoting_its_value(
    policy: Policy, parts: dict[str, Any], problem: str
) -> None:
    assert problem in refused(policy, content(**parts))


@pytest.mark.parametrize("surrogate", [b"\\ud800", b"\xed\xa0\x80"], ids=["escaped", "encoded"])
def test_kubeconfig_with_an_unpaired_surrogate_is_refused(surrogate: bytes) -> None:
    body = content(cluster={"X": 1}).replace(b"X", surrogate)
    with pytest.raises(KubeconfigError, match="unpaired surrogate"):
        parse(body).select(LOCAL)
    assert parse(content(context={"namespace": "\U0001f600"})).select(LOCAL).namespace == "\U0001f600"


def test_problems_of_cluster_and_user_are_reported_together() -> None:
    with pytest.raises(KubeconfigError) as raised:
        parse(content(cluster={"server": "milo"}, user={"username": "u", "exec": {"command": "x"}})).select(LOCAL)
    assert len(raised.value.problems) == 3


def test_exact_policy_refuses_a_second_cluster() -> None:
    twice = document()
    twice["clusters"] *= 2
    assert "does not have exactly one cluster" in refused(EXACT, json.dumps(twice).encode())
    assert parse(content()).select(EXACT).token == "t"


def test_context_is_selected_by_name() -> None:
    both = document()
    both["contexts"].append({"name": "bare", "context": {"cluster": "c"}})
    kubeconfig = parse(json.dumps(both).encode())
    assert kubeconfig.contexts == ["here", "bare"]
    assert not kubeconfig.select(LOCAL, "bare").has_user
    assert "has no context 'other'; it has: here, bare" in refused(LOCAL, json.dumps(both).encode(), "other")


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"", "it is empty or not a mapping"),
        (b"[]", "it is empty or not a mapping"),
        (b"{}", "has no current-context"),
        (b'{"current-context": 5}', "has no current-context"),
        (b'{"contexts": {}}', "contexts must be a list"),
        (b'{"contexts": [5]}', "a list of objects with a name and a context"),
        (b'{"contexts": [{"context": {}}]}', "a list of objects with a name and a context"),
        (b'{"a": 1, "a": 2}', "has a duplicate key"),
        (b"a: 1\na: 2", 'line 2: has the key "a" twice'),
        (b" " * (MAX_BYTES + 1), "bytes long"),
        (b"[" * 100_000, "brackets"),
    ],
)
def test_content_that_is_not_a_kubeconfig_is_refused(body: bytes, problem: str) -> None:
    assert problem in refused(LOCAL, body)


def test_yaml_is_refused_where_only_json_is_expected() -> None:
    with pytest.raises(KubeconfigError, match="is not JSON"):
        parse(b"a: 1", yaml=False)


WORDS = (
    *("current-context", "contexts", "clusters", "users", "name", "context", "cluster", "user", "server", "token"),
    *("exec", "command", "args", "env", "apiVersion", "tokenFile", "proxy-url", "certificate-authority-data"),
)
DOCUMENTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from(["https://a", "here", "c", "u"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=6),
    max_leaves=30,
)


@pytest.mark.parametrize(
    ("policy", "most"), [(LOCAL, 8_192), (STATED, 4_096), (RECEIVED, 4_096), (SELF_CONTAINED, 4_096)]
)
def test_size_of_rsa_keys_is_limited(policy: Policy, most: int) -> None:
    fits, large = GiantPair(most), GiantPair(most + 1)
    assert parse(content(user=user_with(fits))).select(policy).key == fits.key
    said = refused(policy, content(user=user_with(large)))
    assert said.count(f"that has an RSA key with numbers of {most + 1} bits: accepted are") == 2
    authorities = {"certificate-authority-data": base64.b64encode(large.certificate).decode()}
    if policy.is_own:
        assert parse(content(cluster=authorities)).select(policy).authorities == large.certificate
    else:
        assert "certificate-authority-data that has an RSA key" in refused(policy, content(cluster=authorities))


def user_with(pair: GiantPair) -> dict[str, str]:
    pems = {"client-certificate-data": pair.certificate, "client-key-data": pair.key}
    return {name: base64.b64encode(pem).decode() for name, pem in pems.items()}


def test_line_breaks_in_base64_are_ignored_as_in_kubectl() -> None:
    found = parse(content(cluster={"certificate-authority-data": "UE\r\nVN\n"})).select(LOCAL)
    assert found.authorities == b"PEM"
    for wrong in ("UE VN", "UE\tVN"):
        assert "not valid base64" in refused(LOCAL, content(cluster={"certificate-authority-data": wrong}))


FIELDS = [
    *(("cluster", name) for name in ("server", "certificate-authority-data", "tls-server-name", "proxy-url")),
    *(("user", name) for name in ("token", "client-certificate-data", "client-key-data", "tokenFile", "as")),
    *(("context", name) for name in ("cluster", "user", "namespace")),
]


@given(st.sampled_from(FIELDS), st.text(st.characters(min_codepoint=0x80), min_size=1, max_size=5), st.text(max_size=9))
def test_text_that_is_not_ascii_in_any_field_raises_only_kubeconfig_errors(
    field: tuple[str, str], odd: str, more: str
) -> None:
    part, name = field
    parts: dict[str, Any] = {part: {name: odd + more}}
    if part == "user" and name.startswith("client-"):
        other = "client-key-data" if name == "client-certificate-data" else "client-certificate-data"
        parts["user"][other] = encoded("x")
    for body in (content(**parts), json.dumps(document(**parts), ensure_ascii=False).encode("utf-8", "surrogatepass")):
        for policy in (LOCAL, STATED, RECEIVED, SELF_CONTAINED, SERVER, EXACT):
            with suppress(KubeconfigError):
                parse(body).select(policy)
    if name.endswith("-data") and part == "user":
        assert "not valid base64" in refused(LOCAL, content(**parts))


@given(DOCUMENTS, DOCUMENTS, DOCUMENTS)
def test_kubeconfig_parser_raises_only_kubeconfig_errors_for_any_document(cluster: Any, user: Any, whole: Any) -> None:
    parts = {"clusters": [{"name": "c", "cluster": cluster}], "users": [{"name": "u", "user": user}]}
    for body in (whole, {**document(), **parts}):
        for policy in (LOCAL, STATED, RECEIVED, SERVER, EXACT):
            with suppress(KubeconfigError):
                parse(json.dumps(body).encode()).select(policy)


def test_merged_kubeconfig_uses_first_entry_of_a_name_and_resolves_paths_against_its_file() -> None:
    plugin = {"apiVersion": V1, "command": "bin/login"}
    first = document(user={"tokenFile": "token", "exec": plugin})
    second = {**document(cluster={"server": "https://later.test"}), "current-context": "there"}
    second["clusters"].append({"name": "d", "cluster": {"server": "https://d.test", "certificate-authority": "/ca"}})
    second["users"].append({"name": "v", "user": {"exec": {**plugin, "command": "login"}}})
    second["contexts"].append({"name": "there", "context": {"cluster": "d", "user": "v"}})
    nameless = {**first, "current-context": ""}
    found = merged([("/a", parse(json.dumps(nameless).encode())), ("/b", parse(json.dumps(second).encode()))])
    assert (found.contexts, found.current_context) == (["here", "there"], "there")
    here, there = found.select(LOCAL, "here"), found.select(LOCAL)
    assert (here.server, here.token_file, there.server, there.authorities_file) == (
        *("https://a.test/x", "/a/token"),
        *("https://d.test", "/ca"),
    )
    assert here.plugin is not None
    assert there.plugin is not None
    assert (here.plugin.command, there.plugin.command) == ("/a/bin/login", "login")
    assert merged([]).current_context == ""


def test_policy_with_impersonation_accepts_a_user_and_refuses_groups_without_a_user() -> None:
    acting = Policy(cluster=frozenset({"server"}), user=frozenset({"token"}) | act_as.FIELDS)
    found = parse(content(user={"token": "t", "as": "ann"})).select(acting)
    assert found.act_as == ActAs(user="ann")
    assert "user has 'as-groups' or 'as-user-extra' without 'as'" in refused(acting, content(user={"as-groups": ["a"]}))


COSTLY = {
    "a list": b"a: [" + b"a," * 30_000 + b"]",
    "nested": b"- " * 32_000,
    "keys": b"".join(b"k%d: v\n" % number for number in range(6_000)),
    "aliases": b"a: &a [x, x]\nb: [" + b"*a," * 20_000 + b"]",
    "lines": b"a: |\n" + b"  x\n" * 16_000,
    "tags": b"- !x y\n" * 8_000,
    "a number to the base of 60": b"a: 1" + b":1" * 32_000,
}


@pytest.mark.parametrize("content", COSTLY.values(), ids=COSTLY)
def test_received_kubeconfig_with_costly_content_is_parsed_quickly(content: bytes) -> None:
    assert len(content) <= kubeconfig.RECEIVED_BYTES
    began = time.process_time()
    with suppress(KubeconfigError):
        kubeconfig.parse_received(content)
    assert time.process_time() - began < 0.1


def test_received_kubeconfig_that_is_too_long_is_not_parsed() -> None:
    with pytest.raises(KubeconfigError, match="is 65537 bytes long; at most 65536 are read"):
        kubeconfig.parse_received(b" " * 65_537)


def test_parse_error_of_received_kubeconfig_is_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubeconfig, "_REFUSED", {})
    monkeypatch.setattr(kubeconfig, "_MOST_REFUSED", 2)
    for content, problem in ((b"1", "not a mapping"), (b"[", "is not YAML"), (b"2", "not a mapping")) * 2:
        with pytest.raises(KubeconfigError, match=problem):
            kubeconfig.parse_received(content)
    monkeypatch.setattr(kubeconfig, "parse", None)
    with pytest.raises(KubeconfigError, match="not a mapping"):
        kubeconfig.parse_received(b"2")


def test_contexts_of_received_kubeconfig_are_returned_as_entries() -> None:
    content = b"{contexts: [{name: a, context: {cluster: b}}]}"
    assert kubeconfig.parse_received(content).entries("contexts") == [("a", {"cluster": "b"})]


@pytest.mark.parametrize("server", ["https://a.test\n", "https://a.t\rest", "\x01https://a.test", " https://a.test"])
def test_server_with_spaces_or_control_characters_is_refused(server: str) -> None:
    assert kubeconfig.server_problem(server) == "has a space or a control character"


@pytest.mark.parametrize("policy", [LOCAL, kubeconfig.RECEIVED, kubeconfig.SELF_CONTAINED])
def test_urls_and_names_whose_normalization_takes_seconds_are_refused_at_once(policy: Policy) -> None:
    slow = "a" + "\N{COMBINING CEDILLA}\N{COMBINING ACUTE ACCENT}" * 10_000
    began = time.process_time()
    for field, problem in (
        ("server", "a server that is longer than 1024 characters"),
        ("tls-server-name", "a tls-server-name that is not a hostname"),
        *([("proxy-url", "a proxy-url that is not")] if "proxy-url" in policy.cluster else []),
    ):
        value = slow if field == "tls-server-name" else f"https://{slow}"
        cluster = {"server": "https://a.test", field: value}
        document = kubeconfig.render("c", server="", authorities=None, tls_server_name=None, user={"token": "x"})
        parsed = kubeconfig.parse(json.dumps({**document, "clusters": [{"name": "c", "cluster": cluster}]}).encode())
        with pytest.raises(KubeconfigError, match=problem):
            parsed.select(policy)
    assert time.process_time() - began < 0.5


def test_rendered_kubeconfig_has_bytes_in_base64_and_no_field_without_value() -> None:
    user = {"token": "secret", "client-key-data": None}
    document = kubeconfig.render("c", server="https://api", authorities=b"PEM", tls_server_name=None, user=user)
    assert document["clusters"] == [
        {"name": "c", "cluster": {"server": "https://api", "certificate-authority-data": "UEVN"}}
    ]
    assert document["users"] == [{"name": "c", "user": {"token": "secret"}}]
    found = kubeconfig.parse(json.dumps(document).encode()).select(kubeconfig.SELF_CONTAINED)
    assert (found.server, found.authorities, found.token) == ("https://api", b"PEM", "secret")


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(f"? {'k' * 30_000}\n: 1\n? {'k' * 30_000}\n: 2\n", id="a long key, twice"),
        pytest.param(
            json.dumps(
                {
                    "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a"}}],
                    "clusters": [{"name": "a", "cluster": {"server": "https://a"}}],
                    "users": [{"name": "a", "user": {f"{number:050}": "x" for number in range(900)}}],
                }
            ),
            id="many fields",
        ),
    ],
)
def test_problem_of_a_received_kubeconfig_is_short(content: str) -> None:
    """Problems are kept, logged and sent to callers."""
    with pytest.raises(KubeconfigError) as refused:
        kubeconfig.parse_received(content.encode()).select(kubeconfig.RECEIVED, "a")
    assert len(str(refused.value)) < 500
