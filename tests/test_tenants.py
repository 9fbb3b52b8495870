"""Whose request it is: each resolver, and what it must not be talked into."""

from collections.abc import Awaitable, Sequence
from hashlib import sha256
from types import SimpleNamespace
from typing import Any

import pytest

from nexcache import tenants
from nexcache.asgi import Scope
from nexcache.errors import ConfigurationError
from nexcache.tenants import ApiKey, Resolver, is_valid_id

DIGEST = sha256(b"secret-of-acme").hexdigest()


def scope(*headers: tuple[bytes, bytes], **more: Any) -> Scope:
    return {"type": "http", "headers": list(headers), **more}


async def resolve(resolver: Resolver, request: Scope) -> str | None:
    found = resolver(request)
    return await found if isinstance(found, Awaitable) else found


@pytest.mark.parametrize("tenant", ["a", "acme", "*", "a:b", "../x", "é", "日本", "a b", "x" * 150, "é" * 75, "{x}"])
def test_an_id_may_hold_anything_that_is_printable(tenant: str) -> None:
    assert is_valid_id(tenant)


@pytest.mark.parametrize(
    "tenant",
    [
        "", "\n", "a\nb", "\x00", "a\x7f", "\u200b", "a\u202eb", "\u00a0", "\ud800", "x" * 151, "é" * 76, "é" * 150,
        None, 5, b"acme", ["acme"], True,
    ],
)  # fmt: skip
def test_an_id_is_text_of_1_to_150_bytes_without_control_characters(tenant: object) -> None:
    assert not is_valid_id(tenant)


# --- header -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "tenant"),
    [
        pytest.param([(b"x-tenant", b"acme")], "acme", id="once"),
        pytest.param([], None, id="absent"),
        pytest.param([(b"x-tenant", b"acme"), (b"x-tenant", b"acme")], None, id="twice"),
        pytest.param([(b"x-tenant", b"acme"), (b"x_tenant", b"other")], None, id="a second spelling"),
        pytest.param([(b"x_tenant", b"acme")], None, id="another spelling alone: no proxy need know of it"),
        pytest.param([(b"x-tenant", "é".encode())], "é", id="utf-8"),
        pytest.param([(b"x-tenant", b"\xe9")], None, id="not utf-8"),
        pytest.param([(b"x-tenants", b"acme")], None, id="another field"),
        pytest.param([(b"x-tenant", b"")], "", id="empty"),
    ],
)
async def test_a_header_names_the_tenant_if_it_is_there_once(
    headers: Sequence[tuple[bytes, bytes]], tenant: str | None
) -> None:
    assert await resolve(tenants.header("X-Tenant", trusted=True), scope(*headers)) == tenant


@pytest.mark.parametrize(
    ("trusted", "client", "is_trusted"),
    [
        (["10.0.0.0/8"], ("10.1.2.3", 5), True),
        (["10.0.0.0/8"], ("11.1.2.3", 5), False),
        (["192.168.0.0/16", "10.0.0.0/8"], ("10.1.2.3", 5), True),
        ("10.0.0.0/8", ("10.1.2.3", 5), True),
        ("10.1.2.3", ("10.1.2.3", 5), True),
        ("10.1.2.3", ("10.1.2.4", 5), False),
        (["10.0.0.0/8"], ("::ffff:10.1.2.3", 5), True),
        (["10.0.0.0/8"], ("::ffff:11.1.2.3", 5), False),
        (["fd00::/8"], ("fd12::1", 5), True),
        (["fd00::/8"], ("fe80::1", 5), False),
        (["fd00::/8"], ("10.1.2.3", 5), False),
        (["0.0.0.0/0"], ("::1", 5), False),
        (["10.0.0.0/8"], None, False),
        (["10.0.0.0/8"], ("", 0), False),
        (["10.0.0.0/8"], ("testclient", 5), False),
    ],
)
async def test_a_header_counts_from_the_proxies_networks_only(
    trusted: str | list[str], client: object, is_trusted: bool
) -> None:
    resolver = tenants.header("X-Tenant", trusted=trusted)
    found = await resolve(resolver, scope((b"x-tenant", b"acme"), client=client))
    assert found == ("acme" if is_trusted else None)


async def test_a_trusted_proxy_sends_the_header_once_too() -> None:
    resolver = tenants.header("X-Tenant", trusted=["10.0.0.0/8"])
    twice = scope((b"x-tenant", b"a"), (b"x-tenant", b"b"), client=("10.0.0.1", 5))
    assert await resolve(resolver, twice) is None
    assert await resolve(resolver, scope((b"x-tenant", b"a"))) is None


@pytest.mark.parametrize("trusted", [False, None, [], (), "", "ten", ["10.0.0.1/8"], [None], 5])
def test_a_header_that_anyone_may_set_is_refused(trusted: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"tenants.header\('X-Tenant'\)"):
        tenants.header("X-Tenant", trusted=trusted)


