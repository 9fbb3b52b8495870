"""The command line against the admin endpoints of a running app."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from nexcache import Settings
from tests.cli.conftest import OPERATOR, SECRETS, CommandLine, Get, Served, application, asking


def told(result: Any) -> Any:
    assert result.exit_code in (0, 1, 3), result.stderr
    return json.loads(result.stdout)


@pytest.fixture
def admin(served: str, get: Get, nexcache: CommandLine) -> str:
    """The URL of the admin endpoints, of a tenant whose cache is empty but knows two pages."""
    url = f"{served}/admin"
    get("/overview")
    get("/services/cart")
    nexcache("invalidate", "--all", "--yes", "--url", url)
    return url


def test_statistics_are_those_that_the_endpoint_gives(nexcache: CommandLine, admin: str, get: Get) -> None:
    before = told(nexcache("stats", "--url", admin, "--json"))
    get("/overview", times=5)
    after = told(nexcache("stats", "--url", admin, "--json"))

    assert (after["hits"] - before["hits"], after["misses"] - before["misses"]) == (4, 1)
    shown = nexcache("stats", "--url", admin).stdout
    assert "overview" in shown
    assert f"{after['requests']:,}: {after['hits']:,} hits" in shown


def test_a_quota_is_shown_with_what_is_used_of_it(nexcache: CommandLine) -> None:
    app, _ = application(Settings(redis_url=None, redis_host=None, quotas="acme bytes=1MiB entries=2 fills=50"))
    with Served(app) as url:
        for path in ("/overview", "/services/cart", "/services/checkout"):
            asking(url)(path)
        shown = nexcache("stats", "--url", f"{url}/admin").stdout
        others = nexcache("stats", "--url", f"{url}/admin", NEXCACHE_KEY=SECRETS["globex"]).stdout
    assert re.search(r"quota +\d\.\d KiB of 1\.0 MiB, 2 of 2 entries, 50 answers kept a second; 1 not kept", shown)
    assert "quota" not in others


def test_operations_are_listed_with_what_they_were_asked_for(nexcache: CommandLine, admin: str) -> None:
    found = told(nexcache("operations", "--url", admin, "--json"))["operations"]
    assert {"overview", "service"} <= {each["name"] for each in found}
    assert "overview" in nexcache("operations", "--url", admin).stdout


def test_an_operator_sees_the_tenants_and_a_tenant_does_not(nexcache: CommandLine, admin: str) -> None:
    seen = nexcache("tenants", "--url", admin, "--json", NEXCACHE_KEY=OPERATOR)
    refused = nexcache("tenants", "--url", admin)

    assert "acme" in told(seen)["tenants"]
    assert refused.exit_code == 2
    assert "This is for operators." in refused.stderr


def test_an_operator_names_the_tenant(nexcache: CommandLine, admin: str) -> None:
    assert (
        told(nexcache("stats", "-t", "globex", "--url", admin, "--json", NEXCACHE_KEY=OPERATOR))["tenant"] == "globex"
    )
    unnamed = nexcache("stats", "--url", admin, NEXCACHE_KEY=OPERATOR)
    foreign = nexcache("stats", "-t", "globex", "--url", admin)
    assert (unnamed.exit_code, foreign.exit_code) == (2, 2)


def test_a_request_is_explained(nexcache: CommandLine, admin: str, get: Get) -> None:
    get("/services/cart")

    document = told(nexcache("explain", "/services/cart", "--url", admin, "--json"))
    shown = nexcache("explain", "/services/cart", "--url", admin).stdout

    assert document["policy"]["operation"] == "service"
    assert "tag:service:cart" in shown
    assert "usable" in shown
    assert nexcache("explain", "services", "--url", admin).exit_code == 2


def test_a_dry_run_says_what_would_be_reached_and_changes_nothing(nexcache: CommandLine, admin: str, get: Get) -> None:
    get("/overview")
    get("/services/cart")
    get("/services/shop")

    one = told(nexcache("invalidate", "serv*", "--dry-run", "--url", admin, "--json"))
    tags = ["--tag", "service:cart", "--tag", "service:shop"]
    several = told(nexcache("invalidate", *tags, "--dry-run", "--url", admin, "--json"))
    shown = nexcache("invalidate", "--all", "--dry-run", "--url", admin).stdout
    hits = told(nexcache("stats", "--url", admin, "--json"))["hits"]
    get("/overview")

    assert one["operations"] == {"service": 2}
    assert several["tags"] == {"service:cart": 1, "service:shop": 1}
    assert several["estimated"]
    assert "would reach 3 entries of 2 operations; nothing was changed" in shown
    assert told(nexcache("stats", "--url", admin, "--json"))["hits"] == hits + 1


def test_an_invalidation_makes_a_miss(nexcache: CommandLine, admin: str, get: Get) -> None:
    get("/overview")
    get("/services/cart")
    before = told(nexcache("stats", "--url", admin, "--json"))

    done = nexcache("invalidate", "overview", "--tag", "service:cart", "--url", admin, "--json")
    get("/overview")
    get("/services/cart")

    assert (done.exit_code, told(done)["targets"]) == (0, ["overview", "tag:service:cart"])
    assert told(nexcache("stats", "--url", admin, "--json"))["misses"] == before["misses"] + 2


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        pytest.param((), 2, "Name an operation, a --tag, or --all", id="nothing"),
        pytest.param(("--all", "overview"), 2, "--all is everything", id="everything and something"),
        pytest.param(("nothing_like_it",), 1, "No operation of this tenant", id="unknown operation"),
        pytest.param(("overview", "--strict"), 2, "leave out --url", id="strict"),
    ],
)
def test_an_invalidation_that_cannot_be_is_refused(
    nexcache: CommandLine, admin: str, words: tuple[str, ...], status: int, said: str
) -> None:
    result = nexcache("invalidate", *words, "--url", admin)
    assert (result.exit_code, result.stdout) == (status, "")
    assert said in result.stderr


def test_a_warm_up_computes_what_was_asked_for(nexcache: CommandLine, admin: str, get: Get) -> None:
    get("/overview?range=1h")
    get("/overview?range=2h")
    nexcache("invalidate", "overview", "--url", admin)

    warmed = told(nexcache("warm", "overview", "--url", admin, "--json"))
    hits = told(nexcache("stats", "--url", admin, "--json"))["hits"]
    get("/overview?range=1h")

    assert warmed["refreshed"] == warmed["requested"] >= 2
    assert told(nexcache("stats", "--url", admin, "--json"))["hits"] == hits + 1
    assert "requests computed" in nexcache("warm", "overview", "--url", admin).stdout


def test_an_operation_is_switched_off_and_on(nexcache: CommandLine, admin: str, get: Get) -> None:
    get("/overview", times=2)
    off = told(nexcache("disable", "overview", "--url", admin, "--json"))
    bypasses = told(nexcache("stats", "--url", admin, "--json"))["bypasses"]
    get("/overview")
    after = told(nexcache("stats", "--url", admin, "--json"))["bypasses"]
    shown = nexcache("operations", "--url", admin).stdout
    everybody = nexcache("disable", "service", "--all-tenants", "--url", admin, NEXCACHE_KEY=OPERATOR)
    both = nexcache("disable", "service", "--all-tenants", "-t", "acme", "--url", admin, NEXCACHE_KEY=OPERATOR)
    nexcache("enable", "service", "--all-tenants", "--url", admin, NEXCACHE_KEY=OPERATOR)
    on = nexcache("enable", "overview", "--url", admin)

    assert (off["disabled"], off["tenant"]) == (True, "acme")
    assert after == bypasses + 1
    assert "switched off" in shown
    assert "service of everybody goes to the app" in everybody.stdout
    assert (both.exit_code, "only one of them" in both.stderr) == (2, True)
    assert "overview of acme is answered from the cache" in on.stdout


def test_a_tenant_is_forgotten_by_an_operator_and_only_if_that_is_meant(
    nexcache: CommandLine, admin: str, get: Get
) -> None:
    get("/overview", times=2)
    get("/overview", who="globex")

    def entries(tenant: str) -> int:
        words = ("invalidate", "overview", "--dry-run", "--json", "-t", tenant)
        return int(told(nexcache(*words, "--url", admin, NEXCACHE_KEY=OPERATOR))["entries"])

    before = entries("acme")
    asked = nexcache("forget", "acme", "--url", admin, NEXCACHE_KEY=OPERATOR)
    own = nexcache("forget", "acme", "--yes", "--url", admin)
    kept = entries("acme")
    done = told(nexcache("forget", "acme", "--yes", "--json", "--url", admin, NEXCACHE_KEY=OPERATOR))
    shown = nexcache("forget", "acme", "-y", "--url", admin, NEXCACHE_KEY=OPERATOR).stdout
    bad = nexcache("forget", "a\x01", "--yes", "--url", admin, NEXCACHE_KEY=OPERATOR)

    assert before == kept > 0
    assert (asked.exit_code, "--yes" in asked.stderr) == (2, True)
    assert (own.exit_code, "answers 403" in own.stderr) == (2, True)
    assert (done["tenant"], done["done"]) == ("acme", True)
    assert done["removed"] > 0
    assert (entries("acme"), entries("globex")) == (0, 1)
    assert "acme: forgotten" in shown
    assert (bad.exit_code, "answers 400" in bad.stderr) == (2, True)


def test_the_key_may_be_in_a_file(nexcache: CommandLine, admin: str, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(SECRETS["globex"] + "\n", encoding="utf-8")
    result = nexcache("stats", "--url", admin, "--key-file", str(file), "--json")
    missing = nexcache("stats", "--url", admin, "--key-file", str(tmp_path / "none"))
    assert told(result)["tenant"] == "globex"
    assert (missing.exit_code, "must name a file that holds a key" in missing.stderr) == (2, True)


@pytest.mark.parametrize(
    ("path", "environment", "said"),
    [
        pytest.param("/admin", {"NEXCACHE_KEY": "guessed-secret"}, "does not know the key", id="wrong key"),
        pytest.param("/admin", {"NEXCACHE_KEY": "line\nbreak-secret"}, "no header field can", id="no key at all"),
        pytest.param("/nowhere", {}, "has no admin endpoints", id="wrong path"),
    ],
)
def test_what_is_wrong_with_the_question_is_said_without_the_key(
    nexcache: CommandLine, served: str, path: str, environment: dict[str, str], said: str
) -> None:
    result = nexcache("stats", "--url", f"{served}{path}", **environment)
    assert result.exit_code == 2
    assert said in result.stderr
    assert "secret" not in result.output


@pytest.mark.parametrize("url", ["app.example", "ftp://app", "http://", "http://user:secret@app/x", "http://app:99999"])
def test_a_url_that_cannot_be_is_refused_and_not_repeated(nexcache: CommandLine, url: str) -> None:
    result = nexcache("stats", "--url", url)
    assert result.exit_code == 2
    assert "looks like https://app.example/api/v1/cache" in result.stderr
    assert "secret" not in result.output


def test_a_server_that_is_not_there_is_named(nexcache: CommandLine) -> None:
    result = nexcache("stats", "--url", "http://127.0.0.1:9/admin")
    assert result.exit_code == 2
    assert "http://127.0.0.1:9/admin cannot be reached: " in result.stderr


def test_a_key_does_not_follow_a_redirect_and_foreign_answers_are_not_taken_for_ours(nexcache: CommandLine) -> None:
    carried = []

    async def elsewhere(request: Any) -> Response:
        carried.append(request.headers.get("x-api-key"))
        return RedirectResponse("/target")

    async def target(request: Any) -> Response:
        carried.append(request.url.path)
        return JSONResponse({})

    async def page(request: Any) -> Response:
        del request
        return PlainTextResponse("<html>")

    routes = [Route("/a/stats", elsewhere), Route("/target", target), Route("/b/stats", page)]
    with Served(Starlette(routes=routes)) as url:
        redirected = nexcache("stats", "--url", f"{url}/a")
        foreign = nexcache("stats", "--url", f"{url}/b")

    assert carried == [SECRETS["acme"]]
    assert (redirected.exit_code, "redirects to /target" in redirected.stderr) == (2, True)
    assert (foreign.exit_code, "no admin endpoints of NexCache" in foreign.stderr) == (2, True)
