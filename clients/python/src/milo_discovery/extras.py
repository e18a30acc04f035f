"""The error for a missing package of an extra. It names the command that installs the extra."""

from collections.abc import Iterator
from contextlib import contextmanager


class MissingPackageError(ImportError):
    """An import failed because the package belongs to an extra that is not installed."""


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Replace the error of an import that fails because the extra is not installed.

    Raises MissingPackageError.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        raise MissingPackageError(
            f"the package {package} of the extra milo-discovery-client[{extra}] is not installed; "
            f"in a clone of the repository: pip install ./kube './clients/python[{extra}]'",
            name=error.name,
        ) from error
