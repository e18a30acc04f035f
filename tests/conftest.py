"""What holds for all tests."""

from hypothesis import settings

# The same examples each time: a failure in CI is one that anybody can repeat. To look further than that, now and then:
# ./dev test tests/properties --hypothesis-profile=explore
settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.register_profile("explore", deadline=None, max_examples=2000)
settings.load_profile("repeatable")
