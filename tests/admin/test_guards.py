"""Who calls, from where, with what: keys that rotate and expire, tokens, pages of other sites, and what is audited."""

import asyncio
import time
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from nexcache import ConfigurationError, Settings, tenants
from nexcache.admin.auth import Caller, authenticate, first_of
from nexcache.admin.bearer import bearer_jwt
from nexcache.telemetry.events import Audited
from nexcache.tenants import ApiKey
from nexcache.testing import FakeClock
from tests.admin.conftest import SECRETS, Site

SECRET = "a shared secret of the issuer, long enough"
PRIVATE = ec.generate_private_key(ec.SECP256R1())
PEM = PRIVATE.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
PUBLIC = PRIVATE.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
CLAIMS: dict[str, Any] = {"sub": "ada", "tenant": "acme", "aud": "nexcache", "iss": "https://id.example", "exp": 2**33}
authorize_jwt = bearer_jwt(
    PUBLIC.decode(),
    algorithms=["ES256"],
    audience="nexcache",
    issuer="https://id.example",
    operator_claim=("roles", "cache-operator"),
)


def token(claims: dict[str, Any], key: Any = PEM, algorithm: str | None = "ES256", **headers: Any) -> str:
    return jwt.encode({name: value for name, value in claims.items() if value is not None}, key, algorithm, headers)


def scope_with(*headers: tuple[bytes, bytes]) -> dict[str, Any]:
    return {"type": "http", "headers": list(headers)}


def called(text: str) -> Caller | None:
    return authorize_jwt(scope_with((b"authorization", b"Bearer " + text.encode())))


def test_a_good_token_is_its_subject_and_tenant() -> None:
    assert called(token(CLAIMS)) == Caller("acme", operator=False, id="ada")
    assert called(token({**CLAIMS, "roles": ["x", "cache-operator"]})) == Caller("acme", operator=True, id="ada")
    assert called(token({**CLAIMS, "tenant": None, "roles": "cache-operator"})) == Caller(None, operator=True, id="ada")


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(token({**CLAIMS, "exp": 1}), id="expired"),
        pytest.param(token({**CLAIMS, "exp": None}), id="without an expiry"),
        pytest.param(token({**CLAIMS, "nbf": 2**33 - 1}), id="not valid yet"),
        pytest.param(token({**CLAIMS, "aud": "another"}), id="for another audience"),
        pytest.param(token({**CLAIMS, "aud": None}), id="without an audience"),
        pytest.param(token({**CLAIMS, "iss": "https://evil.example"}), id="of another issuer"),
        pytest.param(token({**CLAIMS, "iss": None}), id="without an issuer"),
        pytest.param(token({**CLAIMS, "sub": None}), id="without a subject"),
        pytest.param(token({**CLAIMS, "tenant": None}), id="of nobody in particular"),
        pytest.param(token({**CLAIMS, "tenant": "a\nb"}), id="of what is no tenant"),
        pytest.param(token({**CLAIMS, "tenant": ["acme"]}), id="of a list of tenants"),
        pytest.param(token(CLAIMS, "", "none"), id="unsigned"),
        pytest.param(token(CLAIMS, SECRET, "HS256"), id="signed with another algorithm"),
        pytest.param(token(CLAIMS)[:-4] + "AAAA", id="with another signature"),
        pytest.param(token(CLAIMS) + "x" * 9_000, id="too long"),
        pytest.param("", id="empty"),
        pytest.param("a.b.c", id="no token"),
    ],
)
def test_any_other_token_is_nobodys(text: str) -> None:
    assert called(text) is None


def test_a_public_key_is_never_taken_for_a_secret() -> None:
    """The algorithm confusion of RFC 8725 §2.1: a token signed with HMAC under the public key's text."""
    import base64  # noqa: PLC0415 - the library itself refuses to make such a token
    import hashlib  # noqa: PLC0415 - as above
    import hmac  # noqa: PLC0415 - as above
    import json  # noqa: PLC0415 - as above

    def coded(part: bytes) -> bytes:
        return base64.urlsafe_b64encode(part).rstrip(b"=")

    signed = coded(json.dumps({"alg": "HS256", "typ": "JWT"}).encode()) + b"." + coded(json.dumps(CLAIMS).encode())
    forged = signed + b"." + coded(hmac.new(PUBLIC, signed, hashlib.sha256).digest())
    assert called(forged.decode()) is None


