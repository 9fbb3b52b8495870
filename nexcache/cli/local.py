"""The cache that the settings here name, asked through its store."""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, Final, Self, TypeVar

from nexcache.cache import NexCache
from nexcache.cli.source import Document, Failed
from nexcache.errors import NexCacheError, StoreError
from nexcache.settings import Settings
from nexcache.tenants import is_valid_id

_PATIENCE_MS: Final = 2_000.0
"""How long a store may take to answer somebody at a terminal, whatever requests may wait for."""
_T = TypeVar("_T")


def patient() -> Settings:
    """Read the settings; the store may take its time. Raises Failed."""
    try:
        settings = Settings()
        return Settings(op_timeout_ms=max(settings.op_timeout_ms, _PATIENCE_MS))
    except NexCacheError as error:
        raise Failed(str(error)) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the cache's warnings off the terminal: how the store fares, the commands say themselves."""
    log = logging.getLogger("nexcache")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)


class Local:
    """A cache of this process's own, beside those of the apps: it shares their store and nothing else."""

    def __init__(self, tenant: str | None) -> None:
        settings = patient()
        if settings.get_redis_url() is None:
            raise Failed(
                "the settings name no store, and a cache in memory can only be asked in its own process: set "
                "REDIS_URL, or give --url with the address of the app's admin endpoints"
            )
        self._tenant = tenant
        self._quiet = quiet()
        self._runner = asyncio.Runner()
        self._cache = NexCache(settings)
        self.name: str = self._cache.store_name

    def __enter__(self) -> Self:
        """Begin."""
        self._quiet.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        """Close the sockets."""
        try:
            self._runner.run(self._cache.aclose())
        finally:
            self._runner.close()
            self._quiet.__exit__(None, None, None)

    @property
    def tenant(self) -> str:
        """The tenant; raises Failed where none was named."""
        if self._tenant is None:
            raise Failed("whose? Name the tenant with --tenant or NEXCACHE_TENANT; `nexcache tenants` lists them")
        if not is_valid_id(self._tenant):
            raise Failed(f"not a tenant's id: {self._tenant!a}")
        return self._tenant

    def health(self) -> Document:
        """Ask the store how it is."""
        return self._run(self._cache.status()).as_dict(operator=True)

    def stats(self) -> Document:
        """Add up what the processes have written to the store."""
        statistics = self._run(self._cache.stats(self.tenant))
        if not statistics.merged:
            raise Failed(f"{self.name} does not answer: nexcache doctor says why")
        return statistics.as_dict()

    def operations(self) -> list[Document]:
        """List what the store knows of."""
        counted = self.stats()["operations"]
        names = {*self._run(self._cache.operations(self.tenant)), *counted}
        return [
            {
                "name": name,
                "requests": counted.get(name, {}).get("requests", 0),
                "hits": counted.get(name, {}).get("hits", 0),
            }
            for name in sorted(names)
        ]

    def tenants(self) -> tuple[list[str], bool]:
        """List the tenants whose statistics the store keeps."""
        found, complete = self._run(self._cache.tenants())
        if not self._run(self._cache.health()).available:
            raise Failed(f"{self.name} does not answer: nexcache doctor says why")
        return sorted(found), complete

    def explain(self, path: str, *, method: str, principal: str | None, headers: Sequence[tuple[str, str]]) -> Document:
        """Policies are in the app, so only the app can explain."""
        del path, method, principal, headers
        raise Failed("the policies are in the app: give --url with the address of its admin endpoints")

    def invalidate(self, operation: str | None, tags: Sequence[str], *, dry_run: bool, strict: bool) -> Document:
        """Invalidate for all processes that share the store."""
        if dry_run:
            return self._run(self._cache.preview(self.tenant, operation, tags=tags)).as_dict()
        started = time.perf_counter()
        done = self._run(self._cache.invalidate(self.tenant, operation, tags=tags, wait="strict" if strict else "fast"))
        if not done.acknowledged:  # what is queued in a process that ends is not carried out
            raise Failed(f"{self.name} does not answer: nothing was invalidated", 1)
        waited = (time.perf_counter() - started) * 1000
        return asdict(done) | {"targets": list(done.targets), "waited_ms": round(waited, 3)}

    def warm(self, operation: str, progress: Callable[[Mapping[str, Any]], None]) -> Document:
        """Only an app can compute."""
        del operation, progress
        raise Failed("only the app can compute its answers: give --url with the address of its admin endpoints")

    def switch(self, operation: str, *, off: bool, everybody: bool) -> Document:
        """Switch for all processes that share the store; they know within two seconds."""
        if everybody and self._tenant is not None:
            raise Failed("--all-tenants and --tenant: only one of them can be meant")
        tenant = None if everybody else self.tenant
        if not self._run(self._cache.switch(operation, tenant=tenant, off=off)):
            raise Failed(f"{self.name} does not answer: nothing was switched", 1)
        return {"operation": operation, "disabled": off, "tenant": tenant, "scope": "all-nodes"}

    def forget(self, tenant: str) -> Document:
        """Remove from the store what there is of a tenant, on all nodes."""
        try:
            done = self._runner.run(self._cache.forget(tenant))
        except StoreError as error:
            raise Failed(f"{error}; repeating it goes on", 1) from error
        except (NexCacheError, ValueError) as error:
            raise Failed(str(error)) from error
        return {"tenant": done.tenant, "removed": done.removed, "done": done.done}

    def _run(self, asked: Coroutine[Any, Any, _T]) -> _T:
        try:
            return self._runner.run(asked)
        except (NexCacheError, ValueError) as error:
            raise Failed(str(error)) from error
