"""Clusters whose API servers do not share one CA: those of the mode `declarative`, and those in kubeconfig files."""

from milo_discoveryd.model.cluster import Target


class DeclaredTarget(Target, frozen=True, kw_only=True, gc=False):
    """A cluster, with the fields of its object that credentials and connections need."""

    object_namespace: str
    """Empty for an object without a namespace, and for one in a file."""
    object_name: str
    secret: tuple[str, str] = ("", "")
    """Namespace and name of the Secret that the object names, where the configuration says how."""
    authorities: bytes | None = None
    """CA certificates of the API server as PEM, where the object has them."""
