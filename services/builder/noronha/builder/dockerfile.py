"""Reads a Dockerfile just enough to lay a project out as its image would be, and to say plainly what is left out.

An environment needs three things of it: which files lie in ``/app``, which requirements are installed, and what else it
wanted. Pure: the source is a list of paths, and nothing is run.
"""

from __future__ import annotations

import fnmatch
import json
import posixpath
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field

from noronha.rpc.errors import FailedPrecondition

HOME = "/app"
"""Working directory of Noronha's base image, where a project lies."""

VARIABLES = {
    "APP_HOME": HOME, "CONDA_HOME": "/etc/miniconda", "CONDA_VENV": "py3_default", "LOCAL_MODEL_DIR": "/model",
    "LOCAL_DATA_DIR": "/data", "LOG_DIR": "/logs", "HOME": "/root",
}  # fmt: skip
"""Variables that the base image sets."""

_BASE = re.compile(r"(?:[^\s/]+/)*noronhadataops/noronha(?:[:@]\S+)?")
_KNOWN = frozenset(
    [
        "ADD",
        "ARG",
        "CMD",
        "COPY",
        "ENTRYPOINT",
        "ENV",
        "EXPOSE",
        "FROM",
        "HEALTHCHECK",
        "LABEL",
        "MAINTAINER",
        "ONBUILD",
        "RUN",
        "SHELL",
        "STOPSIGNAL",
        "USER",
        "VOLUME",
        "WORKDIR",
    ]
)
_NO_EFFECT = frozenset({"ARG", "EXPOSE", "LABEL", "MAINTAINER"})
_FLAGS_WITH_VALUE = frozenset(
    [
        "-i",
        "--index-url",
        "--extra-index-url",
        "-f",
        "--find-links",
        "--trusted-host",
        "-t",
        "--target",
        "--prefix",
        "--root",
        "--src",
        "--platform",
        "--python-version",
        "--progress-bar",
        "--timeout",
        "--retries",
        "--proxy",
        "--cert",
        "--client-cert",
        "--cache-dir",
        "--log",
        "--build",
        "--upgrade-strategy",
        "--root-user-action",
        "-n",
        "--name",
        "-p",
        "--channel",
        "--solver",
        "--use-feature",
        "--no-binary",
        "--only-binary",
        "--python",
    ]
)
"""Flags of pip and conda that are followed by a value of their own."""

_INDEX_FLAGS = {"-i": "--index-url", "--index-url": "--index-url", "--extra-index-url": "--extra-index-url",
                "-f": "--find-links", "--find-links": "--find-links"}  # fmt: skip


@dataclass(frozen=True)
class Instruction:
    """One instruction: its keyword in capitals, the rest as one line, and where it begins."""

    line: int
    keyword: str
    text: str


@dataclass
class Plan:
    """What an environment does with a Dockerfile."""

    image: dict[str, str] = field(default_factory=dict)
    """Absolute path in the image to the path in the source, for every file that was added."""
    requirement_files: list[str] = field(default_factory=list)
    """Requirement files to install, paths in the source, in order."""
    constraint_files: list[str] = field(default_factory=list)
    """Constraint files, paths in the source."""
    requirements: list[tuple[str, str]] = field(default_factory=list)
    """Requirements named in the Dockerfile itself, each with where it stands."""
    notices: list[str] = field(default_factory=list)
    """What is not applied, one line for each instruction."""

    @property
    def layout(self) -> dict[str, str]:
        """Path below ``/app`` to the path in the source."""
        prefix = f"{HOME}/"
        return {path[len(prefix) :]: source for path, source in self.image.items() if path.startswith(prefix)}


def parse(text: str) -> list[Instruction]:
    """Takes a Dockerfile apart: continued lines joined, comments left out, here-documents kept."""
    escape = "\\"
    found: list[Instruction] = []
    lines = text.removeprefix("\ufeff").splitlines()
    directive = re.match(r"#\s*escape\s*=\s*([\\`])\s*$", lines[0]) if lines else None
    if directive:
        escape = directive.group(1)
    number = 0
    while number < len(lines):
        start = number
        whole = ""
        while number < len(lines):
            raw = lines[number]
            number += 1
            if raw.lstrip().startswith("#") or (whole and not raw.strip()):
                if not whole:
                    break
                continue
            if raw.rstrip().endswith(escape):
                whole += raw.rstrip()[:-1]
                continue
            whole += raw
            break
        if not whole.strip():
            continue
        keyword, _, rest = whole.strip().partition(" ")
        rest = rest.strip()
        if keyword.upper() in ("RUN", "COPY", "ADD"):
            for end in re.findall(r"<<-?\s*[\"']?([A-Za-z_][A-Za-z0-9_]*)[\"']?", rest):
                while number < len(lines):
                    raw = lines[number]
                    number += 1
                    if raw.strip() == end:
                        break
                    rest += "\n" + raw
        found.append(Instruction(start + 1, keyword.upper(), rest))
    return found


