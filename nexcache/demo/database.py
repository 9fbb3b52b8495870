"""Spans in SQLite: stored in batches, read in snapshots, forgotten after a while."""

import asyncio
import sqlite3
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

Answer = TypeVar("Answer")

RETENTION_US: Final = 365 * 60 * 1_000_000
"""Spans that began longer ago than this, in microseconds, are deleted: the longest window is six hours."""

_READERS: Final = 3

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS spans (
    tenant TEXT NOT NULL, trace_id BLOB NOT NULL, span_id BLOB NOT NULL, parent_id BLOB,
    service TEXT NOT NULL, journey TEXT, operation TEXT NOT NULL, failed INTEGER NOT NULL,
    start_us INTEGER NOT NULL, duration_us INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS seen (
    tenant TEXT NOT NULL, subject TEXT NOT NULL, spans INTEGER NOT NULL, last_trace BLOB NOT NULL,
    PRIMARY KEY (tenant, subject)
) WITHOUT ROWID;
CREATE UNIQUE INDEX IF NOT EXISTS spans_by_trace ON spans (tenant, trace_id, span_id);
CREATE INDEX IF NOT EXISTS spans_by_time ON spans (tenant, start_us);
CREATE INDEX IF NOT EXISTS spans_by_service ON spans (tenant, service, start_us);
CREATE INDEX IF NOT EXISTS spans_by_journey ON spans (tenant, journey, start_us);
"""
_INSERT: Final = "INSERT OR IGNORE INTO spans VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_COUNT: Final = """
INSERT INTO seen VALUES (?, ?, ?, ?)
ON CONFLICT DO UPDATE SET spans = spans + excluded.spans, last_trace = excluded.last_trace
"""
_FORGET: Final = "DELETE FROM spans WHERE tenant = ? AND start_us < ?"


class Span(NamedTuple):
    """One row: a finished span. Times are microseconds since the epoch."""

    trace_id: bytes
    span_id: bytes
    parent_id: bytes | None
    service: str
    journey: str | None
    """What the visitor was about to do, where the application says so in `app.journey`."""
    operation: str
    failed: bool
    start_us: int
    duration_us: int

    @property
    def subjects(self) -> tuple[str, ...]:
        """What pages can be about and this span belongs to: its service, and its journey if it has one."""
        return subjects(self.service, self.journey)


def subjects(service: str, journey: object) -> tuple[str, ...]:
    """Name what a span belongs to, as the tags of the cache do."""
    return (f"service:{service}", *((f"journey:{journey}",) if isinstance(journey, str) else ()))


class Database:
    """The spans of all tenants in one file; readers never wait for the writer (WAL).

    Queries run in threads of their own, each with its own connection, so the event loop is never blocked.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._local = threading.local()
        self._connections: list[sqlite3.Connection] = []
        self._pending: deque[tuple[str, Sequence[Span], Future[None]]] = deque()
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="query")
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="store")
        connection = self._connection()
        connection.execute("PRAGMA journal_mode = WAL")
        connection.executescript(_SCHEMA)

    def seed(self, tenant: str, spans: Iterable[Span]) -> Counter[str]:
        """Write a tenant's history in one go; returns how many spans each subject has. Blocks for a second or two."""
        batch = list(spans)
        self._write([(tenant, batch)])
        self._connection().execute("ANALYZE")
        return Counter(subject for span in batch for subject in span.subjects)

    async def store(self, tenant: str, spans: Sequence[Span], now_us: int) -> None:
        """Store a batch durably and delete what is too old; a span that is already there stays as it is.

        When this returns, every read that starts later sees the batch. Batches that arrive while another one is
        being written are written together, in one transaction.
        """
        stored: Future[None] = Future()
        self._pending.append((tenant, spans, stored))
        self._writer.submit(self._store_pending, now_us - RETENTION_US)
        await asyncio.wrap_future(stored)

    async def read(self, query: Callable[[sqlite3.Connection], Answer]) -> Answer:
        """Run a query in a thread; all its statements see the same state of the data."""

        def snapshot() -> Answer:
            connection = self._connection()
            connection.execute("BEGIN")
            try:
                return query(connection)
            finally:
                connection.execute("COMMIT")

        return await asyncio.get_running_loop().run_in_executor(self._readers, snapshot)

    def close(self) -> None:
        """Wait for running queries and close all connections."""
        self._readers.shutdown()
        self._writer.shutdown()
        for connection in self._connections:
            connection.close()
        self._connections.clear()

    def _connection(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
            connection.row_factory = sqlite3.Row
            connection.execute("PRAGMA busy_timeout = 5000")
            connection.execute("PRAGMA synchronous = NORMAL")
            # pages read in place, and no sorting in allocated memory: SQLite's allocator has one lock for all threads
            connection.execute("PRAGMA mmap_size = 268435456")
            self._local.connection = connection
            self._connections.append(connection)
        return connection

    def _store_pending(self, forget_before_us: int) -> None:
        """Write all batches that wait, in the writer's thread; if that fails, their senders send them again."""
        batches = []
        while self._pending:
            tenant, spans, stored = self._pending.popleft()
            if stored.set_running_or_notify_cancel():
                batches.append((tenant, spans, stored))
        if not batches:
            return
        try:
            self._write([(tenant, spans) for tenant, spans, _ in batches], forget_before_us)
        except sqlite3.Error as error:
            for _, _, stored in batches:
                stored.set_exception(error)
        else:
            for _, _, stored in batches:
                stored.set_result(None)

    def _write(self, batches: Sequence[tuple[str, Sequence[Span]]], forget_before_us: int | None = None) -> None:
        connection = self._connection()
        connection.execute("BEGIN IMMEDIATE")
        try:
            for tenant, spans in batches:
                seen: dict[tuple[str, ...], list[Span]] = {}
                for span in reversed(spans):
                    seen.setdefault(span.subjects, []).append(span)
                # of two groups with a subject in common, the one with the latest span comes last
                for subjects_seen, batch in reversed(seen.items()):
                    stored = connection.executemany(_INSERT, [(tenant, *span) for span in batch]).rowcount
                    if stored:
                        last = batch[0].trace_id
                        connection.executemany(_COUNT, [(tenant, each, stored, last) for each in subjects_seen])
            if forget_before_us is not None:
                for tenant in {tenant for tenant, _ in batches}:
                    connection.execute(_FORGET, (tenant, forget_before_us))
            connection.execute("COMMIT")
        except BaseException:
            connection.execute("ROLLBACK")
            raise
