"""Keys: what a request is called in the store. Two requests share a name exactly if they may share an answer."""

from collections.abc import Mapping, Sequence
from string import ascii_letters, digits
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from nexcache.asgi import Scope
from nexcache.errors import ConfigurationError
from nexcache.key import BYPASSING, KEYED, HeaderRules, Keyed, KeySpace, Layouts, name_of, segment
from nexcache.policy import Policy, Query
from nexcache.telemetry.names import Bypass

SAFE = frozenset((ascii_letters + digits + "_.-%").encode())
ANY_TEXT = st.text(st.characters())  # surrogates included
HOSTILE = ["*", "a*", "a?b", "[a-z]*", "a:b", ":", "../x", "..", "é", "e\u0301", "\ud800", "\x00", "\n", "{x}", "@any",
           "@tenant", "%2A", "%", "ﬀ", "İ", "\u212a", " ", "a b", "x" * 200, "a/b", "\\", "a\r\nb", "💥"]  # fmt: skip

POLICY = Policy("/d", op="dashboard")
KEYS = KeySpace()


# --- segments -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "encoded"),
    [
        pytest.param("acme-Corp_1.x", b"acme-Corp_1.x", id="safe characters stay"),
        pytest.param("*", b"%2A", id="star"),
        pytest.param("a:b", b"a%3Ab", id="colon"),
        pytest.param("../x", b"..%2Fx", id="slash"),
        pytest.param("é", b"%C3%A9", id="utf-8"),
        pytest.param("e\u0301", b"e%CC%81", id="not normalised"),
        pytest.param("\ud800", b"%ED%A0%80", id="surrogate"),
        pytest.param("%2A", b"%252A", id="percent"),
        pytest.param("@any", b"%40any", id="at"),
        pytest.param("{x}", b"%7Bx%7D", id="braces"),
    ],
)
def test_a_segment_is_percent_encoded_and_nothing_is_folded(name: str, encoded: bytes) -> None:
    assert segment(name) == encoded
    assert name_of(encoded) == name


@given(ANY_TEXT)
def test_a_segment_can_be_undone_and_holds_safe_bytes_only(name: str) -> None:
    encoded = segment(name)
    assert set(encoded) <= SAFE
    assert name_of(encoded) == name


@given(ANY_TEXT, ANY_TEXT)
def test_two_names_never_give_one_segment(first: str, second: str) -> None:
    assert (segment(first) == segment(second)) is (first == second)


@given(st.binary())
def test_foreign_bytes_in_a_registry_have_some_name(member: bytes) -> None:
    assert isinstance(name_of(member), str)


@pytest.mark.parametrize("cluster", [False, True])
@pytest.mark.parametrize("tenant", HOSTILE)
def test_a_hostile_tenant_stays_in_its_segment(tenant: str, cluster: bool) -> None:
    keys = KeySpace(cluster=cluster)
    key = keys.key(tenant, "op", b"request", ["tag"])
    names = [key.name, *key.generations, keys.of_any(tenant), keys.registry(tenant), keys.of_tenant(tenant)]
    wrapped = b"{" + segment(tenant) + b"}" if cluster else segment(tenant)
    for name in names:
        assert name.split(b":")[:2] == [b"nexarch", wrapped]
        assert set(name) <= SAFE | set(b":@" + (b"{}" if cluster else b""))


@pytest.mark.parametrize("operation", HOSTILE)
def test_no_operation_and_no_tag_is_taken_for_a_generation_of_another_kind(operation: str) -> None:
    key = KEYS.key("acme", operation, b"request", [operation])
    assert key.name.split(b":")[2] == segment(operation)
    assert not key.name.startswith(b"nexarch:acme:@")
    assert len({*key.generations, KEYS.of_any("acme"), KEYS.registry("acme")}) == 5


