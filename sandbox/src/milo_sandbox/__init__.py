"""An embedded Milo API: a real HTTPS server with honest list and watch semantics, for demos and tests."""

from milo_sandbox.api import Features
from milo_sandbox.rights import Rule
from milo_sandbox.sandbox import Sandbox
from milo_sandbox.watch import Pace

__all__ = ["Features", "Pace", "Rule", "Sandbox"]
