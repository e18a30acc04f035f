"""What is handed out."""

from milo_discoveryd.kubeconfigs.handed import Kubeconfig, SourceHealth


def test_a_kubeconfig_does_not_show_its_text() -> None:
    assert "SECRET" not in repr(Kubeconfig(cluster="alpha", text=b"SECRET", issued_at=0))


def test_where_it_came_from_is_a_value() -> None:
    assert SourceHealth("a", "exec", "", None, 0) == SourceHealth("a", "exec", "", None, 0)
