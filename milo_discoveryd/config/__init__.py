"""Settings: flags, environment and file in one frozen tree, and errors that name the place and the mend."""

from milo_discoveryd.config.listeners import Listener
from milo_discoveryd.config.load import load
from milo_discoveryd.config.settings import Settings
from milo_discoveryd.config.values import ListenAddress, TcpAddress, UnixAddress

__all__ = ["ListenAddress", "Listener", "Settings", "TcpAddress", "UnixAddress", "load"]
