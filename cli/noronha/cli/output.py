"""How the command shows things: text for people, and ``-o json|yaml|table|name`` for machines.

The text is the same on a terminal and in a pipe; only colour, bars and widths depend on a terminal. Results go to
standard output; what is said on the way goes to standard error.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timezone
from typing import Any

import click

FORMATS = ("text", "json", "yaml", "table", "name")
"""What ``--output`` takes; ``text`` is the default."""

Document = dict[str, Any]


DEBUG = 10
"""Level at which calls to the mesh are shown."""


def show(document: Document, key: str, output: str, *, pretty: bool = False, columns: Sequence[str] = ()) -> None:
    """Shows one record. ``key`` is how people write its name, ``columns`` what a table shows of it."""
    if output == "json":
        click.echo(to_json(document, pretty))
    elif output == "yaml":
        click.echo(to_yaml(_plain(document)), nl=False)
    elif output == "name":
        click.echo(key)
    elif output == "table":
        table([document], columns)
    else:
        click.echo("---\n" + to_text(document), nl=False)


def show_list(
    records: Iterable[tuple[str, Document]],
    title: str,
    output: str,
    *,
    expand: bool = False,
    pretty: bool = False,
    columns: Sequence[str] = (),
) -> None:
    """Shows records as they come, each with how people write its name; ``columns`` are those of a table."""
    if output == "json":
        click.echo(to_json([document for _, document in records], pretty))
    elif output == "yaml":
        for _, document in records:
            click.echo("---\n" + to_yaml(_plain(document)), nl=False)
    elif output == "name":
        for key, _ in records:
            click.echo(key)
    elif output == "table":
        table((document for _, document in records), columns)
    else:
        _text_list(records, title, expand, pretty)


def _text_list(records: Iterable[tuple[str, Document]], title: str, expand: bool, pretty: bool) -> None:
    first = True
    for key, document in records:
        if first:
            click.echo(f"Listing {title}(s):")
        elif pretty and expand:
            click.echo()
        first = False
        click.echo("---\n" + to_text(document) if expand else key, nl=not expand)
    if first:
        click.echo(f"No {title}(s) found")


def table(documents: Iterable[Document], columns: Sequence[str] = ()) -> None:
    """Prints one line for each document under a heading: ``columns``, such as ``name`` or ``task.state``; without them
    every field of the documents that is neither a list nor a mapping."""
    found = list(documents)
    chosen = columns or [
        key
        for key in dict.fromkeys(key for document in found for key in document)
        if not any(isinstance(document.get(key), dict | list) for document in found)
    ]
    rows = [[column.rpartition(".")[2].upper() for column in chosen]]
    rows += [[_cell(_field(document, column)) for column in chosen] for document in found]
    widths = [max(len(row[index]) for row in rows) for index in range(len(chosen))]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _field(document: Document, column: str) -> Any:
    value: Any = document
    for key in column.split("."):
        value = value[key]
    return value


def _cell(value: Any) -> str:
    if value is None or value == "":
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, datetime):
        return _local(value)
    if isinstance(value, list):
        return ",".join(str(each) for each in value)
    return " ".join(str(value).split())


def to_json(value: Any, pretty: bool = False) -> str:
    """Returns JSON: one line, or several when pretty."""
    return json.dumps(value, ensure_ascii=False, indent=2 if pretty else None, default=_stamp)


def _stamp(value: Any) -> str:
    if isinstance(value, datetime):
        return value.astimezone(timezone.utc).isoformat(timespec="microseconds").replace("+00:00", "Z")
    raise TypeError(f"{type(value).__name__} has no JSON")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return _stamp(value) if isinstance(value, datetime) else value


def to_yaml(value: Any) -> str:
    """Returns YAML in block style, keys in their order."""
    import yaml

    text: str = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, default_flow_style=False, width=1 << 20)
    return text


VERBATIM = ("details", "params", "env_vars", "labels")
"""What users wrote themselves: shown whole wherever it stands, also where it is empty inside."""


def to_text(document: Document) -> str:
    """Returns a record for people: YAML without what is empty, the shortest entries first."""
    import yaml

    entries = []
    for key, value in document.items():
        kept = _kept(key, value)
        if kept is None:
            continue
        entries.append(
            yaml.safe_dump({key: kept}, sort_keys=False, allow_unicode=True, default_flow_style=False, width=1 << 20)
        )
    return "".join(sorted(entries, key=len))


def _kept(key: str, value: Any) -> Any:
    """Returns what people see of a field; None for nothing."""
    return (value or None) if key in VERBATIM else _without_empty(value)


def _without_empty(value: Any) -> Any:
    """Returns a value without empty texts, lists and mappings; None when nothing is left."""
    if isinstance(value, dict):
        kept = {key: each for key, each in ((key, _kept(key, each)) for key, each in value.items()) if each is not None}
        return kept or None
    if isinstance(value, list):
        return [each for each in (_without_empty(each) for each in value) if each is not None] or None
    if isinstance(value, datetime):
        return _local(value)
    return None if value == "" else value


def _local(value: datetime) -> str:
    return value.astimezone().strftime("%Y-%m-%d %H:%M:%S")


class Voice:
    """Says things on standard error, as far as the log level lets them through."""

    LEVELS = {"DEBUG": 10, "INFO": 20, "WARN": 30, "WARNING": 30, "ERROR": 40}

    def __init__(self, level: str = "INFO") -> None:
        self.level = self.LEVELS.get(level.upper(), 20)
        self._warned: set[str] = set()
        self.before: Callable[[], None] | None = None
        """Called before each line, to take away what stands on the terminal's last one."""

    def _say(self, level: int, line: str, colour: str | None, prefix: str = "") -> None:
        if level < self.level:
            return
        if self.before is not None:
            self.before()
        if prefix:
            prefix = click.style(prefix, fg=colour) if colour else prefix
        click.echo(prefix + line, err=True)

    def debug(self, line: str) -> None:
        """Says something for those who look for a fault."""
        self._say(10, line, None)

    def info(self, line: str) -> None:
        """Says what goes on."""
        self._say(20, line, None)

    def warn(self, line: str) -> None:
        """Says what the user should know, once."""
        if line not in self._warned:
            self._warned.add(line)
            self._say(30, line, "yellow", "Warning: ")