@given(st.tuples(ANY_TEXT, ANY_TEXT), st.tuples(ANY_TEXT, ANY_TEXT), st.booleans())
def test_the_border_between_tenant_and_operation_cannot_be_moved(
    first: tuple[str, str], second: tuple[str, str], cluster: bool
) -> None:
    keys = KeySpace(cluster=cluster)
    same = keys.key(*first, b"request").name == keys.key(*second, b"request").name
    assert same is (first == second)


def test_a_key_lists_the_generations_it_depends_on_in_order() -> None:
    key = KEYS.key("a:b", "op", b"request", ["service:cart", "x"])
    assert key.generations == (
        b"nexarch:a%3Ab:@tenant",
        b"nexarch:a%3Ab:@op:op",
        b"nexarch:a%3Ab:@tag:service%3Acart",
        b"nexarch:a%3Ab:@tag:x",
    )
    assert key.generations == (
        KEYS.of_tenant("a:b"),
        KEYS.of_operation("a:b", "op"),
        KEYS.of_tag("a:b", "service:cart"),
        KEYS.of_tag("a:b", "x"),
    )
    assert key.request == b"request"
    assert (key.tenant, key.operation) == ("a:b", "op")
    assert key.name == b"nexarch:a%3Ab:op:" + key.hash.encode()
    assert len(key.hash) == 32


def test_the_other_keys_of_a_tenant_are_the_documented_ones() -> None:
    assert KEYS.of_any("t") == b"nexarch:t:@any"
    assert KEYS.registry("t") == b"nexarch:t:@ops"
    assert KeySpace(cluster=True).registry("t") == b"nexarch:{t}:@ops"


def test_the_namespace_secret_keys_the_hash() -> None:
    hashes = {KeySpace(secret=secret).key("t", "op", b"request").hash for secret in ("", "one", "two")}
    assert len(hashes) == 3
    assert KeySpace(secret="one").key("t", "op", b"request") == KeySpace(secret="one").key("t", "op", b"request")


# --- canonical requests -------------------------------------------------------------------------------------------


def scope(**changes: Any) -> Scope:
    return {
        "type": "http",
        "method": "GET",
        "scheme": "http",
        "root_path": "",
        "path": "/d",
        "raw_path": b"/d",
        "query_string": b"",
        "headers": [],
    } | changes


def canonical(
    keyed: Sequence[tuple[bytes, bytes]] = (),
    *,
    keys: KeySpace = KEYS,
    policy: Policy = POLICY,
    tenant: str = "acme",
    principal: str | None = None,
    query: bytes = b"",
    body: bytes = b"",
    **changes: Any,
) -> bytes:
    return keys.canonical(scope(**changes), policy, keyed, tenant=tenant, principal=principal, query=query, body=body)


@pytest.mark.parametrize(
    "other",
    [
        pytest.param({"tenant": "acme2"}, id="tenant"),
        pytest.param({"principal": "admin"}, id="principal"),
        pytest.param({"principal": ""}, id="empty principal"),
        pytest.param({"principal": "-"}, id="principal that looks like none"),
        pytest.param({"method": "POST"}, id="method"),
        pytest.param({"scheme": "https"}, id="scheme"),
        pytest.param({"root_path": "/api"}, id="root path"),
        pytest.param({"path": "/D"}, id="path"),
        pytest.param({"raw_path": b"/%64"}, id="raw path"),
        pytest.param({"raw_path": None}, id="no raw path"),
        pytest.param({"query": b"a"}, id="query"),
        pytest.param({"body": b"{}"}, id="body"),
        pytest.param({"keyed": [(b"host", b"x")]}, id="field"),
        pytest.param({"keyed": [(b"host", b"")]}, id="empty field"),
        pytest.param({"keyed": [(b"host", b"x"), (b"host", b"x")]}, id="repeated field"),
        pytest.param({"policy": Policy("/d", op="dashboard2")}, id="operation"),
        pytest.param({"policy": Policy("/d", op="dashboard", version="2")}, id="policy version"),
        pytest.param({"policy": Policy("/d", op="dashboard", vary=("x-a",))}, id="policy's fields"),
        pytest.param({"policy": Policy("/d", op="dashboard", query=Query(allow=["a"]))}, id="policy's parameters"),
        pytest.param({"policy": Policy("/d", op="dashboard", query=Query(ignore=["a"]))}, id="ignored parameters"),
        pytest.param({"keys": KeySpace(version="2")}, id="namespace version"),
    ],
)
def test_whatever_a_handler_may_read_is_part_of_the_request(other: Mapping[str, Any]) -> None:
    assert canonical(**other) != canonical()


