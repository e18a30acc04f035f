"""The command `milo-discoveryd check`: tests everything that the settings refer to, and suggests corrections."""

from milo_discoveryd.check.checks import check
from milo_discoveryd.check.effective_rights import parse_caller, print_effective_rights

__all__ = ["check", "parse_caller", "print_effective_rights"]
