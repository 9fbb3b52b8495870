"""The contract that every store keeps, as tests.

    class TestMyStore(StoreContract):
        @pytest.fixture
        async def store(self):
            store = MyStore()
            yield store
            await store.aclose()

        async def remaining(self, store, key): ...
        async def lose(self, store, registry): ...

The tests are coroutines: run them with pytest-asyncio or anyio.
"""

# ruff: noqa: S101 - these are tests

import asyncio
from typing import Final

from nexcache.stores.base import SENTINEL, Store, new_token
from nexcache.stores.tokens import stale_since

KEY: Final = b"nexarch:acme:overview:00"
TENANT: Final = b"nexarch:acme:@tenant"
OPERATION: Final = b"nexarch:acme:@op:overview"
TAG: Final = b"nexarch:acme:@tag:service%3Acheckout"
REGISTRY: Final = b"nexarch:acme:@ops"
TOKENS: Final = (TENANT, OPERATION, TAG)


class StoreContract:
    """What every Store does. Subclasses give a fixture `store`, empty for every test, and the two methods below."""

    async def remaining(self, store: Store, key: bytes) -> float:
        """Return the seconds until a key expires; 0 where there is none."""
        raise NotImplementedError

    async def lose(self, store: Store, registry: bytes) -> None:
        """Drop a registry as an eviction would."""
        raise NotImplementedError

    # --- values ---------------------------------------------------------------------------------------------

    async def test_an_absent_key_reads_as_none(self, store: Store) -> None:
        """A miss is a value, not an error."""
        assert list((await store.read([KEY])).values) == [None]

    async def test_values_come_in_the_order_of_the_keys(self, store: Store) -> None:
        """Absent keys keep their places, and a key may be asked for twice."""
        keys = [b"nexarch:acme:overview:%02d" % number for number in range(20)]
        for number, key in enumerate(keys):
            if number % 3:
                await store.write(key, b"%d" % number, ttl_ms=60_000)
        asked = [*reversed(keys), keys[1]]

        values = list((await store.read(asked)).values)

        assert values == [*(b"%d" % number if number % 3 else None for number in reversed(range(20))), b"1"]

    async def test_any_bytes_come_back_as_they_were(self, store: Store) -> None:
        """Values and keys are bytes, not text."""
        value = bytes(range(256)) * 300
        key = b"nexarch:acme:overview:\x00\r\n\xff"
        await store.write(key, value, ttl_ms=60_000)
        await store.write(KEY, b"", ttl_ms=60_000)

        assert list((await store.read([key, KEY])).values) == [value, b""]

    async def test_writing_again_replaces_value_and_lifetime(self, store: Store) -> None:
        """The last write counts."""
        await store.write(KEY, b"old", ttl_ms=600_000)
        await store.write(KEY, b"new", ttl_ms=60_000)

        assert list((await store.read([KEY])).values) == [b"new"]
        assert 50 < await self.remaining(store, KEY) <= 60  # noqa: PLR2004

    async def test_a_value_is_kept_for_its_lifetime(self, store: Store) -> None:
        """In milliseconds."""
        await store.write(KEY, b"value", ttl_ms=90_500)

        assert 80 < await self.remaining(store, KEY) <= 90.5  # noqa: PLR2004

    async def test_a_read_may_say_for_how_long_its_first_key_lives_on(self, store: Store) -> None:
        """By the store's own clock; nothing is said of a key that is absent, or where nobody asks."""
        await store.write(KEY, b"value", ttl_ms=90_500)

        left = (await store.read([KEY, TAG], expiring=True)).left
        assert left is not None
        assert 80 < left <= 90.5  # noqa: PLR2004
        assert (await store.read([TAG, KEY], expiring=True)).left is None
        assert (await store.read([KEY])).left is None

    async def test_every_reading_of_one_history_has_the_same_epoch(self, store: Store) -> None:
        """Generations compare equal as long as the server is the same."""
        first = await store.read([KEY])
        captured = await store.capture(TOKENS, registry=REGISTRY, operation=b"overview", ttl_ms=60_000)

        assert first.epoch == captured.epoch == (await store.read([KEY])).epoch

    # --- removing -------------------------------------------------------------------------------------------

    async def test_unlink_removes_and_counts_what_existed(self, store: Store) -> None:
        """Whoever invalidates learns whether there was anything."""
        await store.write(KEY, b"value", ttl_ms=60_000)
        await store.write(TAG, b"value", ttl_ms=60_000)
        await store.write(TENANT, b"value", ttl_ms=60_000)

        assert await store.unlink([KEY, TAG, OPERATION]) == 2  # noqa: PLR2004
        assert list((await store.read([KEY, TAG, TENANT])).values) == [None, None, b"value"]

    async def test_unlink_may_be_repeated_and_may_carry_a_message(self, store: Store) -> None:
        """A queue that delivers twice does no harm."""
        await store.write(KEY, b"value", ttl_ms=60_000)

        assert await store.unlink([KEY], message=b"message") == 1
        assert await store.unlink([KEY], message=b"message") == 0

    # --- generations ----------------------------------------------------------------------------------------

    async def test_softening_changes_tokens_that_are_there_and_makes_none(self, store: Store) -> None:
        """What was captured before is stale since then, and not invalidated for good."""
        token = new_token()
        await store.write(b"token", token, ttl_ms=60_000)
        before = (await store.read((b"token",), timed=True)).now
        await store.soften((b"token", b"absent"))
        reading = await store.read((b"token", b"absent"), timed=True)
        changed, absent = reading.values
        assert absent is None
        assert changed is not None
        assert changed != token
        since = stale_since(token, changed, 0)
        assert before is not None
        assert reading.now is not None
        assert since is not None
        assert before <= since <= reading.now
        await store.soften((b"token",), message=b"message")
        (again,) = (await store.read((b"token",))).values
        captured = before
        assert again is not None
        assert stale_since(token, again, captured) == captured

    async def test_capture_creates_missing_tokens_and_keeps_present_ones(self, store: Store) -> None:
        """24 random bytes each: 16 hard, 8 soft."""
        present = new_token()
        await store.write(OPERATION, present, ttl_ms=60_000)

        captured = await store.capture(TOKENS, registry=REGISTRY, operation=b"overview", ttl_ms=60_000)
        again = await store.capture(TOKENS, registry=REGISTRY, operation=b"overview", ttl_ms=60_000)

        assert captured.tokens[1] == present
        assert [len(token or b"") for token in captured.tokens] == [24, 24, 24]
        assert len(set(captured.tokens)) == 3  # noqa: PLR2004
        assert list(again.tokens) == list(captured.tokens)
        assert list((await store.read(TOKENS)).values) == list(captured.tokens)

    async def test_a_token_that_was_removed_never_comes_back(self, store: Store) -> None:
        """An invalidation is final: what was captured before can never be current again."""
        seen: set[bytes | None] = set()
        for _ in range(50):
            captured = await store.capture(TOKENS, registry=REGISTRY, operation=b"overview", ttl_ms=60_000)
            assert not seen & set(captured.tokens)
            seen |= set(captured.tokens)
            await store.unlink(TOKENS)

    async def test_capture_extends_lifetimes_and_never_shortens_them(self, store: Store) -> None:
        """Two nodes may keep entries for different times; the longer one counts."""
        await store.restore_sentinel(REGISTRY, TENANT, ttl_ms=60_000)
        await store.capture(TOKENS, registry=REGISTRY, operation=b"overview", ttl_ms=60_000)
        await store.capture(TOKENS[:1], registry=REGISTRY, operation=b"overview", ttl_ms=600_000)
        await store.capture(TOKENS, registry=REGISTRY, operation=b"overview", ttl_ms=60_000)

        assert 590 < await self.remaining(store, TENANT) <= 600  # noqa: PLR2004
        assert 50 < await self.remaining(store, TAG) <= 60  # noqa: PLR2004

    # --- the registry ---------------------------------------------------------------------------------------

    async def test_a_new_registry_is_incomplete_until_its_sentinel_is_restored(self, store: Store) -> None:
        """Nobody can know what a registry that is not there has held."""
        first = await store.capture(TOKENS, registry=REGISTRY, operation=b"overview", ttl_ms=60_000)
        assert await store.members(REGISTRY) is None
        await store.restore_sentinel(REGISTRY, TENANT, ttl_ms=60_000)
        second = await store.capture(TOKENS, registry=REGISTRY, operation=b"overview", ttl_ms=60_000)

        assert (first.complete, first.registered) == (False, True)
        assert (second.complete, second.registered) == (True, True)
        assert await store.members(REGISTRY) == frozenset((b"overview",))

    async def test_every_captured_operation_is_a_member(self, store: Store) -> None:
        """A glob finds what was filled. The sentinel is no operation."""
        await store.restore_sentinel(REGISTRY, TENANT, ttl_ms=60_000)
        for operation in (b"overview", b"map", b"overview"):
            await store.capture(TOKENS, registry=REGISTRY, operation=operation, ttl_ms=60_000)

        members = await store.members(REGISTRY)

        assert members == frozenset((b"overview", b"map"))
        assert SENTINEL not in members

    async def test_restoring_the_sentinel_removes_the_tenants_token(self, store: Store) -> None:
        """What was filled under a registry that is lost could not be found by a glob any more."""
        before = await store.capture(TOKENS, registry=REGISTRY, operation=b"overview", ttl_ms=60_000)

        await store.restore_sentinel(REGISTRY, TENANT, ttl_ms=60_000)
        after = await store.capture(TOKENS, registry=REGISTRY, operation=b"overview", ttl_ms=60_000)

        assert after.tokens[0] != before.tokens[0]
        assert list(after.tokens[1:]) == list(before.tokens[1:])

    async def test_a_lost_registry_is_noticed_by_the_next_capture(self, store: Store) -> None:
        """Its own operation alone does not make it complete."""
        await store.restore_sentinel(REGISTRY, TENANT, ttl_ms=60_000)
        await store.capture(TOKENS, registry=REGISTRY, operation=b"overview", ttl_ms=60_000)

        await self.lose(store, REGISTRY)
        lost = await store.members(REGISTRY)
        captured = await store.capture(TOKENS, registry=REGISTRY, operation=b"map", ttl_ms=60_000)

        assert lost is None
        assert (captured.complete, captured.registered) == (False, True)
        assert await store.members(REGISTRY) is None

    async def test_registries_of_two_tenants_are_two(self, store: Store) -> None:
        """One tenant's loss is not another's."""
        other, token = b"nexarch:globex:@ops", b"nexarch:globex:@tenant"
        await store.restore_sentinel(REGISTRY, TENANT, ttl_ms=60_000)
        await store.capture((token,), registry=other, operation=b"map", ttl_ms=60_000)

        assert await store.members(REGISTRY) == frozenset()
        assert await store.members(other) is None

    # --- when a command leaves ------------------------------------------------------------------------------

    async def test_on_sent_is_called_once_and_before_the_result(self, store: Store) -> None:
        """Until then the call may be shared with requests that come later, and no longer."""
        calls: list[str] = []

        await store.read([KEY], on_sent=lambda: calls.append("read left"))
        calls.append("read")
        await store.capture(
            TOKENS,
            registry=REGISTRY,
            operation=b"overview",
            ttl_ms=60_000,
            on_sent=lambda: calls.append("capture left"),
        )
        calls.append("capture")

        assert calls == ["read left", "read", "capture left", "capture"]

    # --- life -----------------------------------------------------------------------------------------------

    async def test_many_at_once_get_each_their_own_answer(self, store: Store) -> None:
        """Whatever shares a connection."""
        keys = [b"nexarch:acme:overview:%03d" % number for number in range(300)]
        await asyncio.gather(*(store.write(key, key[::-1], ttl_ms=60_000) for key in keys))

        readings = await asyncio.gather(*(store.read([key, KEY]) for key in keys))

        assert [list(reading.values) for reading in readings] == [[key[::-1], None] for key in keys]

    async def test_usage_counts_the_entries_of_a_prefix(self, store: Store) -> None:
        """And no other tenant's."""
        for tenant, number in ((b"acme", 3), (b"globex", 2)):
            for index in range(number):
                await store.write(b"nexarch:%b:overview:%d" % (tenant, index), b"12345", ttl_ms=60_000)

        usage = await store.usage(b"nexarch:acme:", most=1_000)

        assert (usage.entries, usage.bytes, usage.estimated) == (3, 15, False)

    async def test_names_and_short_values_of_a_prefix_can_be_looked_at(self, store: Store) -> None:
        """A neighbour whose prefix is longer, and characters that a pattern would read as wildcards, are not it."""
        kept = {b"nexarch:a*:op:1": b"short", b"nexarch:a*:op:2": b"x" * 100}
        for name, value in {**kept, b"nexarch:ab:op:1": b"other"}.items():
            await store.write(name, value, ttl_ms=60_000)

        found = await store.names(b"nexarch:a*:", most=1_000)

        assert (sorted(found.keys), found.factor, found.complete) == (sorted(kept), 1.0, True)
        assert list(await store.peek_many((*kept, b"nexarch:a*:op:3"), longest=50)) == [b"short", None, None]
        assert list(await store.peek_many((), longest=50)) == []

    async def test_health_says_that_it_is_well(self, store: Store) -> None:
        """Without raising."""
        health = await store.health()

        assert health.available
        assert health.mode in ("memory", "redis")

    async def test_a_closed_store_opens_again(self, store: Store) -> None:
        """`aclose` may be called twice, and is not the end."""
        await store.write(KEY, b"value", ttl_ms=60_000)
        await store.aclose()
        await store.aclose()

        assert list((await store.read([KEY])).values) == [b"value"]
