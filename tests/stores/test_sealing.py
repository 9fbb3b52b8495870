"""Encryption of stored values: who can read what, and what is left when a tenant's key is destroyed."""

import asyncio
import random
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from nexcache import CacheMiddleware, ConfigurationError, NexCache, Policy, Settings, StoreRefused, tenants
from nexcache.key import KeySpace
from nexcache.stores.codec import Codec, Undecodable
from nexcache.stores.sealing import KeyRing, TenantSeal
from nexcache.testing import FakeClock
from nexcache.vault import Vault
from tests.servers import Valkey
from tests.stores.test_codec import ENTRY, KEY

SALT = bytes(range(32))
OLD, NEW = b"the old key of the ring", b"the new key of the ring"


def seal(tenant: str = "acme", salt: bytes = SALT, **keys: bytes) -> TenantSeal:
    return KeyRing(keys or {"a": OLD}).of(tenant, salt)


@given(st.binary(max_size=64), st.binary(max_size=4096))
def test_what_was_sealed_is_opened_under_its_name_only(name: bytes, plain: bytes) -> None:
    sealed = seal().seal(name, plain)
    assert seal().open(name, sealed) == plain
    assert seal().open(name + b"x", sealed) is None
    assert len(plain) < 8 or plain not in sealed


@pytest.mark.parametrize(
    ("other", "opens"),
    [
        pytest.param(lambda: seal(b=NEW, a=OLD), True, id="an older key of the ring still opens"),
        pytest.param(lambda: seal(b=NEW), False, id="a key that is gone does not"),
        pytest.param(lambda: seal(a=NEW), False, id="another key under the same id does not"),
        pytest.param(lambda: seal("globex"), False, id="another tenant's does not"),
        pytest.param(lambda: seal(salt=bytes(32)), False, id="another salt does not"),
    ],
)
def test_which_keys_open_what(other: Callable[[], TenantSeal], opens: bool) -> None:
    sealed = seal().seal(b"name", b"plain")
    assert (other().open(b"name", sealed) == b"plain") is opens


def test_the_first_key_of_the_ring_seals() -> None:
    sealed = seal(b=NEW, a=OLD).seal(b"name", b"plain")
    assert seal(b=NEW).open(b"name", sealed) == b"plain"
    assert seal(a=OLD).open(b"name", sealed) is None


def test_no_two_sealed_values_are_equal() -> None:
    assert len({seal().seal(b"name", b"plain") for _ in range(100)}) == 100


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_without_an_exception(sealed: bytes) -> None:
    assert seal().open(b"name", sealed) is None


def test_an_entry_is_opened_whole_or_not_at_all() -> None:
    """A hundred thousand values, each changed somewhere: none is accepted."""
    codec, tenant = Codec({"s": b"a signing key of some length"}), seal()
    value = codec.encode(KEY, ENTRY, tenant)
    assert codec.decode(KEY, value, tenant) == ENTRY
    assert ENTRY.response.body not in value
    draw = random.Random(9)
    accepted = 0
    for _ in range(100_000):
        changed = bytearray(value)
        for _ in range(draw.randint(1, 3)):
            match draw.randrange(3):
                case 0:
                    changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
                case 1:
                    del changed[draw.randrange(len(changed)) :]
                    changed = changed or bytearray(b"\0")
                case _:
                    changed.insert(draw.randrange(len(changed) + 1), draw.randrange(256))
        if bytes(changed) != value:
            accepted += not isinstance(codec.decode(KEY, bytes(changed), tenant), Undecodable)
    assert accepted == 0


@pytest.mark.parametrize(
    ("written", "read", "reason"),
    [
        pytest.param(None, seal(), "sealed", id="written before there was encryption"),
        pytest.param(seal(), None, "corrupt", id="read where encryption was switched off"),
        pytest.param(seal(), seal("globex"), "sealed", id="another tenant's"),
    ],
)
def test_what_cannot_be_read_is_a_miss(written: TenantSeal | None, read: TenantSeal | None, reason: str) -> None:
    codec = Codec()
    assert codec.decode(KEY, codec.encode(KEY, ENTRY, written), read) == Undecodable(reason)


# --- the vault -----------------------------------------------------------------------------------------------------


class Store:
    """Holds salts, and counts how often it is asked."""

    def __init__(self) -> None:
        self.salts: dict[bytes, bytes] = {}
        self.asked = 0

    async def evaluate(
        self, script: bytes, keys: tuple[bytes, ...], arguments: tuple[bytes, ...], *, deadline: float | None = None
    ) -> Any:
        del script, deadline
        self.asked += 1
        await asyncio.sleep(0)
        return self.salts.setdefault(keys[0], arguments[0]) if arguments else self.salts.pop(keys[0], None)


def vault(store: Store, clock: FakeClock | None = None) -> Vault:
    return Vault(KeyRing({"a": OLD}), store=store, keys=KeySpace(), clock=clock or FakeClock())


