"""The application as its README tells it: served by uvicorn, month by month, user by user, and by its command."""

import os
import re
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "examples/budget/README.md").read_text()
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith(("REDIS_", "CACHE_"))}
ALICE, BOB = {"X-API-Key": "alice-demo-key"}, {"X-API-Key": "bob-demo-key"}


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("budget") / "budget.db"


@pytest.fixture(scope="module")
def environment(database: Path) -> dict[str, str]:
    return CLEAN | {"BUDGET_DB": str(database), "MODEL_SECONDS": "0.01", "REDIS_SUMMARY_TTL": "901"}


@pytest.fixture(scope="module")
def api(environment: dict[str, str]) -> Iterator[httpx2.Client]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", "examples.budget.app:app", "--port", str(port), "--log-level", "warning"],
        cwd=ROOT,
        env=environment,
    )
    try:
        for _ in range(400):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None, "the example ended"
            time.sleep(0.05)
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}/api/v1", timeout=20) as client:
            yield client
    finally:
        process.terminate()
        process.wait(20)


def ask(api: httpx2.Client, path: str, user: dict[str, str] = ALICE) -> Any:
    answer = api.get(path, headers=user)
    assert answer.status_code == 200, answer.text
    return answer.json()


def cheat(database: Path, month: str, user: str = "alice") -> None:
    """Change a month behind the application's back: an answer that is still the old one was kept."""
    with sqlite3.connect(database) as connection:
        connection.execute("INSERT INTO transactions VALUES (?, ?, 'food', 1)", (user, f"{month}-01"))
    connection.close()


def test_invalidating_a_month_leaves_the_others(api: httpx2.Client, database: Path) -> None:
    months = ["2023-01", "2023-02", "2023-03"]
    before = {month: ask(api, f"/summary/{month}")["total"] for month in months}
    bobs = ask(api, "/summary/2023-02", BOB)["total"]
    for month in months:
        cheat(database, month)
    cheat(database, "2023-02", "bob")
    assert {month: ask(api, f"/summary/{month}")["total"] for month in months} == before

    done = api.delete("/cache/invalidate/month/2023-02", headers=ALICE)

    assert (done.status_code, done.json()["acknowledged"]) == (200, True)
    after = {month: ask(api, f"/summary/{month}")["total"] - before[month] for month in months}
    assert after == {"2023-01": 0, "2023-02": 1, "2023-03": 0}
    assert ask(api, "/summary/2023-02", BOB)["total"] == bobs


def test_a_transaction_is_in_every_answer_that_depends_on_it(api: httpx2.Client) -> None:
    def look() -> tuple[int, int, int, int]:
        return (
            ask(api, "/summary/2024-05")["total"],
            dict(ask(api, "/trends")["months"])["2024-05"],
            ask(api, "/prediction/2024-07")["cents"],
            len(ask(api, "/anomalies/2024-05")),
        )

    total, trend, predicted, anomalies = look()
    assert look() == (total, trend, predicted, anomalies)

    added = api.post(
        "/transactions", headers=ALICE, json={"day": "2024-05-05", "category": "travel", "cents": 50_000_000}
    )

    assert added.status_code == 201
    again = look()
    assert again[:2] == (total + 50_000_000, trend + 50_000_000)
    assert again[2] > predicted
    assert again[3] == anomalies + 1


def test_clearing_reaches_the_current_user_only(api: httpx2.Client, database: Path) -> None:
    month = "2023-08"
    before = [ask(api, f"/summary/{month}", user)["total"] for user in (ALICE, BOB)]
    cheat(database, month)
    cheat(database, month, "bob")

    assert api.delete("/cache/invalidate", headers=ALICE).json()["acknowledged"] is True

    assert [ask(api, f"/summary/{month}", user)["total"] for user in (ALICE, BOB)] == [before[0] + 1, before[1]]


def test_a_warmed_month_is_computed_before_it_is_asked_for(api: httpx2.Client, database: Path) -> None:
    warmed = api.post("/cache/warm/month/2023-11", headers=ALICE)
    assert warmed.json() == {"month": "2023-11", "refreshed": 4}
    cheat(database, "2023-11")

    def misses(operation: str) -> int:
        return int(ask(api, "/cache/stats")["operations"][operation]["misses"])

    before = [misses(operation) for operation in ("summary", "anomaly", "prediction")]
    for path in ("/summary/2023-11", "/anomalies/2023-11", "/prediction/2023-12"):
        ask(api, path)
    assert [misses(operation) for operation in ("summary", "anomaly", "prediction")] == before


