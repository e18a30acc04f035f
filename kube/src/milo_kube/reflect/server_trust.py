"""The evidence that the server that answers is the one that all data came from."""

import msgspec

from milo_kube.reflect.versions import is_number, is_older


class ServerTrust(msgspec.Struct):
    """The evidence that the server that answers is still the one that all data came from."""

    sends_bookmarks: bool = False
    is_known: bool = False
    """Whether the server has listed, or has shown that it knows the last version, since the last disconnect."""
    highest_version: str = ""
    """The highest version seen, in this run or in the one that wrote the state file."""

    @property
    def expects_bookmarks(self) -> bool:
        """A server that sends bookmarks does so before long.

        They are also expected from a server that may have been replaced, even if it has sent none: a watch from a
        version that the server does not know is silent forever.
        """
        return self.sends_bookmarks or not self.is_known

    def seen(self, version: str) -> None:
        self.is_known = True
        if is_number(version) and not is_older(version, self.highest_version):
            self.highest_version = version

    def listed(self, version: str) -> bool:
        """Note a complete list. Return whether it is older than what was seen before."""
        self.seen(version)
        return version != "0" and is_older(version, self.highest_version)
