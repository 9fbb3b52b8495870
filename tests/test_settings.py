"""Settings: every name works, a bad value is named and never shown."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import AliasChoices, SecretStr, ValidationError

from nexcache.errors import ConfigurationError
from nexcache.quota import Quota
from nexcache.settings import FROM_FILES, Settings, in_workers, parse_redis_url
from nexcache.tenants import ApiKey

ROOT = Path(__file__).parent.parent
CANARY = "S3CR3T-canary"
DIGEST = "a" * 64


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Begin with an empty environment, in a directory without `.env`."""
    import os  # noqa: PLC0415 - only to be emptied

    for name in list(os.environ):
        if name.upper().startswith(("REDIS_", "CACHE_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def names_of(field: str) -> list[str]:
    alias = Settings.model_fields[field].validation_alias
    assert isinstance(alias, AliasChoices)
    return [str(choice) for choice in alias.choices]


def refused(**values: Any) -> str:
    """Construct settings that must be refused; give the sentence, after a search for the canary in all it carries."""
    with pytest.raises(ConfigurationError) as raised:
        Settings(**values)
    assert_silent(raised.value)
    return str(raised.value)


def assert_silent(error: BaseException | None) -> None:
    """No exception that leads here knows the secret: neither its text nor what it carries."""
    while error is not None:
        carried = [str(error), repr(error), *map(repr, error.args), repr(vars(error))]
        if isinstance(error, ValidationError):
            carried.append(repr(error.errors()))
        assert not any(CANARY in each or "S3CR3T" in each for each in carried), error
        assert error.__cause__ is None or error.__context__ is None
        error = error.__cause__ or error.__context__


# --- every name ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "field", "value"),
    [
        ("REDIS_URL", "redis://h:1/2", "redis_url", SecretStr("redis://h:1/2")),
        ("REDIS_HOST", "cache.internal", "redis_host", "cache.internal"),
        ("REDIS_PORT", "6380", "redis_port", 6380),
        ("REDIS_USERNAME", "app", "redis_username", "app"),
        ("REDIS_PASSWORD", "p,#/@ =", "redis_password", SecretStr("p,#/@ =")),
        ("REDIS_SSL", "true", "redis_ssl", True),
        ("REDIS_SSL_CA_CERTS", __file__, "redis_ssl_ca_certs", Path(__file__)),
        ("REDIS_SSL_CERTFILE", __file__, None, None),
        ("REDIS_SSL_KEYFILE", __file__, None, None),
        ("REDIS_PASSWORD_FILE", __file__, None, None),
        ("REDIS_CREDENTIALS", "entra-id", "redis_credentials", "entra-id"),
        ("REDIS_DB", "3", "redis_db", 3),
        ("CACHE_ENABLED", "false", "enabled", False),
        ("CACHE_ENABLE_CACHE", "false", "enabled", False),
        ("REDIS_CACHE_ENABLED", "false", "enabled", False),
        ("REDIS_DEFAULT_TTL", "600", "ttl_seconds", 600.0),
        ("CACHE_MAX_CONNECTIONS", "20", "max_connections", 20),
        ("REDIS_MAX_CONNECTIONS", "20", "max_connections", 20),
        ("CACHE_DEFAULT_TENANT", "acme", "default_tenant", "acme"),
        ("CACHE_TENANT_TTLS", "acme=1m,a%2Cb/x-y=30", "tenant_ttls", {"acme": 60.0, "a%2Cb/X_Y": 30.0}),
        ("CACHE_QUOTA_BYTES", "1MiB", "quota_bytes", 1024**2),
        ("CACHE_QUOTA_ENTRIES", "5", "quota_entries", 5),
        ("CACHE_QUOTA_FILLS_PER_SECOND", "5", "quota_fills_per_second", 5),
        ("CACHE_INSTANCES", "3", "instances", 3),
        ("CACHE_QUOTAS", "acme entries=5 fills=2", "quotas", {"acme": Quota(entries=5, fills=2)}),
        ("CACHE_TTL_SECONDS", "600", "ttl_seconds", 600.0),
        ("CACHE_TTL_SECONDS", "10m", "ttl_seconds", 600.0),
        ("CACHE_L1_MAX_BYTES", "1MiB", "l1_max_bytes", 1024**2),
        ("CACHE_L1_MAX_ENTRIES", "5", "l1_max_entries", 5),
        ("CACHE_TENANT_MAX_FILLS", "7", "tenant_max_fills", 7),
        ("CACHE_TENANT_NEW_KEYS_PER_MINUTE", "8", "tenant_new_keys_per_minute", 8),
        ("CACHE_L1_ENABLED", "no", "l1_enabled", False),
        ("CACHE_L1_LEASE_MS", "100", "l1_lease_ms", 100.0),
        ("CACHE_FALLBACK_TTL_SECONDS", "0", "fallback_ttl_seconds", 0.0),
        ("CACHE_MAX_TAGS", "50", "max_tags", 50),
        ("CACHE_FAILOVER", "trust", "failover", "trust"),
        ("CACHE_OP_TIMEOUT_MS", "12.5", "op_timeout_ms", 12.5),
        ("CACHE_NAMESPACE_VERSION", "v2", "namespace_version", "v2"),
        ("CACHE_NAMESPACE_SECRET", "secret", "namespace_secret", SecretStr("secret")),
        ("CACHE_SIGNING_KEYS", "a:" + "x" * 16, "signing_keys", {"a": SecretStr("x" * 16)}),
        ("CACHE_ENCRYPTION_KEYS", "a:" + "x" * 16, "encryption_keys", {"a": SecretStr("x" * 16)}),
        ("CACHE_API_KEYS", f"acme=sha256:{DIGEST}", "api_keys", (ApiKey("acme", DIGEST),)),
        ("CACHE_API_KEYS_FILE", __file__, None, None),
        ("CACHE_ALERT_WEBHOOK", "https://h/x", "alert_webhook", SecretStr("https://h/x")),
        ("CACHE_ALERT_INTERVAL_SECONDS", "5s", "alert_interval_seconds", 5.0),
        ("CACHE_ALERT_AFTER_SECONDS", "2m", "alert_after_seconds", 120.0),
        ("CACHE_ALERT_HIT_RATE", "0.8", "alert_hit_rate", 0.8),
        ("CACHE_ALERT_ERROR_RATE", "0.01", "alert_error_rate", 0.01),
        ("CACHE_ALERT_STALENESS_SECONDS", "1", "alert_staleness_seconds", 1.0),
        ("CACHE_ALERT_FULLNESS", "0.8", "alert_fullness", 0.8),
        ("CACHE_ALERT_WRONG_ANSWERS", "0.05", "alert_wrong_answers", 0.05),
    ],
)
def test_every_name_sets_its_field(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str, field: str | None, value: object
) -> None:
    if field is None:  # read below, from files that hold what is asked for, or in pairs
        return
    for spelling in (name, name.lower()):
        monkeypatch.setenv(spelling, text)
        assert getattr(Settings(), field) == value
        monkeypatch.delenv(spelling)
    assert name in names_of(field)
    assert getattr(Settings(**{field: text}), field) == value


def test_every_field_is_in_the_table_above() -> None:
    table = next(iter(test_every_name_sets_its_field.pytestmark)).args[1]  # type: ignore[attr-defined]
    named = {row[0] for row in table}
    assert named == {name for field in Settings.model_fields if field != "operation_ttls" for name in names_of(field)}


@pytest.mark.parametrize("name", [*Settings.model_fields, "ENABLED", "API_KEYS", "FAILOVER", "OPERATION_TTLS"])
def test_a_fields_own_name_is_no_environment_name(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """`API_KEYS` or `ENABLED` may belong to any program."""
    before = Settings()
    if not name.lower().startswith("redis_"):
        monkeypatch.setenv(name, "{nonsense")
        Path(".env").write_text(f"{name}=nonsense\n", encoding="utf-8")
    assert Settings() == before


def test_an_empty_value_counts_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Settings()
    for field in Settings.model_fields:
        if field != "operation_ttls":
            monkeypatch.setenv(names_of(field)[0], "")
    monkeypatch.setenv("CACHE_TTL_DASHBOARD", "")
    monkeypatch.setenv("REDIS_PASSWORD_FILE", "")
    assert Settings() == before


def test_other_products_names_for_operations_and_timeouts_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_SUMMARY_TTL", "900")
    monkeypatch.setenv("REDIS_TRENDS_TTL", "1800")
    monkeypatch.setenv("CACHE_TTL_TRENDS", "30s")
    monkeypatch.setenv("REDIS_SOCKET_TIMEOUT", "0.25")

    settings = Settings()

    assert (settings.ttl_of("summary"), settings.ttl_of("trends")) == (900.0, 30.0)
    assert settings.op_timeout_ms == 250.0
    monkeypatch.setenv("CACHE_OP_TIMEOUT_MS", "75")
    assert Settings().op_timeout_ms == 75.0


def test_a_timeout_that_is_no_number_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_SOCKET_TIMEOUT", "soon")

    with pytest.raises(ConfigurationError, match="REDIS_SOCKET_TIMEOUT must be a number of seconds"):
        Settings()


def test_the_defaults_are_the_documented_ones() -> None:
    settings = Settings()
    assert (settings.enabled, settings.ttl_seconds, settings.l1_max_bytes) == (True, 300.0, 64 * 1024**2)
    assert (settings.fallback_ttl_seconds, settings.op_timeout_ms, settings.failover) == (10.0, 50.0, "epoch")
    assert settings.get_redis_url() is None
    assert settings.ttl_of("dashboard") is None


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        Settings().enabled = False


# --- the environment, .env, arguments -----------------------------------------------------------------------------


def test_arguments_win_over_the_environment_and_that_over_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".env").write_text(
        "# comment\nREDIS_HOST=file\nREDIS_PORT=1\nREDIS_DB='2'\nexport CACHE_TTL_DASHBOARD=1m\nCACHE_TTL_GRAPH=2m\n",
        encoding="utf-8",
    )
    monkeypatch.setenv("REDIS_HOST", "environment")
    monkeypatch.setenv("REDIS_PORT", "2")
    monkeypatch.setenv("CACHE_TTL_GRAPH", "3m")
    settings = Settings(redis_host="argument")
    assert (settings.redis_host, settings.redis_port, settings.redis_db) == ("argument", 2, 2)
    assert (settings.ttl_of("dashboard"), settings.ttl_of("graph")) == (60.0, 180.0)
    assert Settings(_env_file=None).redis_db == 0


@pytest.mark.parametrize(
    "operation", ["dashboard_overview", "DASHBOARD_OVERVIEW", "dashboard-overview", "dashboard.overview"]
)
def test_an_operation_has_a_ttl_of_its_own(monkeypatch: pytest.MonkeyPatch, operation: str) -> None:
    monkeypatch.setenv("CACHE_TTL_DASHBOARD_OVERVIEW", "2m")
    settings = Settings()
    assert settings.ttl_of(operation) == 120.0
    assert settings.ttl_of("dashboard") is None
    assert settings.ttl_seconds == 300.0


def test_an_operations_ttl_can_be_given_in_code_under_its_name() -> None:
    assert Settings(operation_ttls={"dashboard-overview": "2m"}).ttl_of("dashboard-overview") == 120.0


# --- bad values ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "bad", "sentence"),
    [
        ("REDIS_PORT", CANARY, "REDIS_PORT must be a valid integer"),
        ("REDIS_PORT", "0", "REDIS_PORT must be greater than or equal to 1"),
        ("REDIS_PORT", "65536", "REDIS_PORT must be less than or equal to 65535"),
        ("REDIS_DB", "-1", "REDIS_DB must be greater than or equal to 0"),
        ("REDIS_SSL", CANARY, "REDIS_SSL must be a valid boolean"),
        ("REDIS_SSL_CA_CERTS", f"/{CANARY}", "REDIS_SSL_CA_CERTS must name a file that can be read"),
        ("REDIS_HOST", f"{CANARY}:6379", "REDIS_HOST must be a host's name or address, without scheme and port"),
        ("REDIS_HOST", f"redis://{CANARY}", "REDIS_HOST must be a host's name or address, without scheme and port"),
        ("REDIS_HOST", f"user@{CANARY}", "REDIS_HOST must be a host's name or address, without scheme and port"),
        (
            "REDIS_URL",
            CANARY,
            "REDIS_URL must begin with redis://, rediss:// (TLS), redis+sentinel://, redis+cluster:// or unix://",
        ),
        ("REDIS_URL", f"http://{CANARY}", "REDIS_URL must begin with redis://, rediss:// (TLS)"),
        ("REDIS_URL", f"redis+proxy://{CANARY}", "REDIS_URL must begin with redis://, rediss:// (TLS)"),
        ("CACHE_ENABLED", CANARY, "CACHE_ENABLED must be a valid boolean"),
        ("CACHE_TTL_SECONDS", CANARY, 'CACHE_TTL_SECONDS must be seconds or text such as "90s", "2m" or "1h30m"'),
        ("CACHE_TTL_SECONDS", "0", "CACHE_TTL_SECONDS must be greater than 0"),
        ("CACHE_TTL_SECONDS", "31d", "CACHE_TTL_SECONDS must be less than or equal to 2592000"),
        ("CACHE_TTL_GRAPH", CANARY, 'CACHE_TTL_GRAPH must be seconds or text such as "90s", "2m" or "1h30m"'),
        ("CACHE_TTL_GRAPH", "0", "CACHE_TTL_GRAPH must be more than 0 seconds and at most 30 days"),
        ("CACHE_TTL_GRAPH", "31d", "CACHE_TTL_GRAPH must be more than 0 seconds and at most 30 days"),
        ("CACHE_L1_MAX_BYTES", CANARY, 'CACHE_L1_MAX_BYTES must be bytes or text such as "64MiB"'),
        ("CACHE_L1_MAX_ENTRIES", "0", "CACHE_L1_MAX_ENTRIES must be greater than or equal to 1"),
        ("CACHE_FALLBACK_TTL_SECONDS", CANARY, "CACHE_FALLBACK_TTL_SECONDS must be seconds or text"),
        ("CACHE_ALERT_WEBHOOK", f"ftp://{CANARY}", "CACHE_ALERT_WEBHOOK must be an http:// or https:// URL"),
        ("CACHE_FAILOVER", CANARY, "CACHE_FAILOVER must be 'epoch' or 'trust'"),
        ("CACHE_OP_TIMEOUT_MS", CANARY, "CACHE_OP_TIMEOUT_MS must be a valid number"),
        ("CACHE_OP_TIMEOUT_MS", "0", "CACHE_OP_TIMEOUT_MS must be greater than or equal to 1"),
        ("CACHE_NAMESPACE_VERSION", CANARY * 10, "CACHE_NAMESPACE_VERSION must have at most 64 characters"),
        ("CACHE_SIGNING_KEYS", CANARY, "CACHE_SIGNING_KEYS is written id:secret,id:secret, each secret at least 16"),
        ("CACHE_SIGNING_KEYS", "a:S3CR3T-too-short", ""),
        ("CACHE_SIGNING_KEYS", f"a b:{CANARY * 2}", "CACHE_SIGNING_KEYS is written id:secret"),
        ("CACHE_SIGNING_KEYS", f"{'a' * 17}:{CANARY * 2}", "CACHE_SIGNING_KEYS is written id:secret"),
        ("CACHE_SIGNING_KEYS", f"é:{CANARY * 2}", "CACHE_SIGNING_KEYS is written id:secret"),
        ("CACHE_SIGNING_KEYS", f":{CANARY * 2}", "CACHE_SIGNING_KEYS is written id:secret"),
        (
            "CACHE_SIGNING_KEYS",
            f"a:{CANARY * 2},a:{CANARY * 3}",
            "CACHE_SIGNING_KEYS must give each key an id of its own",
        ),
        ("CACHE_API_KEYS", f"acme={CANARY}", "CACHE_API_KEYS is written tenant=sha256:<64 hex digits>"),
        ("CACHE_API_KEYS", f"acme=sha256:{DIGEST},{CANARY}", "CACHE_API_KEYS is written tenant=sha256:<64 hex digits>"),
        ("CACHE_API_KEYS_FILE", f"/{CANARY}", "CACHE_API_KEYS_FILE must name a file that can be read"),
        ("REDIS_PASSWORD", f"{CANARY}\udcff", "REDIS_PASSWORD must be UTF-8 text"),
        ("CACHE_NAMESPACE_SECRET", f"{CANARY}\udcff", "CACHE_NAMESPACE_SECRET must be UTF-8 text"),
        ("CACHE_SIGNING_KEYS", f"a:{CANARY * 2}\udcff", "CACHE_SIGNING_KEYS must be UTF-8 text"),
    ],
)
def test_a_bad_value_is_named_in_one_sentence_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, name: str, bad: str, sentence: str
) -> None:
    monkeypatch.setenv(name, bad)
    if not sentence:  # 16 characters after the id: long enough
        assert Settings().signing_keys["a"].get_secret_value() == bad[2:]
        return
    said = refused()
    assert said.startswith(sentence)
    assert "\n" not in said


