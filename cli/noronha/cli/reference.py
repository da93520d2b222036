"""Writes the reference of all commands from the commands: ``python -m noronha.cli.reference > cli/README.md``."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import click

from noronha.cli import failures
from noronha.cli.main import root

HEAD = """\
# cli

The `nha` command (also `noronha`), for people and scripts at a terminal: it parses, calls `noronha.client`, and shows.

- `main.py` holds the global options, `failures.py` the one place for errors, `wording.py` their words; `subjects/` has
  one file for each subject, loaded when used; `output.py` and `documents.py` say how records look; `filters.py` turns
  a `--filter` into the contract's by the table of fields in `filter_fields.py`.
- Results go to standard output, everything said on the way to standard error. The text is the same on a terminal and in
  a pipe; machines use `-o json|yaml|table|name`, before the subject or after the command. With it, the log of work that
  is shown live goes to standard error as well, and of work that failed the record is still shown before the error.
- `-o table` shows few columns, chosen in `documents.py`; everything is in `-o json` and `-o yaml`.
- The `logs` commands and `train notebook --path -` write plain bytes, whatever `-o` says.
- The command starts fast because nothing but `click` is imported before it is needed; a test says so.

The reference below is written by `python -m noronha.cli.reference > cli/README.md`; a test holds it to the commands.

## Exit codes

"""


def write() -> str:
    """Returns the reference as Markdown."""
    text = HEAD + _exit_codes() + "\n## nha\n\n"
    context = click.Context(root, info_name="nha")
    text += _describe(root)
    for name in root.list_commands(context):
        command = root.get_command(context, name)
        assert command is not None
        text += "".join(_sections(command, click.Context(command, info_name=name, parent=context)))
    return text


def _exit_codes() -> str:
    rows = [f"| {code} | {meaning} |" for code, meaning in failures.MEANINGS.items()]
    return "\n".join(["| code | meaning |", "|---|---|", *rows]) + "\n"


def _sections(command: click.Command, context: click.Context) -> Iterator[str]:
    yield f"## {context.command_path}\n\n" if isinstance(command, click.Group) else f"### {context.command_path}\n\n"
    yield _describe(command)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from _sections(inner, click.Context(inner, info_name=name, parent=context))


def _describe(command: click.Command) -> str:
    text = "\n\n".join(_paragraph(part) for part in inspect.cleandoc(command.help or "").split("\n\n")) + "\n\n"
    rows = [
        f"| `{_usage(option)}` | {_meaning(option)} |"
        for option in command.params
        if isinstance(option, click.Option) and (command is root or "--output" not in option.opts)
    ]
    if rows:
        text += "| option | meaning |\n|---|---|\n" + "\n".join(rows) + "\n\n"
    return text


def _paragraph(text: str) -> str:
    """Returns a paragraph of help on one line; one that click keeps as it is becomes a block of code."""
    mark, _, kept = text.partition("\n")
    if mark == "\b":
        return "\n".join(f"    {line}" for line in kept.splitlines())
    return " ".join(text.split())


def _usage(option: click.Option) -> str:
    """Returns how an option is written, whichever release of click is installed."""
    names = ", ".join(sorted(option.opts, key=len))
    if option.is_flag:
        return names
    kind = option.type
    if option.metavar:
        value = option.metavar
    elif isinstance(kind, click.Choice):
        value = "\\|".join(str(choice) for choice in kind.choices)
    elif isinstance(kind, click.IntRange):
        value = "NUMBER"
    elif isinstance(kind, click.Path):
        value = "PATH"
    else:
        value = "TEXT" if kind is click.STRING else kind.name
    return f"{names} {value}"


def _meaning(option: click.Option) -> str:
    text = " ".join((option.help or "").split()).replace("|", "\\|")
    if option.required:
        text += " Required."
    if option.show_default:
        text += f" Default: `{option.default}`."
    return text


if __name__ == "__main__":
    print(write().rstrip())
