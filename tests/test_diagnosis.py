"""What is judged from facts that no server on this machine can be made to show; the others are planted in tests/cli."""

from dataclasses import replace

import pytest

from nexcache.diagnosis import Expected, Facts, Keys, Refusal, Severity, diagnose

EXPECTED = Expected()
NOW = 1_800_000_000.0
WELL = Facts(
    "rediss://cache.example:6379/0",
    loopback=False,
    tls=True,
    certificate_ends=NOW + 90 * 86_400,
    info={
        "redis_version": "7.2.4",
        "valkey_version": "8.1.0",
        "run_id": "a",
        "master_replid": "b",
        "role": "master",
        "connected_slaves": "1",
        "slave0": "ip=10.0.0.2,port=6379,state=online,offset=1,lag=0",
        "maxmemory": "1000",
        "used_memory": "500",
        "maxmemory_policy": "volatile-lru",
    },
    config={"min-replicas-to-write": "1", "min-replicas-max-lag": "10"},
    user="nexcache",
    user_words=("on", "-@all", "+get"),
    clock_ahead=0.01,
    response_ms=0.3,
)


def codes(facts: Facts, expected: Expected = EXPECTED) -> set[str]:
    return {each.code for each in diagnose(facts, expected, NOW)}


def info(**values: str) -> Facts:
    return replace(WELL, info={**WELL.info, **values})


def test_a_server_that_is_well_set_up_has_one_note_that_bounds_a_failover() -> None:
    (only,) = diagnose(WELL, Expected(), NOW)
    assert (only.code, only.severity) == ("failover-bounded", Severity.NOTE)
    assert "at most 10.25 s" in only.what


@pytest.mark.parametrize(
    ("facts", "code"),
    [
        pytest.param(replace(WELL, tls=False), "plain-text", id="no TLS over a network"),
        pytest.param(replace(WELL, certificate_ends=NOW + 5 * 86_400), "certificate-ends", id="certificate ends"),
        pytest.param(info(valkey_version="7.0.0"), "old-server", id="old Valkey"),
        pytest.param(info(maxmemory="0"), "no-maxmemory", id="no limit of memory"),
        pytest.param(info(used_memory="950"), "memory-full", id="nearly full"),
        pytest.param(info(maxmemory_policy="volatile-ttl"), "eviction-blind", id="evicts what ends soon"),
        pytest.param(replace(WELL, config=None), "failover-unbounded", id="CONFIG hidden"),
        pytest.param(info(slave0="ip=10.0.0.2,port=6379,state=wait_bgsave,lag=0"), "replica-lags", id="replica syncs"),
        pytest.param(info(slave0="ip=10.0.0.2,port=6379,state=online,lag=60"), "replica-lags", id="replica lags"),
        pytest.param(replace(WELL, clock_ahead=-2.0), "clock", id="clock behind"),
        pytest.param(replace(WELL, response_ms=30.0), "slow", id="slow"),
        pytest.param(replace(WELL, user_words=None, password=False), "no-password", id="no password over a network"),
        pytest.param(replace(WELL, keys=Keys(unexpiring=2, examples=("x",))), "no-expiry", id="keys without expiry"),
        pytest.param(replace(WELL, refusals={"set": Refusal.MEMORY}), "out-of-memory", id="full"),
    ],
)
def test_a_fault_is_named(facts: Facts, code: str) -> None:
    assert code in codes(facts) - codes(WELL)


def test_an_old_redis_is_told_by_its_own_numbers() -> None:
    without = {name: value for name, value in WELL.info.items() if name != "valkey_version"}
    assert "old-server" in codes(replace(WELL, info=without | {"redis_version": "6.0.16"}))
    assert "old-server" not in codes(replace(WELL, info=without | {"redis_version": "6.2.0"}))


def test_without_a_replica_there_is_no_primary_to_be_replaced() -> None:
    assert not codes(replace(info(connected_slaves="0"), config={"min-replicas-to-write": "0"})) & {
        "failover-unbounded",
        "failover-bounded",
    }


def test_every_finding_says_what_to_do() -> None:
    broken = replace(
        WELL,
        tls=False,
        info={"role": "master", "maxmemory": "0"},
        refusals={"get": Refusal.PERMISSION, "eval": Refusal.UNKNOWN, "set": Refusal.MEMORY},
        keys=Keys(unexpiring=1, foreign=3),
    )
    found = diagnose(broken, Expected(failover_trusted=True), NOW)
    assert len(found) >= 7
    assert all(each.remedy and each.what and each.where == WELL.server for each in found)
