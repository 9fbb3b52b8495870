"""The CRM engine: synchronous code, SQLite, one cache that can be switched off as a whole."""

import json
import logging
import os
import sqlite3
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Final, Self

import redis

from nexcache import NexCache
from nexcache.errors import StoreUnavailable
from nexcache.sync import SyncFace

log = logging.getLogger("crm")
TENANT: Final = "crm"
LOWEST_HIT_RATE: Final = 0.5
_ENOUGH: Final = 20
"""Requests below which a hit rate says nothing."""

# This engine's defaults, under the names that its deployment has always set.
os.environ.setdefault("REDIS_MAX_CONNECTIONS", "10")
os.environ.setdefault("REDIS_SOCKET_TIMEOUT", "0.5")  # seconds, for connecting and for every answer


@dataclass(frozen=True, slots=True)
class Preferences:
    """What a client wants; nobody can change it, so memory hands the same object to every caller."""

    client_id: int
    language: str
    channel: str


class Clients:
    """A repository of clients, which uses the cache when it is given one."""

    def __init__(self, database: sqlite3.Connection, cache: SyncFace | None = None) -> None:
        self._database = database
        self._cache = cache
        if cache is not None:  # kept for an hour, and no longer than until the next update
            keep = cache.cached("client_preferences", ttl="1h")
            self.preferences = keep(self.preferences)  # type: ignore[method-assign]

    def preferences(self, client_id: int) -> Preferences | None:
        """Return a client's preferences."""
        log.debug("reading the preferences of client %d", client_id)
        row = self._database.execute("SELECT id, language, channel FROM clients WHERE id = ?", (client_id,)).fetchone()
        return Preferences(*row) if row is not None else None

    def update(self, preferences: Preferences) -> None:
        """Write a client's preferences; who asks from now on, on any node, gets these."""
        with self._database:
            self._database.execute(
                "INSERT INTO clients (id, language, channel) VALUES (:client_id, :language, :channel)"
                " ON CONFLICT (id) DO UPDATE SET language = :language, channel = :channel",
                asdict(preferences),
            )
        if self._cache is not None:
            self.preferences.invalidate(preferences.client_id)  # type: ignore[attr-defined]


class Templates:
    """Message templates: kept without expiry until somebody says that they have changed."""

    def __init__(self, database: sqlite3.Connection, cache: SyncFace | None = None) -> None:
        self._database = database
        self._kept = cache.tenant(TENANT) if cache is not None else None

    def get(self, name: str) -> str:
        """Return a template; raises KeyError."""
        try:
            text = self._kept.get(f"template:{name}") if self._kept is not None else None
            if text is None:
                text = self._read(name)
                if self._kept is not None:
                    self._kept.add(f"template:{name}", text)  # not set: who has saved a new one meanwhile is right
        except StoreUnavailable as error:  # kept values are never guessed
            log.error("templates come from the database, not from the cache: %s", error)  # noqa: TRY400 - one line
            return self._read(name)
        return str(text)

    def save(self, name: str, text: str) -> None:
        """Write a template, for the cache too."""
        with self._database:
            self._database.execute("INSERT OR REPLACE INTO templates (name, text) VALUES (?, ?)", (name, text))
        if self._kept is not None:
            self._kept.set(f"template:{name}", text)

    def invalidate(self, name: str) -> bool:
        """Forget a template that was changed by other means."""
        return self._kept is not None and self._kept.delete(f"template:{name}") == 1

    def _read(self, name: str) -> str:
        log.debug("reading the template %s", name)
        row = self._database.execute("SELECT text FROM templates WHERE name = ?", (name,)).fetchone()
        if row is None:
            raise KeyError(name)
        return str(row[0])


class Engine:
    """The engine, as a context manager: `with Engine() as crm`. CACHE_ENABLED=false: nothing is cached."""

    def __init__(self, database: str = ":memory:") -> None:
        self.cache = NexCache.from_env(default_tenant=TENANT)
        self._face = self.cache.sync
        self._database = sqlite3.connect(database)
        with self._database:
            self._database.execute("CREATE TABLE IF NOT EXISTS clients (id INTEGER PRIMARY KEY, language, channel)")
            self._database.execute("CREATE TABLE IF NOT EXISTS templates (name PRIMARY KEY, text)")
        used = self._face if self.cache.enabled else None
        self.clients = Clients(self._database, used)
        self.templates = Templates(self._database, used)

    def send(self, client_id: int, template: str) -> str | None:
        """Write a client a message; None if the client is unknown or today's quota of the API is used up."""
        preferences = self.clients.preferences(client_id)
        if preferences is None:
            return None
        allowed, count = self._face.check_rate_limit("whatsapp", limit=1000, window=86400, tenant=TENANT)
        if not allowed:
            log.warning("%d messages today: the quota of the API is used up", count)
            return None
        return f"[{preferences.channel}/{preferences.language}] {self.templates.get(template)}"

    def statistics(self) -> dict[str, Any]:
        """Return the figures, write them to the log at INFO, and a warning below a hit rate of 50 %."""
        stats = self._face.stats(TENANT)
        hits = sum(counts.hits for counts in stats.operations.values())
        asked = hits + sum(counts.misses for counts in stats.operations.values())
        health = self._face.health()
        server = self._server()
        figures = {
            "enabled": self.cache.enabled,
            "total_keys": server.get("keys", stats.usage.entries if stats.usage is not None else 0),
            "hit_rate": hits / asked if asked else None,
            "redis": server,
            "pool": {"size": self.cache.settings.max_connections, "in_use": health.connections},
        }
        log.info("statistics %s", json.dumps(figures))
        if asked >= _ENOUGH and hits / asked < LOWEST_HIT_RATE:
            log.warning("the hit rate is %.0f %%: below %.0f %%", 100 * hits / asked, 100 * LOWEST_HIT_RATE)
        return figures

    def health(self) -> dict[str, Any]:
        """Return whether the cache works, and how fast."""
        health = self._face.health()
        if not health.available:
            log.error("the cache's server is away: %s", health.detail)
        return {
            "healthy": health.available,
            "mode": health.mode,
            "response_time_ms": round(health.response_time_ms, 2),
            "commands": health.commands,
        }

    def _server(self) -> dict[str, Any]:
        """Return what the server says of itself."""
        url = self.cache.settings.get_redis_url()
        if url is None:
            return {}
        try:
            with redis.Redis.from_url(url, socket_timeout=1, socket_connect_timeout=1) as client:
                info: dict[str, Any] = client.info()
                keys = int(client.dbsize())
        except redis.RedisError:
            return {}
        return {
            "keys": keys,
            "version": info["redis_version"],
            "used_memory": info["used_memory_human"],
            "connected_clients": info["connected_clients"],
        }

    def __enter__(self) -> Self:
        """Start nothing: the first use does."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the cache and the database."""
        self._face.close()
        self._database.close()
