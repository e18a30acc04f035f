"""The command `milo-discoveryd check`: checks the settings and what they refer to, and suggests corrections."""

from milo_discoveryd.check.checks import check, log_problems
from milo_discoveryd.check.effective_rights import parse_caller, print_effective_rights

__all__ = ["check", "log_problems", "parse_caller", "print_effective_rights"]
