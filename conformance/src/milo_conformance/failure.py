"""The errors of the kit."""


class CaseFailed(Exception):  # noqa: N818  (what a case ends with, as a test's AssertionError)
    """What a subscriber did that the protocol does not allow."""


class CannotRun(Exception):  # noqa: N818
    """Why the kit cannot judge the subscriber at all."""
