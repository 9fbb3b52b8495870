"""The servers that the selected tests need, all started at once and shared by them."""

import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.frameworks.servers import Server, Setup


@dataclass(slots=True)
class Site:
    """A running setup as a client sees it, with a run of its own for one test."""

    setup: Setup
    url: str
    client: httpx2.Client
    log: Path
    run: str = field(default_factory=lambda: uuid.uuid4().hex)

    def send(self, method: str, path: str, *, tenant: str | None = "acme", **options: Any) -> httpx2.Response:
        """Send a request of a tenant, for this run."""
        headers = {"x-api-key": f"the-key-of-{tenant}"} if tenant is not None else {}
        headers |= options.pop("headers", {})
        return self.client.request(
            method, path, headers=headers, params={"run": self.run} | options.pop("params", {}), **options
        )

    def get(self, path: str, **options: Any) -> httpx2.Response:
        """Send a GET."""
        return self.send("GET", path, **options)

    def state(self) -> dict[str, Any]:
        """Ask the app what happened in this run."""
        found: dict[str, Any] = self.get("/state").json()
        return found


@pytest.fixture(scope="session")
def servers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[Setup, Server]]:
    wanted: dict[Setup, None] = {}
    for item in request.session.items:
        callspec = getattr(item, "callspec", None)
        setup = None if callspec is None else callspec.params.get("site")
        if isinstance(setup, Setup):
            wanted[setup] = None
    directory = tmp_path_factory.mktemp("servers")
    running = {setup: Server(setup, directory) for setup in wanted}
    yield running
    for server in running.values():
        server.terminate()
    for server in running.values():
        server.end()


@pytest.fixture(scope="session")
def clients(servers: dict[Setup, Server]) -> Iterator[dict[Setup, httpx2.Client]]:
    opened: dict[Setup, httpx2.Client] = {}
    yield opened
    for client in opened.values():
        client.close()


@pytest.fixture
def site(request: pytest.FixtureRequest, servers: dict[Setup, Server], clients: dict[Setup, httpx2.Client]) -> Site:
    setup: Setup = request.param
    client = clients.get(setup)
    if client is None:
        client = clients[setup] = httpx2.Client(base_url=servers[setup].wait(), timeout=10.0)
    return Site(setup, str(client.base_url), client, servers[setup].log)
