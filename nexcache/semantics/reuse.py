"""Answering a request with a stored response (RFC 9111 §4, §5.1): as messages, or as a 304 (§4.3.2)."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Final, NamedTuple

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
_YOUNG: Final = 300
_AGES: Final = tuple([(b"age", b"%d" % age) for age in range(_YOUNG)])
"""Most entries that are asked for are young, and many have the same age."""
_hits: Final[defaultdict[str, dict[int, tuple[bytes, bytes]]]] = defaultdict(dict)
"""`Cache-Status` by where it was found and what is left: in any second most entries have one of few."""
_MOST_HITS: Final = 4_096
_NONE: Final[Mapping[bytes, "Prepared"]] = {}


class Head(NamedTuple):
    """What is sent before a body, but for the entity tag: most often the same as another response's."""

    status: int
    headers: Headers
    tag_at: int
    """Where among the header fields the entity tag stands; -1: nowhere."""
    of_the_app: int
    """So many of the header fields, the entity tag included, are the app's."""


def _itself(head: Head) -> Head:
    return head


_CONDITIONAL: Final = frozenset(("GET", "HEAD", "QUERY"))


class Prepared:
    """A stored response as it is sent. Held by the hundred thousand: what can be told from the rest is not held."""

    __slots__ = (
        "_cost_ms",
        "_not_modified",
        "body",
        "codings",
        "etag",
        "facts",
        "filled_by",
        "head",
        "initial_age",
        "kept_on",
        "refresh_at",
        "stored_at",
        "ttl",
    )

    def __init__(
        self, response: StoredResponse, *, refresh_at: float = math.inf, share: Callable[[Head], Head] = _itself
    ) -> None:
        self.body: bytes = response.body
        self.etag: bytes = response.etag
        self.stored_at: float = response.stored_at
        self.ttl: float = response.ttl
        self.initial_age: int = response.initial_age
        self._cost_ms = int(response.cost * 1000)  # as the store keeps it; a small number takes no memory
        self.kept_on: float = response.kept_on
        self.filled_by: bytes = response.filled_by
        self.refresh_at: float = refresh_at
        """From when (seconds since the epoch) a hit has it computed again."""
        self.facts: Facts | None = None
        """What its fields say of its use, where they rule it; read when first needed."""
        self.codings: Mapping[bytes, Prepared] = _NONE
        """The same in further content codings, by their names, the preferred first."""
        if response.encoded:
            self.codings = {coding: Prepared(variant(response, coding, body)) for coding, body in response.encoded}
        headers, tag = response.headers, (b"etag", response.etag)
        if first(headers, b"cache-control") is None:
            headers = (*headers, REVALIDATE)
        at = headers.index(tag) if tag in headers else -1
        others = headers if at < 0 else (*headers[:at], *headers[at + 1 :])
        self.head: Head = share(Head(response.status, others, at, len(response.headers)))
        self._not_modified: Headers | None = None

    @property
    def response(self) -> StoredResponse:
        """The response that was prepared, put together again."""
        return StoredResponse(
            self.head.status,
            self.headers[: self.head.of_the_app],
            self.body,
            self.etag,
            self.stored_at,
            self.ttl,
            self.initial_age,
            self._cost_ms / 1000,
            self.kept_on,
            tuple((coding, each.body) for coding, each in self.codings.items()),
            self.filled_by,
        )

    @property
    def headers(self) -> Headers:
        """The header fields that are always sent."""
        _, headers, at, _ = self.head
        return headers if at < 0 else (*headers[:at], (b"etag", self.etag), *headers[at:])

    @property
    def not_modified(self) -> Headers:
        """The header fields of a 304, put together for the first."""
        if self._not_modified is None:
            self._not_modified = not_modified_headers(self.headers)
        return self._not_modified

    def varying(self, now: float, detail: str) -> Headers:
        """Return `Age` and `Cache-Status` as of this instant; `detail` says where it was found, or why it is used."""
        elapsed = now - self.stored_at
        if elapsed < 0:  # the clock was set back
            elapsed = 0.0
        age = int(elapsed) + self.initial_age
        # RFC 9211 §2.4: negative once it is stale
        left = round(self.ttl - elapsed)
        hit = _hits[detail].get(left) or _hit(left, detail)
        return _AGES[age] if age < _YOUNG else (b"age", b"%d" % age), hit


def _hit(ttl: int, detail: str) -> tuple[bytes, bytes]:
    known = _hits[detail]
    if len(known) >= _MOST_HITS:
        known.clear()
    field = known[ttl] = (cache_status.NAME, cache_status.hit(ttl, detail))
    return field


def varying(age: int, status: bytes) -> Headers:
    """Return the fields that change from answer to answer; `status` is the value of `Cache-Status`."""
    return (_AGES[age] if age < _YOUNG else (b"age", b"%d" % age)), (cache_status.NAME, status)


def for_client(prepared: Prepared, headers: Iterable[tuple[bytes, bytes]], if_none_match: bytes | None) -> Prepared:
    """Choose between a response's codings: what the client has already, else what it likes best."""
    choices = [prepared.codings.get(coding, prepared) for coding in accepted(headers, tuple(prepared.codings))]
    if if_none_match is not None:
        for choice in choices:
            if none_match(if_none_match, choice.etag):
                return choice
    return choices[0]


def current_age(response: StoredResponse | Prepared, now: float) -> int:
    """Return the age in whole seconds (RFC 9111 §4.2.3); a clock that runs behind makes it 0, never negative."""
    return max(0, int(now - response.stored_at)) + response.initial_age


def time_to_live(response: StoredResponse | Prepared, now: float) -> float:
    """Return the seconds for which the response may still be served."""
    return max(0.0, response.ttl - max(0.0, now - response.stored_at))


def answer(prepared: Prepared, method: str, if_none_match: bytes | None, varying: Headers) -> tuple[Message, Message]:
    """Build the messages that answer a request, with the fields of `varying` at the end.

    Each call makes its own list of headers, because outer middlewares change it in place.
    """
    status, others, tag_at, _ = prepared.head
    if (
        if_none_match is not None
        and method in _CONDITIONAL
        and 200 <= status < 300  # RFC 9110 §13.2.1  # noqa: PLR2004
        and none_match(if_none_match, prepared.etag)
    ):
        return (
            {"type": "http.response.start", "status": NOT_MODIFIED, "headers": [*prepared.not_modified, *varying]},
            {"type": "http.response.body", "body": b"", "more_body": False},
        )
    headers = [*others, *varying]
    if tag_at >= 0:
        headers.insert(tag_at, (b"etag", prepared.etag))
    return (
        {"type": "http.response.start", "status": status, "headers": headers},
        {"type": "http.response.body", "body": b"" if method == "HEAD" else prepared.body, "more_body": False},
    )
