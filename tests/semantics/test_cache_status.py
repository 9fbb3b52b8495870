"""Cache-Status, read back with the grammar of RFC 8941 written out by hand."""

import re

import pytest

from nexcache.semantics import cache_status
from nexcache.telemetry.names import Bypass, NotStoredReason, Tier

# RFC 8941 §3.3.4 token, §3.1.2 key, §3.3.1 integer; a parameter without value is true
TOKEN = r"[A-Za-z*][!#$%&'*+.^_`|~0-9A-Za-z:/-]*"
MEMBER = re.compile(rf"({TOKEN})((?:; *[a-z*][a-z0-9_.*-]*(?:=(?:{TOKEN}|-?[0-9]{{1,15}}))?)*)")
FWD = {"bypass", "method", "uri-miss", "vary-miss", "miss", "request", "stale", "partial"}  # RFC 9211 §2.2


def parse(field: bytes) -> tuple[str, dict[str, str | int | bool]]:
    match = MEMBER.fullmatch(field.decode("ascii"))
    assert match is not None, field
    parameters: dict[str, str | int | bool] = {}
    for part in match[2].split(";")[1:]:
        name, found, value = part.strip().partition("=")
        assert name not in parameters
        parameters[name] = True if not found else int(value) if value.lstrip("-").isdigit() else value
    return match[1], parameters


@pytest.mark.parametrize("tier", list(Tier))
@pytest.mark.parametrize(("ttl", "said"), [(0.0, 0), (0.4, 0), (59.6, 60), (120.0, 120), (2592000.0, 2592000)])
def test_a_hit_says_how_long_it_stays_fresh_and_where_it_was(tier: Tier, ttl: float, said: int) -> None:
    assert parse(cache_status.hit(ttl, tier)) == ("NexCache", {"hit": True, "ttl": said, "detail": str(tier)})


@pytest.mark.parametrize("reason", list(Bypass))
def test_a_bypass_says_why(reason: Bypass) -> None:
    field = cache_status.forwarded("bypass", detail=reason)
    assert parse(field) == ("NexCache", {"fwd": "bypass", "detail": str(reason)})


@pytest.mark.parametrize("reason", [*NotStoredReason, None])
def test_a_miss_says_why_it_is_not_stored(reason: NotStoredReason | None) -> None:
    field = cache_status.forwarded("uri-miss", detail=reason)
    assert parse(field) == ("NexCache", {"fwd": "uri-miss"} | ({"detail": str(reason)} if reason else {}))


@pytest.mark.parametrize("fwd", sorted(FWD))
def test_every_way_of_forwarding_is_said_in_order(fwd: str) -> None:
    field = cache_status.forwarded(fwd, status=200, stored=True, collapsed=True, detail="redis")
    assert field == b"NexCache; fwd=%s; fwd-status=200; stored; collapsed; detail=redis" % fwd.encode()
    parse(field)


def test_what_is_not_so_is_not_said() -> None:
    assert cache_status.forwarded("miss") == b"NexCache; fwd=miss"
    assert cache_status.NAME == b"cache-status"
