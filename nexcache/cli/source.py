"""Where the command line asks: the store that the settings name, or the admin endpoints of a running app."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, Self, TypeAlias

Document: TypeAlias = dict[str, Any]
"""What an admin endpoint answers."""


class Failed(Exception):  # noqa: N818 - how a command ends early
    """A command cannot do what was asked; the message says why and what would help, and `status` is the exit status."""

    def __init__(self, message: str, status: int = 2) -> None:
        super().__init__(message)
        self.status = status


class Source(Protocol):
    """A cache that can be asked. Everything raises Failed for what cannot be had."""

    @property
    def name(self) -> str:
        """What people call it; without secrets."""

    def health(self) -> Document:
        """Say how cache and store are."""

    def stats(self) -> Document:
        """Return the tenant's statistics."""

    def operations(self) -> list[Document]:
        """Return the tenant's operations."""

    def tenants(self) -> tuple[list[str], bool]:
        """Return the known tenants, and whether these are all."""

    def explain(self, path: str, *, method: str, principal: str | None, headers: Sequence[tuple[str, str]]) -> Document:
        """Say why a request is, or is not, answered from the cache."""

    def invalidate(self, operation: str | None, tags: Sequence[str], *, dry_run: bool, strict: bool) -> Document:
        """Invalidate, or say what that would reach."""

    def warm(self, operation: str, progress: Callable[[Mapping[str, Any]], None]) -> Document:
        """Compute an operation's recent requests again."""

    def switch(self, operation: str, *, off: bool, everybody: bool) -> Document:
        """Send an operation's requests to the app, or no longer."""

    def forget(self, tenant: str) -> Document:
        """Remove everything that there is of a tenant."""

    def __enter__(self) -> Self:
        """Begin."""

    def __exit__(self, *_: object) -> None:
        """Give back what is open."""


def opened(
    url: str | None, tenant: str | None, *, key: str | None = None, key_header: str = "X-API-Key", timeout: float = 10.0
) -> Source:
    """Return the cache at an admin URL, or without one that of the settings; nothing is asked yet."""
    if url is not None:
        from nexcache.cli.remote import Remote  # noqa: PLC0415 - only what is used

        return Remote(url, tenant=tenant, key=key, key_header=key_header, timeout=timeout)
    from nexcache.cli.local import Local  # noqa: PLC0415 - only what is used

    return Local(tenant)