def test_several_bad_values_are_all_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_PORT", CANARY)
    monkeypatch.setenv("CACHE_ENABLED", CANARY)
    said = refused()
    assert said == "REDIS_PORT must be a valid integer; CACHE_ENABLED must be a valid boolean"


def test_a_bad_argument_is_named_by_its_environment_name() -> None:
    assert refused(redis_port=CANARY).startswith("REDIS_PORT must be")
    assert refused(redis_url=SecretStr(f"http://{CANARY}")).startswith("REDIS_URL must begin")
    assert refused(operation_ttls={"graph": CANARY}).startswith("CACHE_TTL_GRAPH must be")


def test_a_dotenv_file_that_is_no_text_is_refused_without_being_shown() -> None:
    Path(".env").write_bytes(b"REDIS_PASSWORD=" + CANARY.encode() + b"\xff\n")
    assert ".env must be readable UTF-8 text" in refused()


PASSWORDS = [
    f"{CANARY}{more}" for more in ("#1", "/1", "@1", "?1", "#/@", ":1", "[", "]", "%zz", "é", "=", ",", "1#", " ")
]


@pytest.mark.parametrize("password", PASSWORDS)
@pytest.mark.parametrize(
    "template",
    [
        "redis://:{}@host:6379/0", "rediss://user:{}@host", "redis://{}", "redis://:{}", "redis://host:{}",
        "redis://host/{}", "redis://host:6379/0#{}", "redis://host:6379?db={}", "redis://{}@host:99999", "{}",
        "http://:{}@host", "unix://:{}@/tmp/s", "unix://{}", "host:x,password={}", "host,password={},defaultDatabase=x",
        "redis://{}@[::1", "redis://[{}]", "host:6380,password={},ssl={}",
    ],
)  # fmt: skip
def test_a_password_in_a_url_works_or_is_refused_but_never_shown(
    monkeypatch: pytest.MonkeyPatch, template: str, password: str
) -> None:
    monkeypatch.setenv("REDIS_URL", template.replace("{}", password))
    for read in (Settings, lambda: parse_redis_url(template.replace("{}", password))):
        try:
            found = read()
        except ConfigurationError as error:
            refusal = error
        else:
            assert isinstance(found, dict) or CANARY not in repr(found) + str(found)
            continue
        assert str(refusal).startswith("REDIS_URL")
        assert_silent(refusal)


