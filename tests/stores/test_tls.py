"""TLS and passwords against a real server, under a private certificate authority that lives for one test."""

import asyncio
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme

from nexcache import NexCache, Settings, StoreUnavailable
from nexcache.errors import StoreError
from nexcache.stores.redis import RedisStore
from nexcache.telemetry.events import BackendFailed, Event

SERVER = shutil.which("redis-server")
PASSWORD = "s3cr#t/with@odd:characters"

pytestmark = pytest.mark.skipif(
    SERVER is None and "NEXCACHE_CI" not in os.environ, reason="Debian's redis-server is not installed"
)


@dataclass
class TlsServer:
    port: int
    ca: Path
    other_ca: Path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsServer]:
    directory = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(directory / "ca.pem"))
    trustme.CA().cert_pem.write_to_path(str(directory / "other.pem"))
    certificate = authority.issue_cert("localhost")
    certificate.private_key_pem.write_to_path(str(directory / "server.key"))
    for index, blob in enumerate(certificate.cert_chain_pems):
        blob.write_to_path(str(directory / "server.pem"), append=index > 0)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (directory / "redis.conf").write_text(
        f'port 0\ntls-port {port}\nbind 127.0.0.1 ::1\ntls-auth-clients no\nsave ""\nappendonly no\ndir {directory}\n'
        f"tls-cert-file {directory}/server.pem\ntls-key-file {directory}/server.key\n"
        f'tls-ca-cert-file {directory}/ca.pem\nrequirepass "{PASSWORD}"\n'
    )
    assert SERVER is not None, "CI installs redis-server"
    process = subprocess.Popen(
        [SERVER, str(directory / "redis.conf")], stdout=subprocess.DEVNULL, start_new_session=True
    )
    try:
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            try:
                process.wait(0.025)
            except subprocess.TimeoutExpired:
                continue
            raise RuntimeError("redis-server ended")
        yield TlsServer(port, directory / "ca.pem", directory / "other.pem")
    finally:
        process.terminate()
        process.wait(5)


def cache_of(settings: Settings) -> tuple[NexCache, RedisStore, list[Event]]:
    cache = NexCache(settings)
    failures: list[Event] = []
    cache.emitter.subscribe(failures.append, BackendFailed)
    store = cache._parts.store
    assert isinstance(store, RedisStore)
    return cache, store, failures


@pytest.mark.parametrize("form", ["url", "parts", "connection string"])
async def test_a_password_and_a_private_authority_work_in_every_form(server: TlsServer, form: str) -> None:
    common = {"redis_ssl_ca_certs": server.ca, "op_timeout_ms": 2000}
    match form:
        case "url":
            quoted = "s3cr%23t%2Fwith%40odd%3Acharacters"
            settings = Settings(redis_url=f"rediss://:{quoted}@localhost:{server.port}/2", **common)
        case "parts":
            settings = Settings(
                redis_url=None,
                redis_host="localhost",
                redis_port=server.port,
                redis_password=PASSWORD,
                redis_ssl=True,
                redis_db=2,
                **common,
            )
        case _:
            settings = Settings(
                redis_url=f"localhost:{server.port},password={PASSWORD},ssl=True,abortConnect=False,defaultDatabase=2",
                **common,
            )
    cache, store, _ = cache_of(settings)

    await store.write(b"nexarch:t:o:h", b"value", ttl_ms=60_000)
    read = await store.read([b"nexarch:t:o:h"])
    health = await cache.health()
    await cache.aclose()

    assert list(read.values) == [b"value"]
    assert (health.mode, health.available) == ("redis", True)
    assert str(store.target) == f"rediss://localhost:{server.port}/2"
    assert PASSWORD not in repr(store.target)


@pytest.mark.parametrize(
    ("url", "authority", "kind"),
    [
        pytest.param("rediss://:wrong@localhost:{port}", "ca", "auth", id="a wrong password"),
        pytest.param("rediss://localhost:{port}", "ca", "auth", id="no password"),
        pytest.param("rediss://:p@localhost:{port}", "other_ca", "connection", id="another authority"),
        pytest.param("rediss://:p@127.0.0.1:{port}", "ca", "connection", id="a name the certificate does not have"),
        pytest.param("redis://:p@localhost:{port}", "ca", "connection", id="no TLS"),
    ],
)
async def test_what_may_not_be_trusted_is_refused_and_nothing_waits(
    server: TlsServer, url: str, authority: str, kind: str
) -> None:
    cache, store, failures = cache_of(
        Settings(
            redis_url=url.format(port=server.port),
            redis_ssl_ca_certs=getattr(server, authority),
            op_timeout_ms=1000,
        )
    )

    with pytest.raises(StoreError):
        await store.read([b"nexarch:t:o:h"])
    await cache.aclose()

    assert [event.kind for event in failures if isinstance(event, BackendFailed)] == [kind]


async def test_a_server_that_is_silent_during_the_handshake_is_given_up_in_time() -> None:
    accepted: list[asyncio.StreamWriter] = []

    async def swallow(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.append(writer)

    listener = await asyncio.start_server(swallow, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    cache, store, _ = cache_of(Settings(redis_url=f"rediss://127.0.0.1:{port}"))

    with pytest.raises(StoreUnavailable, match="in time"):
        await store.read([b"nexarch:t:o:h"])

    await cache.aclose()
    for writer in accepted:
        writer.close()
    listener.close()
    assert accepted, "the fault was not seen to happen"
