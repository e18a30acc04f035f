"""Putting one cluster into a kubeconfig that has others."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from milo_discovery.cli import files, yaml_form
from milo_discovery.cli.endings import Failed

Document = dict[str, Any]
_LISTS = ("clusters", "users", "contexts")
_EMPTY: Document = {"apiVersion": "v1", "kind": "Config"}


def default_file() -> Path:
    """The file that kubectl would change."""
    listed = [path for path in os.environ.get("KUBECONFIG", "").split(os.pathsep) if path]
    return Path(listed[0]) if listed else Path.home() / ".kube" / "config"


def merge_into(path: Path, one: Document, context: str) -> None:
    """Put what `one` holds into the file, under the name of `context`, in place of what had that name."""
    path = path.resolve()  # of a symlink, what it points at is replaced, and not the link
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _locked(path):
        before = _read(path)
        files.replace(path, (yaml_form.document(merged(before, one, context)) + "\n").encode())


def merged(before: Document, one: Document, context: str) -> Document:
    """The file's own current context stays, if it has one."""
    after = {**_EMPTY, **before}
    named = {
        "clusters": {"name": context, "cluster": one["clusters"][0]["cluster"]},
        "users": {"name": context, "user": one["users"][0]["user"]},
        "contexts": {"name": context, "context": {"cluster": context, "user": context}},
    }
    for kind in _LISTS:
        others = [each for each in after.get(kind) or [] if each.get("name") != context]
        after[kind] = [*others, named[kind]]
    after["current-context"] = after.get("current-context") or context
    return after


def _read(path: Path) -> Document:
    try:
        text = path.read_text()
    except FileNotFoundError:
        return dict(_EMPTY)
    try:
        document = json.loads(text)
    except ValueError:
        document = _read_yaml(path, text)
    if document is None:
        return dict(_EMPTY)
    if not isinstance(document, dict) or not all(_is_named_list(document.get(kind)) for kind in _LISTS):
        raise Failed(f"{path} isn't a kubeconfig: nothing was changed")
    return document


def _is_named_list(value: object) -> bool:
    return value is None or (isinstance(value, list) and all(isinstance(each, dict) for each in value))


def _read_yaml(path: Path, text: str) -> Any:
    try:
        import yaml  # noqa: PLC0415  (an extra, and only for this)
    except ModuleNotFoundError as error:
        raise Failed(
            f"{path} is YAML, and reading that needs PyYAML: pip install 'milo-discovery-client[kubernetes]'"
        ) from error

    class Loader(yaml.SafeLoader):
        """Without dates: a kubeconfig has none, and what looks like one is to be written as it was."""

        yaml_implicit_resolvers = {  # noqa: RUF012  (the name is PyYAML's)
            first: [each for each in resolvers if each[0] != "tag:yaml.org,2002:timestamp"]
            for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }

    try:
        return yaml.load(text, Loader)  # noqa: S506  (a SafeLoader)
    except yaml.YAMLError:
        # Its own words quote the file, which may hold secrets.
        raise Failed(f"{path} can't be read as YAML: nothing was changed") from None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """As kubectl does it: by a file beside it, which is there for as long as one of them writes."""
    lock = path.with_name(f"{path.name}.lock")
    try:
        os.close(os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        raise Failed(f"{path} is being changed by somebody else; if not, remove {lock}") from None
    try:
        yield
    finally:
        lock.unlink()