def test_ttl_and_tags_are_not_part_of_the_request() -> None:
    assert canonical(policy=Policy("/d", op="dashboard", ttl="1m", tags=["a"], max_body=5)) == canonical()


def test_head_is_get() -> None:
    assert canonical(method="HEAD") == canonical(method="GET")


def test_a_scope_without_optional_parts_is_a_request_too() -> None:
    bare = {"method": "GET", "path": "/d"}
    assert KEYS.canonical(bare, POLICY, (), tenant="acme", principal=None, query=b"") == canonical(raw_path=None)


NAMES = st.sampled_from([b"host", b"x-forwarded-host", b"x-forwarded-proto", b"accept-language"])
FIELDS = st.lists(st.tuples(NAMES, st.sampled_from([b"", b"a", b"b", b"4:host", b"1:a"])), max_size=4)


def by_name(fields: Sequence[tuple[bytes, bytes]]) -> dict[bytes, list[bytes]]:
    grouped: dict[bytes, list[bytes]] = {}
    for name, value in fields:
        grouped.setdefault(name, []).append(value)
    return grouped


@given(FIELDS.flatmap(lambda fields: st.tuples(st.just(fields), st.permutations(fields))))
def test_of_two_orders_of_the_same_fields_only_that_of_repeated_ones_counts(
    orders: tuple[list[tuple[bytes, bytes]], list[tuple[bytes, bytes]]],
) -> None:
    first, second = orders
    assert (canonical(first) == canonical(second)) is (by_name(first) == by_name(second))


@given(FIELDS, FIELDS)
def test_the_order_of_fields_does_not_matter_but_repetition_and_its_order_do(
    first: list[tuple[bytes, bytes]], second: list[tuple[bytes, bytes]]
) -> None:
    assert (canonical(first) == canonical(second)) is (by_name(first) == by_name(second))


TEXT = st.text(st.sampled_from("a:0-=é1"), max_size=3)
BYTES = st.binary(max_size=3) | st.sampled_from([b"1:a", b"0:", b"-"])
PARTS = st.fixed_dictionaries(
    {
        "tenant": TEXT,
        "principal": st.none() | TEXT,
        "method": st.sampled_from(["GET", "POST", "QUERY"]),
        "scheme": st.sampled_from(["http", "https"]),
        "root_path": TEXT,
        "path": TEXT,
        "raw_path": BYTES,
        "query": BYTES,
        "body": BYTES,
        "keyed": st.lists(st.tuples(BYTES, BYTES), max_size=2).map(lambda fields: sorted(fields, key=lambda f: f[0])),
    }
)


@given(PARTS, PARTS)
def test_two_requests_never_give_one_sequence_of_bytes(first: dict[str, Any], second: dict[str, Any]) -> None:
    assert (canonical(**first) == canonical(**second)) is (first == second)


@given(PARTS, st.data())
def test_moving_a_byte_between_two_parts_makes_another_request(parts: dict[str, Any], data: st.DataObject) -> None:
    left, right = data.draw(st.sampled_from([("tenant", "path"), ("root_path", "path"), ("raw_path", "query")]))
    assume(parts[left])
    moved = parts | {left: parts[left][:-1], right: parts[left][-1:] + parts[right]}
    assert canonical(**moved) != canonical(**parts)


