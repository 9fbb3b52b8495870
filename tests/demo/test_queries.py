from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from sqlite3 import Connection

import pytest

from nexcache.demo import queries
from nexcache.demo.database import Database
from nexcache.demo.queries import Answer, Question
from tests.demo.spans import NOW, database, made, shop

QUARTER = 15 * 60


@pytest.fixture
async def shops(tmp_path: Path) -> AsyncIterator[Database]:
    found = database(tmp_path, acme=shop(), globex=iter([made(9, 91, None, "frontend GET /", ago=5, ms=7)]))
    yield found
    found.close()


async def ask(
    shops: Database,
    query: Callable[[Connection, Question], Answer],
    *,
    tenant: str = "acme",
    service: str | None = None,
    journey: str | None = None,
) -> Answer:
    question = Question(tenant, QUARTER, NOW, service, journey)
    return await shops.read(lambda connection: query(connection, question))


async def test_the_dashboard_counts_the_visits_of_the_window_and_their_failures(shops: Database) -> None:
    answer = await ask(shops, queries.dashboard)
    assert (answer["visits"], answer["failure_rate"]) == (2, 0.5)
    assert answer["per_minute"] == [
        {"minute": 13, "visits": 1, "failed": 1, "p95_ms": 100.0},
        {"minute": 14, "visits": 1, "failed": 0, "p95_ms": 300.0},
    ]


async def test_the_dashboard_gives_each_service_its_nearest_rank_percentiles(shops: Database) -> None:
    answer = await ask(shops, queries.dashboard)
    by_service = {row["service"]: row for row in answer["services"]}
    catalog = by_service["catalog"]  # 40, 60 and 200 ms
    assert (catalog["spans"], catalog["p50_ms"], catalog["p95_ms"]) == (3, 60.0, 200.0)
    assert by_service["reviews"]["failure_rate"] == 1.0


async def test_the_dashboard_shows_the_latest_failures_first(shops: Database) -> None:
    answer = await ask(shops, queries.dashboard)
    assert [row["service"] for row in answer["latest_failures"]] == ["reviews", "frontend"]


async def test_the_architecture_map_joins_spans_to_the_parents_that_called_them(shops: Database) -> None:
    answer = await ask(shops, queries.architecture)
    edges = {(edge["caller"], edge["callee"]): edge for edge in answer["edges"]}
    assert set(edges) == {("frontend", "catalog"), ("frontend", "reviews")}
    calls = edges["frontend", "catalog"]
    assert (calls["calls"], calls["mean_ms"], calls["p95_ms"]) == (2, 130.0, 200.0)
    assert {node["service"]: node["operations"] for node in answer["nodes"]} == {
        "accounts": 1,
        "catalog": 2,
        "frontend": 1,
        "reviews": 1,
    }


async def test_the_list_of_services_orders_operations_by_the_time_that_they_take(shops: Database) -> None:
    answer = await ask(shops, queries.service_list)
    catalog = next(row for row in answer["services"] if row["service"] == "catalog")
    assert [(row["operation"], row["busy_ms"]) for row in catalog["operations"]] == [("List", 260.0), ("SELECT", 40.0)]


async def test_the_details_of_a_service_tell_what_others_ask_of_it_from_what_it_does_inside(shops: Database) -> None:
    answer = await ask(shops, queries.service_details, service="catalog")
    (endpoint,) = answer["endpoints"]
    assert (endpoint["operation"], endpoint["calls"], endpoint["p50_ms"], endpoint["p99_ms"]) == (
        "List",
        2,
        60.0,
        200.0,
    )
    assert [point["calls"] for point in endpoint["history"]] == [1, 1]
    (inside,) = answer["internal"]
    assert (inside["endpoint"], inside["operation"], inside["share_of_time"]) == ("List", "SELECT", 0.1538)
    assert [row["ms"] for row in answer["slowest"]] == [200.0, 60.0, 40.0]


async def test_the_details_of_a_service_see_only_that_service(shops: Database) -> None:
    answer = await ask(shops, queries.service_details, service="catalog")
    assert set(answer["seen"]) == {"service:catalog"}