def test_a_token_is_checked_with_the_key_that_it_names_and_no_other() -> None:
    ring = bearer_jwt(
        {"new": PUBLIC.decode(), "old": "not a key"}, algorithms=["ES256"], audience="nexcache", issuer=CLAIMS["iss"]
    )

    def by(**headers: Any) -> Caller | None:
        return ring(scope_with((b"authorization", b"bearer " + token(CLAIMS, **headers).encode())))

    assert by(kid="new") == Caller("acme", id="ada")
    assert by(kid="old") is None
    assert by(kid="unknown") is None
    assert by() is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"algorithms": []},
        {"algorithms": ["none"]},
        {"algorithms": ["HS256", "ES256"]},
        {"audience": ""},
        {"issuer": ""},
        {"keys": {}},
        {"keys": "short", "algorithms": ["HS256"]},
    ],
)
def test_what_cannot_be_safe_is_refused_at_once(wrong: dict[str, Any]) -> None:
    good: dict[str, Any] = {"keys": SECRET, "algorithms": ["HS256"], "audience": "a", "issuer": "i"}
    bearer_jwt(**good)
    with pytest.raises(ConfigurationError, match="bearer_jwt"):
        bearer_jwt(**good | wrong)


async def test_keys_and_tokens_may_stand_beside_each_other() -> None:
    both = first_of(tenants.api_key(keys=SECRETS), authorize_jwt)

    key = await authenticate(scope_with((b"x-api-key", b"the-key-of-globex")), both)
    bearer = await authenticate(scope_with((b"authorization", b"Bearer " + token(CLAIMS).encode())), both)
    nobody = await authenticate(scope_with(), both)

    assert isinstance(key, Caller)
    assert key.tenant == "globex"
    assert bearer == Caller("acme", id="ada")
    assert not isinstance(nobody, Caller)


async def test_a_key_rotates_by_standing_beside_the_new_one_until_it_expires() -> None:
    clock = FakeClock(1_000_000.0)
    old = ApiKey.parse(f"{ApiKey.of('acme', 'old')};id=2025;expires=1970-01-12T13:47:00")
    new = ApiKey.parse(f"{ApiKey.of('acme', 'new')};id=2026")
    keys = tenants.api_key(keys=[old, new], clock=clock)

    def whose(secret: bytes) -> str | None:
        return keys(scope_with((b"x-api-key", secret)))

    assert (whose(b"old"), whose(b"new")) == ("acme", "acme")
    clock.advance(21.0)
    assert (whose(b"old"), whose(b"new")) == (None, "acme")
    caller = await authenticate(scope_with((b"x-api-key", b"new")), keys)
    assert caller == Caller("acme", id="2026")


def test_a_key_is_written_as_it_is_read() -> None:
    for more in ("", ";id=ci", ";expires=2027-01-31T00:00:00+00:00", ";id=ci;expires=2027-01-31T00:00:00+00:00"):
        for role in ("", ";role=operator"):
            text = f"{ApiKey.of('acme', 'secret')}{more}{role}"
            assert str(ApiKey.parse(text)) == text
            assert Settings(api_keys=text).api_keys == (ApiKey.parse(text),)


@pytest.mark.parametrize("more", [";expires=soon!", ";expires=2027-13-01", ";role=root", ";id=", ";id=a b", ";x=1"])
def test_a_key_that_says_something_else_is_refused_without_repeating_it(more: str) -> None:
    text = f"{ApiKey.of('acme', 'secret')}{more}"
    with pytest.raises(ConfigurationError) as refused:
        ApiKey.parse(text)
    assert ApiKey.of("acme", "secret").digest not in str(refused.value)


def test_an_operators_key_is_no_tenants() -> None:
    keys = tenants.api_key(keys=[ApiKey.parse(f"{ApiKey.of('ops', 'secret')};role=operator")])
    assert keys(scope_with((b"x-api-key", b"secret"))) is None


@pytest.mark.parametrize(
    ("sent_from", "reads", "changes"),
    [("cross-site", 403, 403), ("same-site", 200, 403), ("same-origin", 200, 200), ("none", 200, 200)],
)
async def test_a_page_of_another_site_may_ask_nothing(site: Site, sent_from: str, reads: int, changes: int) -> None:
    await site.ask("/overview")
    headers = {"sec-fetch-site": sent_from, "origin": "https://evil.example", "content-type": "text/plain"}

    read = await site.ask("/admin/stats", headers=headers)
    changed = await site.ask("/admin/invalidate", method="DELETE", headers=headers)

    assert (read.status_code, changed.status_code) == (reads, changes)
    assert not any(name.startswith("access-control-") for name in (*read.headers, *changed.headers))
    after = (await site.ask("/overview")).headers["cache-status"]
    assert ("; hit;" in after) is (changes == 403)


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("https://evil.example", 403),
        ("http://app.evil.example", 403),
        ("http://app:8080", 403),
        ("null", 403),
        ("app", 403),
        ("http://app", 200),
        ("https://app", 200),
    ],
)
async def test_a_browser_that_says_only_the_origin_is_believed(site: Site, origin: str, status: int) -> None:
    """Towards plain http browsers send no `Sec-Fetch-Site`."""
    await site.ask("/overview")

    read = await site.ask("/admin/stats", headers={"origin": origin})
    changed = await site.ask("/admin/invalidate", method="DELETE", headers={"origin": origin})

    assert (read.status_code, changed.status_code) == (200, status)
    assert ("; hit;" in (await site.ask("/overview")).headers["cache-status"]) is (status == 403)


