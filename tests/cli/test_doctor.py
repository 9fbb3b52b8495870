"""`nexcache doctor` against servers that are misconfigured on purpose: every planted fault is named."""

import asyncio
import json
import re
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
import trustme

from nexcache import Settings
from nexcache.cli.isolation import examine
from nexcache.errors import StoreRefused
from nexcache.key import KeySpace
from nexcache.stores.inspection import PROBED_FAMILIES, probes
from nexcache.stores.redis import RedisStore
from nexcache.tenants import ApiKey
from tests.cli.conftest import KEYS, OPERATOR, SECRETS, CommandLine, Served, application
from tests.servers import NoServer, Valkey, redis_binary, rights
from tests.topologies.servers import free_port

ROOT = Path(__file__).parents[2]
ACME = {"x-api-key": SECRETS["acme"]}
CAREFUL = {
    "CACHE_SIGNING_KEYS": "k1:0123456789abcdef0123456789abcdef",
    "CACHE_NAMESPACE_SECRET": "0123456789abcdef0123456789abcdef",
}
"""Settings in which there is nothing to find."""


def report(nexcache: CommandLine, *words: str, **environment: str) -> Any:
    result = nexcache("doctor", "--json", *words, **(CAREFUL | environment))
    assert result.exit_code in (0, 1), result.stderr
    document = json.loads(result.stdout)
    assert document["well"] == (result.exit_code == 0)
    return document


def codes(document: Any) -> dict[str, str]:
    return {each["code"]: each["severity"] for each in document["findings"]}


def test_a_server_with_the_shipped_user_is_well(nexcache: CommandLine, own_valkey: Valkey) -> None:
    own_valkey.ask("CONFIG", "SET", "maxmemory", "1gb")
    own_valkey.ask("CONFIG", "SET", "maxmemory-policy", "volatile-lru")
    document = report(nexcache, REDIS_URL=own_valkey.least_rights_url)

    assert document["well"]
    assert codes(document) == {}
    shown = nexcache("doctor", REDIS_URL=own_valkey.least_rights_url, **CAREFUL).stdout
    assert shown.count("✓") == 10
    assert "0 problems, 0 warnings, 0 notes" in shown


def test_looking_leaves_nothing_for_longer_than_the_hours_trend(nexcache: CommandLine, own_valkey: Valkey) -> None:
    own_valkey.ask("SET", "nexarch:acme:overview:00", "kept", "PX", "60000")
    report(nexcache, REDIS_URL=own_valkey.url)
    left = {key for key in own_valkey.ask("KEYS", "*") if b"overview" not in key}
    assert all(0 < own_valkey.ask("PTTL", key) <= 3_720_000 for key in left)
    assert own_valkey.ask("GET", "nexarch:acme:overview:00") == b"kept"


@pytest.fixture(scope="module")
def misconfigured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    """One server with everything that can be wrong at once."""
    place = tmp_path_factory.mktemp("wrong")
    (place / "renamed.conf").write_text("rename-command SMISMEMBER x\n")
    with Valkey(place, maxmemory="100mb", include=str(place / "renamed.conf")) as server:
        server.ask("CONFIG", "SET", "maxmemory-policy", "noeviction")
        server.ask("SET", "nexarch:acme:overview:0123", "for ever")
        server.ask("SET", "other:program", "1")
        server.ask(
            "ACL", "SETUSER", "limited", "on", ">hunter22", "~nexarch:*", "&*", "+@all", "-hset", "-hgetall", "-info"
        )
        yield server


