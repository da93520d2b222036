"""Patterns of ``$regex``: a subset of RE2's language, matched in time proportional to the text whatever the pattern.

Python's own engine backtracks, so that a few characters of pattern can keep it busy for years; this one walks all
possibilities at once and remembers, per set of possibilities, where each character leads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

MAX_PATTERN = 256
"""Most characters of a pattern."""

_MAX_REPEAT = 255
_MAX_NODES = 2000
_MAX_SETS = 1000

_Test = Callable[[str], bool]


class BadPattern(ValueError):
    """A pattern outside the subset; the message says why."""


_DIGITS = frozenset("0123456789")
_WORD = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_")
_SPACE = frozenset(" \t\n\r\f\v")
_CONTROLS = {"t": "\t", "n": "\n", "r": "\r", "f": "\f", "v": "\v"}


def _class_of(letter: str) -> _Test | None:
    found = {"d": _DIGITS, "w": _WORD, "s": _SPACE}.get(letter.lower())
    if found is None:
        return None
    if letter.isupper():
        return lambda character: character not in found
    return found.__contains__


class _Parser:
    """Turns a pattern into nested tuples: ``char``, ``cat``, ``alt``, ``repeat``, ``start``, ``end``."""

    def __init__(self, pattern: str) -> None:
        self._text = pattern
        self._at = 0
        self._fold = False
        self._dot_all = False

    def parse(self) -> tuple[Any, ...]:
        if self._text.startswith("(?") and self._text[2:3] in "is":
            end = self._text.find(")")
            flags = self._text[2:end] if end > 0 else ""
            if not flags or set(flags) - set("is"):
                raise BadPattern("begins with flags other than (?i), (?s) and (?is)")
            self._fold, self._dot_all = "i" in flags, "s" in flags
            self._at = end + 1
        tree = self._alternatives()
        if self._at < len(self._text):
            raise BadPattern("has a ')' that closes nothing")
        return tree

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _take(self) -> str:
        character = self._peek()
        if not character:
            raise BadPattern("ends too early")
        self._at += 1
        return character

    def _alternatives(self) -> tuple[Any, ...]:
        branches = [self._sequence()]
        while self._peek() == "|":
            self._at += 1
            branches.append(self._sequence())
        return branches[0] if len(branches) == 1 else ("alt", branches)

    def _sequence(self) -> tuple[Any, ...]:
        parts = []
        while self._peek() not in ("", "|", ")"):
            parts.append(self._repeated())
        return ("cat", parts)

    def _repeated(self) -> tuple[Any, ...]:
        atom = self._atom()
        bounds = self._quantifier()
        if bounds is None:
            return atom
        if atom[0] in ("start", "end"):
            raise BadPattern("repeats an anchor")
        if bounds[1] != 1 and _repeats(atom):
            raise BadPattern("repeats what is repeated already (nested quantifiers)")
        if self._peek() == "?":
            self._at += 1  # lazy or greedy: the same texts match
        if self._peek() in ("*", "+", "?") or self._bounds(self._at) is not None:
            raise BadPattern("has two quantifiers in a row")
        return ("repeat", atom, *bounds)

    def _quantifier(self) -> tuple[int, int | None] | None:
        known: dict[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}
        bounds = known.get(self._peek())
        if bounds is not None:
            self._at += 1
            return bounds
        found = self._bounds(self._at)
        if found is None:
            return None
        least, most, self._at = found
        if least > _MAX_REPEAT or (most or 0) > _MAX_REPEAT:
            raise BadPattern(f"repeats more than {_MAX_REPEAT} times")
        if most is not None and most < least:
            raise BadPattern("has a quantifier whose bounds are the wrong way round")
        return least, most

    def _bounds(self, at: int) -> tuple[int, int | None, int] | None:
        """Reads ``{m}``, ``{m,}`` or ``{m,n}``; any other brace is refused, as engines read it differently."""
        if self._text[at : at + 1] != "{":
            return None
        end = self._text.find("}", at)
        low, comma, high = self._text[at + 1 : end].partition(",")
        if end < 0 or not _is_number(low) or (high and not _is_number(high)):
            raise BadPattern("has a '{' that begins no quantifier; write '\\{' for the character")
        return int(low), (int(high) if high else None if comma else int(low)), end + 1

    def _atom(self) -> tuple[Any, ...]:
        character = self._take()
        if character == "(":
            return self._group()
        if character == "[":
            return ("char", self._set())
        if character == ".":
            return ("char", (lambda _: True) if self._dot_all else (lambda each: each != "\n"))
        if character == "^":
            return ("start",)
        if character == "$":
            return ("end",)
        if character in "*+?":
            raise BadPattern(f"has a {character!r} with nothing to repeat")
        if character in "{}]":
            raise BadPattern(f"has a bare {character!r}; write '\\{character}' for the character")
        if character == "\\":
            escaped = self._escape()
            return ("char", escaped if callable(escaped) else self._literal(escaped))
        return ("char", self._literal(character))

    def _group(self) -> tuple[Any, ...]:
        if self._peek() == "?":
            self._at += 1
            if self._take() != ":":
                raise BadPattern(
                    "has a group other than (...) and (?:...): lookaround, names and the like are not taken"
                )
        tree = self._alternatives()
        if self._peek() != ")":
            raise BadPattern("has a '(' that is not closed")
        self._at += 1
        return tree

    def _escape(self) -> str | _Test:
        character = self._take()
        known = _class_of(character)
        if known is not None:
            return known
        if character in _CONTROLS:
            return _CONTROLS[character]
        if character in "123456789":
            raise BadPattern("has a backreference")
        if character.isalnum() or not character.isascii():
            raise BadPattern(f"has the escape '\\{character}', which is not taken")
        return character

    def _literal(self, character: str) -> _Test:
        if self._fold:
            both = _folded(character)
            return lambda each: not both.isdisjoint(_folded(each))
        return character.__eq__

    def _set(self) -> _Test:
        negated = self._peek() == "^"
        if negated:
            self._at += 1
        tests: list[_Test] = []
        ranges: list[tuple[str, str]] = []
        first = True
        while True:
            character = self._take()
            if character == "]":
                if first:
                    raise BadPattern("has an empty [...]; write '\\]' for the character")
                break
            first = False
            if character == "[":
                raise BadPattern("has a '[' inside [...]; write '\\[' for the character")
            low: str | _Test = self._escape() if character == "\\" else character
            if callable(low):
                tests.append(low)
                continue
            high: str | _Test = low
            if self._peek() == "-" and self._text[self._at + 1 : self._at + 2] not in ("]", ""):
                self._at += 1
                character = self._take()
                high = self._escape() if character == "\\" else character
                if callable(high) or high < low:
                    raise BadPattern("has a range in [...] that is the wrong way round")
            assert isinstance(high, str)
            ranges.append((low, high))
        fold = self._fold

        def inside(each: str) -> bool:
            candidates = _folded(each) if fold else (each,)
            return any(
                any(low <= one <= high for low, high in ranges) or any(test(one) for test in tests)
                for one in candidates
            )

        return (lambda each: not inside(each)) if negated else inside


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _folded(character: str) -> frozenset[str]:
    return frozenset((character, character.lower(), character.upper()))


def _repeats(tree: tuple[Any, ...]) -> bool:
    """Says whether a tree repeats anything more than once."""
    if tree[0] == "repeat":
        return bool(tree[3] != 1) or _repeats(tree[1])
    if tree[0] in ("cat", "alt"):
        return any(_repeats(each) for each in tree[1])
    return False


class _Builder:
    """Lays a tree out as nodes: ``(kind, test, next nodes)``, built from the end backwards."""

    def __init__(self) -> None:
        self.nodes: list[tuple[str, _Test | None, list[int]]] = []

    def add(self, kind: str, test: _Test | None, onward: list[int]) -> int:
        if len(self.nodes) >= _MAX_NODES:
            raise BadPattern("is too large once its repetitions are written out")
        self.nodes.append((kind, test, onward))
        return len(self.nodes) - 1

    def lay(self, tree: tuple[Any, ...], onward: int) -> int:
        kind = tree[0]
        if kind == "char":
            return self.add("char", tree[1], [onward])
        if kind in ("start", "end"):
            return self.add(kind, None, [onward])
        if kind == "cat":
            for each in reversed(tree[1]):
                onward = self.lay(each, onward)
            return onward
        if kind == "alt":
            return self.add("split", None, [self.lay(each, onward) for each in tree[1]])
        _, inner, least, most = tree
        if most is None:
            loop = self.add("split", None, [onward])
            self.nodes[loop][2].append(self.lay(inner, loop))
            onward = loop
        else:
            leave = onward
            for _ in range(most - least):
                onward = self.add("split", None, [leave, self.lay(inner, onward)])
        for _ in range(least):
            onward = self.lay(inner, onward)
        return onward


class Pattern:
    """A pattern that was taken. Raises BadPattern for one outside the subset."""

    def __init__(self, text: str) -> None:
        if len(text) > MAX_PATTERN:
            raise BadPattern(f"has {len(text)} characters; at most {MAX_PATTERN} are allowed")
        self.text = text
        builder = _Builder()
        match = builder.add("match", None, [])
        tree = _Parser(text).parse()
        self._first = builder.lay(tree, match)
        self._nodes = builder.nodes
        self._onward: dict[frozenset[int], dict[str, frozenset[int]]] = {}
        self._again = self._reach([self._first], at_start=False, at_end=False)
        self._begin = self._reach([self._first], at_start=True, at_end=False)

    def _reach(self, nodes: list[int], *, at_start: bool, at_end: bool) -> frozenset[int]:
        seen: set[int] = set()
        waiting = list(nodes)
        while waiting:
            node = waiting.pop()
            if node in seen:
                continue
            seen.add(node)
            kind, _, onward = self._nodes[node]
            if kind == "split" or (kind == "start" and at_start) or (kind == "end" and at_end):
                waiting.extend(onward)
        return frozenset(node for node in seen if self._nodes[node][0] in ("char", "end", "match"))

    def _step(self, current: frozenset[int], character: str) -> frozenset[int]:
        reached: list[int] = []
        for node in current:
            kind, test, onward = self._nodes[node]
            if kind == "char" and test is not None and test(character):
                reached.extend(onward)
        return self._reach(reached, at_start=False, at_end=False) | self._again

    def search(self, text: str) -> bool:
        """Says whether the pattern matches anywhere in ``text``."""
        current = self._begin
        if 0 in current:  # node 0 is the match
            return True
        onward = self._onward
        for character in text:
            table = onward.get(current)
            if table is None:
                if len(onward) >= _MAX_SETS:
                    onward.clear()
                table = onward[current] = {}
            following = table.get(character)
            if following is None:
                following = self._step(current, character)
                if len(table) >= _MAX_SETS:
                    table.clear()
                table[character] = following
            current = following
            if 0 in current:
                return True
        return 0 in self._reach(list(current), at_start=not text, at_end=True)