async def test_a_cookie_is_no_credential(site: Site) -> None:
    answer = await site.ask("/admin/stats", headers={"x-api-key": "", "cookie": "x-api-key=the-key-of-acme"})
    assert answer.status_code == 401


async def test_another_origins_preflight_gets_nothing(site: Site) -> None:
    headers = {"origin": "https://evil.example", "access-control-request-method": "DELETE"}
    answer = await site.ask("/admin/invalidate", method="OPTIONS", headers=headers)
    assert answer.status_code == 405
    assert not any(name.startswith("access-control-") for name in answer.headers)


CHANGES = [
    ("DELETE", "/admin/invalidate", "acme", ("acme", False, "invalidate_all", "*", "done")),
    ("DELETE", "/admin/invalidate/over*", "acme", ("acme", False, "invalidate", "over*", "done")),
    (
        "DELETE",
        "/admin/invalidate/tags/service:cart",
        "acme",
        ("acme", False, "invalidate_tag", "service:cart", "done"),
    ),
    ("DELETE", "/admin/invalidate/nothing", "acme", ("acme", False, "invalidate", "nothing", "rejected")),
    ("DELETE", "/admin/invalidate?tenant=globex", "acme", ("globex", False, "invalidate_all", "*", "refused")),
    ("DELETE", "/admin/invalidate?tenant=acme", "ops", ("acme", True, "invalidate_all", "*", "done")),
    ("POST", "/admin/warm/overview", "acme", ("acme", False, "warm", "overview", "done")),
    ("POST", "/admin/operations/overview/disable", "acme", ("acme", False, "disable", "overview", "done")),
    (
        "POST",
        "/admin/operations/overview/disable?tenant=globex",
        "acme",
        ("globex", False, "disable", "overview", "refused"),
    ),
    ("POST", "/admin/operations/overview/disable", "ops", (None, True, "disable", "overview", "done")),
    ("DELETE", "/admin/operations/overview/disable", "ops", (None, True, "enable", "overview", "done")),
]


@pytest.mark.parametrize(("method", "path", "who", "expected"), CHANGES, ids=[f"{each[3][2:]}" for each in CHANGES])
async def test_every_change_is_audited_with_who_and_never_with_the_key(
    site: Site, method: str, path: str, who: str, expected: tuple[Any, ...]
) -> None:
    await site.ask(path, method=method, who=who)

    (event,) = site.audited
    assert (event.tenant, event.operator, event.action, event.target, event.outcome) == expected
    assert event.who not in (*SECRETS.values(), "")
    assert len(event.who) == 8  # the first digits of the key's digest


async def test_reading_is_not_audited(site: Site) -> None:
    for path in ("/admin/stats", "/admin/health", "/admin/explain?path=/overview", "/admin/operations"):
        await site.ask(path)
    assert site.audited == []


async def test_an_invalidation_that_waits_for_the_store_is_audited_as_queued() -> None:
    site = Site(Settings(redis_url="redis://127.0.0.1:1/0", op_timeout_ms=500))
    try:
        answer = await site.ask("/admin/invalidate", method="DELETE")
    finally:
        await asyncio.wait_for(site.cache.aclose(), 10)
    assert answer.status_code == 202
    assert [each.outcome for each in site.audited] == ["queued"]


async def test_a_target_that_is_too_long_is_cut_in_the_audit(site: Site) -> None:
    await site.ask("/admin/invalidate/" + "x" * 5_000, method="DELETE")
    assert [(len(each.target), each.outcome) for each in site.audited] == [(200, "rejected")]


def test_time_is_real() -> None:
    """The default clock is the wall clock, in which expiries are written."""
    late = ApiKey.parse(f"{ApiKey.of('acme', 'late')};expires=1999-01-01")
    assert tenants.api_key(keys=[late])(scope_with((b"x-api-key", b"late"))) is None
    assert time.time() > (late.expires or 0)
    assert isinstance(Audited("a", "b", False, "c", "d", "e"), Audited)