def test_every_planted_fault_is_named_at_once(nexcache: CommandLine, misconfigured: Valkey) -> None:
    url = f"redis://limited:hunter22@127.0.0.1:{misconfigured.port}"
    expired = f"{ApiKey.of('acme', 'old')};expires=2020-01-01"
    document = report(
        nexcache,
        REDIS_URL=url,
        CACHE_SIGNING_KEYS="",
        CACHE_NAMESPACE_SECRET="short",
        CACHE_API_KEYS=expired,
    )

    found = {each["code"]: each["what"] for each in document["findings"]}
    assert {
        "acl",
        "commands-missing",
        "no-expiry",
        "shared-database",
        "info-hidden",
        "not-stored",
        "unsigned",
        "namespace-secret",
        "key-expired",
    } <= set(found)
    assert re.findall(r"hset|hgetall|info|set on nexarch[.a-z]+:\*", found["acl"]) == [
        "hgetall",
        "hset",
        "info",
        "set on nexarch.key:*",
        "set on nexarch.limit:*",
        "set on nexarch.quota:*",
        "set on nexarch.session:*",
        "set on nexarch.stats:*",
        "set on nexarch.switch:*",
        "set on nexarch.trend:*",
        "set on nexarch.value:*",
    ]
    assert "smismember" in found["commands-missing"]
    assert "nexarch:acme:overview:0123" in found["no-expiry"]
    assert "hunter22" not in json.dumps(document)


def test_what_the_full_rights_show_is_named_too(nexcache: CommandLine, misconfigured: Valkey) -> None:
    misconfigured.ask("ACL", "SETUSER", "wide", "on", ">hunter22", "~*", "&*", "+@all")
    wide = codes(report(nexcache, REDIS_URL=f"redis://wide:hunter22@127.0.0.1:{misconfigured.port}"))
    anybody = codes(report(nexcache, REDIS_URL=misconfigured.url))

    assert {"acl-wide": "warning", "noeviction": "warning"}.items() <= wide.items()
    assert anybody["no-password"] == "note"


def test_a_full_server_is_named_and_can_be_put_right(nexcache: CommandLine, own_valkey: Valkey) -> None:
    own_valkey.ask("SET", "nexarch:acme:overview:0123", "for ever")
    own_valkey.ask("CONFIG", "SET", "maxmemory", "1000")
    before = report(nexcache, REDIS_URL=own_valkey.url)
    own_valkey.ask("CONFIG", "SET", "maxmemory", "100mb")
    fixed = report(nexcache, "--fix", REDIS_URL=own_valkey.url)
    after = report(nexcache, REDIS_URL=own_valkey.url)

    full = {"out-of-memory": "problem", "not-stored": "problem", "noeviction": "warning"}
    assert full.items() <= codes(before).items()
    assert {each["code"] for each in fixed["findings"] if each["fixed"]} == {"noeviction", "no-expiry"}
    assert not {"noeviction", "no-expiry", "out-of-memory", "not-stored"} & set(codes(after))
    assert own_valkey.ask("CONFIG", "GET", "maxmemory-policy")[1] == b"volatile-lru"
    assert 0 < own_valkey.ask("PTTL", "nexarch:acme:overview:0123") <= 30 * 86_400_000


def test_fixing_touches_no_key_of_others_and_no_kept_value(nexcache: CommandLine, own_valkey: Valkey) -> None:
    for name in ("other:program", "nexarch.value:acme:template", "nexarch:@nodes"):
        own_valkey.ask("SET", name, "for ever")
    report(nexcache, "--fix", REDIS_URL=own_valkey.url)
    assert own_valkey.ask("PTTL", "other:program") == -1
    assert own_valkey.ask("PTTL", "nexarch.value:acme:template") == -1
    assert own_valkey.ask("PTTL", "nexarch:@nodes") == -1


@pytest.mark.parametrize(
    ("policy", "code"), [("allkeys-lru", "evicts-kept-values"), ("allkeys-random", "evicts-kept-values")]
)
def test_eviction_of_what_is_to_be_kept_is_named(
    nexcache: CommandLine, own_valkey: Valkey, policy: str, code: str
) -> None:
    own_valkey.ask("CONFIG", "SET", "maxmemory-policy", policy)
    own_valkey.ask("SET", "nexarch.value:acme:template", "for ever")
    found = codes(report(nexcache, REDIS_URL=own_valkey.url))
    assert {code, "no-maxmemory"} <= set(found)
    own_valkey.ask("DEL", "nexarch.value:acme:template")
    assert code not in codes(report(nexcache, REDIS_URL=own_valkey.url))


