"""Options that several commands share, and the kinds of value they take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from noronha.cli.output import FORMATS
from noronha.cli.target import Target

Command = TypeVar("Command", bound=Callable[..., Any])


def _set_output(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
    if value is not None:
        context.ensure_object(Target).output = value


def output_option() -> click.Option:
    """Returns ``-o/--output``, which stands before the subject and after the command alike."""
    return click.Option(
        ["-o", "--output"], type=click.Choice(FORMATS), callback=_set_output, expose_value=False,
        help="How results are shown: text for people (default), or json, yaml, table, name.",
    )  # fmt: skip


class Leaf(click.Command):
    """A command that acts; it takes ``-o`` like all of them."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.params.append(output_option())


Resolved = tuple["str | None", "click.Command | None", list[str]]


def resolve(
    group: click.Group, context: click.Context, arguments: list[str], found: Callable[..., Resolved]
) -> Resolved:
    """Returns what ``found`` makes of the arguments; for a command that is not there, the error names the nearest."""
    try:
        return found(context, arguments)
    except click.UsageError as error:
        import difflib

        given = arguments[0]
        if given.startswith("-"):
            raise
        near = difflib.get_close_matches(given, group.list_commands(context), 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise click.UsageError(f"no such command {given!r}{hint}", error.ctx) from None


class Subject(click.Group):
    """A subject with its commands."""

    command_class = Leaf

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Resolved:
        return resolve(self, ctx, args, super().resolve_command)


class JsonText(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """JSON as text, checked to be an object and handed on as written."""

    name = "JSON"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from noronha.rpc import json_text

        text = str(value)
        try:
            json_text.parse(text)
        except json_text.Refused as error:
            self.fail(f"{_short(text)} {error}", param, ctx)
        return text


class Number(click.IntRange):
    """A whole number within bounds."""

    name = "whole number"


class KeyValue(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """``KEY=VALUE``, cut at the first ``=``."""

    name = "KEY=VALUE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        key, separator, content = str(value).partition("=")
        if not separator or not key:
            self.fail(f"{_short(value)} is not KEY=VALUE", param, ctx)
        return key, content


class MountText(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """``source:target`` or ``source:target:rw|ro``."""

    name = "SOURCE:TARGET:MODE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str, bool]:
        if isinstance(value, tuple):
            return value
        parts = str(value).split(":")
        mode = parts.pop() if len(parts) == 3 else "rw"
        if len(parts) != 2 or not all(parts) or mode not in ("rw", "ro"):
            self.fail(f"{_short(value)} is not SOURCE:TARGET:rw or SOURCE:TARGET:ro", param, ctx)
        return parts[0], parts[1], mode == "ro"


def _short(value: Any) -> str:
    text = str(value)
    return repr(text if len(text) <= 60 else text[:57] + "...")


class Name(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """The name of something, or a tag: refused before anything else is said when it breaks the grammar."""

    name = "TEXT"

    def __init__(self, *, tag: bool = False, revisions: bool = False) -> None:
        self._tag = tag
        self._revisions = revisions

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from noronha.rpc import names

        text = str(value)
        own, at, revision = text.partition("@") if self._revisions else (text, "", "")
        option = max(param.opts, key=len) if param is not None else "name"
        if at and not (revision.isdecimal() and revision[0] != "0"):
            raise names.bad_name(text, option, "has no revision like that; write name@1")
        (names.check_tag if self._tag else names.check_id)(own, option)
        return text


NAME = Name()
REVISION = Name(revisions=True)
"""A name that may end in ``@n``, one revision."""
TAG = Name(tag=True, revisions=True)
JSON = JsonText()
KEY_VALUE = KeyValue()
MOUNT = MountText()


def stack(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Returns a decorator that applies several, the first one outermost."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def listing() -> Callable[[Command], Command]:
    """The options of every ``list``."""
    return stack(
        click.option(
            "-f", "--filter", "query", type=JSON,
            help="Query in MongoDB's JSON syntax, on the fields that -o json shows; docs/filters.md has the language.",
        ),
        click.option("-e", "--expand", is_flag=True, help="Show each record's fields."),
        click.option("--limit", type=Number(min=1), help="Show at most this many records."),
        click.option(
            "--order-by", metavar="FIELD",
            help="Order by name, create_time or update_time; add ' desc' for the reverse (default: name).",
        ),
    )  # fmt: skip


def project(text: str = "Name of the project (default: current working project).") -> Callable[[Command], Command]:
    """``--proj``."""
    return click.option("--proj", type=NAME, help=text)


def tag(text: str) -> Callable[[Command], Command]:
    """``-t/--tag``."""
    return click.option("-t", "--tag", type=TAG, default="latest", show_default=True, help=text)


environment = click.option(
    "-e", "--env-var", "environment", type=KEY_VALUE, multiple=True,
    help="Environment variable in the form KEY=VALUE. Can be given several times.",
)  # fmt: skip

mounts = click.option(
    "-m", "--mount", "mounts", type=MOUNT, multiple=True,
    help="A host path or volume to mount: <host_path_or_volume>:<path inside>:<rw/ro>, such as "
    "/home/user/data:/data:rw. Can be given several times.",
)  # fmt: skip

resource_profile = click.option(
    "--resource-profile", "--rp", "resource_profile",
    help="Name of a resource profile, configured in your nha.yaml file.",
)  # fmt: skip

lightweight = click.option("--lightweight", "--lw", "lightweight", is_flag=True, help="Use the lightweight storage.")