def test_no_secret_is_in_the_text_of_settings() -> None:
    settings = Settings(
        redis_url=f"redis://:{CANARY}@h",
        redis_password=CANARY,
        namespace_secret=CANARY,
        signing_keys=f"a:{CANARY * 2}",
    )
    assert CANARY not in repr(settings) + str(settings) + settings.model_dump_json()


# --- where the server is ------------------------------------------------------------------------------------------


def place(**changes: Any) -> dict[str, Any]:
    return {"username": None, "password": None, "host": "h", "port": 6379, "db": 0, "tls": False} | changes


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://h", place()),
        ("REDIS://h", place()),
        ("redis://", place(host="localhost")),
        ("redis://h:1/2", place(port=1, db=2)),
        ("redis://h:1/2/", place(port=1, db=2)),
        ("redis://h?db=3", place(db=3)),
        ("redis://h/2?db=3", place(db=2)),
        ("rediss://h", place(tls=True)),
        ("valkey://h", place()),
        ("valkeys://h", place(tls=True)),
        ("redis://:p@h", place(password="p")),
        ("redis://u:p@h", place(username="u", password="p")),
        ("redis://u@h", place(username="u")),
        ("redis://u:p%40%23%2F%3A@h", place(username="u", password="p@#/:")),
        ("redis://:a@b:c@h", place(password="a@b:c")),
        ("redis://:a,b=c@h", place(password="a,b=c")),
        ("redis://[::1]:1", place(host="::1", port=1)),
        ("redis://10.0.0.1", place(host="10.0.0.1")),
        ("redis://my_service", place(host="my_service")),
        (" redis://h ", place()),
        ("unix:///run/s.sock", {"username": None, "password": None, "db": 0, "unix_socket": "/run/s.sock"}),
        ("unix://u:p@/run/s?db=2", {"username": "u", "password": "p", "db": 2, "unix_socket": "/run/s"}),
    ],
)
def test_a_url_is_taken_apart(url: str, expected: dict[str, Any]) -> None:
    assert parse_redis_url(url) == expected