def plan(text: str, paths: Iterable[str]) -> Plan:
    """Returns what to do with a Dockerfile whose context holds ``paths``.

    Raises FailedPrecondition ``DOCKERFILE_FAILED`` where a build of the image would fail as well: a file is missing.
    """
    return _Reader(sorted(paths)).read(parse(text))


class _Reader:
    """One walk through the instructions, as a build of the last stage would do it."""

    def __init__(self, paths: list[str]) -> None:
        self._paths = paths
        self._plan = Plan()
        self._variables = dict(VARIABLES)
        self._folder = HOME
        self._moved = ""
        self._here = ""

    def read(self, instructions: list[Instruction]) -> Plan:
        for each in instructions:
            self._here = f"Dockerfile line {each.line}"
            if each.keyword not in _KNOWN:
                self._skip(each, "it is no instruction that is known here")
            elif each.keyword == "FROM":
                self._from(each)
            elif each.keyword in ("ADD", "COPY"):
                self._add(each)
            elif each.keyword == "RUN":
                self._run(each)
            elif each.keyword == "WORKDIR":
                self._folder = self._place(each.text.strip().strip("\"'"))
                self._moved = self._here
            elif each.keyword in _NO_EFFECT:
                self._remember(each)
            else:
                self._remember(each)
                self._skip(each)
        if self._folder != HOME:
            self._plan.notices.append(f"{self._moved}: tasks start in {HOME}, not in {self._folder}")
        return self._plan

    def _skip(self, instruction: Instruction, why: str = "") -> None:
        shown = " ".join(f"{instruction.keyword} {instruction.text}".split())
        shown = shown if len(shown) <= 120 else shown[:117] + "..."
        reason = why or "there is no image, only an environment"
        self._plan.notices.append(f"{self._here}: {shown} is not applied: {reason}")

    def _remember(self, instruction: Instruction) -> None:
        """Keeps the values of ARG and ENV for the instructions that follow."""
        if instruction.keyword not in ("ARG", "ENV"):
            return
        pairs = re.findall(r"([A-Za-z_][A-Za-z0-9_]*)=(\"[^\"]*\"|'[^']*'|\S+)", instruction.text)
        if not pairs and instruction.keyword == "ENV":
            name, _, value = instruction.text.partition(" ")
            pairs = [(name, value.strip())]
        for name, value in pairs:
            self._variables[name] = self._expand(value.strip("\"'"))

    def _expand(self, text: str) -> str:
        def value(match: re.Match[str]) -> str:
            return self._variables.get(match.group(1) or match.group(2), match.group(0))

        return re.sub(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::?[-+][^}]*)?\}|\$([A-Za-z_][A-Za-z0-9_]*)", value, text)

    def _place(self, path: str) -> str:
        return posixpath.normpath(posixpath.join(self._folder, self._expand(path)))

    def _from(self, instruction: Instruction) -> None:
        words = [word for word in self._expand(instruction.text).split() if not word.startswith("--")]
        # Only the last stage becomes the image; what earlier ones did does not reach it but by COPY --from.
        self._plan = Plan(notices=[each for each in self._plan.notices if " COPY --from" in each])
        self._folder = HOME
        if not words or not _BASE.fullmatch(words[0]):
            self._skip(instruction, "the environment stands on the mesh's own Python, not on an image")

    def _add(self, instruction: Instruction) -> None:
        text = instruction.text
        flags: list[str] = []
        while text.startswith("--"):
            flag, _, text = text.partition(" ")
            flags.append(flag)
            text = text.strip()
        if any(flag.startswith("--from") for flag in flags):
            self._skip(instruction, "it takes files from another image")
            return
        if text.startswith("<<"):
            self._skip(instruction, "it writes a file of its own")
            return
        words = self._words(text)
        if len(words) < 2:
            raise self._failed(f"{instruction.keyword} needs a source and a destination")
        *sources, target = (self._expand(word) for word in words)
        into_folder = target.endswith(("/", "/.")) or target in (".", "./") or len(sources) > 1
        place = self._place(target)
        for source in sources:
            if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://|git@", source):
                self._skip(instruction, "it fetches from the network")
                continue
            if instruction.keyword == "ADD" and re.search(r"\.(?:tar|tar\.\w+|tgz|tbz2?|txz)$", source):
                self._plan.notices.append(f"{self._here}: {source} is added as it is, not unpacked")
            self._copy(source, place, into_folder)
        outside = not (place == HOME or place.startswith(f"{HOME}/"))
        if outside and any(not _is_text(self._plan.image[path]) for path in self._plan.image if _below(path, place)):
            self._skip(instruction, f"only what lies in {HOME} is there for tasks")

    def _copy(self, source: str, place: str, into_folder: bool) -> None:
        pattern = posixpath.normpath(source.lstrip("/") or ".")
        if pattern.startswith(".."):
            raise self._failed(f"{source} lies outside of the project")
        matched = False
        for path in self._paths:
            if pattern == ".":
                relative = path
            elif path == pattern:
                relative = ""
            elif path.startswith(f"{pattern}/"):
                relative = path[len(pattern) + 1 :]
            elif any(character in pattern for character in "*?["):
                depth = pattern.count("/") + 1
                head = "/".join(path.split("/")[:depth])
                if not fnmatch.fnmatchcase(head, pattern):
                    continue
                # What a pattern finds is copied as if it had been named: a file under its name, a folder's content.
                relative = path[len(head) + 1 :] or posixpath.basename(path)
            else:
                continue
            matched = True
            if relative:
                self._plan.image[posixpath.join(place, relative)] = path
            else:
                self._plan.image[
                    posixpath.join(place, posixpath.basename(path)) if into_folder or self._is_folder(place) else place
                ] = path
        if not matched and pattern != ".":
            raise self._failed(f"{source} is not in the project")

    def _is_folder(self, place: str) -> bool:
        return place in (HOME, "/", "/tmp") or any(path.startswith(f"{place}/") for path in self._plan.image)

    def _words(self, text: str) -> list[str]:
        if text.startswith("["):
            try:
                words = json.loads(text)
            except ValueError:
                words = None
            if isinstance(words, list) and all(isinstance(word, str) for word in words):
                return words
        try:
            return shlex.split(text)
        except ValueError as error:
            raise self._failed(f"the quotes do not match: {error}") from None

    def _failed(self, why: str) -> FailedPrecondition:
        return FailedPrecondition(f"{self._here}: {why}", reason="DOCKERFILE_FAILED")

    def _run(self, instruction: Instruction) -> None:
        text = re.sub(r"^(?:--\S+\s+)+", "", instruction.text)
        if text.startswith("<<"):
            text = text.partition("\n")[2]
        words = self._words(text) if text.startswith("[") else None
        applied = self._script(shlex.join(words) if words else text)
        if not applied:
            self._skip(instruction)

    def _script(self, text: str) -> bool:
        """Applies a shell script; returns whether all of it was understood."""
        understood = True
        folder = self._folder
        for words in _commands(text):
            while words and re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*=.*", words[0]):
                words = words[1:]
            if words and words[0] in ("sudo", "exec", "time", "nice"):
                words = words[1:]
            words, writes = _without_redirections(words)
            if words and not self._command(words):
                understood = False
            understood = understood and not writes
        self._folder = folder
        return understood

    def _command(self, words: list[str]) -> bool:
        name = posixpath.basename(self._expand(words[0]))
        rest = words[1:]
        if name in ("bash", "sh", "dash"):
            for index, word in enumerate(rest):
                if re.fullmatch(r"-[a-z]*c", word) and index + 1 < len(rest):
                    return self._script(rest[index + 1])
            return False
        if name in (".", "source", "activate", "set", "true", ":", "echo", "export", "unset", "["):
            return True
        if name == "cd":
            self._folder = self._place(rest[0]) if rest else HOME
            return True
        if name == "rm":
            # Clearing up after an installation changes nothing that tasks see.
            return all(
                word.startswith("-") or re.search(r"requirements|constraints|cache|\.txt$|/var/lib/apt|/tmp", word)
                for word in rest
            )
        if re.fullmatch(r"python[0-9.]*", name) and rest[:2] == ["-m", "pip"]:
            name, rest = "pip", rest[2:]
        if name == "uv" and rest[:1] == ["pip"]:
            name, rest = "pip", rest[1:]
        if re.fullmatch(r"pip[0-9.]*", name):
            return self._install(rest, "pip") if rest[:1] == ["install"] else rest[:1] == ["cache"]
        if name in ("conda", "mamba", "micromamba"):
            if rest[:1] == ["install"] or rest[:2] == ["env", "update"]:
                return rest[0] == "install" and self._install(rest, "conda")
            return rest[:1] in (["clean"], ["activate"], ["config"], ["init"])
        return False

    def _install(self, words: list[str], tool: str) -> bool:
        """Takes over an installation by pip or conda; returns whether all of it was understood."""
        understood = True
        options = iter(words[1:])
        for word in options:
            flag, separator, value = word.partition("=")
            if re.match(r"-[rcfi][^-=]", word) and not word.startswith("--"):
                flag, separator, value = word[:2], "=", word[2:]
            naming = ("--file",) if tool == "conda" else ("-r", "--requirement", "-c", "--constraint")
            if flag in naming:
                path = self._source(value if separator else next(options, ""))
                files = self._plan.constraint_files if flag in ("-c", "--constraint") else self._plan.requirement_files
                if path not in files:
                    files.append(path)
            elif tool == "conda" and flag == "-c":
                if not separator:
                    next(options, "")
            elif flag in ("-e", "--editable"):
                understood = self._require(value if separator else next(options, ""), editable=True) and understood
            elif flag in _FLAGS_WITH_VALUE:
                value = value if separator else next(options, "")
                if flag in _INDEX_FLAGS and tool == "pip":
                    self._plan.requirements.append((f"{_INDEX_FLAGS[flag]} {self._expand(value)}", self._here))
            elif word.startswith("-"):
                continue
            else:
                understood = self._require(word) and understood
        return understood

    def _require(self, word: str, *, editable: bool = False) -> bool:
        word = self._expand(word)
        if re.fullmatch(r"(?:pip|setuptools|wheel|conda)(?:[<>=!~].*)?", word):
            return True  # every environment brings what it needs to install
        if "$" in word or "`" in word:
            return False
        if editable or word.startswith(("/", "./", "../")) or word.partition("[")[0] in (".", ".."):
            place, bracket, extras = word.partition("[")
            relative = posixpath.relpath(self._place(place), HOME)
            if relative.startswith(".."):
                return False
            word = f"./{relative}{bracket}{extras}" if relative != "." else f".{bracket}{extras}"
        self._plan.requirements.append((word, self._here))
        return True

    def _source(self, path: str) -> str:
        """Returns the file in the source that a path in the image is."""
        place = self._place(path)
        if place not in self._plan.image:
            raise self._failed(f"{path} was not added to the image before this line")
        return self._plan.image[place]


