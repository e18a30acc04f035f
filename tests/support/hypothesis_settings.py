"""Which examples hypothesis tries: a plugin of pytest, for all tests and for those that are tried on mutants.

The same each time, so that a failure in CI is one that anybody can repeat. To look further than that, now and then:
`./dev test tests/simulation/properties --hypothesis-profile=explore`
"""

from hypothesis import HealthCheck, settings

# How fast the machine is at the moment says nothing of what is tested.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("repeatable", settings.get_profile("unhurried"), derandomize=True, database=None)
settings.register_profile("explore", settings.get_profile("unhurried"), max_examples=2000)
settings.load_profile("repeatable")
