"""Adapts the documents for the site (mkdocs.yml).

The README is its first page, and links to files that are no documents lead to the repository.
"""

import posixpath
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
_LINK = re.compile(r"(!?\[[^\]]*\]\()([^)\s#]+)((?:#[^)]*)?\))")


def on_files(files: Files, config: Any) -> Files:
    readme = _with_links((ROOT / "README.md").read_text(), lambda target: _from_root(target, config["repo_url"]))
    files.append(File.generated(config, "index.md", content=readme))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    here = posixpath.dirname(page.file.src_uri)

    def adapted(target: str) -> str:
        found = posixpath.normpath(posixpath.join("docs", here, target))
        inside = found.startswith("docs/") and not (ROOT / found).is_dir()
        return target if inside else _in_repository(found, config["repo_url"])

    return markdown if page.file.src_uri == "index.md" else _with_links(markdown, adapted)


def _from_root(target: str, repository: str) -> str:
    """Return the target of a link in the README, as the site's first page has it."""
    inside = target.startswith("docs/") and not (ROOT / target).is_dir()
    return target.removeprefix("docs/") if inside else _in_repository(target, repository)


def _in_repository(path: str, repository: str) -> str:
    if path == "README.md":
        return "index.md"
    kind = "tree" if (ROOT / path).is_dir() else "blob"
    return f"{repository}/{kind}/main/{path}"


def _with_links(markdown: str, adapted: Callable[[str], str]) -> str:
    def replaced(found: re.Match[str]) -> str:
        target = found[2]
        return found[0] if re.match(r"https?:|mailto:", target) else f"{found[1]}{adapted(target)}{found[3]}"

    parts = re.split(r"(?ms)(^ *```.*?^ *```)", markdown)
    return "".join(part if number % 2 else _LINK.sub(replaced, part) for number, part in enumerate(parts))
