"""The Cache-Status response field (RFC 9211): what this cache did, in one line."""

from typing import Final

NAME: Final = b"cache-status"
_CACHE: Final = b"NexCache"


def hit(ttl: float, detail: str) -> bytes:
    """Say that a stored response was used, and for how many seconds it stays fresh (§2.1, §2.4)."""
    return b"%s; hit; ttl=%d; detail=%s" % (_CACHE, round(ttl), detail.encode())


def forwarded(
    fwd: str,
    *,
    status: int | None = None,
    stored: bool = False,
    collapsed: bool = False,
    detail: str | None = None,
) -> bytes:
    """Say that the request went to the app, and why (§2.2), such as `uri-miss`, `bypass` or `method`."""
    parts = [_CACHE, b"fwd=" + fwd.encode()]
    if status is not None:
        parts.append(b"fwd-status=%d" % status)
    if stored:
        parts.append(b"stored")
    if collapsed:
        parts.append(b"collapsed")
    if detail is not None:
        parts.append(b"detail=" + detail.encode())
    return b"; ".join(parts)
