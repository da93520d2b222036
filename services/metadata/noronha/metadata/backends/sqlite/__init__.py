"""Records in one SQLite file, for one process."""

from noronha.metadata.backends.sqlite.records import SqliteRecords

__all__ = ["SqliteRecords"]
