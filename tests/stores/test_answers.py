"""Answers that are none to what was asked, because bytes were changed: the app answers as if there were no cache."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from nexcache import CacheMiddleware, NexCache, Policy, Settings, tenants
from nexcache.stores.answers import fits
from nexcache.testing import FaultProxy
from tests.servers import Valkey
from tests.wire.server import Origin, ask


@pytest.mark.parametrize(
    ("command", "right", "wrong"),
    [
        pytest.param(("MGET", b"a", b"b"), [[b"1", None]], [[b"1"], [b"1", 2], b"1", None, 3], id="MGET"),
        pytest.param(("TIME",), [[b"1", b"2"]], [[b"1"], [b"1", b"x"], 5, [1, 2]], id="TIME"),
        pytest.param(("PTTL", b"a"), [-2, 5], [b"5", None, [5]], id="PTTL"),
        pytest.param(("UNLINK", b"a"), [0, 1], [b"OK", [1], None], id="UNLINK"),
        pytest.param(("SET", b"a", b"b"), [b"OK", None], [1, [b"OK"]], id="SET"),
        pytest.param(("SMISMEMBER", b"a", b"b", b"c"), [[0, 1]], [[1], [b"1", b"0"], 1], id="SMISMEMBER"),
        pytest.param(("SMEMBERS", b"a"), [[], [b"1"]], [[1], 1, None], id="SMEMBERS"),
        pytest.param(("HGETALL", b"a"), [[], [b"1", b"2"]], [[b"1"], [b"1", 2], 1], id="HGETALL"),
        pytest.param(("EVAL", b"script", 0), [1, None, [b"1"]], [], id="anything of a script"),
    ],
)
def test_the_form_of_an_answer_is_that_of_its_command(
    command: tuple[Any, ...], right: list[Any], wrong: list[Any]
) -> None:
    assert all(fits(command, reply) for reply in right)
    assert not any(fits(command, reply) for reply in wrong)


@pytest.fixture(params=[b":7\r\n", b"*1\r\n:7\r\n", b"$-1\r\n", b"$1\r\n7\r\n", b"*2\r\n*0\r\n:1\r\n"])
async def nonsense(request: pytest.FixtureRequest) -> AsyncIterator[int]:
    """A server that lets in, and answers everything alike."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                words = []
                for _ in range(int(line[1:])):
                    size = int((await reader.readline())[1:])
                    words.append((await reader.readexactly(size + 2))[:-2])
                writer.write(b"+OK\r\n" if words[0] in (b"CLIENT", b"SELECT") else request.param)
        except (OSError, EOFError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()


async def test_no_answer_of_the_server_reaches_a_client_as_an_error(nonsense: int) -> None:
    settings = Settings(
        redis_url=f"redis://127.0.0.1:{nonsense}", redis_host=None, failover="trust", fallback_ttl_seconds=0
    )
    async with NexCache(settings) as cache:
        policies = [Policy("/{page}", op="page", ttl="1h", tags=["page:{page}"])]
        app = CacheMiddleware(Origin(), cache=cache, tenant=tenants.fixed("acme"), policies=policies)
        answers = [await ask(app, f"/{number}") for number in range(12)]
        done = [await cache.invalidate("acme", name, tags=["page:1"]) for name in ("page", "p*", "*")]

    assert [answer.body for answer in answers] == [b"answer %d" % number for number in range(1, 13)]
    assert len(done) == 3


async def test_nor_does_one_whose_bits_were_turned(own_valkey: Valkey) -> None:
    async with FaultProxy(own_valkey.port, seed=5) as proxy:
        settings = Settings(redis_url=f"redis://127.0.0.1:{proxy.port}", redis_host=None, l1_enabled=False)
        async with NexCache(settings) as cache:
            policies = [Policy("/{page}", op="page", ttl="1h", tags=["page:{page}"])]
            app = CacheMiddleware(Origin(pieces=[b"x"]), cache=cache, tenant=tenants.fixed("acme"), policies=policies)
            number = 0
            async with asyncio.timeout(60):
                while proxy.seen["flipped"] < 25:
                    number += 1
                    proxy.down.flips = number % 5 == 0
                    assert (await ask(app, f"/{number % 9}")).body == b"x"
                    if number % 7 == 3:
                        await cache.invalidate("acme", tags=[f"page:{number % 9}"])
                    await asyncio.sleep(0)
