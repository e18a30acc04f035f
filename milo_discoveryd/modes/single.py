"""Mode `single`: a cluster from the settings, so that an operator runs unchanged without discovery."""

from collections.abc import Iterable

from milo_discoveryd.model.cluster import Target
from milo_discoveryd.modes.mode import Setting


class SingleMode:
    def __init__(self, setting: Setting) -> None:
        self._setting = setting

    def targets(self) -> Iterable[Target]:
        return self._setting.clusters
