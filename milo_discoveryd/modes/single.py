"""Mode `single`: given clusters, so that an operator runs unchanged against one that nobody discovers."""

from collections.abc import Iterable

from milo_discoveryd.model.cluster import Target
from milo_discoveryd.modes.mode import Setting


class SingleMode:
    def __init__(self, setting: Setting) -> None:
        self._setting = setting

    def targets(self) -> Iterable[Target]:
        return self._setting.clusters
