"""Settings: merges flags, environment and file into one frozen tree. Errors say where a problem is, and how to fix
it."""

from milo_discoveryd.config.listeners import ListenerSettings
from milo_discoveryd.config.load import load, named_file
from milo_discoveryd.config.rights import RuleSettings
from milo_discoveryd.config.rule_problems import not_running
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
    "not_running",
]
