"""Groups of settings that a name selects, such as kinds of sources: built-in ones, and those of other packages."""

from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from typing import Any, Generic

from milo_discoveryd.schema.fields import G


class Registry(Generic[G]):
    """Groups by name. A group's module is imported when its name is looked up."""

    def __init__(self, entry_points: str, built_in: Mapping[str, str]) -> None:
        """`entry_points` is the entry point group of other packages; `built_in` has `MODULE:CLASS` by name."""
        self.entry_points = entry_points
        self.built_in = built_in

    def names(self) -> list[str]:
        return sorted({*self.built_in, *(entry.name for entry in self._installed())})

    def load(self, name: str) -> type[G]:
        """Import the group of this name. Raises LookupError, which lists the installed names."""
        group: type[G]
        if name in self.built_in:
            module, _, attribute = self.built_in[name].partition(":")
            group = getattr(import_module(module), attribute)
            return group
        for entry in self._installed():
            if entry.name == name:
                group = entry.load()
                return group
        raise LookupError(f"must be one of {', '.join(self.names())}")

    def built_in_groups(self) -> Iterator[tuple[str, type[G]]]:
        return ((name, self.load(name)) for name in self.built_in)

    def _installed(self) -> Iterable[Any]:
        # Imported here: reading the metadata of all installed packages is slow, and built-in groups do not need it.
        from importlib.metadata import entry_points  # noqa: PLC0415

        return entry_points(group=self.entry_points)
