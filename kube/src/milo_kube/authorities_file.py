"""A file with CAs that another process replaces while this process runs."""

from collections.abc import Callable
from pathlib import Path

from milo_kube.credential import CredentialError
from milo_kube.file_content import FileContent
from milo_kube.tls_identity import check_authorities


class AuthoritiesFile(FileContent):
    """The last good CAs of a file in PEM: they are used while anything else replaces them."""

    def __init__(self, path: Path, note: Callable[[str, str], None] = lambda _path, _problem: None) -> None:
        """`note` is called with the path and the problem when the problem changes; it is empty when it is over."""
        super().__init__(path)
        self._note = note
        self._problem = ""

    def _is_good(self, content: bytes) -> bool:
        if not self._good or not super()._is_good(content):
            return super()._is_good(content)  # the first content is refused where it is used
        problem = ""
        try:
            if content != self._good:  # it is read each minute, and a bundle of the system's CAs takes milliseconds
                check_authorities(content)
        except CredentialError as error:
            problem = f"{self.path} was replaced, and its former content is used: {error}"
        if problem != self._problem:
            self._problem = problem
            self._note(str(self.path), problem)
        return not problem
