"""The shadow check: whether what was answered from the cache is what the app would have answered. Pure."""

import json
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Final

from nexcache.asgi import Headers
from nexcache.message import StoredResponse
from nexcache.policy import Shadow
from nexcache.semantics.headers import first

_REMEMBERED: Final = 200
"""Checks of an operation that its rate is taken from."""


@dataclass(slots=True)
class Computed:
    """What the app answers now."""

    status: int = 0
    headers: Headers = ()
    body: bytearray = field(default_factory=bytearray)
    complete: bool = False


def alike(stored: StoredResponse, computed: Computed, ignore: Collection[str] = ()) -> bool:
    """Whether two answers say the same: status, media type and body.

    JSON is compared by what it means; its members named in `ignore` are not compared, wherever they are.
    """
    kind = first(stored.headers, b"content-type") or b""
    if stored.status != computed.status or kind != (first(computed.headers, b"content-type") or b""):
        return False
    if stored.body == computed.body:
        return True
    media = kind.partition(b";")[0].strip().lower()
    if media != b"application/json" and not media.endswith(b"+json"):
        return False
    try:
        return bool(_without(json.loads(stored.body), ignore) == _without(json.loads(bytes(computed.body)), ignore))
    except (ValueError, RecursionError):
        return False


def _without(value: Any, ignore: Collection[str]) -> Any:
    match value:
        case dict():
            return {name: _without(member, ignore) for name, member in value.items() if name not in ignore}
        case list():
            return [_without(each, ignore) for each in value]
        case _:
            return value


@dataclass(slots=True)
class Doubts:
    """The last checks of one operation."""

    shadow: Shadow
    _outcomes: deque[bool] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))

    def note(self, *, wrong: bool) -> bool:
        """Take the outcome of a check in; True: the operation is not to be trusted any more."""
        self._outcomes.append(wrong)
        rate = self.rate
        return rate is not None and rate > self.shadow.limit

    @property
    def rate(self) -> float | None:
        """The share of wrong answers; None as long as there were too few checks."""
        if len(self._outcomes) < self.shadow.after:
            return None
        return sum(self._outcomes) / len(self._outcomes)

    def forget(self) -> None:
        """Begin anew."""
        self._outcomes.clear()