def test_a_header_has_a_name() -> None:
    with pytest.raises(ConfigurationError, match="the name of a header field"):
        tenants.header("", trusted=True)


# --- API keys -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "tenant"),
    [
        pytest.param([(b"x-api-key", b"secret-of-acme")], "acme", id="right"),
        pytest.param([(b"x-api-key", b"secret-of-globex")], "globex", id="another tenant's"),
        pytest.param([(b"x-api-key", b"secret-of-Acme")], None, id="wrong"),
        pytest.param([(b"x-api-key", b"")], None, id="empty"),
        pytest.param([(b"x-api-key", DIGEST.encode())], None, id="the digest is no key"),
        pytest.param([], None, id="absent"),
        pytest.param([(b"x-api-key", b"secret-of-acme")] * 2, None, id="twice"),
        pytest.param([(b"x-api-key", b""), (b"x-api-key", b"secret-of-acme")], None, id="twice, first empty"),
        pytest.param(
            [(b"x-api-key", b"secret-of-acme"), (b"x_api_key", b"secret-of-globex")], None, id="two spellings"
        ),
        pytest.param([(b"authorization", b"secret-of-acme")], None, id="another field"),
        pytest.param([(b"x-api-key", b"\xff")], None, id="not utf-8"),
    ],
)
async def test_an_api_key_names_its_tenant(headers: Sequence[tuple[bytes, bytes]], tenant: str | None) -> None:
    resolver = tenants.api_key(keys={"acme": "secret-of-acme", "globex": "secret-of-globex"})
    for _ in range(2):  # for the first time, and again
        assert await resolve(resolver, scope(*headers)) == tenant


async def test_a_tenant_may_have_several_keys_and_a_key_may_be_listed_twice() -> None:
    keys = [ApiKey.of("acme", "one"), ApiKey.of("acme", "two"), ApiKey.of("acme", "one")]
    resolver = tenants.api_key("X-Key", keys=keys)
    assert await resolve(resolver, scope((b"x-key", b"one"))) == "acme"
    assert await resolve(resolver, scope((b"x-key", b"two"))) == "acme"


def test_one_key_for_two_tenants_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="the tenants 'acme' and 'globex' have the same API key") as raised:
        tenants.api_key(keys={"acme": "shared-secret", "globex": "shared-secret"})
    assert "shared-secret" not in str(raised.value)


@pytest.mark.parametrize("secret", ["", " ", "\t\n"])
def test_an_empty_key_is_refused(secret: str) -> None:
    with pytest.raises(ConfigurationError, match="the API key of the tenant 'acme' is empty"):
        tenants.api_key(keys={"acme": secret})


@pytest.mark.parametrize("tenant", ["", "a\nb", "x" * 151])
def test_a_key_belongs_to_a_tenant_with_a_valid_id(tenant: str) -> None:
    with pytest.raises(ConfigurationError, match="an API key's tenant must be 1 to 150 bytes"):
        ApiKey.of(tenant, "secret")


async def test_a_key_of_an_empty_secret_opens_nothing_even_if_its_digest_is_listed() -> None:
    resolver = tenants.api_key(keys=[ApiKey.parse(f"acme=sha256:{sha256(b'').hexdigest()}")])
    assert await resolve(resolver, scope((b"x-api-key", b""))) is None


@pytest.mark.parametrize("text", [f"acme=sha256:{DIGEST}", f" acme=sha256:{DIGEST.upper()} "])
def test_a_hashed_key_is_read_and_written(text: str) -> None:
    key = ApiKey.parse(text)
    assert key == ApiKey.of("acme", "secret-of-acme")
    assert str(key) == f"acme=sha256:{DIGEST}"
    assert ApiKey.parse(str(key)) == key


@pytest.mark.parametrize(
    "text",
    [
        "", "acme", "acme=SECRET", "acme=sha256:SECRET", f"=sha256:{DIGEST}", f"acme=md5:{DIGEST}", f"acme={DIGEST}",
        f"acme=sha256:{DIGEST}SECRET", f"acme=sha256:{DIGEST[:-1]}", f"a\x07b=sha256:{DIGEST}",
        f"{'x' * 151}=sha256:{DIGEST}",
    ],
)  # fmt: skip
def test_what_is_no_hashed_key_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(ConfigurationError, match="an API key") as raised:
        ApiKey.parse(text)
    assert "SECRET" not in str(raised.value)
    assert DIGEST not in str(raised.value)


