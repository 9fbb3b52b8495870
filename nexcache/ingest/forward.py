"""Passing an OTLP request on to a collector, byte for byte. Needs the extra `forward`."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from nexcache.errors import ConfigurationError

if TYPE_CHECKING:
    import httpx2

_ANSWER: Final = 256 * 1024
"""Bytes of a collector's answer that are read."""
_PASSED: Final = frozenset((400, 413, 415, 429, 500, 502, 503, 504))
"""Statuses that say the same to our sender as to us; any other (redirects, our credentials) is ours to mend: 502."""
_HEADERS: Final = ("content-type", "retry-after")


@dataclass(frozen=True, slots=True)
class Forwarded:
    """What the collector answered."""

    status: HTTPStatus
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes

    @property
    def stored(self) -> bool:
        """Whether the collector took the spans (2xx)."""
        return 200 <= self.status < 300  # noqa: PLR2004 - success


@dataclass(frozen=True, slots=True)
class Forward:
    """Where spans go on to: the whole URL of a collector, such as `http://collector:4318/v1/traces`.

    The body, its type and its coding stay as they are; of the sender's header fields nothing else is passed on, so no
    credentials leak. `headers` are sent with each request, `tenant_header` (such as `X-Scope-OrgID`) with the tenant.
    `timeout` is in seconds. Raises ConfigurationError for what is no URL, or without the extra.
    """

    url: str
    headers: Mapping[str, str] = field(default_factory=dict, kw_only=True, hash=False, repr=False)
    tenant_header: str | None = field(default=None, kw_only=True)
    timeout: float = field(default=10.0, kw_only=True)
    _clients: "dict[asyncio.AbstractEventLoop, httpx2.AsyncClient]" = field(
        default_factory=dict, init=False, repr=False, compare=False, hash=False
    )

    def __post_init__(self) -> None:
        try:
            import httpx2  # noqa: PLC0415 - only where it is used
        except ImportError:
            raise ConfigurationError("forward= needs its extra: pip install 'nexcache[forward]'") from None
        try:
            url = httpx2.URL(self.url)
        except (httpx2.InvalidURL, TypeError):
            url = httpx2.URL("")
        if url.scheme not in ("http", "https") or not url.host:
            raise ConfigurationError("forward takes a URL such as http://collector:4318/v1/traces")
        if not self.timeout > 0:
            raise ConfigurationError("forward: timeout must be more than 0 seconds")

    async def send(self, tenant: str | None, body: bytes, *, content_type: str, coding: str) -> Forwarded | None:
        """Send a body on; None where the collector did not answer."""
        import httpx2  # noqa: PLC0415 - as above

        headers = {**self.headers, "content-type": content_type}
        if coding:
            headers["content-encoding"] = coding
        if self.tenant_header is not None and tenant is not None:
            headers[self.tenant_header] = tenant
        answer = bytearray()
        try:
            async with (
                asyncio.timeout(self.timeout),
                self._client().stream("POST", self.url, content=body, headers=headers) as response,
            ):
                async for piece in response.aiter_bytes():
                    answer += piece
                    if len(answer) > _ANSWER:
                        return None
        except (httpx2.HTTPError, httpx2.StreamError, TimeoutError, UnicodeEncodeError):
            return None
        status = response.status_code
        if not 200 <= status < 300 and status not in _PASSED:  # noqa: PLR2004 - success
            return Forwarded(HTTPStatus.BAD_GATEWAY, (), b"")
        kept = tuple(
            (name.encode(), value.encode("latin-1")) for name in _HEADERS if (value := response.headers.get(name))
        )
        return Forwarded(HTTPStatus(status), kept, bytes(answer))

    async def aclose(self) -> None:
        """Close the connections."""
        client = self._clients.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.aclose()

    def _client(self) -> "httpx2.AsyncClient":
        import httpx2  # noqa: PLC0415 - as above

        loop = asyncio.get_running_loop()
        for other in [each for each in self._clients if each.is_closed()]:
            del self._clients[other]
        client = self._clients.get(loop)
        if client is None:
            client = self._clients[loop] = httpx2.AsyncClient(timeout=self.timeout, trust_env=False)
        return client
