"""Answering a request with a stored response (RFC 9111 §4, §5.1): as messages, or as a 304 (§4.3.2)."""

from dataclasses import dataclass
from typing import Final

from nexcache.asgi import Headers, Message
from nexcache.message import StoredResponse
from nexcache.semantics import cache_status
from nexcache.semantics.headers import first
from nexcache.semantics.validation import none_match, not_modified_headers

REVALIDATE: Final = (b"cache-control", b"private, no-cache")
"""What browsers are told where the app says nothing: keep it, but ask each time, so that invalidations reach them."""

NOT_MODIFIED: Final = 304
_CONDITIONAL: Final = frozenset(("GET", "HEAD", "QUERY"))


@dataclass(frozen=True, slots=True)
class Prepared:
    """A stored response with all header fields that do not change from answer to answer."""

    response: StoredResponse
    headers: Headers
    not_modified: Headers


def prepare(response: StoredResponse) -> Prepared:
    """Build what can be built once."""
    headers = response.headers
    if first(headers, b"cache-control") is None:
        headers = (*headers, REVALIDATE)
    return Prepared(response, headers, not_modified_headers(headers))


def current_age(response: StoredResponse, now: float) -> int:
    """Return the age in whole seconds (RFC 9111 §4.2.3); a clock that runs behind makes it 0, never negative."""
    return max(0, int(now - response.stored_at)) + response.initial_age


def time_to_live(response: StoredResponse, now: float) -> float:
    """Return the seconds for which the response may still be served."""
    return max(0.0, response.ttl - max(0.0, now - response.stored_at))


def answer(
    prepared: Prepared, *, method: str, if_none_match: bytes | None, age: int, status: bytes
) -> tuple[Message, Message]:
    """Build the messages that answer a request; `status` is the value of `Cache-Status`.

    Each call makes its own list of headers, because outer middlewares change it in place.
    """
    response = prepared.response
    conditional = method in _CONDITIONAL and 200 <= response.status < 300  # RFC 9110 §13.2.1  # noqa: PLR2004
    if conditional and if_none_match is not None and none_match(if_none_match, response.etag):
        headers = [*prepared.not_modified, (b"age", b"%d" % age), (cache_status.NAME, status)]
        return (
            {"type": "http.response.start", "status": NOT_MODIFIED, "headers": headers},
            {"type": "http.response.body", "body": b"", "more_body": False},
        )
    headers = [*prepared.headers, (b"age", b"%d" % age), (cache_status.NAME, status)]
    return (
        {"type": "http.response.start", "status": response.status, "headers": headers},
        {"type": "http.response.body", "body": b"" if method == "HEAD" else response.body, "more_body": False},
    )