@pytest.mark.parametrize(
    "url",
    [
        "", "h", "h:1", "redis:h", "redis:/h", "http://h", "redis://h/x", "redis://h/-1", "redis://h/\u0661",
        "redis://h:x", "redis://h:99999", "redis://h:-1", "redis://:p#q@h", "redis://:p/q@h", "redis://:p?q@h",
        "redis://h/0#x", "redis://h#", "redis://a b", "redis://[h]", "redis://[::1", "unix://", "unix:///", "unix://h/s",
        "redis://h\u2100",
    ],
)  # fmt: skip
def test_a_url_that_cannot_work_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^REDIS_URL must (begin with|look like) redis://"):
        parse_redis_url(url)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(
            "contoso.redis.cache.windows.net:6380,password=abc=,ssl=True,abortConnect=False",
            place(host="contoso.redis.cache.windows.net", port=6380, password="abc=", tls=True),
            id="as Azure's portal shows it",
        ),
        pytest.param(
            "host:6380,password=p,ssl=True,abortConnect=False,user=u,defaultDatabase=1",
            place(host="host", port=6380, username="u", password="p", tls=True, db=1),
            id="with a user and a database",
        ),
        pytest.param("h,ssl=true", place(port=6380, tls=True), id="the port of TLS"),
        pytest.param("h,ssl=false", place(), id="the port without"),
        pytest.param("h:1,SSL=YES,Password=a", place(port=1, tls=True, password="a"), id="options in any case"),
        pytest.param(" h:1 , password = a==b ", place(port=1, password="a==b"), id="white space"),
        pytest.param("password=p,h:1", place(port=1, password="p"), id="in any order"),
        pytest.param("h:1,password=", place(port=1), id="empty password"),
        pytest.param("h:1,", place(port=1), id="nothing after the comma"),
        pytest.param("[::1]:1,ssl=0", place(host="::1", port=1), id="IPv6"),
        pytest.param("h,connectTimeout=5,name=x,anything=y,allowAdmin=true", place(), id="unknown options"),
        pytest.param("h,password=redis:/x#@", place(password="redis:/x#@"), id="the password is not decoded"),
    ],
)
def test_a_connection_string_is_taken_apart(text: str, expected: dict[str, Any]) -> None:
    assert parse_redis_url(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        ",", "password=p,ssl=True", "h:1,h2:1", "h:x,password=p", "h:0,password=p", "h:65536,password=p", "h:,ssl=true",
        "h h,password=p", "h/x,password=p", "h,ssl=maybe", "h,defaultDatabase=x", "h,defaultDatabase=-1",
        "[x]:1,ssl=no", "u@h,password=p", "h,password=x,y",
    ],
)  # fmt: skip
def test_a_connection_string_that_cannot_work_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^REDIS_URL, as a connection string, must look like host:6380,"):
        parse_redis_url(text)