async def test_a_salt_is_read_once_in_a_while_and_shared_by_all_nodes() -> None:
    store, clock = Store(), FakeClock()
    one, other = vault(store, clock), vault(store, clock)
    sealed = (await one.of("acme")).seal(b"name", b"plain")
    assert (await other.of("acme")).open(b"name", sealed) == b"plain"
    assert (await one.of("globex")).open(b"name", sealed) is None
    asked = store.asked
    for _ in range(10):
        await one.of("acme")
    assert store.asked == asked
    clock.advance(5.1)
    assert await one.of("acme") is await one.of("acme")
    assert store.asked == asked + 1


async def test_what_was_sealed_under_a_destroyed_key_is_lost_on_every_node() -> None:
    store, clock = Store(), FakeClock()
    one, other = vault(store, clock), vault(store, clock)
    sealed = (await one.of("acme")).seal(b"name", b"plain")
    await other.of("acme")
    await one.shred("acme")
    assert store.salts == {}
    clock.advance(5.1)
    for each in (one, other):
        assert (await each.of("acme")).open(b"name", sealed) is None


async def test_a_salt_that_is_none_is_refused() -> None:
    store = Store()
    store.salts[KeySpace().salt("acme")] = b"short"
    with pytest.raises(StoreRefused, match="salt"):
        await vault(store).of("acme")


# --- the whole -----------------------------------------------------------------------------------------------------


def client(cache: NexCache) -> httpx2.AsyncClient:
    async def handler(request: Request) -> Response:
        return PlainTextResponse("the secret of " + request.headers["x-tenant"])

    app = Starlette(
        routes=[Route("/a", handler)],
        middleware=[
            Middleware(
                CacheMiddleware,
                cache=cache,
                tenant=tenants.header("x-tenant", trusted=True),
                policies=[Policy("/a", op="page", ttl="1h")],
            )
        ],
    )
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://node")


@pytest.fixture
async def make(redis_url: str) -> AsyncIterator[Callable[..., NexCache]]:
    caches: list[NexCache] = []

    def made(keys: str | None = "e1:sixteen characters or more") -> NexCache:
        settings = {"CACHE_ENCRYPTION_KEYS": keys} if keys else {}
        caches.append(NexCache(Settings(redis_url=redis_url, op_timeout_ms=1000, l1_enabled=False, **settings)))
        return caches[-1]

    yield made
    for cache in caches:
        await cache.aclose()


async def status(cache: NexCache, tenant: str = "acme") -> str:
    async with client(cache) as http:
        return str((await http.get("/a", headers={"x-tenant": tenant})).headers["cache-status"])


async def test_nobody_reads_an_answer_in_the_store(make: Callable[..., NexCache], valkey: Valkey) -> None:
    cache = make()
    await status(cache)
    assert "hit" in await status(make())
    (key,) = (key for key in valkey.ask("KEYS", "nexarch:acme:page:*"))
    assert b"secret" not in valkey.ask("GET", key)
    assert len(valkey.ask("GET", "nexarch.key:acme")) == 32


async def test_keys_are_rotated_without_losing_what_is_stored(make: Callable[..., NexCache]) -> None:
    await status(make("e1:the first key of the ring"))
    assert "hit" in await status(make("e2:the next key of the ring,e1:the first key of the ring"))
    assert "miss" in await status(make("e2:the next key of the ring"))


async def test_a_tenant_whose_key_is_destroyed_has_nothing_left(make: Callable[..., NexCache], valkey: Valkey) -> None:
    cache = make()
    for tenant in ("acme", "globex"):
        await status(cache, tenant)
    vault = cache._parts.vault
    assert vault is not None
    await vault.shred("acme")

    assert valkey.ask("EXISTS", "nexarch.key:acme") == 0
    other = make()
    assert "miss" in await status(other)
    assert "hit" in await status(other, "globex")


async def test_with_the_store_away_answers_are_computed(own_valkey: Valkey) -> None:
    settings = {"CACHE_ENCRYPTION_KEYS": "e1:sixteen characters or more"}
    cache = NexCache(Settings(redis_url=own_valkey.url, op_timeout_ms=500, **settings))
    async with cache, client(cache) as http:
        await http.get("/a", headers={"x-tenant": "acme"})
        own_valkey.kill()
        answer = await http.get("/a", headers={"x-tenant": "new"})
    assert (answer.status_code, answer.text) == (200, "the secret of new")


def test_without_the_extra_the_setting_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.exceptions", None)
    monkeypatch.delitem(sys.modules, "nexcache.stores.sealing")
    settings = {"CACHE_ENCRYPTION_KEYS": "e1:sixteen characters or more"}
    with pytest.raises(ConfigurationError, match=r"nexcache\[crypto\]"):
        NexCache(Settings(redis_url="redis://localhost", **settings))
