"""An app on a loopback port with its admin endpoints, and the command line in this process."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from typer.testing import CliRunner, Result

from nexcache import AdminApp, CacheMiddleware, NexCache, Policy, Settings, tenants
from nexcache.cli import app as commands
from nexcache.tenants import ApiKey

SECRETS = {"acme": "the-key-of-acme", "globex": "the-key-of-globex"}
OPERATOR = "the-key-of-ops"
KEYS = (
    *(ApiKey.of(tenant, secret) for tenant, secret in SECRETS.items()),
    ApiKey.parse(f"{ApiKey.of('ops', OPERATOR)};role=operator"),
)


async def handler(request: Request) -> Response:
    return JSONResponse({"path": request.url.path}, status_code=500 if "fails" in request.url.path else 200)


def application(settings: Settings) -> tuple[Starlette, NexCache]:
    """An app with two operations and its admin endpoints below /admin."""
    cache = NexCache(settings)
    keys = tenants.api_key(keys=KEYS)
    app = Starlette(
        routes=[
            Route("/overview", handler),
            Route("/services/{name}", handler),
            Mount("/admin", AdminApp(cache, authorize=keys)),
        ],
        middleware=[
            Middleware(
                CacheMiddleware,
                cache=cache,
                tenant=keys,
                principal=keys,
                policies=[
                    Policy("/overview", op="overview"),
                    Policy("/services/{name}", op="service", tags=["service:{name}"]),
                ],
            )
        ],
        lifespan=cache.lifespan,
    )
    return app, cache


class Served:
    """An app on a port of its own, in a thread of its own."""

    def __init__(self, app: Any, **options: Any) -> None:
        self._server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical", **options))
        self._thread = threading.Thread(target=self._server.run, daemon=True)

    def __enter__(self) -> str:
        self._thread.start()
        end = time.monotonic() + 10
        while not self._server.started:
            assert self._thread.is_alive()
            assert time.monotonic() < end
            time.sleep(0.01)
        port = self._server.servers[0].sockets[0].getsockname()[1]
        scheme = "https" if self._server.config.is_ssl else "http"
        return f"{scheme}://127.0.0.1:{port}"

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(10)
        assert not self._thread.is_alive()


@dataclass
class CommandLine:
    """`nexcache …` in this process, with an environment of its own."""

    environment: dict[str, str | None]

    def __call__(self, *words: str, **environment: str) -> Result:
        result = CliRunner(env=self.environment | environment).invoke(commands, list(words))
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result


@pytest.fixture
def nexcache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> CommandLine:
    monkeypatch.chdir(tmp_path)  # no .env of the developer's
    return CommandLine({"NEXCACHE_KEY": SECRETS["acme"], "COLUMNS": "200", "REDIS_URL": None})


@pytest.fixture(scope="module")
def served() -> Iterator[str]:
    app, _ = application(Settings(redis_url=None, redis_host=None))
    with Served(app) as url:
        yield url


Get = Callable[..., int]


@pytest.fixture
def get(served: str) -> Get:
    """Ask the app for a page; returns the status."""
    return asking(served)


def asking(url: str) -> Get:
    def ask(path: str, *, who: str = "acme", times: int = 1) -> int:
        with httpx2.Client(base_url=url, headers={"x-api-key": SECRETS[who]}) as client:
            return [client.get(path).status_code for _ in range(times)][-1]

    return ask
