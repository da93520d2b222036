"""Filters: a closed subset of MongoDB's query language, parsed to a tree. docs/filters.md is its law in words.

``parse`` reads the text that a client sent, ``matcher`` turns the tree into a function over documents; backends may
compile the tree into their own language as long as they take exactly the documents that ``matcher`` takes. A document
is what ``json.loads`` gives for one JSON object.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import EnumDescriptor
from google.protobuf.message import Message

from noronha.metadata import documents
from noronha.metadata.patterns import BadPattern, Pattern
from noronha.rpc import json_text
from noronha.rpc.errors import InvalidArgument

MAX_BYTES = 64 << 10
"""Most bytes of UTF-8 in a filter: 64 KiB."""

MAX_LEVELS = 20
"""Most levels of objects and arrays inside one another."""

MAX_TESTS = 256
"""Most tests in one filter."""

MAX_VALUES = 1000
"""Most values in one ``$in``, ``$nin`` or ``$all``."""

Path = tuple[str, ...]


@dataclass(frozen=True)
class And:
    """Takes what every node takes; an empty one takes all."""

    nodes: tuple[Node, ...]


@dataclass(frozen=True)
class Or:
    """Takes what any node takes."""

    nodes: tuple[Node, ...]


@dataclass(frozen=True)
class Not:
    """Takes what the node does not."""

    node: Node


@dataclass(frozen=True)
class Equal:
    """The value, or an element of it, equals ``value``; None also takes a missing value."""

    path: Path
    value: Any


@dataclass(frozen=True)
class Order:
    """The value, or an element of it, is of the same kind as ``value`` (number or text) and stands so to it."""

    path: Path
    operator: str
    """``$gt``, ``$gte``, ``$lt`` or ``$lte``."""
    value: str | int | float


@dataclass(frozen=True)
class In:
    """As Equal, for any of several values."""

    path: Path
    values: tuple[Any, ...]


@dataclass(frozen=True)
class Exists:
    """There is a value, be it null."""

    path: Path


@dataclass(frozen=True)
class Matches:
    """The value, or an element of it, is a text in which the pattern is found."""

    path: Path
    pattern: Pattern


@dataclass(frozen=True)
class Element:
    """The value is an array with an element that the node takes; there, a path of no parts means the element itself."""

    path: Path
    node: Node
    objects: bool
    """Whether only elements that are objects are looked at."""


@dataclass(frozen=True)
class Size:
    """The value is an array of so many elements."""

    path: Path
    size: int


Node = And | Or | Not | Equal | Order | In | Exists | Matches | Element | Size

EVERYTHING = And(())
"""The tree of the empty filter."""


def bad_filter(why: str, **metadata: object) -> InvalidArgument:
    """Returns the error for a filter outside the language."""
    return InvalidArgument(
        f"filter {why}; docs/filters.md has the language",
        reason="BAD_FILTER", violations=[("filter", why)], **metadata,
    )  # fmt: skip


def parse(text: str, *kinds: type[Message]) -> Node:
    """Returns the tree of a filter; '' takes all. Raises InvalidArgument ``BAD_FILTER``, naming what is not taken.

    ``kinds`` are the messages that are filtered: a path that leads nowhere in any of them is refused, and so is a word
    that no enumeration at its path has, since they would take nothing without a word. Without them any path is taken.
    """
    if not text:
        return EVERYTHING
    query = json_text.read(text, "filter", reason="BAD_FILTER", max_bytes=MAX_BYTES, max_levels=MAX_LEVELS)
    tree = _Reader().query(query)
    if kinds:
        for path, values in _looks_of(tree):
            _check_values(path, values, _followed(path, kinds))
    return tree


def _looks_of(node: Node) -> Iterator[tuple[Path, tuple[Any, ...]]]:
    """Yields every path that a tree looks at, each from the outermost object on, with the values it is to equal."""
    if isinstance(node, (And, Or)):
        for each in node.nodes:
            yield from _looks_of(each)
    elif isinstance(node, Not):
        yield from _looks_of(node.node)
    elif isinstance(node, Element):
        yield node.path, ()
        for inner, values in _looks_of(node.node):
            yield node.path + inner, values
    elif isinstance(node, Equal):
        yield node.path, (node.value,)
    else:
        yield node.path, node.values if isinstance(node, In) else ()


def _check_values(path: Path, values: tuple[Any, ...], enumerations: list[EnumDescriptor | None]) -> None:
    """Raises InvalidArgument ``BAD_FILTER``, naming those that there are, for a word that no enumeration has.

    Numbers and ``null`` are taken: what a later release added is told by its number.
    """
    known: dict[str, None] = {}
    for each in enumerations:
        if each is None:
            return
        known |= dict.fromkeys(value.name for value in each.values)
    for value in values:
        if isinstance(value, str) and value not in known:
            words = ", ".join(name for name in known if not name.endswith("_UNSPECIFIED"))
            shown = ".".join(path)[:64]
            raise bad_filter(
                f"compares {shown!r} with {value[:64]!r}, which it never is; known: {words}", field=shown, values=words
            )


def _followed(path: Path, kinds: Sequence[type[Message]]) -> list[EnumDescriptor | None]:
    """Returns the enumerations that a path leads to, None for anything else, one for each kind that can follow it.

    Raises InvalidArgument ``BAD_FILTER``, naming the nearest field, when a path leads nowhere in all these kinds.
    """
    misled: documents.Misled | None = None
    found: list[EnumDescriptor | None] = []
    for kind in kinds:
        try:
            found.append(documents.follow(kind, path))
        except documents.Misled as error:
            if misled is None or len(error.followed) > len(misled.followed):
                misled = error
    if found:
        return found
    assert misled is not None
    shown, followed = ".".join(path)[:64], ".".join(misled.followed)
    place = followed or " or ".join(sorted(kind.DESCRIPTOR.name for kind in kinds))
    why = f"has the field {shown!r}, but {place} has no fields"
    if misled.known:
        part = path[len(misled.followed)]
        near = difflib.get_close_matches(part.lower(), misled.known, n=1)
        nearest = ".".join((*misled.followed, *near))
        hint = f"did you mean {nearest!r}?" if near else f"known: {', '.join(misled.known)}"
        why = f"has the field {shown!r}, but {place} has no {part[:64]!r}; {hint}"
    raise bad_filter(why, field=shown)


class _Reader:
    """Reads one filter and counts its tests."""

    def __init__(self) -> None:
        self._tests = 0

    def query(self, query: dict[str, Any]) -> Node:
        nodes: list[Node] = []
        for key, value in query.items():
            if key in ("$and", "$or", "$nor"):
                branches = tuple(self.query(each) for each in self._queries(key, value))
                node: Node = And(branches) if key == "$and" else Or(branches)
                nodes.append(Not(node) if key == "$nor" else node)
            elif key.startswith("$"):
                hint = " outside a field; use $nor" if key == "$not" else ""
                raise bad_filter(f"has the operator {key[:64]!r}{hint}, which is not taken", operator=key[:64])
            else:
                nodes.append(self.field(_path(key), value))
        return nodes[0] if len(nodes) == 1 else And(tuple(nodes))

    def _queries(self, operator: str, value: Any) -> list[dict[str, Any]]:
        if not isinstance(value, list) or not value or not all(isinstance(each, dict) for each in value):
            raise bad_filter(f"has {operator} without a non-empty array of objects", operator=operator)
        return value

    def field(self, path: Path, value: Any) -> Node:
        if isinstance(value, dict) and any(key.startswith("$") for key in value):
            return self.tests(path, value)
        self._count()
        return Equal(path, _plain("a value", value))

    def tests(self, path: Path, operators: dict[str, Any]) -> Node:
        nodes = [self.test(path, operator, value) for operator, value in operators.items()]
        return nodes[0] if len(nodes) == 1 else And(tuple(nodes))

    def _count(self) -> None:
        self._tests += 1
        if self._tests > MAX_TESTS:
            raise bad_filter(f"has more than {MAX_TESTS} tests", limit=MAX_TESTS)

    def test(self, path: Path, operator: str, value: Any) -> Node:
        self._count()
        read = _TESTS.get(operator)
        if read is None:
            raise bad_filter(f"has the operator {operator[:64]!r}, which is not taken", operator=operator[:64])
        return read(self, path, operator, value)

    def _equal(self, path: Path, operator: str, value: Any) -> Node:
        equal = Equal(path, _plain(operator, value))
        return Not(equal) if operator == "$ne" else equal

    def _order(self, path: Path, operator: str, value: Any) -> Node:
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise bad_filter(f"has {operator} with something other than a number or a text", operator=operator)
        return Order(path, operator, value)

    def _among(self, path: Path, operator: str, value: Any) -> Node:
        node = In(path, _values(operator, value))
        return Not(node) if operator == "$nin" else node

    def _exists(self, path: Path, operator: str, value: Any) -> Node:
        if not isinstance(value, bool):
            raise bad_filter("has $exists with something other than true or false", operator=operator)
        return Exists(path) if value else Not(Exists(path))

    def _regex(self, path: Path, operator: str, value: Any) -> Node:
        if not isinstance(value, str):
            raise bad_filter("has $regex with something other than a text", operator=operator)
        try:
            return Matches(path, Pattern(value))
        except BadPattern as error:
            raise bad_filter(f"has a $regex that {error}", operator=operator) from None

    def _all(self, path: Path, operator: str, value: Any) -> Node:
        values = _values(operator, value)
        if not values:
            return Not(EVERYTHING)
        return And(tuple(Equal(path, each) for each in values))

    def _size(self, path: Path, operator: str, value: Any) -> Node:
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise bad_filter("has $size with something other than a number from 0", operator=operator)
        return Size(path, value)

    def _element(self, path: Path, operator: str, value: Any) -> Node:
        if not isinstance(value, dict):
            raise bad_filter("has $elemMatch with something other than an object", operator=operator)
        if value and all(key in _TESTS for key in value):
            return Element(path, self.tests((), value), objects=False)
        return Element(path, self.query(value), objects=True)

    def _negation(self, path: Path, operator: str, value: Any) -> Node:
        if not isinstance(value, dict) or not value:
            raise bad_filter("has $not with something other than an object of operators", operator=operator)
        return Not(self.tests(path, value))


_TESTS: dict[str, Callable[[_Reader, Path, str, Any], Node]] = {
    "$eq": _Reader._equal,
    "$ne": _Reader._equal,
    "$gt": _Reader._order,
    "$gte": _Reader._order,
    "$lt": _Reader._order,
    "$lte": _Reader._order,
    "$in": _Reader._among,
    "$nin": _Reader._among,
    "$exists": _Reader._exists,
    "$regex": _Reader._regex,
    "$all": _Reader._all,
    "$size": _Reader._size,
    "$elemMatch": _Reader._element,
    "$not": _Reader._negation,
}


def _path(key: str) -> Path:
    path = tuple(key.split("."))
    if len(key) > 512 or "\0" in key or not all(path):
        raise bad_filter(f"has the field {key[:64]!r}, which is no path such as details.score", field=key[:64])
    for part in path:
        if part.startswith("$"):
            raise bad_filter(f"has the operator {part[:64]!r}, which is not taken", operator=part[:64])
    return path


def _plain(operator: str, value: Any) -> Any:
    """Returns a value to compare with. Raises InvalidArgument when an operator hides in it."""
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            for key in each:
                if key.startswith("$"):
                    raise bad_filter(f"has the operator {key[:64]!r} inside {operator}", operator=key[:64])
            waiting.extend(each.values())
        elif isinstance(each, list):
            waiting.extend(each)
    return value


def _values(operator: str, value: Any) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise bad_filter(f"has {operator} with something other than an array", operator=operator)
    if len(value) > MAX_VALUES:
        raise bad_filter(f"has {operator} with more than {MAX_VALUES:,} values", operator=operator)
    return tuple(_plain(operator, each) for each in value)


Document = dict[str, Any]
Matcher = Callable[[Any], bool]


def same(one: Any, other: Any) -> bool:
    """Says whether two JSON values are equal: numbers by value, whatever their size; true is no number."""
    if isinstance(one, bool) or isinstance(other, bool) or one is None or other is None:
        return one is other
    if isinstance(one, dict):
        return (
            isinstance(other, dict)
            and len(one) == len(other)
            and all(key in other and same(value, other[key]) for key, value in one.items())
        )
    if isinstance(one, list):
        return isinstance(other, list) and len(one) == len(other) and all(map(same, one, other))
    return type(other) not in (dict, list) and bool(one == other)


def values_at(document: Any, path: Sequence[str], at: int = 0) -> list[Any]:
    """Returns the values that a path leads to: through objects by key, through arrays by position and by element."""
    while at < len(path):
        part = path[at]
        if isinstance(document, dict):
            if part not in document:
                return []
            document = document[part]
            at += 1
        elif isinstance(document, list):
            found: list[Any] = []
            if part.isascii() and part.isdigit() and (part == "0" or part[0] != "0") and len(part) < 10:
                index = int(part)
                if index < len(document):
                    found += values_at(document[index], path, at + 1)
            for each in document:
                if isinstance(each, dict):
                    found += values_at(each, path, at)
            return found
        else:
            return []
    return [document]


def _candidates(found: list[Any]) -> list[Any]:
    """Returns the values and, for arrays, their elements as well."""
    if not any(isinstance(each, list) for each in found):
        return found
    return [one for each in found for one in ([each, *each] if isinstance(each, list) else [each])]


def matcher(node: Node) -> Matcher:
    """Returns the function that says whether a document is taken."""
    if isinstance(node, And):
        parts = [matcher(each) for each in node.nodes]
        if len(parts) == 2:
            first, second = parts
            return lambda document: first(document) and second(document)
        return lambda document: all(part(document) for part in parts)
    if isinstance(node, Or):
        choices = [matcher(each) for each in node.nodes]
        return lambda document: any(choice(document) for choice in choices)
    if isinstance(node, Not):
        inner = matcher(node.node)
        return lambda document: not inner(document)
    if isinstance(node, Element):
        return _element_matcher(node)
    if isinstance(node, Exists):
        path = node.path
        return lambda document: bool(values_at(document, path))
    if isinstance(node, Size):
        path, size = node.path, node.size
        return lambda document: any(isinstance(each, list) and len(each) == size for each in values_at(document, path))
    return _value_matcher(node)


def _element_matcher(node: Element) -> Matcher:
    path, inner, objects = node.path, matcher(node.node), node.objects

    def takes(each: Any) -> bool:
        return isinstance(each, list) and any(
            inner(element) for element in each if not objects or isinstance(element, dict)
        )

    return lambda document: any(takes(each) for each in values_at(document, path))


def _value_matcher(node: Equal | Order | In | Matches) -> Matcher:
    path = node.path
    test = _test_of(node)
    if not path:
        return test
    if isinstance(node, (Equal, In)) and (
        node.value is None if isinstance(node, Equal) else any(each is None for each in node.values)
    ):

        def or_missing(document: Any) -> bool:
            found = values_at(document, path)
            return not found or any(test(each) for each in _candidates(found))

        return or_missing
    return lambda document: any(test(each) for each in _candidates(values_at(document, path)))


def _test_of(node: Equal | Order | In | Matches) -> Callable[[Any], bool]:
    if isinstance(node, Equal):
        value = node.value
        return lambda each: same(value, each)
    if isinstance(node, In):
        texts = frozenset(value for value in node.values if isinstance(value, str))
        others = [value for value in node.values if not isinstance(value, str)]
        return lambda each: each in texts if isinstance(each, str) else any(same(value, each) for value in others)
    if isinstance(node, Matches):
        search = node.pattern.search
        return lambda each: isinstance(each, str) and search(each)
    return _order_of(node)


def _order_of(node: Order) -> Callable[[Any], bool]:
    value: Any = node.value
    compare: Callable[[Any], bool] = {
        "$gt": lambda each: each > value,
        "$gte": lambda each: each >= value,
        "$lt": lambda each: each < value,
        "$lte": lambda each: each <= value,
    }[node.operator]
    if isinstance(value, str):
        return lambda each: isinstance(each, str) and compare(each)
    return lambda each: isinstance(each, (int, float)) and not isinstance(each, bool) and compare(each)
