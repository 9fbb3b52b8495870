import sqlite3
from pathlib import Path
from sqlite3 import Connection

from nexcache.demo.database import RETENTION_US
from tests.demo.spans import NOW, SECOND, database, made


def spans_of(tenant: str, connection: Connection) -> int:
    count: int = connection.execute("SELECT COUNT(*) FROM spans WHERE tenant = ?", (tenant,)).fetchone()[0]
    return count


def counted(connection: Connection) -> dict[tuple[str, str], int]:
    return {(row[0], row[1]): row[2] for row in connection.execute("SELECT tenant, subject, spans FROM seen")}


async def test_a_stored_batch_is_seen_by_the_next_read(tmp_path: Path) -> None:
    shops = database(tmp_path)
    await shops.store("acme", [made(1, 1, None, "cart Add", ago=1, ms=1)], NOW)
    assert await shops.read(lambda connection: spans_of("acme", connection)) == 1
    shops.close()


async def test_a_batch_that_is_sent_twice_is_stored_and_counted_once(tmp_path: Path) -> None:
    shops = database(tmp_path)
    batch = [made(1, 1, None, "cart Add", ago=1, ms=1), made(1, 2, 1, "cart SET", ago=1, ms=1)]
    await shops.store("acme", batch, NOW)
    await shops.store("acme", batch, NOW)
    assert await shops.read(counted) == {("acme", "service:cart"): 2}
    shops.close()


async def test_the_same_ids_of_another_tenant_are_other_spans(tmp_path: Path) -> None:
    shops = database(tmp_path)
    batch = [made(1, 1, None, "cart Add", ago=1, ms=1)]
    await shops.store("acme", batch, NOW)
    await shops.store("globex", batch, NOW)
    assert await shops.read(counted) == {("acme", "service:cart"): 1, ("globex", "service:cart"): 1}
    shops.close()


async def test_old_spans_are_deleted_and_stay_counted(tmp_path: Path) -> None:
    old = made(1, 1, None, "cart Add", ago=RETENTION_US / SECOND + 1, ms=1)
    shops = database(tmp_path, acme=iter([old]), globex=iter([old]))
    await shops.store("acme", [made(2, 2, None, "cart Add", ago=1, ms=1)], NOW)
    assert await shops.read(lambda connection: spans_of("acme", connection)) == 1
    assert await shops.read(lambda connection: spans_of("globex", connection)) == 1
    assert (await shops.read(counted))["acme", "service:cart"] == 2
    shops.close()


async def test_all_statements_of_one_read_see_the_same_data(tmp_path: Path) -> None:
    shops = database(tmp_path)
    elsewhere = sqlite3.connect(tmp_path / "spans.db", isolation_level=None, check_same_thread=False)

    def twice(connection: Connection) -> tuple[int, int]:
        before = spans_of("acme", connection)
        span = ("acme", *made(1, 1, None, "cart Add", ago=1, ms=1))
        elsewhere.execute("INSERT INTO spans VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", span)
        return before, spans_of("acme", connection)

    assert await shops.read(twice) == (0, 0)
    assert await shops.read(lambda connection: spans_of("acme", connection)) == 1
    elsewhere.close()
    shops.close()
