"""Subjects: every name is one token, and is read back as it was."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milo_objects.subjects import ClusterSubject, ObjectSubject, ScopeSubject, kind_filter, parse, source_of

# Kubernetes permits any character but "/" and "%" in some names, such as those of ClusterRoles.
NAMES = st.text(st.characters(exclude_characters="/%", exclude_categories=["Cs"]), min_size=1)
LABELS = st.from_regex(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", fullmatch=True)
GROUPS = st.sampled_from(["", "apps", "compute.datumapis.com", "rbac.authorization.k8s.io"])
CLUSTERS = st.one_of(LABELS, st.builds("{}#{}".format, LABELS, LABELS))
SCOPES = st.builds(ScopeSubject, CLUSTERS, GROUPS, LABELS)
OBJECTS = st.builds(ObjectSubject, SCOPES, st.one_of(st.sampled_from(["", "_"]), LABELS), NAMES)
TOKEN = re.compile(r"[A-Za-z0-9_:~%-]+")


@given(OBJECTS)
def test_subject_of_an_object_has_eight_tokens_and_is_read_back(subject: ObjectSubject) -> None:
    tokens = str(subject).split(".")
    assert len(tokens) == 8
    assert all(map(TOKEN.fullmatch, tokens))
    assert parse(str(subject)) == subject


def test_subject_encodes_every_character() -> None:
    for code in [*range(1, 0x180), 0x2028, 0xFFFD, 0x1F600]:
        subject = ObjectSubject(ScopeSubject("a", "", "clusterroles"), "", chr(code))
        assert parse(str(subject)) == subject
        assert TOKEN.fullmatch(str(subject).split(".")[-1])


@given(SCOPES)
def test_subject_of_a_scope_and_of_a_cluster_is_read_back(scope: ScopeSubject) -> None:
    assert parse(str(scope)) == scope
    assert parse(str(ClusterSubject(scope.cluster))) == ClusterSubject(scope.cluster)


def test_subjects_are_readable() -> None:
    scope = ScopeSubject("milo#web", "compute.datumapis.com", "workloads")
    assert str(ClusterSubject("milo#web")) == "milo.clusters.milo.web"
    assert str(scope) == "milo.objects.milo.web.compute_datumapis_com.workloads.state"
    assert str(ObjectSubject(scope, "default", "a.b")) == (
        "milo.objects.milo.web.compute_datumapis_com.workloads.default.a%2Eb"
    )
    assert str(ObjectSubject(ScopeSubject("web", "", "namespaces"), "", "kube-system")) == (
        "milo.objects._.web.core.namespaces._.kube-system"
    )


def test_filters_name_a_cluster_a_scope_or_a_kind() -> None:
    assert ClusterSubject("web").contents == "milo.objects._.web.>"
    assert ScopeSubject("web", "", "namespaces").objects == "milo.objects._.web.core.namespaces.*.*"
    assert kind_filter("apps", "deployments") == "milo.objects.*.*.apps.deployments.>"
    assert kind_filter("", "pods", "milo#web") == "milo.objects.milo.web.core.pods.>"


@pytest.mark.parametrize("subject", ["", "milo", "milo.clusters.a", "milo.objects.a.b.c.d", "milo.objects.a.b.c.d.e"])
def test_parse_refuses_other_subjects(subject: str) -> None:
    with pytest.raises(ValueError, match="is the subject of no cluster"):
        parse(subject)


@pytest.mark.parametrize(("cluster", "source"), [("web", ""), ("acme#web", "acme"), ("#web", "")])
def test_source_of_a_cluster_is_part_of_its_key(cluster: str, source: str) -> None:
    assert source_of(cluster) == source
