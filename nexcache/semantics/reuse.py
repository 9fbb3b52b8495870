"""Answering a request with a stored response (RFC 9111 §4, §5.1): as messages, or as a 304 (§4.3.2)."""

import math
from collections.abc import Iterable, Mapping
from typing import Final

from nexcache.asgi import Headers, Message
from nexcache.message import StoredResponse
from nexcache.semantics import cache_status
from nexcache.semantics.encoding import accepted, variant
from nexcache.semantics.headers import first
from nexcache.semantics.stored import Facts
from nexcache.semantics.validation import none_match, not_modified_headers

REVALIDATE: Final = (b"cache-control", b"private, no-cache")
"""What browsers are told where the app says nothing: keep it, but ask each time, so that invalidations reach them."""

NOT_MODIFIED: Final = 304
_REVALIDATE: Final = (REVALIDATE,)
_YOUNG: Final = 300
_AGES: Final = tuple([(b"age", b"%d" % age) for age in range(_YOUNG)])
"""Most entries that are asked for are young, and many have the same age."""
_NONE: Final[Mapping[bytes, "Prepared"]] = {}
_CONDITIONAL: Final = frozenset(("GET", "HEAD", "QUERY"))


class Prepared:
    """A stored response with its header fields as they are sent; those that change with time, as of the last answer."""

    __slots__ = (
        "_detail",
        "_not_modified",
        "_since",
        "_until",
        "age",
        "encoded",
        "facts",
        "further",
        "refresh_at",
        "response",
        "varying",
    )

    def __init__(self, response: StoredResponse, further: Headers, refresh_at: float) -> None:
        self.response: StoredResponse = response
        self.further: Headers = further
        """Header fields beside those of the response."""
        self._not_modified: Headers | None = None
        self.refresh_at: float = refresh_at
        """From when (seconds since the epoch) a hit has it computed again."""
        self.encoded: Mapping[bytes, Prepared] = _NONE
        """The same in further content codings, by their names, the preferred first."""
        self.facts: Facts | None = None
        """What its fields say of its use, where they rule it; read when first needed."""
        self.age: int = 0
        """Whole seconds, as of the last `bring_up`."""
        self.varying: Headers = ()
        """`Age` and `Cache-Status`."""
        self._since = self._until = 0.0
        self._detail = ""

    @property
    def headers(self) -> Headers:
        """The header fields that are always sent."""
        return (*self.response.headers, *self.further)

    @property
    def ttl(self) -> float:
        """Seconds for which it may still be served, as of the last `bring_up`."""
        return time_to_live(self.response, self._since)

    @property
    def not_modified(self) -> Headers:
        """The header fields of a 304, put together for the first."""
        if self._not_modified is None:
            self._not_modified = not_modified_headers(self.headers)
        return self._not_modified

    def bring_up(self, now: float, detail: str) -> None:
        """Make `age` and `varying` those of this instant: built again only when the age has changed."""
        if self._since <= now < self._until and detail == self._detail:
            return
        response = self.response
        self.age = current_age(response, now)
        remaining = response.ttl - max(0.0, now - response.stored_at)  # RFC 9211 §2.4: negative once it is stale
        self.varying = varying(self.age, cache_status.hit(remaining, detail))
        self._since, self._detail = now, detail
        self._until = response.stored_at + (self.age - response.initial_age) + 1


def varying(age: int, status: bytes) -> Headers:
    """Return the fields that change from answer to answer; `status` is the value of `Cache-Status`."""
    return (_AGES[age] if age < _YOUNG else (b"age", b"%d" % age)), (cache_status.NAME, status)


def prepare(response: StoredResponse, *, refresh_at: float = math.inf) -> Prepared:
    """Build what can be built once."""
    further = () if first(response.headers, b"cache-control") is not None else _REVALIDATE
    prepared = Prepared(response, further, refresh_at)
    if response.encoded:
        prepared.encoded = {coding: prepare(variant(response, coding, body)) for coding, body in response.encoded}
    return prepared


def for_client(prepared: Prepared, headers: Iterable[tuple[bytes, bytes]], if_none_match: bytes | None) -> Prepared:
    """Choose between a response's codings: what the client has already, else what it likes best."""
    choices = [prepared.encoded.get(coding, prepared) for coding in accepted(headers, tuple(prepared.encoded))]
    if if_none_match is not None:
        for choice in choices:
            if none_match(if_none_match, choice.response.etag):
                return choice
    return choices[0]


def current_age(response: StoredResponse, now: float) -> int:
    """Return the age in whole seconds (RFC 9111 §4.2.3); a clock that runs behind makes it 0, never negative."""
    return max(0, int(now - response.stored_at)) + response.initial_age


def time_to_live(response: StoredResponse, now: float) -> float:
    """Return the seconds for which the response may still be served."""
    return max(0.0, response.ttl - max(0.0, now - response.stored_at))


def answer(
    prepared: Prepared, *, method: str, if_none_match: bytes | None, varying: Headers
) -> tuple[Message, Message]:
    """Build the messages that answer a request, with the fields of `varying` at the end.

    Each call makes its own list of headers, because outer middlewares change it in place.
    """
    response = prepared.response
    if (
        if_none_match is not None
        and method in _CONDITIONAL
        and 200 <= response.status < 300  # RFC 9110 §13.2.1  # noqa: PLR2004
        and none_match(if_none_match, response.etag)
    ):
        return (
            {"type": "http.response.start", "status": NOT_MODIFIED, "headers": [*prepared.not_modified, *varying]},
            {"type": "http.response.body", "body": b"", "more_body": False},
        )
    headers = [*response.headers, *prepared.further, *varying]
    return (
        {"type": "http.response.start", "status": response.status, "headers": headers},
        {"type": "http.response.body", "body": b"" if method == "HEAD" else response.body, "more_body": False},
    )