@pytest.mark.parametrize(
    ("metric", "points"),
    [
        pytest.param("latency", [(40.0, 100.0), (200.0, 300.0)], id="latency"),
        pytest.param("throughput", [(4 / 60,), (3 / 60,)], id="throughput"),
        pytest.param("failures", [(2, 0.5), (0, 0.0)], id="failures"),
    ],
)
async def test_metrics_have_a_point_per_bucket_that_has_spans(
    shops: Database, metric: str, points: list[tuple[float, ...]]
) -> None:
    answer = await ask(shops, partial(queries.metrics, metric=metric, step=60))
    assert [point["at_s"] for point in answer["points"]] == [780, 840]
    values = [tuple(point[name] for name in queries.METRICS[metric]) for point in answer["points"]]
    assert values == [pytest.approx(point, abs=0.001) for point in points]


async def test_metrics_of_one_service_count_only_its_spans(shops: Database) -> None:
    answer = await ask(shops, partial(queries.metrics, metric="failures", step=QUARTER), service="reviews")
    assert answer["points"] == [{"at_s": 0, "failed": 1, "failure_rate": 1.0}]


async def test_own_time_is_what_the_calls_of_a_span_did_not_take(shops: Database) -> None:
    answer = await ask(shops, partial(queries.metrics, metric="own_time", step=QUARTER), journey="home")
    # visit 1: 100 - 60 - 20, 60 - 40 and 40, 20 ms; visit 2: 300 - 200 and 200 ms
    assert answer["points"] == [{"at_s": 0, "own_ms": {"catalog": 260.0, "frontend": 120.0, "reviews": 20.0}}]


async def test_the_critical_path_follows_the_call_that_took_longest(shops: Database) -> None:
    answer = await ask(shops, partial(queries.graph, analysis="critical_path"), journey="home")
    paths = {tuple(row["path"]): row for row in answer["found"]}
    assert set(paths) == {("frontend", "catalog"), ("frontend", "catalog", "catalog")}
    assert paths["frontend", "catalog", "catalog"]["share_of_last_call"] == 0.4


async def test_the_depth_of_a_visit_is_its_longest_chain_of_calls(shops: Database) -> None:
    answer = await ask(shops, partial(queries.graph, analysis="depth"), journey="home")
    assert answer["found"] == [
        {"depth": 2, "visits": 1, "mean_spans": 2.0},
        {"depth": 3, "visits": 1, "mean_spans": 4.0},
    ]


async def test_fan_out_counts_the_calls_that_one_span_makes(shops: Database) -> None:
    answer = await ask(shops, partial(queries.graph, analysis="fan_out"), journey="home")
    frontend = next(row for row in answer["found"] if row["service"] == "frontend")
    assert (frontend["spans"], frontend["mean_calls"], frontend["most_calls"], frontend["services"]) == (2, 1.5, 2, 2)


@pytest.mark.parametrize(
    "query",
    [
        pytest.param(queries.dashboard, id="dashboard"),
        pytest.param(queries.architecture, id="architecture"),
        pytest.param(queries.service_list, id="services"),
        pytest.param(partial(queries.metrics, metric="latency", step=60), id="metrics"),
    ],
)
async def test_an_answer_says_whose_it_is_and_which_services_it_has_seen(
    shops: Database, query: Callable[[Connection, Question], Answer]
) -> None:
    answer = await ask(shops, query)
    assert answer["tenant"] == "acme"
    assert answer["seen"] == {
        "service:accounts": {"spans": 1, "last_trace": (4).to_bytes(16).hex()},
        "service:catalog": {"spans": 3, "last_trace": (2).to_bytes(16).hex()},
        "service:frontend": {"spans": 3, "last_trace": (3).to_bytes(16).hex()},
        "service:reviews": {"spans": 1, "last_trace": (1).to_bytes(16).hex()},
    }
    assert (await ask(shops, query, tenant="globex"))["seen"].keys() == {"service:frontend"}


@pytest.mark.parametrize("analysis", queries.ANALYSES)
async def test_an_analysis_sees_only_its_journey(shops: Database, analysis: str) -> None:
    answer = await ask(shops, partial(queries.graph, analysis=analysis), journey="home")
    assert answer["seen"] == {"journey:home": {"spans": 7, "last_trace": (3).to_bytes(16).hex()}}


async def test_a_tenant_without_spans_gets_an_empty_answer(shops: Database) -> None:
    answer = await ask(shops, queries.dashboard, tenant="nobody")
    assert (answer["tenant"], answer["visits"], answer["services"], answer["seen"]) == ("nobody", 0, [], {})
