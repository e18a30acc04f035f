"""Time, as the pure rooms are handed it."""

import msgspec


class Moment(msgspec.Struct, frozen=True, gc=False):
    """One point in time, on two clocks."""

    wall: float
    """What people are told. It may jump."""
    steady: float
    """What waiting is measured by. Its zero means nothing."""