@pytest.mark.parametrize(
    ("values", "url"),
    [
        pytest.param({}, None, id="nothing"),
        pytest.param({"redis_port": 6380}, None, id="a port alone is no server"),
        pytest.param({"redis_host": "h"}, "redis://h:6379/0", id="host"),
        pytest.param({"redis_host": "h", "redis_port": 1, "redis_db": 2}, "redis://h:1/2", id="port and database"),
        pytest.param({"redis_host": "h", "redis_ssl": True}, "rediss://h:6379/0", id="TLS"),
        pytest.param({"redis_host": "h", "redis_password": "p#/@:"}, "redis://:p%23%2F%40%3A@h:6379/0", id="password"),
        pytest.param(
            {"redis_host": "h", "redis_username": "u@", "redis_password": "p"}, "redis://u%40:p@h:6379/0", id="user"
        ),
        pytest.param({"redis_host": "::1"}, "redis://[::1]:6379/0", id="IPv6"),
        pytest.param({"redis_url": "redis://h/1", "redis_host": "other"}, "redis://h/1", id="the URL wins"),
        pytest.param({"redis_url": "  redis://h "}, "redis://h", id="white space"),
        pytest.param({"redis_url": " "}, None, id="blank"),
        pytest.param({"redis_url": "redis://h", "redis_password": "p"}, "redis://:p@h:6379/0", id="completed"),
        pytest.param(
            {"redis_url": "redis://u@h", "redis_username": "v", "redis_password": "p"},
            "redis://u:p@h:6379/0",
            id="its user",
        ),
        pytest.param({"redis_url": "redis://:q@h", "redis_password": "p"}, "redis://:q@h", id="its password"),
        pytest.param({"redis_url": "redis://h", "redis_ssl": True}, "rediss://h:6379/0", id="completed with TLS"),
        pytest.param({"redis_url": "unix:///s", "redis_ssl": True}, "unix:///s", id="a socket has no TLS"),
        pytest.param({"redis_url": "unix:///s", "redis_password": "p"}, "unix://:p@/s?db=0", id="a socket's password"),
        pytest.param({"redis_url": "h:1,password=a#b,ssl=1"}, "rediss://:a%23b@h:1/0", id="connection string"),
    ],
)
def test_the_server_has_one_url(values: dict[str, Any], url: str | None) -> None:
    assert Settings(**values).get_redis_url() == url


