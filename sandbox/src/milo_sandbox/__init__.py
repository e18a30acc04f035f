"""A fake Milo API over HTTPS, with the list, watch and authentication semantics of a Kubernetes API server."""

from milo_sandbox.api import Features
from milo_sandbox.rights import Rule
from milo_sandbox.sandbox import Sandbox
from milo_sandbox.watch import Pace

__all__ = ["Features", "Pace", "Rule", "Sandbox"]
