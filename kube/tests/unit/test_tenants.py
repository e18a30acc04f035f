"""The tenants of clusters."""

from milo_kube.tenants import tenant_of


class Cluster:
    def __init__(self, name: str, organization: str = "", source: str = "") -> None:
        self.name = name
        self.organization = organization
        self.source = source


def test_tenant_is_the_organization_in_its_source_or_else_the_cluster() -> None:
    clusters = [Cluster("a", "acme"), Cluster("b", "acme"), Cluster("s#a", "acme", "s"), Cluster("acme"), Cluster("b")]
    assert [tenant_of(cluster) for cluster in clusters] == [
        *(("", "acme"), ("", "acme"), ("s", "acme")),
        *(("", "", "acme"), ("", "", "b")),
    ]