PARTS = st.fixed_dictionaries(
    {
        "redis_host": st.sampled_from(["h", "my-host.example.com", "::1", "10.0.0.1"]),
        "redis_port": st.integers(1, 65535),
        "redis_db": st.integers(0, 100),
        "redis_ssl": st.booleans(),
        "redis_username": st.none() | st.text(min_size=1),
        "redis_password": st.none() | st.text(min_size=1),
    }
)


@given(PARTS)
def test_parts_survive_the_way_through_a_url(parts: dict[str, Any]) -> None:
    url = Settings(_env_file=None, **parts).get_redis_url()
    assert url is not None
    assert parse_redis_url(url) == {
        "username": parts["redis_username"],
        "password": parts["redis_password"],
        "host": parts["redis_host"],
        "port": parts["redis_port"],
        "db": parts["redis_db"],
        "tls": parts["redis_ssl"],
    }


@given(st.text())
def test_any_url_is_taken_apart_or_refused(url: str) -> None:
    for text in (url, f"redis://{url}", f"h,{url}"):
        try:
            parse_redis_url(text)
        except ConfigurationError as error:
            assert error.__context__ is None  # noqa: PT017 - most texts raise nothing


# --- files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "field", "value"),
    [
        ("REDIS_URL", "redis://h:1/2", "redis_url", SecretStr("redis://h:1/2")),
        ("REDIS_PASSWORD", " p#, ", "redis_password", SecretStr(" p#, ")),
        ("CACHE_NAMESPACE_SECRET", "s", "namespace_secret", SecretStr("s")),
        (
            "CACHE_SIGNING_KEYS",
            f"a:{'x' * 16}\nb:{'y' * 16}",
            "signing_keys",
            {"a": SecretStr("x" * 16), "b": SecretStr("y" * 16)},
        ),
        ("CACHE_ENCRYPTION_KEYS", f"e:{'x' * 16}", "encryption_keys", {"e": SecretStr("x" * 16)}),
        ("CACHE_ALERT_WEBHOOK", "https://h/x", "alert_webhook", SecretStr("https://h/x")),
    ],
)
def test_a_secret_may_be_in_a_file(
    monkeypatch: pytest.MonkeyPatch, name: str, content: str, field: str, value: object
) -> None:
    path = Path("secret")
    for text in (content, content + "\n", content + "\r\n"):
        path.write_text(text, encoding="utf-8", newline="")
        monkeypatch.setenv(f"{name}_FILE", str(path))
        assert getattr(Settings(), field) == value
    monkeypatch.delenv(f"{name}_FILE")
    Path(".env").write_text(f"{name}_FILE={path}\n", encoding="utf-8")
    assert getattr(Settings(), field) == value


