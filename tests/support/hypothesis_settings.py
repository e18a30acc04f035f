"""The profiles of hypothesis, as a pytest plugin for all tests.

Examples are the same in each run, so that failures in CI are reproducible. To explore others:
`./dev test tests/simulation/properties --hypothesis-profile=explore`
"""

from hypothesis import HealthCheck, settings

# Timing depends on the load of the machine.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("repeatable", settings.get_profile("unhurried"), derandomize=True, database=None)
settings.register_profile("explore", settings.get_profile("unhurried"), max_examples=2000)
# For the coverage of pure modules, which examples that were found by luck do not prove.
settings.register_profile("few", settings.get_profile("repeatable"), max_examples=10)
settings.load_profile("repeatable")