# --- header fields ------------------------------------------------------------------------------------------------

Fields = Sequence[tuple[bytes, bytes]]


def rules(*policies: Policy, principal: bool = False, credentials: Sequence[str] | None = None) -> HeaderRules:
    return HeaderRules(
        ("authorization", "cookie", "x-api-key") if credentials is None else credentials,
        policies or (POLICY,),
        principal=principal,
    )


def read(headers: Fields, *, method: str = "GET", policy: Policy = POLICY, principal: bool = False) -> Keyed | Bypass:
    return rules(policy, principal=principal).read(method, headers, policy)


def keyed(headers: Fields, **options: Any) -> tuple[tuple[bytes, bytes], ...]:
    found = read(headers, **options)
    assert isinstance(found, Keyed)
    return found.fields


@pytest.mark.parametrize("name", sorted(KEYED))
def test_a_field_that_frameworks_reflect_is_keyed(name: bytes) -> None:
    assert keyed([(name, b"host=a")]) == ((name, b"host=a"),)


@pytest.mark.parametrize("name", sorted(BYPASSING))
def test_a_field_that_overrides_method_or_path_is_a_bypass(name: bytes) -> None:
    assert read([(name, b"x")]) is Bypass.OVERRIDE
    assert read([(name, b"")]) is Bypass.OVERRIDE


def test_the_tables_hold_what_the_threat_model_names() -> None:
    assert {b"host", b"forwarded", b"x-forwarded-host", b"x-forwarded-proto", b"x-forwarded-prefix", b"x-host"} <= KEYED
    assert {b"x-http-method-override", b"x-original-url", b"x-rewrite-url"} <= BYPASSING
    assert not KEYED & BYPASSING
    assert all(name == name.lower() for name in KEYED | BYPASSING)


@pytest.mark.parametrize("name", [b"x_forwarded_host", b"x-forwarded_host", b"x_forwarded-host"])
def test_a_field_spelled_with_underscores_is_keyed_as_well(name: bytes) -> None:
    assert keyed([(name, b"evil")]) == ((name, b"evil"),)


@pytest.mark.parametrize("name", [b"x_http_method_override", b"x_original_url", b"x-rewrite_url"])
def test_an_override_spelled_with_underscores_is_a_bypass(name: bytes) -> None:
    assert read([(name, b"x")]) is Bypass.OVERRIDE


@pytest.mark.parametrize(
    "name",
    [b"content_length", b"transfer_encoding", b"if_none_match", b"cache_control", b"content_type", b"if-none_match"],
)
def test_what_somebody_may_take_for_a_field_that_the_cache_acts_on_is_a_bypass(name: bytes) -> None:
    assert read([(name, b"6")]) is Bypass.OVERRIDE


@pytest.mark.parametrize("name", [b"accept", b"user-agent", b"x-forwarded-for", b"x-request-id", b"traceparent"])
def test_any_other_field_is_not_keyed(name: bytes) -> None:
    assert keyed([(name, b"x")]) == ()


def test_two_hosts_are_a_bypass_and_one_is_keyed() -> None:
    assert read([(b"host", b"a"), (b"host", b"a")]) is Bypass.HOST
    assert keyed([(b"host", b"a")]) == ((b"host", b"a"),)
    assert keyed([]) == ()


