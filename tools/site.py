"""Adapts the documents for the site (mkdocs.yml).

The README is its first page, and links to files that are not on the site lead to the repository.
"""

import posixpath
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
_EXTERNAL_REQUEST = re.compile(
    r"<(?:script|img|iframe)\b[^>]*\bsrc=[\"']?https?:|<link\b[^>]*\bstylesheet\b[^>]*https?:|class=\"mermaid"
)
_LINK = re.compile(r"(!?\[[^\]]*\]\()([^)\s#]+)((?:#[^)]*)?\))")


def on_files(files: Files, config: Any) -> Files:
    readme = _with_links((ROOT / "README.md").read_text(), lambda target: _from_root(target, config))
    files.append(File.generated(config, "index.md", content=readme))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    here = posixpath.dirname(page.file.src_uri)

    def adapted(target: str) -> str:
        found = posixpath.normpath(posixpath.join("docs", here, target))
        return target if _is_on_site(found, config) else _in_repository(found, config["repo_url"])

    return markdown if page.file.src_uri == "index.md" else _with_links(markdown, adapted)


def on_post_page(output: str, *, page: Any, config: Any) -> str:
    return _without_other_hosts(output, page.file.src_uri)


def on_post_template(output_content: str, *, template_name: str, config: Any) -> str:
    return _without_other_hosts(output_content, template_name)


def _without_other_hosts(output: str, name: str) -> str:
    """Remove the theme's request to GitHub for stars. Raise PluginError for other requests to another host."""
    output = output.replace(' data-md-component="source"', "")
    if found := _EXTERNAL_REQUEST.search(output):
        raise PluginError(f"{name} sends a request to another host: {found[0]}")
    return output


def _from_root(target: str, config: Any) -> str:
    """Convert the target of a link in the README to one of the site's first page."""
    return target.removeprefix("docs/") if _is_on_site(target, config) else _in_repository(target, config["repo_url"])


def _is_on_site(path: str, config: Any) -> bool:
    inside = path.startswith("docs/") and not (ROOT / path).is_dir()
    return inside and not config["exclude_docs"].match_file(path.removeprefix("docs/"))


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
