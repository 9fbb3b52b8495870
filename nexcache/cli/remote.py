"""A cache in a running app, asked through its admin endpoints."""

import http.client
import json
import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, Self
from urllib.parse import quote, urlencode, urlsplit

from nexcache.cli.source import Document, Failed

_MOST: Final = 64 * 1024 * 1024
"""Bytes of an answer."""
_PAGE: Final = 1000


class Remote:
    """The admin endpoints below a URL; redirects are not followed, for the key would go with them."""

    def __init__(
        self, url: str, *, tenant: str | None, key: str | None, key_header: str = "X-API-Key", timeout: float = 10.0
    ) -> None:
        self.host: str
        self._port: int | None
        try:
            parts = urlsplit(url)
            self.host, self._port = parts.hostname or "", parts.port
        except ValueError:
            parts, self.host, self._port = urlsplit(""), "", None
        if parts.scheme not in ("http", "https") or not self.host or parts.username or parts.query:
            raise Failed(
                "the URL of the admin endpoints looks like https://app.example/api/v1/cache, without credentials: the "
                "key comes from NEXCACHE_KEY or --key-file"
            )
        if key is not None and not all(" " <= char <= "~" for char in key):
            raise Failed("the key holds characters that no header field can")
        self._tls = parts.scheme == "https"
        self._root = parts.path.rstrip("/")
        self._tenant = tenant
        self._key = key
        self._key_header = key_header
        self._timeout = timeout
        self.name: str = f"{parts.scheme}://{parts.netloc}{self._root}"

    def __enter__(self) -> Self:
        """Begin; a connection is opened for each question."""
        return self

    def __exit__(self, *_: object) -> None:
        """End."""

    def health(self) -> Document:
        """`GET /health`."""
        return self._ask("GET", "/health", tenant=False)

    def stats(self) -> Document:
        """`GET /stats`."""
        return self._ask("GET", "/stats")

    def operations(self) -> list[Document]:
        """`GET /operations`, page by page."""
        return [each for page in self._pages("/operations") for each in page["operations"]]

    def tenants(self) -> tuple[list[str], bool]:
        """`GET /tenants`, page by page."""
        names: list[str] = []
        complete = True
        for page in self._pages("/tenants", tenant=False):
            names += [each["id"] for each in page["tenants"] if each["id"] is not None]
            complete = complete and not page["estimated"]
        return names, complete

    def alerts(self) -> list[Document]:
        """`GET /alerts`."""
        found: list[Document] = self._ask("GET", "/alerts", tenant=False)["alerts"]
        return found

    def version(self) -> str:
        """Return the version that `GET /openapi.json` tells."""
        return str(self._ask("GET", "/openapi.json", tenant=False).get("info", {}).get("version", "unknown"))

    def explain(self, path: str, *, method: str, principal: str | None, headers: Sequence[tuple[str, str]]) -> Document:
        """`GET /explain`."""
        query = {"path": path, "method": method} | ({"principal": principal} if principal is not None else {})
        return self._ask("GET", "/explain", query, headers=headers)

    def invalidate(self, operation: str | None, tags: Sequence[str], *, dry_run: bool, strict: bool) -> Document:
        """`DELETE /invalidate…`, once for each target."""
        if strict:
            raise Failed("--strict needs the store itself: leave out --url")
        paths = [] if operation is None else ["/invalidate" + ("" if operation == "*" else f"/{_quoted(operation)}")]
        paths += [f"/invalidate/tags/{_quoted(tag)}" for tag in tags]
        query = {"dry_run": "1"} if dry_run else {}
        answers = [self._ask("DELETE", path, query) for path in paths]
        if len(answers) == 1:
            return answers[0]
        targets = [target for answer in answers for target in answer["targets"]]
        if not dry_run:
            return {
                "acknowledged": all(answer["acknowledged"] for answer in answers),
                "queued": any(answer["queued"] for answer in answers),
                "targets": targets,
                "waited_ms": round(sum(answer["waited_ms"] for answer in answers), 3),
            }
        operations: dict[str, int] = {}
        for answer in answers:
            for name, number in answer["operations"].items():
                operations[name] = max(operations.get(name, 0), number)
        merged = {name: number for answer in answers for name, number in answer["tags"].items()}
        return {
            "dry_run": True,
            "targets": targets,
            "entries": sum(operations.values()),
            "operations": operations,
            "tags": merged,
            "estimated": True,  # an entry that several targets reach is known to none of the answers as such
        }

    def warm(self, operation: str, progress: Callable[[Mapping[str, Any]], None]) -> Document:
        """`POST /warm/{operation}`, line by line; the last one is the result."""
        last: Document | None = None
        accept = [("accept", "application/x-ndjson")]
        with self._answer("POST", f"/warm/{_quoted(operation)}", {}, headers=accept) as answer:
            while line := answer.readline(_MOST):
                last = _object(line)
                progress(last)
        if last is None:
            raise Failed(f"{self.name} broke off")
        return last

    def switch(self, operation: str, *, off: bool, everybody: bool) -> Document:
        """`POST` or `DELETE /operations/{operation}/disable`; an operator who names no tenant means everybody."""
        if everybody and self._tenant is not None:
            raise Failed("--all-tenants and --tenant: only one of them can be meant")
        return self._ask("POST" if off else "DELETE", f"/operations/{_quoted(operation)}/disable")

    def forget(self, tenant: str) -> Document:
        """`DELETE /tenants/{tenant}`; an operator's."""
        return self._ask("DELETE", f"/tenants/{_quoted(tenant)}", tenant=False)

    def _pages(self, path: str, *, tenant: bool = True) -> Iterator[Document]:
        query = {"limit": str(_PAGE)}
        while True:
            page = self._ask("GET", path, query, tenant=tenant)
            yield page
            if not page.get("next"):
                return
            query = {**query, "cursor": str(page["next"])}

    def _ask(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        *,
        tenant: bool = True,
        headers: Sequence[tuple[str, str]] = (),
    ) -> Document:
        with self._answer(method, path, dict(query or {}), tenant=tenant, headers=headers) as answer:
            body = answer.read(_MOST + 1)
        if len(body) > _MOST:
            raise Failed(f"{self.name} answers more than {_MOST // 1024 // 1024} MiB")
        return _object(body)

    @contextmanager
    def _answer(
        self,
        method: str,
        path: str,
        query: dict[str, str],
        *,
        tenant: bool = True,
        headers: Sequence[tuple[str, str]] = (),
    ) -> Iterator[http.client.HTTPResponse]:
        """Send one request and give the answer's head; raises Failed for anything but success."""
        if tenant and self._tenant is not None:
            query["tenant"] = self._tenant
        target = f"{self._root}{path}" + (f"?{urlencode(query)}" if query else "")
        connection = self._connection()
        try:
            connection.putrequest(method, target, skip_accept_encoding=True)
            for name, value in headers:
                connection.putheader(name, value)
            if self._key is not None:
                connection.putheader(self._key_header, self._key)
            if method == "POST":
                connection.putheader("content-length", "0")
            connection.endheaders()
            answer = connection.getresponse()
            if not 200 <= answer.status < 300:  # noqa: PLR2004 - success
                raise self._refused(answer)
            yield answer
        except ssl.SSLCertVerificationError as error:
            raise Failed(
                f"{self.name}: its certificate is not to be trusted ({error.verify_message}); SSL_CERT_FILE may name a "
                "private certificate authority"
            ) from error
        except (OSError, http.client.HTTPException) as error:
            raise Failed(f"{self.name} cannot be reached: {_words(error)}") from error
        finally:
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        if self._tls:
            return http.client.HTTPSConnection(
                self.host, self._port, timeout=self._timeout, context=ssl.create_default_context()
            )
        return http.client.HTTPConnection(self.host, self._port, timeout=self._timeout)

    def _refused(self, answer: http.client.HTTPResponse) -> Failed:
        try:
            detail = str(_object(answer.read(_MOST)).get("detail", ""))
        except Failed:
            detail = ""
        match answer.status:
            case 401:
                return Failed(f"{self.name} does not know the key: set NEXCACHE_KEY or --key-file. {detail}".strip())
            case 404 if not detail:
                return Failed(f"{self.name} has no admin endpoints: is it the path that AdminApp is mounted at?")
            case status if 300 <= status < 400:  # noqa: PLR2004 - redirects
                place = answer.getheader("location") or "elsewhere"
                return Failed(f"{self.name} redirects to {place}: give that URL instead, if it is yours")
            case status:
                return Failed(f"{self.name} answers {status}. {detail}".strip(), 1 if status == 404 else 2)  # noqa: PLR2004


def _object(body: bytes) -> Document:
    try:
        document = json.loads(body)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise Failed("what answers there are no admin endpoints of NexCache: it is not their JSON")
    return document


def _quoted(name: str) -> str:
    return quote(name, safe="")


def _words(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
