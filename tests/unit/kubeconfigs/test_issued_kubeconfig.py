"""Issued kubeconfigs."""

from milo_discoveryd.kubeconfigs.rendering import IssuedKubeconfig


def test_issued_kubeconfig_repr_masks_its_text() -> None:
    assert "SECRET" not in repr(IssuedKubeconfig(cluster="alpha", text=b"SECRET", issued_at=0))