def test_repeated_fields_stay_repeated_in_their_order() -> None:
    headers = [(b"x-forwarded-host", b"b"), (b"host", b"h"), (b"x-forwarded-host", b"a")]
    assert keyed(headers) == tuple(headers)


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        pytest.param(b"for=1.2.3.4", b"for=", id="for"),
        pytest.param(b"by=1.2.3.4", b"by=", id="by"),
        pytest.param(b'For="[::1]:80";BY=x', b"For=;BY=", id="quoted, any case"),
        pytest.param(b"for=1;host=a;proto=https;by=2", b"for=;host=a;proto=https;by=", id="between others"),
        pytest.param(b"for=1, for=2;host=a", b"for=, for=;host=a", id="two elements"),
        pytest.param(b"host=a, host=b", b"host=a, host=b", id="the border of elements stays"),
        pytest.param(b"host=a; proto=b", b"host=a; proto=b", id="white space stays"),
        pytest.param(b"host=a,", b"host=a,", id="an empty element stays"),
        pytest.param(b"host=a;", b"host=a;", id="an empty pair stays"),
        pytest.param(b"secret=x;for=1", b"secret=x;for=", id="further parameters"),
        pytest.param(b"for=1.2.3.4:80;host=a", b"for=;host=a", id="an unquoted port is common"),
        pytest.param(b'for="a;host=b', b'for="a;host=b', id="unclosed quote: whole"),
        pytest.param(b'for="a\\"b";host=c', b'for="a\\"b";host=c', id="escaped quote: whole"),
        pytest.param(b"for=1 2;host=a", b"for=1 2;host=a", id="space in a value: whole"),
        pytest.param(b"for;host=a", b"for;host=a", id="no value: whole"),
        pytest.param(b";for=1", b";for=1", id="leading separator: whole"),
        pytest.param(b"=x;for=1", b"=x;for=1", id="no name: whole"),
        pytest.param(b"", b"", id="empty"),
    ],
)
def test_of_forwarded_only_the_names_of_machines_are_left_out(value: bytes, kept: bytes) -> None:
    assert keyed([(b"forwarded", value)]) == ((b"forwarded", kept),)


FORWARDED = st.text(st.sampled_from('forbyhst=;,"\\ 1'), max_size=12).map(str.encode)


@given(FORWARDED, FORWARDED)
def test_two_forwarded_fields_share_a_key_only_if_they_differ_in_machines(first: bytes, second: bytes) -> None:
    assume(b"for=" not in first.lower() + second.lower())
    assume(b"by=" not in first.lower() + second.lower())
    same = keyed([(b"forwarded", first)]) == keyed([(b"forwarded", second)])
    assert same is (first == second)


def test_a_policy_may_key_forwarded_whole() -> None:
    policy = Policy("/d", op="d", vary=["Forwarded"])
    assert keyed([(b"forwarded", b"for=1")], policy=policy) == ((b"forwarded", b"for=1"),)


@pytest.mark.parametrize("name", [b"authorization", b"cookie", b"x-api-key", b"x_api_key"])
@pytest.mark.parametrize("value", [b"secret", b""])
def test_a_credential_without_principal_is_a_bypass(name: bytes, value: bytes) -> None:
    assert read([(b"accept", b"x"), (name, value)]) is Bypass.AUTHORIZATION


@pytest.mark.parametrize("name", [b"authorization", b"cookie", b"x-api-key"])
def test_a_credential_is_no_bypass_where_it_is_told_apart_or_does_not_matter(name: bytes) -> None:
    assert keyed([(name, b"secret")], principal=True) == ()
    assert keyed([(name, b"secret")], policy=Policy("/d", op="d", share_authenticated=True)) == ()


def test_a_credential_that_a_policy_varies_by_is_a_bypass_all_the_same() -> None:
    policy = Policy("/d", op="d", vary=["Cookie"])
    assert read([(b"cookie", b"a")], policy=policy) is Bypass.AUTHORIZATION
    assert keyed([(b"cookie", b"a")], policy=policy, principal=True) == ((b"cookie", b"a"),)


def test_credentials_may_be_named_in_any_case() -> None:
    for name in ("X-Token", "x-token"):
        assert rules(credentials=[name]).read("GET", [(b"x-token", b"s")], POLICY) is Bypass.AUTHORIZATION


