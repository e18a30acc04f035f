"""A seeded bug: a small change of one module, which the tests named with it must catch."""

from dataclasses import dataclass

CLIENT = "clients/python/src/milo_discovery"
SHARED = "clients/python/src/milo_kube"


@dataclass(frozen=True)
class Mutant:
    name: str
    module: str
    was: str
    """Source code that occurs once in the module."""
    becomes: str
    caught_by: tuple[str, ...]
    imports: str = ""
    is_async: bool = False
    """Whether the tests are async."""
    source: str = "milo_discoveryd"
    """The directory of the package that the module is in."""
