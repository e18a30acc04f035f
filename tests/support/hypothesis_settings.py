"""Hypothesis profiles, as a pytest plugin for all tests.

Examples are the same in each run, so that failures in CI are reproducible. To explore others:
`./dev test tests/simulation/properties --hypothesis-profile=explore`
"""

from hypothesis import HealthCheck, settings
from hypothesis.internal.conjecture import providers


def _is_never_local(_: str) -> bool:
    return False


# Hypothesis draws constants from the loaded modules, so that examples would depend on which tests are collected.
# Parsing these modules takes each worker more than a second, and five where coverage traces it.
providers.is_local_module_file = _is_never_local

# Timing depends on the load of the machine.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("repeatable", settings.get_profile("unhurried"), derandomize=True, database=None)
settings.register_profile("explore", settings.get_profile("unhurried"), max_examples=2000)
# For the coverage of pure modules, which must not depend on lucky examples.
settings.register_profile("few", settings.get_profile("repeatable"), max_examples=10)
settings.load_profile("repeatable")