@pytest.mark.parametrize(
    "credentials", ["authorization", ["Host"], ["range"], ["x-forwarded-host"], ["x-original-url"]]
)
def test_credentials_that_would_not_be_seen_are_refused(credentials: Any) -> None:
    with pytest.raises(ConfigurationError, match="credentials"):
        rules(credentials=credentials)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    ("header", "bypass"),
    [
        pytest.param((b"content-length", b"0"), False, id="no body"),
        pytest.param((b"content-length", b" 0 "), False, id="no body, with spaces"),
        pytest.param((b"content-length", b""), False, id="empty length"),
        pytest.param((b"content-length", b"1"), True, id="a body"),
        pytest.param((b"content-length", b"00"), True, id="odd zero"),
        pytest.param((b"content-length", b"-1"), True, id="negative"),
        pytest.param((b"content-length", b"x"), True, id="not a number"),
        pytest.param((b"transfer-encoding", b"chunked"), True, id="chunked"),
        pytest.param((b"transfer-encoding", b""), True, id="empty transfer encoding"),
    ],
)
def test_a_get_with_a_body_is_a_bypass(method: str, header: tuple[bytes, bytes], bypass: bool) -> None:
    assert (read([header], method=method) is Bypass.BODY) is bypass


@pytest.mark.parametrize("method", ["POST", "QUERY"])
def test_a_method_with_a_body_keys_its_type_and_coding(method: str) -> None:
    headers = [(b"content-length", b"5"), (b"content-type", b"application/json"), (b"content-encoding", b"gzip")]
    policy = Policy("/d", op="d", methods=["GET", method])
    assert keyed(headers, method=method, policy=policy) == (headers[1], headers[2])
    assert keyed([(b"transfer-encoding", b"chunked")], method=method, policy=policy) == ()
    assert keyed(headers[1:], policy=policy) == ()


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ((b"if-match", b'"a"'), Bypass.PRECONDITION),
        ((b"if-unmodified-since", b"Mon"), Bypass.PRECONDITION),
        ((b"range", b"bytes=0-1"), Bypass.RANGE),
        ((b"cache-control", b"no-store"), Bypass.NO_STORE),
        ((b"cache-control", b"max-age=0, NO-STORE"), Bypass.NO_STORE),
    ],
)
def test_what_only_the_app_can_answer_is_a_bypass(header: tuple[bytes, bytes], reason: Bypass) -> None:
    assert read([header]) is reason


@pytest.mark.parametrize("value", [b"no-cache", b"max-age=0", b"only-if-cached", b""])
def test_other_wishes_of_a_client_are_no_bypass(value: bytes) -> None:
    assert keyed([(b"cache-control", value)]) == ()


def test_entity_tags_of_several_fields_are_one_list() -> None:
    found = read([(b"if-none-match", b'"a"'), (b"if-none-match", b'"b"')])
    assert found == Keyed((), b'"a", "b"', conditional=False)
    assert read([]) == Keyed((), None, conditional=False)
    assert read([(b"if-modified-since", b"Mon")]) == Keyed((), None, conditional=True)


def test_a_varied_field_is_keyed_for_its_policy_only() -> None:
    varies, does_not = Policy("/a", op="a", vary=["Accept-Language"]), Policy("/b", op="b")
    both = rules(varies, does_not)
    header = (b"accept-language", b"de")
    spelled = (b"accept_language", b"de")
    assert both.read("GET", [header, spelled], varies) == Keyed((header, spelled), None, conditional=False)
    assert both.read("GET", [header], does_not) == Keyed((), None, conditional=False)


def test_a_varied_content_type_is_keyed_without_a_body_too() -> None:
    policy = Policy("/d", op="d", vary=["Content-Type"])
    assert keyed([(b"content-type", b"a")], policy=policy) == ((b"content-type", b"a"),)