def test_replicas_and_what_bounds_a_failover_are_named(
    nexcache: CommandLine, own_valkey: Valkey, tmp_path: Path
) -> None:
    place = tmp_path / "replica"
    place.mkdir()
    options: dict[str, Any] = {"repl-diskless-sync-delay": "0"}
    with Valkey(place, replicaof=f"127.0.0.1 {own_valkey.port}", **options) as replica:
        for _ in range(200):
            if own_valkey.ask("INFO", "replication").get("connected_slaves") == 1:
                break
            replica.ask("PING")
        unbounded = codes(report(nexcache, REDIS_URL=own_valkey.url))
        own_valkey.ask("CONFIG", "SET", "min-replicas-to-write", "1")
        bounded = codes(report(nexcache, REDIS_URL=own_valkey.url))
        there = codes(report(nexcache, REDIS_URL=replica.url))
        trusted = codes(report(nexcache, REDIS_URL=own_valkey.url, CACHE_FAILOVER="trust"))

    assert unbounded["failover-unbounded"] == "warning"
    assert bounded["failover-bounded"] == "note"
    assert there["replica"] == "problem"
    assert trusted["failover-trusted"] == "warning"


def test_a_node_of_a_cluster_is_named(nexcache: CommandLine, tmp_path: Path) -> None:
    place = tmp_path / "node"
    place.mkdir()
    options: dict[str, Any] = {"cluster-enabled": "yes", "cluster-port": str(free_port())}
    with Valkey(place, **options) as node:
        assert codes(report(nexcache, REDIS_URL=node.url))["cluster"] == "problem"


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Path, Path]]:
    """A server with TLS, whose certificate ends soon: its port, its authority, and another one."""
    try:
        program = redis_binary()
    except NoServer as reason:
        pytest.skip(str(reason))
    place = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(place / "ca.pem"))
    trustme.CA().cert_pem.write_to_path(str(place / "other.pem"))
    certificate = authority.issue_cert("localhost", not_after=datetime.now(UTC) + timedelta(days=5))
    certificate.private_key_pem.write_to_path(str(place / "server.key"))
    certificate.cert_chain_pems[0].write_to_path(str(place / "server.pem"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    options = {
        "port": "0",
        "tls-port": str(port),
        "bind": "127.0.0.1 ::1",
        "tls-auth-clients": "no",
        "save": "",
        "dir": str(place),
        "tls-cert-file": str(place / "server.pem"),
        "tls-key-file": str(place / "server.key"),
        "tls-ca-cert-file": str(place / "ca.pem"),
        "requirepass": "s3cr#t",
    }
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    process = subprocess.Popen([program, *words], stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            try:
                process.wait(0.025)
            except subprocess.TimeoutExpired:
                continue
            raise RuntimeError("redis-server ended")
        yield port, place / "ca.pem", place / "other.pem"
    finally:
        process.terminate()
        process.wait(5)


def test_faults_of_tls_and_of_the_password_are_told_apart(
    nexcache: CommandLine, tls: tuple[int, Path, Path], valkey: Valkey
) -> None:
    port, authority, other = tls
    here = {"REDIS_URL": f"rediss://localhost:{port}", "REDIS_PASSWORD": "s3cr#t", "REDIS_SSL_CA_CERTS": str(authority)}

    def found(**environment: str) -> set[str]:
        document = report(nexcache, **(here | environment))
        assert "s3cr" not in json.dumps(document)
        return set(codes(document))

    assert "certificate-ends" in found()
    assert found(REDIS_SSL_CA_CERTS=str(other)) == {"certificate"}
    assert found(REDIS_URL=f"rediss://127.0.0.1:{port}") == {"certificate"}  # a name that it does not hold
    assert found(REDIS_PASSWORD="s3cr-wrong") == {"credentials"}
    assert found(REDIS_PASSWORD="") == {"credentials"}
    assert found(REDIS_URL=f"redis://localhost:{port}", REDIS_SSL_CA_CERTS="") == {"tls-expected"}
    assert found(REDIS_URL=f"rediss://localhost:{valkey.port}") == {"no-tls"}


@pytest.mark.parametrize("url", ["redis://127.0.0.1:9", "redis://no-such-host.invalid:6379"])
def test_a_server_that_is_not_there_is_named(nexcache: CommandLine, url: str) -> None:
    assert codes(report(nexcache, REDIS_URL=url)) == {"unreachable": "problem"}


def test_a_silent_server_is_named(nexcache: CommandLine, own_valkey: Valkey) -> None:
    own_valkey.pause()
    assert codes(report(nexcache, REDIS_URL=own_valkey.url)) == {"unreachable": "problem"}


def test_a_cache_in_memory_is_judged_by_its_settings(nexcache: CommandLine) -> None:
    document = report(nexcache, CACHE_ENABLED="false")
    assert codes(document) == {"in-memory": "note", "disabled": "warning"}


def test_a_cache_that_mixes_principals_or_tenants_is_found_out(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(redis_url=redis_url, op_timeout_ms=1000)
    built = KeySpace.key

    def found() -> set[str]:
        return {each.code for each in asyncio.run(examine(settings))}

    well = found()
    monkeypatch.setattr(
        KeySpace, "key", lambda self, tenant, operation, _, tags=(): built(self, tenant, operation, b"same", tags)
    )
    principals = found()
    monkeypatch.setattr(KeySpace, "prefix", lambda _, __: b"nexarch:one:")
    both = found()

    assert well == set()
    assert principals == {"principals-mixed"}
    assert both >= {"principals-mixed", "tenants-mixed"}


def test_an_invalidation_that_does_nothing_is_found_out(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def forgets(*_: object, **__: object) -> int:
        return 1

    monkeypatch.setattr(RedisStore, "unlink", forgets)
    found = asyncio.run(examine(Settings(redis_url=redis_url, op_timeout_ms=1000)))
    assert [each.code for each in found] == ["still-answered"]


def test_an_invalidation_that_reaches_others_is_found_out(
    redis_url: str, valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlink = RedisStore.unlink

    async def removes_all(store: RedisStore, keys: Sequence[bytes], **options: Any) -> int:
        valkey.ask("FLUSHALL")
        return await unlink(store, keys, **options)

    monkeypatch.setattr(RedisStore, "unlink", removes_all)
    found = asyncio.run(examine(Settings(redis_url=redis_url, op_timeout_ms=1000)))
    assert [each.code for each in found] == ["invalidated-too-much"]


def test_an_invalidation_that_is_not_carried_out_is_found_out(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuses(*_: object, **__: object) -> int:
        raise StoreRefused("refused", "not now")

    monkeypatch.setattr(RedisStore, "unlink", refuses)
    found = asyncio.run(examine(Settings(redis_url=redis_url, op_timeout_ms=1000)))
    assert [each.code for each in found] == ["not-invalidated"]


@pytest.mark.parametrize("words", [("-publish",), ("resetchannels", "&nexarch:@acks:*")])
def test_nodes_that_cannot_be_told_are_missed(
    nexcache: CommandLine, own_valkey: Valkey, words: tuple[str, ...]
) -> None:
    url = own_valkey.least_rights_url
    own_valkey.ask("ACL", "SETUSER", "nexcache", *words)
    assert codes(report(nexcache, REDIS_URL=url))["publish"] == "warning"


def test_the_probes_use_every_right_of_the_shipped_user_that_one_command_can_show() -> None:
    permitted = {word[1:] for word in rights() if word.startswith("+")}
    connecting = {"auth", "select", "client|setname", "cluster|slots", "asking", "subscribe"}
    assert {name for name, _ in probes("t") if " " not in name} == permitted - connecting
    families = {word[1:].rstrip("*") for word in rights() if word.startswith("~")}
    assert set(PROBED_FAMILIES) == families


def test_an_app_says_how_it_is(nexcache: CommandLine) -> None:
    app, cache = application(Settings(redis_url=None, redis_host=None))
    with Served(app) as url:
        well = report(nexcache, "--url", f"{url}/admin")
        cache.enabled = False
        off = report(nexcache, "--url", f"{url}/admin", NEXCACHE_KEY=OPERATOR)
        stranger = nexcache("doctor", "--url", f"{url}/admin", NEXCACHE_KEY="guessed")
        fixing = nexcache("doctor", "--fix", "--url", f"{url}/admin")
    assert codes(well) == {}
    assert codes(off) == {"disabled": "warning"}
    assert (stranger.exit_code, fixing.exit_code) == (2, 2)
    assert KEYS


def test_an_app_whose_store_is_away_has_a_problem(nexcache: CommandLine) -> None:
    app, _ = application(Settings(redis_url="redis://127.0.0.1:9"))
    with Served(app) as url:
        assert codes(report(nexcache, "--url", f"{url}/admin"))["down"] == "problem"


def test_an_app_says_what_waits_for_the_store_and_which_alerts_fire(nexcache: CommandLine, own_valkey: Valkey) -> None:
    settings = Settings(redis_url=own_valkey.url, op_timeout_ms=500, alert_interval_seconds=1, alert_after_seconds=0)
    app, _ = application(settings)
    with Served(app) as url:
        assert "; stored" in httpx2.get(f"{url}/overview", headers=ACME).headers["cache-status"]
        own_valkey.kill()
        assert httpx2.delete(f"{url}/admin/invalidate", headers=ACME).json()["queued"]
        end = time.monotonic() + 10
        while "alert-breaker" not in (found := codes(report(nexcache, "--url", f"{url}/admin", NEXCACHE_KEY=OPERATOR))):
            assert time.monotonic() < end, found
            time.sleep(0.05)
    assert {name: found[name] for name in ("queued", "down")} == {"queued": "warning", "down": "problem"}


def test_an_app_of_another_version_is_named(nexcache: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    app, cache = application(Settings(redis_url=None, redis_host=None))
    monkeypatch.setattr(type(cache), "version", "0.0.9")
    with Served(app) as url:
        document = report(nexcache, "--url", f"{url}/admin")
    assert codes(document) == {"versions-differ": "note"}
    assert document["versions"]["app"] == "NexCache 0.0.9"


def test_every_code_is_found_by_a_test() -> None:
    """A code of which no test says that it was found would be one that nobody has ever seen."""
    tests = "\n".join(path.read_text(encoding="utf-8") for path in PLANTED)
    assert [code for code in sorted(known_codes()) if f'"{code}' not in tests] == []


PLANTED = (Path(__file__), ROOT / "tests" / "test_diagnosis.py")


def test_the_page_names_every_code_and_no_other() -> None:
    page = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8").partition("| Code |")[2]
    named = {
        code
        for row in page.splitlines()
        for code in re.findall(r"`([a-z-]+)…?`", row.split("|")[1] if "|" in row else "")
    }
    assert named == known_codes()


def known_codes() -> set[str]:
    """Read from the source which codes there are."""
    sources = [ROOT / "nexcache" / name for name in ("diagnosis.py", "cli/isolation.py", "cli/examination.py")]
    text = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    used = set(re.findall(r'(?:Finding|_problem|finding|add)\(\s*"([a-z-]+)"', text))
    used |= set(re.findall(r'"(?:certificate|plain|tls|auth)": "([a-z-]+)"', text)) | {"unreachable"}
    return used | {"down", "slow", "backplane-lost", "alert-"}