def _below(path: str, place: str) -> bool:
    return path == place or path.startswith(f"{place.rstrip('/')}/")


def _is_text(path: str) -> bool:
    return path.endswith((".txt", ".in"))


def _without_redirections(words: list[str]) -> tuple[list[str], bool]:
    """Returns a simple command without its redirections, and whether one of them writes a file."""
    kept: list[str] = []
    writes = False
    rest = iter(words)
    for word in rest:
        if not (set(word) <= set("<>&|") and set(word) & set("<>")):
            kept.append(word)
            continue
        if kept and kept[-1].isdigit():
            kept.pop()  # the descriptor, as in 2>/dev/null
        target = next(rest, "")
        descriptor = word.endswith("&") and (target.isdigit() or target == "-")
        writes |= ">" in word and not descriptor and target not in ("/dev/null", "/dev/stdout", "/dev/stderr")
    return kept, writes


def _commands(text: str) -> list[list[str]]:
    """Takes a shell script apart into its simple commands; one that cannot be read counts as one strange command."""
    lexer = shlex.shlex(text.replace("\n", " ; "), posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    lexer.commenters = ""
    commands: list[list[str]] = [[]]
    try:
        for word in lexer:
            if word and set(word) <= set("();&|"):
                commands.append([])
            else:
                commands[-1].append(word)
    except ValueError:
        return [["?"]]
    return [words for words in commands if words]