@pytest.mark.parametrize(
    ("principal", "vary", "covered", "open_"),
    [
        pytest.param(False, (), {b"host"}, {b"forwarded", b"authorization", b"cookie", b"accept"}, id="plain"),
        pytest.param(True, (), {b"authorization", b"x-api-key"}, {b"cookie", b"forwarded"}, id="principal"),
        pytest.param(False, ("Accept", "Cookie"), {b"accept", b"cookie"}, {b"authorization"}, id="vary"),
        pytest.param(False, ("Forwarded",), {b"forwarded"}, {b"authorization"}, id="forwarded whole"),
    ],
)
def test_a_response_may_vary_by_what_is_keyed(
    principal: bool, vary: tuple[str, ...], covered: set[bytes], open_: set[bytes]
) -> None:
    policy = Policy("/d", op="d", vary=vary)
    found = rules(policy, principal=principal).covered(policy)
    assert covered <= found
    assert not open_ & found


@given(st.lists(st.tuples(st.sampled_from([*sorted(KEYED), b"accept", b"x-a"]), st.binary(max_size=5)), max_size=6))
def test_every_covered_field_of_a_request_reaches_the_key(headers: list[tuple[bytes, bytes]]) -> None:
    policy = Policy("/d", op="d", vary=["x-a"])
    both = rules(policy)
    found = both.read("GET", headers, policy)
    if isinstance(found, Keyed):
        covered = both.covered(policy)
        assert [pair for pair in found.fields if pair[0] in covered] == [pair for pair in headers if pair[0] in covered]


FIELDS = st.sampled_from(
    [
        *(name for name in sorted(KEYED | BYPASSING)),
        *(b"cookie", b"authorization", b"x-api-key", b"x_api_key", b"accept-language", b"accept_language", b"accept"),
        *(b"if-none-match", b"if-modified-since", b"range", b"content-length", b"content-type", b"cache-control"),
        *(b"user-agent", b"traceparent", b"transfer-encoding", b"if-match", b"x-region"),
    ]
)


@given(
    st.lists(st.tuples(FIELDS, st.sampled_from([b"0", b"1", b"no-store", b"for=1;host=a", b'"t"'])), max_size=6),
    st.sampled_from(["GET", "HEAD", "POST"]),
    st.booleans(),
    st.sampled_from([(), ("accept-language",), ("cookie", "x-region"), ("content-type", "forwarded")]),
    st.booleans(),
)
def test_what_is_not_watched_makes_no_difference(
    headers: list[tuple[bytes, bytes]], method: str, principal: bool, vary: tuple[str, ...], shares: bool
) -> None:
    """A hit is found by the watched fields alone."""
    policy = Policy("/d", op="dashboard", vary=vary, share_authenticated=shares, methods=("GET", "POST"))
    reading = rules(policy, principal=principal)
    watched = reading.watched(policy)
    alone = [pair for pair in headers if pair[0] in watched]
    assert reading.read(method, headers, policy) == reading.read(method, alone, policy)


@given(st.lists(st.tuples(FIELDS, st.sampled_from([b"0", b"1"])), max_size=6))
def test_a_layout_takes_the_watched_fields_and_the_place_of_the_only_api_key(
    headers: list[tuple[bytes, bytes]],
) -> None:
    watched, keys = frozenset({b"accept", b"cookie", b"range"}), frozenset({b"x-api-key", b"x_api_key"})
    layouts = Layouts(watched, keys)
    for _ in range(2):  # seen for the first time, and again
        layout = layouts.of(headers)
        assert layout.watched(headers) == tuple(pair for pair in headers if pair[0] in watched)
        places = [place for place, (name, _) in enumerate(headers) if name in keys]
        assert layout.api_key == (places[0] if len(places) == 1 else -1)


def test_layouts_come_from_outside_and_are_bounded_in_number_and_size() -> None:
    layouts = Layouts(frozenset({b"host"}), frozenset())
    for number in range(1_000):
        assert layouts.of([(b"x-%d" % number, b""), (b"host", b"h")]).watched([(b"", b""), (b"host", b"h")])
        assert len(layouts) <= 256
    before = len(layouts)
    layouts.of([(b"x" * 1_001, b"")])
    assert len(layouts) == before
