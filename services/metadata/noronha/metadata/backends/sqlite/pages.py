"""Pages of records, read from the SQLite file in order and through filters."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from typing import Any

from noronha.metadata.backend import Page, Place, Record, Scan
from noronha.metadata.backends.sqlite import filters
from noronha.metadata.backends.sqlite.writes import RECORD, record_of
from noronha.metadata.filters import EVERYTHING, matcher

_STEPS_AT_ONCE = 20_000
_ROWS_AT_LEAST = 1_000


def after_prefix(prefix: str) -> str:
    """Returns the first text that is past all that begin with a prefix; our prefixes end in ``/``."""
    return prefix[:-1] + chr(ord(prefix[-1]) + 1)


_OF_ITS_DOCUMENT = "d.tenant = m.tenant AND d.kind = m.kind AND d.name = m.name AND d.revision = m.revision"


def _ordered(scan: Scan) -> tuple[str, str, str, str]:
    """Returns what holds a scan's order (``m``), how records (``r``) join it, the column before the name, the order.

    The optimiser knows nothing of how many rows there are, so it is told where to begin.
    """
    down = " DESC" if scan.descending else ""
    by_name = f"m.name{down}, m.revision DESC"
    if scan.order == "name" and scan.kind:
        return "documents m", "CROSS JOIN records r ON r.id = m.source", "0", by_name
    beside = f"CROSS JOIN records r ON r.id = m.id CROSS JOIN documents d ON {_OF_ITS_DOCUMENT}"
    if scan.order == "name":
        return "records m INDEXED BY records_by_name", beside, "0", by_name
    column = f"m.{scan.order}"
    return f"records m INDEXED BY records_by_{scan.order}", beside, column, f"{column}{down}, m.name, m.revision DESC"


def _past(scan: Scan, place: Place, *, inclusive: bool = False) -> tuple[str, list[Any]]:
    """Returns the condition for records that come after a place, or up to and with it when ``inclusive``."""
    later, sooner = ("<", ">") if scan.descending else (">", "<")
    if scan.order == "name":
        first, revision = (sooner, ">=") if inclusive else (later, "<")
        return (
            f"m.name {first}= ? AND (m.name <> ? OR m.revision {revision} ?)",
            [place.name, place.name, place.revision],
        )
    first, name, revision = (sooner, "<", ">=") if inclusive else (later, ">", "<")
    column = f"m.{scan.order}"
    return (
        f"{column} {first}= ? AND ({column} <> ? OR m.name {name} ? OR (m.name = ? AND m.revision {revision} ?))",
        [place.order, place.order, place.name, place.name, place.revision],
    )


def _range(scan: Scan, end: Place | None) -> list[tuple[str, list[Any]]]:
    """Returns the conditions for what lies between the place a scan stands at and an end.

    Where a place bounds the names, the prefix does not do so once more: the optimiser would begin at either.
    """
    conditions = []
    by_name = scan.order == "name"
    if scan.after is not None:
        conditions.append(_past(scan, scan.after))
    if end is not None:
        conditions.append(_past(scan, end, inclusive=True))
    if scan.prefix:
        bounded_below = by_name and (end if scan.descending else scan.after) is not None
        bounded_above = by_name and (scan.after if scan.descending else end) is not None
        if not bounded_below:
            conditions.append(("m.name >= ?", [scan.prefix]))
        if not bounded_above:
            conditions.append(("m.name < ?", [after_prefix(scan.prefix)]))
    return conditions


class Reading:
    """Reads one page. A filter that finds little is given up when its time is over, and told how far it came."""

    def __init__(self, connection: sqlite3.Connection, where: list[str], values: list[Any], scan: Scan) -> None:
        self._connection = connection
        self._where = where
        self._values = values
        self._scan = scan
        self._takes = matcher(scan.filter) if scan.filter != EVERYTHING else None
        self._filter = filters.compile(scan.filter)
        self._deadline = time.monotonic() + scan.max_seconds
        self._found: list[Record] = []
        self._size = 0
        self._after = scan.after

    def page(self) -> Page:
        connection = self._connection
        connection.execute("BEGIN")
        try:
            connection.set_progress_handler(self._is_late, _STEPS_AT_ONCE)
            try:
                return self._read(None)
            except sqlite3.OperationalError as error:
                if "interrupt" not in str(error):
                    raise
            finally:
                connection.set_progress_handler(None, 0)
            if self._after != self._scan.after:
                return Page(self._found, self._after)
            # Nothing was even worth a look: go on a little way, so that every page gets somewhere.
            end = self._place_ahead(_ROWS_AT_LEAST)
            page = self._read(end)
            return page if page.following is not None else Page(page.records, end)
        finally:
            connection.execute("COMMIT")

    def _is_late(self) -> bool:
        return time.monotonic() > self._deadline

    def _query(self, end: Place | None) -> tuple[str, list[Any]]:
        conditions, parameters = list(self._where), list(self._values)
        for sql, values in _range(self._scan, end):
            conditions.append(sql)
            parameters += values
        return " AND ".join(conditions), parameters

    def _place_ahead(self, rows: int) -> Place | None:
        main, _, order_column, order = _ordered(self._scan)
        where, parameters = self._query(None)
        row = self._connection.execute(
            f"SELECT {order_column}, m.name, m.revision FROM {main} WHERE {where} ORDER BY {order}"
            f" LIMIT 1 OFFSET {rows - 1}",
            parameters,
        ).fetchone()
        return Place(*row) if row else None

    def _read(self, end: Place | None) -> Page:
        scan, takes = self._scan, self._takes
        main, records, order_column, order = _ordered(scan)
        where, parameters = self._query(end)
        document, limit = "", f" LIMIT {scan.limit + 1}"
        if takes is not None:
            where += f" AND {self._filter[0]}"
            parameters += self._filter[1]
            document, limit = ", document", ""
        cursor = self._connection.execute(
            f"SELECT {RECORD}, {order_column}{document} FROM {main} {records} WHERE {where} ORDER BY {order}{limit}",
            parameters,
        )
        with contextlib.closing(cursor):
            for row in cursor:
                # One more row than the page holds tells whether there is more.
                if len(self._found) >= scan.limit:
                    return Page(self._found, self._after)
                if takes is None or takes(json.loads(row[-1])):
                    record = record_of(row)
                    self._size += len(record.body)
                    if self._found and self._size > scan.max_bytes:
                        return Page(self._found, self._after)
                    self._found.append(record)
                self._after = Place(row[8], row[1], row[2])
                if takes is not None and time.monotonic() > self._deadline:
                    return Page(self._found, self._after)
        return Page(self._found, None)
