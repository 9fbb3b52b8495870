"""The ladder: each state is reached by its fault, and said alike in health, in the metrics and in Cache-Status."""

from collections.abc import AsyncIterator

import pytest

from nexcache import CacheMiddleware, NexCache, Policy, Settings, tenants
from nexcache.ladder import Rung, rung_of
from nexcache.testing import FaultProxy
from tests.servers import Valkey
from tests.wire.server import Origin, ask, until

WELL = {"enabled": True, "available": True, "backplane": True, "response_time": 0.001, "timeout": 0.05}


@pytest.mark.parametrize(
    ("facts", "rung"),
    [
        pytest.param({}, Rung.OK, id="well"),
        pytest.param({"backplane": None}, Rung.OK, id="no backplane to lose"),
        pytest.param({"backplane": False}, Rung.BACKPLANE_LOST, id="backplane lost"),
        pytest.param({"response_time": 0.025}, Rung.OK, id="half the time is not slow yet"),
        pytest.param({"response_time": 0.026, "backplane": False}, Rung.SLOW, id="slow outweighs the backplane"),
        pytest.param({"available": False, "response_time": 1.0}, Rung.DOWN, id="down outweighs slow"),
        pytest.param({"enabled": False, "available": False}, Rung.DISABLED, id="disabled outweighs all"),
    ],
)
def test_the_worst_that_is_so_is_the_state(facts: dict[str, object], rung: Rung) -> None:
    assert rung_of(**{**WELL, **facts}) is rung  # type: ignore[arg-type]


@pytest.fixture
async def proxy(own_valkey: Valkey) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(own_valkey.port) as made:
        yield made


@pytest.fixture
async def cache(proxy: FaultProxy) -> AsyncIterator[NexCache]:
    proxy.only = b"SUBSCRIBE"
    settings = Settings(redis_url=f"redis://127.0.0.1:{proxy.port}", redis_host=None, op_timeout_ms=400)
    async with NexCache(settings) as made:
        yield made


async def test_each_state_is_said_alike_everywhere(cache: NexCache, proxy: FaultProxy, own_valkey: Valkey) -> None:
    policies = [Policy("/{page}", op="page", ttl="1h")]
    app = CacheMiddleware(Origin(), cache=cache, tenant=tenants.fixed("acme"), policies=policies)
    pages = iter(range(10_000))

    async def said(rung: Rung, detail: str) -> None:
        """Ask for what nobody has asked for until it is said; then it is said everywhere."""
        told = ""
        for _ in range(300):
            told = (await ask(app, f"/{next(pages)}")).cache
            if told.endswith(detail):
                break
        assert told.endswith(detail), told
        assert cache.state is rung
        status = await cache.status()
        assert status.as_dict(operator=True)["state"] == status.state == rung
        text = cache._parts.prometheus.render(None)
        for each in Rung:
            assert f'nexcache_state{{nexcache_state_name="{each}"}} {int(each is rung)}' in text

    coherence = cache._parts.coherence
    assert coherence is not None
    await until(lambda: coherence.connected)
    await said(Rung.OK, "stored")

    proxy.swallow()  # of those who listen only
    await until(lambda: not coherence.connected)
    await said(Rung.BACKPLANE_LOST, "detail=backplane-lost")
    assert proxy.seen["swallowed"] > 0

    proxy.heal()
    await until(lambda: coherence.connected)
    proxy.only = b""
    proxy.delay(0.25)
    await said(Rung.SLOW, "detail=slow")
    assert proxy.seen["delayed"] > 0

    proxy.heal()
    own_valkey.kill()
    await said(Rung.DOWN, "detail=down")

    cache.enabled = False
    await said(Rung.DISABLED, "NexCache; fwd=bypass; detail=disabled")


async def test_an_answer_that_nothing_kept_does_not_say_that_it_is_stored() -> None:
    settings = Settings(redis_url="redis://127.0.0.1:1", redis_host=None, fallback_ttl_seconds=0)
    async with NexCache(settings) as cache:
        policies = [Policy("/{page}", op="page", ttl="1h")]
        app = CacheMiddleware(Origin(), cache=cache, tenant=tenants.fixed("acme"), policies=policies)
        assert (await ask(app, "/1")).cache == "NexCache; fwd=uri-miss; detail=down"
