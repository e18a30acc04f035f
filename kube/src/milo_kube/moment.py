"""The time, which callers pass to packages that do not read a clock."""

import msgspec


class Moment(msgspec.Struct, frozen=True, gc=False):
    """One point in time, on two clocks."""

    wall: float
    """Unix time, for display. It jumps when the clock is set."""
    steady: float
    """Monotonic time, for durations and deadlines. Its zero is arbitrary."""
