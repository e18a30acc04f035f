"""An embedded Milo API: a real HTTPS server with honest list and watch semantics, for demos and tests."""

from milo_discoveryd.sandbox.api import Features
from milo_discoveryd.sandbox.rights import Rule
from milo_discoveryd.sandbox.sandbox import Sandbox
from milo_discoveryd.sandbox.watch import Pace

__all__ = ["Features", "Pace", "Rule", "Sandbox"]
