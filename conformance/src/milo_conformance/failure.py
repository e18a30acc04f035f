"""The errors of the kit."""


class CaseFailed(Exception):  # noqa: N818  (a verdict, like a test's AssertionError)
    """A subscriber violated the protocol."""


class CannotRun(Exception):  # noqa: N818
    """The kit cannot start the subscriber."""