def test_the_table_above_has_every_secret_that_may_be_in_a_file() -> None:
    table = next(iter(test_a_secret_may_be_in_a_file.pytestmark)).args[1]  # type: ignore[attr-defined]
    assert [row[0] for row in table] == list(FROM_FILES)


@pytest.mark.parametrize("name", FROM_FILES)
def test_a_secrets_file_must_be_there_and_hold_text(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    path = tmp_path / CANARY
    monkeypatch.setenv(f"{name}_FILE", str(path))
    assert refused() == f"{name}_FILE must name a file of UTF-8 text that can be read"
    path.mkdir()
    assert refused() == f"{name}_FILE must name a file of UTF-8 text that can be read"
    path.rmdir()
    path.write_bytes(CANARY.encode() + b"\xff")
    assert refused() == f"{name}_FILE must name a file of UTF-8 text that can be read"
    path.write_text(" \n", encoding="utf-8")
    assert refused() == f"{name}_FILE names an empty file"
    path.write_text(CANARY, encoding="utf-8")
    monkeypatch.setenv(name, CANARY)
    assert refused() == f"{name} and {name}_FILE are both set: only one of them can be meant"


def test_the_environment_wins_over_a_file_that_dotenv_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("file", encoding="utf-8")
    (tmp_path / ".env").write_text(f"REDIS_PASSWORD_FILE={tmp_path / 'secret'}\n", encoding="utf-8")
    monkeypatch.setenv("REDIS_PASSWORD", "environment")
    assert Settings().redis_password == SecretStr("environment")


def test_a_clients_certificate_and_its_key_belong_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_SSL_CERTFILE", __file__)
    assert refused() == "REDIS_SSL_CERTFILE and REDIS_SSL_KEYFILE belong together: set both or none"
    monkeypatch.setenv("REDIS_SSL_KEYFILE", __file__)
    assert (Settings().redis_ssl_certfile, Settings().redis_ssl_keyfile) == (Path(__file__), Path(__file__))


SENTINEL = {"db": 0, "tls": False, "master": "main", "sentinel_username": None, "sentinel_password": None}
CLUSTER = {"db": 0, "tls": False, "master": None}
NOBODY = {"username": None, "password": None}


@pytest.mark.parametrize(
    ("url", "place"),
    [
        pytest.param(
            "redis+sentinel://a:1,b/main",
            NOBODY | SENTINEL | {"nodes": (("a", 1), ("b", 26379))},
            id="the port of Sentinels",
        ),
        pytest.param(
            "rediss+sentinel://u:p%2Fw@[::1]:1,10.0.0.1:2/main/3?sentinel_username=s&sentinel_password=%23",
            {"username": "u", "password": "p/w"}
            | SENTINEL
            | {"nodes": (("::1", 1), ("10.0.0.1", 2)), "db": 3, "tls": True}
            | {"sentinel_username": "s", "sentinel_password": "#"},
            id="users and passwords of both",
        ),
        pytest.param("redis+sentinel://a/main?db=4", NOBODY | SENTINEL | {"nodes": (("a", 26379),), "db": 4}, id="db"),
        pytest.param("redis+cluster://a:1,b", NOBODY | CLUSTER | {"nodes": (("a", 1), ("b", 6379))}, id="cluster"),
        pytest.param(
            "valkeys+cluster://:p@a:1/0",
            {"username": None, "password": "p"} | CLUSTER | {"nodes": (("a", 1),), "tls": True},
            id="cluster with TLS",
        ),
    ],
)
def test_several_nodes_are_taken_apart_and_written_down_again(url: str, place: dict[str, Any]) -> None:
    assert parse_redis_url(url) == place
    completed = Settings(redis_url=url, redis_password="else", redis_ssl=True)
    expected = place | {"password": place["password"] or "else", "tls": True}
    assert parse_redis_url(completed.get_redis_url() or "") == expected
    assert completed.on_cluster == (place["master"] is None)


@pytest.mark.parametrize(
    "url",
    [
        f"redis+sentinel://:{CANARY}@a:1",
        f"redis+sentinel://:{CANARY}@a:1/main/x",
        f"redis+sentinel://:{CANARY}@a:1/main?sentinel={CANARY}",
        f"redis+sentinel://:{CANARY}@/main",
        f"redis+sentinel://:{CANARY}/@a:1/main",
        f"redis+sentinel://:{CANARY}@a:70000/main",
        f"redis+cluster://:{CANARY}@a:1/2",
        f"redis+cluster://:{CANARY}@a:1?db=2",
        f"redis+cluster://:{CANARY}@a:1,,b",
        f"redis+cluster://:{CANARY}#@a:1",
        f"unix+cluster://:{CANARY}@a:1",
        f"redis+proxy://:{CANARY}@a:1",
    ],
)
def test_nodes_that_cannot_be_meant_are_refused_with_an_example(url: str) -> None:
    assert "redis+" in refused(redis_url=url)


def test_api_keys_come_from_the_environment_and_from_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "keys"
    other, odd = "b" * 64, "c" * 64
    path.write_text(f"# keys\n\n globex=sha256:{other} # its key\nodd#1=sha256:{odd}\n", encoding="utf-8")
    monkeypatch.setenv("CACHE_API_KEYS_FILE", str(path))
    monkeypatch.setenv("CACHE_API_KEYS", f"acme=sha256:{DIGEST}, ")
    assert Settings().api_keys == (ApiKey("acme", DIGEST), ApiKey("globex", other), ApiKey("odd#1", odd))
    path.write_text(f"acme={CANARY}\n", encoding="utf-8")
    assert refused().startswith("CACHE_API_KEYS_FILE is written tenant=sha256:<64 hex digits>")
    path.write_bytes(b"\xff" + CANARY.encode())
    assert refused() == "CACHE_API_KEYS_FILE must name a file of UTF-8 text that can be read"


# --- .env.example -------------------------------------------------------------------------------------------------

EXAMPLE = (ROOT / ".env.example").read_text(encoding="utf-8")


def examples() -> Iterator[tuple[str, str, str]]:
    """Give each name of the example with its value and the comment above it."""
    lines = EXAMPLE.splitlines()
    for above, line in zip(["", *lines], lines, strict=False):
        if match := re.fullmatch(r"#([A-Z0-9_]+)=(.*)", line):
            yield match[1], match[2], above


def test_the_example_lists_every_name_once_and_no_other() -> None:
    fields = [name for field in Settings.model_fields if field != "operation_ttls" for name in names_of(field)]
    expected = [*fields, *(f"{name}_FILE" for name in FROM_FILES), "CACHE_TTL_DASHBOARD_OVERVIEW"]
    assert sorted(name for name, _, _ in examples()) == sorted(set(expected))


@pytest.mark.parametrize(("name", "value", "comment"), [pytest.param(*each, id=each[0]) for each in examples()])
def test_the_example_explains_every_name_and_shows_its_default(name: str, value: str, comment: str) -> None:
    assert re.fullmatch(r"# [A-Za-z].{3,}\.", comment)
    for field in Settings.model_fields:
        if field == "operation_ttls" or name not in names_of(field):
            continue
        default = Settings.model_fields[field].get_default(call_default_factory=True)
        said = re.search(r"Default: (.+)\.$", comment)
        if isinstance(default, bool | int | float):
            assert said is not None
            assert getattr(Settings(**{field: said[1]}), field) == default
            assert getattr(Settings(**{field: value}), field) == default
        elif isinstance(default, str) and default:
            assert said is not None
            assert said[1] == value == default
        else:
            assert comment.endswith("No default.") or said is not None


def test_the_example_works_when_it_is_uncommented(tmp_path: Path) -> None:
    lines = [
        f"{name}={value}"
        for name, value, _ in examples()
        if not name.endswith(("_FILE", "_CERTS", "_CERTFILE", "_KEYFILE"))
    ]
    (tmp_path / ".env").write_text("\n".join(lines), encoding="utf-8")
    settings = Settings()
    assert settings.ttl_of("dashboard_overview") == 120.0
    assert settings.get_redis_url() is not None
    assert settings.api_keys


# --- workers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "workers"),
    [
        ("WEB_CONCURRENCY", "4", 4),
        ("UVICORN_WORKERS", "2", 2),
        ("GRANIAN_WORKERS", "3", 3),
        ("WEB_CONCURRENCY", "1", 1),
        ("WEB_CONCURRENCY", "", 1),
        ("WEB_CONCURRENCY", "auto", 1),
        ("OTHER", "5", 1),
    ],
)
def test_the_environment_tells_how_many_workers_there_are(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, workers: int
) -> None:
    for each in ("WEB_CONCURRENCY", "UVICORN_WORKERS", "GRANIAN_WORKERS"):
        monkeypatch.delenv(each, raising=False)
    monkeypatch.setenv(name, value)
    assert in_workers() == workers
