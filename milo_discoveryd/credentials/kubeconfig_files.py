"""Reads a source's kubeconfig files on this machine: the clusters that they describe, and their credentials.

Files are replaced, truncated and deleted while they are read, and their content is not trusted.
"""

import hashlib
import os
import stat
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from milo_discoveryd.logger import log
from milo_discoveryd.objects.budget import OVER_BUDGET, UNLIMITED, over_budget_problem
from milo_discoveryd.objects.store import weigh
from milo_discoveryd.sources.kind import FileObject, Files
from milo_discoveryd.sources.reading import MalformedError
from milo_kube.file_content import SETTLED_S, file_version

MAX_BYTES = 256 << 10
"""Size limit of a file in a directory. Kubeconfigs have a few kilobytes, and parsing larger ones takes seconds."""
MAX_BYTES_OF_ALL = 1 << 20
"""Size limit of a file that describes all clusters."""
MAX_FILES = 10_000
_UNFINISHED = ("~", ".tmp", ".swp", ".lock", ".part")


class FilesError(Exception):
    """The directory or a file cannot be used, so the state of its clusters is unknown."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        """Machine-readable, in CamelCase."""


class UnsettledFileError(FilesError):
    """A file was written a moment ago, and may be incomplete."""

    def __init__(self, path: Path, settles_in_s: float) -> None:
        problem = f"was written less than {SETTLED_S:g} s ago, and may be incomplete: write another file and rename it"
        super().__init__("FileUnsettled", f"{path} {problem}")
        self.problem = problem
        self.settles_in_s = settles_in_s


class Scan(msgspec.Struct, frozen=True):
    """The result of one scan of the files."""

    objects: tuple[FileObject, ...]
    changed: frozenset[str]
    """Keys of the objects whose files changed since the previous scan."""
    settles_in_s: float = 0.0
    """How long to wait before the next scan, because a file may be incomplete; 0 if all files are complete."""


class StoredKubeconfig(msgspec.Struct, frozen=True):
    """A kubeconfig that contains the credential of an object."""

    content: bytes
    context: str
    """Name of the context; empty for the current context."""
    origin: str


class _ReadFile(msgspec.Struct, frozen=True):
    signature: tuple[int, ...]
    digest: bytes
    objects: tuple[FileObject, ...]
    weight: int = 0


class _RefusedFileError(Exception):
    """A file that cannot be used; the message says why."""


class KubeconfigFiles:
    """The files of one source. Its methods block; the listeners are called in the caller's thread."""

    def __init__(self, of: Files, *, limit: int = UNLIMITED, wall: Callable[[], float] = time.time) -> None:
        """`limit` is the memory budget of the objects: many files can exceed it, though each of them is small."""
        self.path = Path(of.path).expanduser()
        self._of = of
        self._limit = limit
        self._wall = wall
        self._known: dict[str, _ReadFile] = {}
        self._unreported: set[str] = set()
        """Keys of the objects whose files changed before a scan that exceeded the limit."""
        self._listeners: list[Callable[[frozenset[str]], None]] = []

    @property
    def directories(self) -> tuple[Path, ...]:
        """The directories to watch for changes of the files."""
        if self._of.is_directory:
            return (self.path,)
        # Not `Path.resolve`, which raises RuntimeError for loops of symbolic links.
        return tuple(dict.fromkeys((self.path.parent, Path(os.path.realpath(self.path)).parent)))

    def exposure(self) -> str | None:
        """Return a warning if another user, or any user of this machine, can add clusters or replace kubeconfigs."""
        if not self._of.is_directory:
            return None
        try:
            if problem := self._owner_problem():
                return problem
            mode = self.path.stat().st_mode
            is_writable = mode & stat.S_IWOTH and not os.statvfs(self.path).f_flag & os.ST_RDONLY
        except OSError:
            return None  # a scan reports the error
        if not is_writable:
            return None
        return f"{self.path} is world-writable, so any user of this machine can add clusters: run chmod o-w on it"

    def _owner_problem(self) -> str:
        owner, own = self.path.stat().st_uid, os.geteuid()
        if owner in (0, own):
            return ""
        return f"{self.path} belongs to user {owner}, who can replace the kubeconfigs in it: run chown {own} on it"

    def _require_owner(self) -> None:
        """Raise FilesError if this process is root and another user owns the directory: that user chooses where root
        connects, and which credentials it issues."""
        if self._of.is_directory and os.geteuid() == 0 and (problem := self._owner_problem()):
            raise FilesError("DirectoryNotOwned", problem)

    def subscribe(self, listener: Callable[[frozenset[str]], None]) -> None:
        """Call `listener` with the keys of objects whose files changed."""
        self._listeners.append(listener)

    def announce(self, changed: frozenset[str]) -> None:
        if changed:
            for listener in self._listeners:
                listener(changed)

    def scan(self, is_complete: Callable[[str], bool] = lambda _: False) -> Scan:
        """Return all objects; only files that changed since the previous scan are read. Raises FilesError.

        `is_complete` returns whether the file with that name is known to be complete, although it was written a moment
        ago.
        """
        files = self._files()
        found: dict[str, _ReadFile] = {}
        changed: set[str] = set()
        settles_in_s: list[float] = []
        weight = 0
        for name, path in files:
            known = self._known.get(name)
            try:
                state = self._state(name, path, is_complete=is_complete(name))
            except UnsettledFileError as error:
                settles_in_s.append(error.settles_in_s)
                if known is None and not self._of.is_directory:
                    raise
                state = known or _unusable(name, error.problem)
            if state is None:
                continue
            found[name] = state
            if known is None or known.digest != state.digest:
                changed |= {file_object.key for file_object in state.objects}
            weight += state.weight
            if weight > self._limit:
                self._known, self._unreported = found, self._unreported | changed  # the next scan does not read them
                raise FilesError(OVER_BUDGET, over_budget_problem(self._limit))
        changed |= self._unreported
        self._known, self._unreported = found, set()
        objects = {file_object.key: file_object for state in found.values() for file_object in state.objects}
        return Scan(tuple(objects.values()), frozenset(changed), min(settles_in_s, default=0.0))

    def objects_now(self) -> tuple[FileObject, ...]:
        """Return the current objects of the files, which may be incomplete. Raises FilesError."""
        return self.scan(lambda _: True).objects

    def find(self, key: str) -> FileObject | None:
        """Return the current state of an object, or None if its file, or its context in the file, does not exist.

        Raises FilesError if this is unknown, because the directory is missing or a file may be incomplete.
        """
        file, _ = self._of.context_of(key)
        path = self.path / file if file else self.path
        if file and not os.path.lexists(path):
            self._files()  # raises if the whole directory is missing: its objects do not count as deleted
            return None
        state = self._state(file or self.path.name, path)
        if state is None:
            return None
        return next((file_object for file_object in state.objects if file_object.key == key), None)

    def kubeconfig(self, key: str) -> StoredKubeconfig:
        """Return the kubeconfig with the credential of an object. Raises FilesError."""
        file, context = self._of.context_of(key)
        path = self.path / file if file else self.path
        try:
            self._require_owner()
            content, _, _ = self._read(file or self.path.name, path)
        except (OSError, _RefusedFileError) as error:
            raise FilesError("FileUnreadable", f"{path} {_reason(error)}") from None
        return StoredKubeconfig(content, context, str(path))

    def _files(self) -> Iterable[tuple[str, Path]]:
        if not self._of.is_directory:
            return [(self.path.name, self.path)]
        try:
            self._require_owner()
            with os.scandir(self.path) as entries:
                names = sorted(
                    entry.name for entry in entries if _is_kubeconfig(entry.name) and not _is_directory(entry)
                )
        except OSError as error:
            raise FilesError(_failure(error), f"{self.path} {_reason(error)}") from None
        if len(names) > MAX_FILES:
            raise FilesError("TooManyFiles", f"{self.path} has {len(names)} files; the limit is {MAX_FILES}")
        return [(name, self.path / name) for name in names]

    def _state(self, name: str, path: Path, *, is_complete: bool = False) -> _ReadFile | None:
        """Return the file, read again if it changed, or None if it no longer exists. Raises FilesError."""
        known = self._known.get(name)
        try:
            if known is not None and known.signature == file_version(path.stat()):
                return known
            content, signature, digest = self._read(name, path, is_complete=is_complete)
            return _ReadFile(signature, digest, *self._objects_of(name, content))
        except (OSError, _RefusedFileError, MalformedError) as error:
            if not self._of.is_directory:
                raise FilesError(_failure(error), f"{path} {_reason(error)}") from None
            return _unusable(name, _reason(error)) if os.path.lexists(path) else None

    def _objects_of(self, name: str, content: bytes) -> tuple[tuple[FileObject, ...], int]:
        """Return the objects of a file, and their weight. Raises FilesError and MalformedError."""
        objects: list[FileObject] = []
        weight = 0
        try:
            for file_object in self._of.read_file(name, content):
                objects.append(file_object)
                weight += weigh(file_object.contributions)
                if weight > self._limit:
                    break
        except MalformedError:
            raise
        except Exception as error:
            log.exception("kubeconfig not read", file=name)
            raise MalformedError(f"internal error ({type(error).__name__}); its stack is in the daemon's log") from None
        if weight > self._limit:  # each context has its own copy of a CA
            raise FilesError(OVER_BUDGET, over_budget_problem(self._limit))
        return tuple(objects), weight

    def _read(self, name: str, path: Path, *, is_complete: bool = False) -> tuple[bytes, tuple[int, ...], bytes]:
        """Return a file's content, its signature and its digest."""
        limit = MAX_BYTES if self._of.is_directory else MAX_BYTES_OF_ALL
        # Without O_NONBLOCK, opening a named pipe waits for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as stream:
            # A link could lead to a kubeconfig of the daemon itself, whose credential would then be issued. The opened
            # file is checked, because a link can be replaced after a check of the path.
            opened = _opened(descriptor, path)
            if self._of.is_directory and not opened.is_relative_to(self.path.resolve()):
                raise _RefusedFileError("is a link to a file outside of the directory")
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise _RefusedFileError("is not a regular file")
            if status.st_mode & stat.S_IWOTH:
                raise _RefusedFileError("is world-writable: run chmod o-w on it")
            content = stream.read(limit + 1)
            signature = file_version(status)
            is_changing = file_version(os.fstat(descriptor)) != signature
        if len(content) > limit:
            raise _RefusedFileError(f"is larger than {limit >> 10} KiB")
        digest = hashlib.sha256(content).digest()
        known = self._known.get(name)
        if known is not None and digest == known.digest:
            return content, signature, digest
        # The kubelet writes complete files into a new directory, and then replaces the symbolic link to that directory.
        is_complete = is_complete or any(part.startswith("..") for part in opened.parts)
        age_s = self._wall() - status.st_mtime
        if is_changing or (abs(age_s) < SETTLED_S and not is_complete):
            raise UnsettledFileError(path, SETTLED_S if is_changing else SETTLED_S - age_s)
        return content, signature, digest


def _unusable(name: str, problem: str) -> _ReadFile:
    return _ReadFile((), b"", (FileObject(name, problem=f"{name} {problem}"),))


def _is_directory(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False  # for example a symbolic link to itself: the read reports the error


def _opened(descriptor: int, path: Path) -> Path:
    link = Path(f"/proc/self/fd/{descriptor}")
    return link.readlink() if link.is_symlink() else path.resolve()


def _is_kubeconfig(name: str) -> bool:
    # A name that is not UTF-8 is not printable; it could not be logged, and no cluster can have it.
    return name.isprintable() and not name.startswith(".") and not name.endswith(_UNFINISHED)


def _failure(error: Exception) -> str:
    match error:
        case FileNotFoundError():
            return "FileNotFound"
        case MalformedError():
            return "FileMalformed"
    return "FileUnreadable"


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"cannot be read: {error.strerror or error}"
    return str(error)
