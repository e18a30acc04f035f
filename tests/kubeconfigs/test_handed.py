"""What is handed out."""

from milo_discoveryd.kubeconfigs.handed import Caller, Kubeconfig, SourceHealth


def test_a_kubeconfig_does_not_show_its_text() -> None:
    assert "SECRET" not in repr(Kubeconfig(cluster="alpha", text=b"SECRET", issued_at=0))


def test_who_is_handed_something_and_where_it_came_from_are_values() -> None:
    assert Caller("unix:", "unix:///d.sock") == Caller("unix:", "unix:///d.sock")
    assert SourceHealth("a", "exec", "", None, 0) == SourceHealth("a", "exec", "", None, 0)
