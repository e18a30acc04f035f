"""Writes the manual pages of both commands from their help texts: man_pages.py [--check]

The wheels install them, so that `man milo-discovery` finds them beside the command.
"""

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from milo_discovery_cli.command_line import command as client
from milo_discoveryd import __version__
from milo_discoveryd.cli import command as daemon

ROOT = Path(__file__).parents[1]
PAGES = {
    "milo-discovery": (client, ROOT / "clients" / "cli" / "man", "milo-discoveryd"),
    "milo-discoveryd": (daemon, ROOT / "milo_discoveryd" / "man", "milo-discovery"),
}


def page(name: str, group: click.Group, see_also: str) -> Iterator[str]:
    context = click.Context(group, info_name=name)
    summary, _, details = inspect.cleandoc(group.help or "").partition("\n\n")
    yield f'.TH {name.upper()} 1 "" "{__version__}" "milo-discoveryd"'
    yield from (".SH NAME", roff(f"{name} - {summary[:1].lower()}{summary[1:].rstrip('.')}"))
    yield from (".SH SYNOPSIS", f".B {roff(name)}", roff("[OPTIONS] COMMAND [ARGUMENTS]..."))
    if details:
        yield from (".SH DESCRIPTION", *paragraphs(details))
    yield from (".SH OPTIONS", *options(group, context), ".SH COMMANDS")
    for command_name in group.list_commands(context):
        found = group.get_command(context, command_name)
        assert found is not None
        inside = click.Context(found, parent=context, info_name=command_name)
        yield from (
            f".SS {roff(' '.join([command_name, *found.collect_usage_pieces(inside)]))}",
            *paragraphs(found.help or ""),
        )
        yield from options(found, inside)
    yield from (".SH SEE ALSO", f".BR {roff(see_also)} (1)")


def options(command: click.Command, context: click.Context) -> Iterator[str]:
    of_group = set() if context.parent is None else {inherited.name for inherited in context.parent.command.params}
    for parameter in command.params:
        record = parameter.get_help_record(context)
        if record is not None and isinstance(parameter, click.Option) and parameter.name not in of_group:
            yield from (".TP", f".B {roff(record[0])}", roff(record[1]))


def paragraphs(text: str) -> Iterator[str]:
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        is_layout = paragraph.startswith("\b\n")
        lines = roff(paragraph.removeprefix("\b\n")).splitlines()
        yield from (".PP", *((".nf", *lines, ".fi") if is_layout else lines))


def roff(text: str) -> str:
    escaped = text.replace("\\", r"\e").replace("-", r"\-")
    return re.sub(r"(?m)^\s*([.'])", r"\\&\1", escaped)


def main() -> int:
    stale = []
    for name, (group, directory, see_also) in PAGES.items():
        path, text = directory / f"{name}.1", "\n".join(page(name, group, see_also)) + "\n"
        if "--check" not in sys.argv:
            directory.mkdir(exist_ok=True)
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            stale.append(str(path.relative_to(ROOT)))
    if stale:
        print(f"not current: {', '.join(stale)}; run ./dev gen", file=sys.stderr)
    return len(stale)


if __name__ == "__main__":
    sys.exit(main())
