"""Clusters whose API servers do not share one CA: those of kind `declarative`, and those in kubeconfig files."""

from typing import ClassVar

from milo_discoveryd.model.cluster import Target


class DeclaredTarget(Target, frozen=True, kw_only=True, gc=False):
    """A cluster, with the fields of its object that credentials and connections need."""

    object_namespace: str
    """Empty for an object without a namespace, and for one in a file."""
    object_name: str
    secret: tuple[str, str] = ("", "")
    """Namespace and name of the Secret that the object names, where the configuration says how."""
    secret_key: str = ""
    """Key in that Secret, where the configuration says how the object names it."""
    authorities: bytes | None = None
    """CA certificates of the API server as PEM, where the object has them."""
    states_address: ClassVar[bool] = True


class FileTarget(DeclaredTarget, frozen=True, kw_only=True, gc=False):
    """A cluster in a kubeconfig file, whose author configures the daemon."""

    states_address: ClassVar[bool] = False
