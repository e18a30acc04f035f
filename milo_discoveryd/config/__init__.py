"""Settings: flags, environment and file in one frozen tree, and errors that state the place and the fix."""

from milo_discoveryd.config.listeners import ListenerSettings
from milo_discoveryd.config.load import load, named_file
from milo_discoveryd.config.rights import RuleSettings
from milo_discoveryd.config.settings import Settings
from milo_discoveryd.config.sources import SourceSettings
from milo_discoveryd.schema.values import ListenAddress, TcpAddress, UnixAddress

__all__ = [
    "ListenAddress",
    "ListenerSettings",
    "RuleSettings",
    "Settings",
    "SourceSettings",
    "TcpAddress",
    "UnixAddress",
    "load",
    "named_file",
]