def show_calls(voice: Voice) -> None:
    """Shows a line for every call that this process makes to a mesh."""
    import logging

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            voice.debug(record.getMessage())

    log = logging.getLogger("noronha.rpc")
    log.handlers[:] = [Handler()]
    log.setLevel(logging.DEBUG)
    log.propagate = False


class Progress:
    """A log that is printed as it comes, with one line of state below it on a terminal.

    Without a terminal only the log and changes of the state's word are printed. ``to_stderr`` keeps standard output for
    the result.
    """

    WIDTH = 24

    def __init__(self, voice: Voice, *, to_stderr: bool = False) -> None:
        self._voice = voice
        self._out = sys.stderr if to_stderr else sys.stdout
        self._line = ""
        self._fresh = True
        self._live = sys.stderr.isatty() and self._out.isatty() and voice.level <= 20
        self._word = ""

    def write(self, data: bytes) -> None:
        """Prints a piece of the log as it is."""
        self._clear()
        self._out.flush()
        raw = getattr(self._out, "buffer", None)
        if raw is not None:
            raw.write(data)
            raw.flush()
        else:
            self._out.write(data.decode("utf-8", "replace"))
            self._out.flush()
        self._fresh = data.endswith(b"\n")
        if self._fresh:
            self._draw()

    def state(self, word: str, share: float | None = None) -> None:
        """Shows where the work stands; ``share`` is 0 to 1."""
        if not self._live:
            if word != self._word:
                self._end_line()
                self._voice.info(word)
        else:
            bar = ""
            if share is not None:
                filled = round(max(0.0, min(share, 1.0)) * self.WIDTH)
                bar = f"[{'#' * filled}{'.' * (self.WIDTH - filled)}] {share:4.0%} "
            self._clear()
            self._line = bar + word
            if self._fresh:
                self._draw()
        self._word = word

    def done(self, *, ended: bool = True) -> None:
        """Takes the line of state away; what has ``ended`` leaves its last word."""
        self._clear()
        self._line = ""
        self._end_line()
        if ended and self._live and self._word:
            self._voice.info(self._word)

    def _end_line(self) -> None:
        if not self._fresh:
            self._out.write("\n")
            self._out.flush()
            self._fresh = True

    def _draw(self) -> None:
        if self._live and self._line:
            sys.stderr.write(self._line)
            sys.stderr.flush()

    def _clear(self) -> None:
        if self._live and self._line and self._fresh:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