def test_health_and_statistics_are_there(api: httpx2.Client) -> None:
    health = ask(api, "/cache/health")
    assert (health["status"], health["mode"]) == ("healthy", "memory")
    assert health["response_time_ms"] >= 0
    for _ in range(60):
        ask(api, "/summary/2023-04")
    stats = ask(api, "/cache/stats")
    assert stats["tenant"] == "alice"
    assert stats["hit_rate"] > 0.5
    assert stats["operations"]["summary"]["latency"]["hit"]["mean"] < 50


def test_the_monitor_judges_it_once_and_for_a_while_and_saves_what_it_saw(
    api: httpx2.Client, environment: dict[str, str], tmp_path: Path
) -> None:
    """As the README writes it; only for a shorter while."""
    for _ in range(400):
        ask(api, "/summary/2023-05", BOB)
    commands = re.findall(r"^nexcache (monitor.*)$", README, re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        shorter = command.replace("--interval 5 --duration 60", "--interval 0.2 --duration 1")
        shown = subprocess.Popen(
            [sys.executable, "-m", "nexcache.cli", *shorter.split(), "--json"],
            cwd=tmp_path,
            env=environment
            | {"NEXCACHE_URL": str(api.base_url).rstrip("/") + "/cache", "NEXCACHE_KEY": "bob-demo-key"}
            | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        while shown.poll() is None:
            ask(api, "/summary/2023-05", BOB)
        assert shown.stdout is not None
        printed = shown.stdout.read()
        shown.stdout.close()
        assert shown.returncode == 0, printed
        assert '"hit_rate"' in printed
    assert len((tmp_path / "budget.jsonl").read_text().splitlines()) >= 2


@pytest.mark.parametrize("path", ["/summary/2024-01", "/trends", "/cache/stats", "/prediction/2024-01"])
def test_without_a_key_there_is_no_answer(api: httpx2.Client, path: str) -> None:
    assert api.get(path).status_code == 401
    assert api.get(path, headers={"X-API-Key": "wrong"}).status_code == 401


@pytest.mark.parametrize("month", ["2024-13", "2024", "x"])
def test_a_month_is_a_month(api: httpx2.Client, month: str) -> None:
    assert api.get(f"/summary/{month}", headers=ALICE).status_code == 422


def test_the_command_prints_the_table_that_the_readme_shows(environment: dict[str, str], database: Path) -> None:
    [command] = re.findall(r"python -m ([\w.]+)", README)

    printed = subprocess.run(
        [sys.executable, "-m", command],
        cwd=ROOT,
        env=environment | {"BUDGET_DB": str(database.with_name("other.db"))},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout

    [shown] = re.findall(r"```\n(calculation.*?)```", README, re.DOTALL)
    assert [line.split()[0] for line in printed.splitlines()] == [line.split()[0] for line in shown.splitlines()]
    assert all(float(line.split()[-1].replace(",", "")) > 10 for line in printed.splitlines()[1:])


def test_lifetimes_come_from_the_environment(environment: dict[str, str]) -> None:
    script = """
from examples.budget import calculations as c
month = "2024-01"
print(c.summary.explain("bob", month).ttl, c.trends.explain("bob").ttl, c.anomalies.explain("bob", month).ttl)
"""
    printed = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert printed.stdout.split() == ["901.0", "1800.0", "600.0"]


def test_a_user_may_have_lifetimes_and_a_quota_of_ones_own(environment: dict[str, str]) -> None:
    script = """
from examples.budget import calculations as c
c.prepare()
print(*(c.summary.explain(user, "2024-01").ttl for user in ("alice", "bob")))
for user in ("alice", "bob"):
    for month in ("2023-01", "2023-02", "2023-03"):
        c.summary(user, month)
quota = c.cache.sync.stats("alice").quota
print(quota.entries, quota.refused, c.cache.sync.stats("bob").quota)
"""
    printed = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=environment | {"CACHE_TENANT_TTLS": "alice/summary=20m", "CACHE_QUOTAS": "alice entries=2"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert printed.stdout.split() == ["1200.0", "901.0", "2", "1", "None"]
    assert "`CACHE_TENANT_TTLS`, `CACHE_QUOTAS`" in README


def test_switched_off_the_same_answers_are_computed_every_time(environment: dict[str, str], database: Path) -> None:
    script = """
import sqlite3
from examples.budget import calculations as c
c.prepare()
before = c.summary("alice", "2023-06").total
with sqlite3.connect(c.DATABASE) as connection:
    connection.execute("INSERT INTO transactions VALUES ('alice', '2023-06-01', 'food', 1)")
print(c.summary("alice", "2023-06").total - before)
"""
    for enabled, difference in (("true", "0"), ("false", "1")):
        printed = subprocess.run(
            [sys.executable, "-c", script],
            cwd=ROOT,
            env=environment | {"CACHE_ENABLE_CACHE": enabled},
            capture_output=True,
            text=True,
            check=True,
        )
        assert printed.stdout.split() == [difference]
