"""What a command acts on: the settings that hold here, the mesh they name, and how the user wants to be spoken to."""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from noronha.cli import output
from noronha.cli.failures import Declined
from noronha.cli.output import Voice

if TYPE_CHECKING:
    from collections.abc import Sequence

    from noronha.client.configuration import Configuration
    from noronha.client.connection import Mesh
    from noronha.rpc.settings import Settings
    from noronha.v1 import project_pb2


@dataclass
class Target:
    """The target of one run of the command."""

    output: str = "text"
    skip_questions: bool = False
    debug: bool = False
    pretty: bool = False
    log_level: str | None = None
    may_start: bool = True
    """Whether an embedded mesh is started when it does not answer."""
    repeatable: bool = False
    """Whether the command does no harm when it is run again after a call that got no answer."""

    @functools.cached_property
    def configuration(self) -> Configuration:
        """The settings of the client and of its mesh. Raises InvalidArgument ``BAD_SETTING``."""
        from noronha.client import configuration

        loaded = configuration.load()
        for line in loaded.client.warnings:
            self.voice_at(loaded.client.logger.level).warn(line)
        return loaded

    @property
    def settings(self) -> Settings:
        """The settings of the client."""
        return self.configuration.client

    def voice_at(self, configured: str) -> Voice:
        """Returns the voice for a configured level, which the options win over."""
        return Voice("DEBUG" if self.debug else self.log_level or configured)

    @functools.cached_property
    def voice(self) -> Voice:
        """What is said on standard error."""
        return self.voice_at(self.settings.logger.level)

    @functools.cached_property
    def mesh(self) -> Mesh:
        """The connection to the mesh; an embedded one is started when it does not answer."""
        from noronha.client.connect import connect

        if self.voice.level <= output.DEBUG:
            output.show_calls(self.voice)
        mesh = connect(self.configuration, start=self.may_start, notice=self.voice.warn)
        context = click.get_current_context(silent=True)
        if context is not None:
            context.find_root().call_on_close(mesh.close)
        return mesh

    def show(self, record: Any) -> None:
        """Shows a record of the contract."""
        from noronha.cli import documents
        from noronha.client.references import to_key

        self.present(documents.of(record), to_key(record.name), documents.COLUMNS[documents.kind_of(record)])

    def present(self, document: dict[str, Any], key: str, columns: Sequence[str] = ()) -> None:
        """Shows a document; ``key`` is how people write its name, ``columns`` what a table shows of it."""
        output.show(document, key, self.output, pretty=self.pretty, columns=columns)

    def project(self, named: str | None) -> project_pb2.Project:
        """Returns the working project. Raises as ``noronha.client.working.working_project``."""
        from noronha.client.references import last_id
        from noronha.client.working import working_project

        project = working_project(self.mesh, named, configured=self.settings.project.working_project)
        if named is None:
            self.voice.info(f"Working project is '{last_id(project.name)}'")
        return project

    def project_parent(self, named: str | None) -> str:
        """Returns the working project's full name for a list, ``projects/-`` when there is none."""
        from noronha.rpc.errors import FailedPrecondition

        try:
            return self.project(named).name
        except FailedPrecondition as error:
            if error.reason != "NO_WORKING_PROJECT":
                raise
            return "projects/-"

    def within(self, kind: str, named: str | None, own: str) -> str:
        """Returns the full name of what lies in the working project under the id ``own``.

        Raises as ``project`` and ``noronha.client.references.within``.
        """
        from noronha.client.references import last_id, within

        return within(kind, last_id(self.project(named).name), own)

    def ask(self, question: str, *, skipped: bool = True) -> bool:
        """Asks a yes-or-no question; with ``-s`` the answer is ``skipped``.

        Raises InvalidArgument ``NO_TERMINAL`` where nobody can answer.
        """
        if self.skip_questions:
            return skipped
        if not sys.stdin.isatty():
            from noronha.rpc.errors import InvalidArgument

            raise InvalidArgument(
                f"a question needs an answer and there is no terminal: {question} Run with -s to skip questions",
                reason="NO_TERMINAL",
            )
        return click.confirm(question, err=True)

    def must(self, question: str) -> None:
        """Asks a question whose answer has to be yes. Raises Declined."""
        if not self.ask(question):
            raise Declined


pass_target = click.make_pass_decorator(Target)
"""Gives a command its target as first argument."""