# --- path, host, scope --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_scope", "tenant"),
    [
        pytest.param({"nexcache.parameters": {"tenant": "acme"}}, "acme", id="the policy's template"),
        pytest.param({"path_params": {"tenant": "acme"}}, "acme", id="the route"),
        pytest.param(
            {"nexcache.parameters": {"tenant": "policy"}, "path_params": {"tenant": "route"}}, "policy", id="both"
        ),
        pytest.param({"nexcache.parameters": {"other": "x"}, "path_params": {"tenant": "route"}}, "route", id="rest"),
        pytest.param({"path_params": {"tenant": 5}}, None, id="not text"),
        pytest.param({}, None, id="absent"),
    ],
)
async def test_a_path_parameter_names_the_tenant(request_scope: dict[str, Any], tenant: str | None) -> None:
    assert await resolve(tenants.path("tenant"), scope(**request_scope)) == tenant


@pytest.mark.parametrize(
    ("host", "tenant"),
    [
        pytest.param(b"acme.example.com", "acme", id="plain"),
        pytest.param(b"acme.example.com:8443", "acme", id="port"),
        pytest.param(b"ACME.Example.COM", "acme", id="hosts have no case"),
        pytest.param(b"a-b_1.example.com", "a-b_1", id="hyphens"),
        pytest.param(b"a.b.example.com", None, id="two labels"),
        pytest.param(b"example.com", None, id="no label"),
        pytest.param(b".example.com", None, id="empty label"),
        pytest.param(b"acme.example.com.evil.org", None, id="something after it"),
        pytest.param(b"evil.org/acme.example.com", None, id="something before it"),
        pytest.param(b"acmeXexampleXcom", None, id="dots are dots"),
        pytest.param(b"acme.example.com:x", None, id="no port"),
        pytest.param(b"acme.example.com\n", None, id="newline"),
        pytest.param("\u212aelvin.example.com".encode(), None, id="the Kelvin sign is no k"),
        pytest.param("acme.example.com:\u0661".encode(), None, id="foreign digits are no port"),
        pytest.param("acme.e\u017fample.com".encode(), None, id="the long s is no s"),
        pytest.param(b"\xe9.example.com", None, id="not utf-8"),
        pytest.param(b"", None, id="empty"),
    ],
)
async def test_a_host_names_the_tenant(host: bytes, tenant: str | None) -> None:
    assert await resolve(tenants.host("{tenant}.example.com"), scope((b"host", host))) == tenant


async def test_two_hosts_or_none_name_nobody() -> None:
    resolver = tenants.host("{tenant}.example.com")
    assert await resolve(resolver, scope()) is None
    assert await resolve(resolver, scope(*[(b"host", b"acme.example.com")] * 2)) is None


@pytest.mark.parametrize(
    "pattern", ["example.com", "{name}.example.com", "{tenant}.{region}.com", "{tenant}{tenant}", ""]
)
def test_a_host_pattern_has_one_placeholder(pattern: str) -> None:
    with pytest.raises(ConfigurationError, match=r"tenants\.host takes a pattern such as"):
        tenants.host(pattern)


@pytest.mark.parametrize(
    ("path", "tenant"),
    [
        ("user.tenant_id", "acme"),
        ("auth.claims.org", "acme"),
        ("auth.claims.missing", None),
        ("auth.claims.number", None),
        ("auth.claims", None),
        ("user.missing", None),
        ("missing.tenant", None),
        ("plain", "acme"),
        ("", None),
    ],
)
async def test_a_place_in_the_scope_names_the_tenant(path: str, tenant: str | None) -> None:
    request = scope(user=SimpleNamespace(tenant_id="acme"), auth={"claims": {"org": "acme", "number": 5}}, plain="acme")
    assert await resolve(tenants.scope(path), request) == tenant


# --- combinations -------------------------------------------------------------------------------------------------


async def test_the_first_resolver_with_an_answer_counts() -> None:
    async def later(request: Scope) -> str | None:
        return request.get("later")

    resolver = tenants.first_of(tenants.scope("user"), later, tenants.header("x-tenant", trusted=True))
    assert await resolve(resolver, scope((b"x-tenant", b"header"), user="claim", later="async")) == "claim"
    assert await resolve(resolver, scope((b"x-tenant", b"header"), later="async")) == "async"
    assert await resolve(resolver, scope((b"x-tenant", b"header"))) == "header"
    assert await resolve(resolver, scope()) is None


async def test_an_invalid_answer_is_not_passed_over_for_a_weaker_one() -> None:
    resolver = tenants.first_of(tenants.scope("user"), tenants.fixed("everybody"))
    assert await resolve(resolver, scope(user="")) == ""


async def test_a_resolver_that_fails_is_not_passed_over_either() -> None:
    def fails(_request: Scope) -> str | None:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        await resolve(tenants.first_of(fails, tenants.fixed("everybody")), scope())


def test_first_of_needs_a_resolver() -> None:
    with pytest.raises(ConfigurationError, match="at least one resolver"):
        tenants.first_of()


async def test_a_fixed_tenant_is_everybodys() -> None:
    assert await resolve(tenants.fixed("acme"), scope()) == "acme"
    with pytest.raises(ConfigurationError, match="not a tenant's id: ''"):
        tenants.fixed("")
