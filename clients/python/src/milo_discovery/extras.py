"""The error for a missing package of an extra. It names the command that installs the extra."""

from collections.abc import Iterator
from contextlib import contextmanager


class MissingPackageError(ImportError):
    """An import failed because the package belongs to an extra that is not installed."""


@contextmanager
def needs_extra(
    extra: str, distribution: str = "milo-discovery-client", packages: tuple[str, ...] = ("./kube", "./clients/python")
) -> Iterator[None]:
    """Replace the error of an import that fails because the extra is not installed.

    `packages`: the directories to install, of which the last one has the extra. Raises MissingPackageError.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        raise MissingPackageError(
            f"the package {package} of the extra {distribution}[{extra}] is not installed; "
            f"in a clone of the repository: pip install {' '.join(packages[:-1])} '{packages[-1]}[{extra}]'",
            name=error.name,
        ) from error
