"""Checks the files and packages that the daemon needs at startup, without changing anything."""

import importlib.util
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from milo_discoveryd.check.finding import Finding, fail, ok, warn
from milo_discoveryd.credentials.kubeconfig_files import FilesError, KubeconfigFiles
from milo_discoveryd.model.cluster import key_of
from milo_discoveryd.state_file.encoding import StateOrigin
from milo_discoveryd.state_file.state_file import directory_problem, stored_fleets
from milo_discoveryd.telemetry.traces import EXPORTER_PACKAGE, INSTALL_HINT
from milo_kube.credential import CredentialError
from milo_kube.file_content import FileContent
from milo_kube.tls_identity import TlsIdentity

_SHOWN = 3
"""Maximum number of keys that a finding about stored clusters shows."""


def state_directory(directory: Path) -> Finding:
    subject = f"state_directory {directory}"
    existing = next(path for path in (directory, *directory.parents) if path.exists())
    if not existing.is_dir():
        return fail(subject, f"{existing} is not a directory", "remove it, or set another state_directory")
    if not os.access(existing, os.W_OK | os.X_OK):
        return fail(
            subject,
            f"{existing} is not writable by user {os.geteuid()}",
            "mount a writable volume there (in a pod: with securityContext.fsGroup), or set another state_directory",
        )
    if existing == directory and (problem := directory_problem(directory)) is not None:
        return fail(
            subject,
            f"a state file in this directory would not be used: {problem}",
            "use a subdirectory; the daemon creates it",
        )
    return ok(subject, "writable" if existing == directory else f"will be created in {existing}")


def audit_file(path: Path) -> Finding:
    subject = f"audit.file {path}"
    if path.is_symlink() or (path.exists() and not path.is_file()):
        kind = "a symbolic link" if path.is_symlink() else "not a regular file"
        return fail(subject, f"{path} is {kind}", "remove it, or set another audit.file")
    needed = path if path.exists() else path.parent
    if not needed.exists():
        return fail(subject, f"the directory {needed} does not exist", "create it, or set another audit.file")
    if not os.access(needed, os.W_OK):
        return fail(
            subject,
            f"{needed} is not writable by user {os.geteuid()}",
            "change its owner or mode, or set another audit.file",
        )
    return ok(subject, "writable")


def ca_file(subject: str, path: Path) -> Finding:
    subject = f"{subject} {path}"
    try:
        TlsIdentity(authorities=FileContent(path).read(), certificate=None).context()
    except CredentialError as error:
        return fail(subject, str(error), "correct the file, or set another ca_file")
    return ok(subject, "has CA certificates")


def trace_exporter() -> Finding:
    subject = "traces.endpoint"
    if _is_installed(EXPORTER_PACKAGE):
        return ok(subject, f"{EXPORTER_PACKAGE} is installed")
    return fail(subject, f"{EXPORTER_PACKAGE} is not installed", INSTALL_HINT)


def kubeconfig_files(subject: str, files: KubeconfigFiles) -> Iterator[Finding]:
    """Check the files of a source, and each cluster in them."""
    try:
        objects = files.objects_now()
    except FilesError as error:
        yield fail(
            subject,
            str(error),
            "correct the path or its permissions, or set another path in the settings of the source",
        )
        return
    if (exposure := files.exposure()) is not None:
        yield warn(subject, exposure)
    refused = [file_object for file_object in objects if file_object.problem]
    yield ok(subject, f"clusters in {files.path}: {len(objects) - len(refused)}")
    for file_object in refused:
        yield warn(
            subject,
            f"{file_object.key} does not describe a usable cluster: {file_object.problem}",
            "correct the file, or remove it",
        )


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False


def check_stored_keys(directory: Path, configured: Iterable[tuple[str, StateOrigin]]) -> Iterator[Finding]:
    """Compare the stored sources with the configured ones, which are passed as pairs of name and origin."""
    origins = dict(configured)
    for source, fleet in stored_fleets(directory):
        if origins.get(source) == fleet.origin or not fleet.clusters:
            continue
        names = sorted(cluster.target.local_name for cluster in fleet.clusters)[:_SHOWN]
        old = ", ".join(key_of(name, source) for name in names)
        more = f" and {len(fleet.clusters) - len(names)} more" if len(fleet.clusters) > len(names) else ""
        become = next((name for name, origin in origins.items() if origin == fleet.origin), None)
        subject, count = f"keys of {f'source {source}' if source else 'the unnamed source'}", len(fleet.clusters)
        if become is None:
            yield warn(
                subject,
                f"{count} stored clusters ({old}{more}) are from {fleet.origin}, which no configured source follows",
                "subscribers will see these clusters disengaged; remove the state file if that is intended",
            )
        else:
            yield warn(
                subject,
                f"{count} stored clusters change their keys: {old}{more} become "
                f"{', '.join(key_of(name, become) for name in names)}{more}",
                "subscribers will see the old keys disengaged and the new ones engaged; to keep the old keys, "
                + (f"name the source {source}" if source else "configure the source by mode, without a name"),
            )
