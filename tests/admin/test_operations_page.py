"""The handbook names what there is: endpoints, alerts in process and in Prometheus, settings."""

import re
from pathlib import Path

from nexcache.admin.endpoints import ENDPOINTS
from nexcache.alerts import rules
from tests.deploy.files import rules as prometheus_rules

PAGE = (Path(__file__).parents[2] / "docs" / "operations.md").read_text(encoding="utf-8")


def test_every_endpoint_that_it_names_exists() -> None:
    named = set(re.findall(r"`(?:[A-Z]+ )?(/[a-z]+)", PAGE)) - {"/api", "/etc", "/run"}
    assert named
    assert named <= {f"/{each.segments[0]}" for each in ENDPOINTS} | {"/openapi"}


def test_its_table_has_every_alert_and_its_rule_in_prometheus() -> None:
    table = dict(re.findall(r"^\| `([a-z-]+)` \|.*\| (?:`(NexCache\w+)`|[^ ]) \|$", PAGE, re.MULTILINE))
    own = rules(hit_rate=0.5, error_rate=0.05, staleness=5.0, fullness=0.9, wrong_answers=0.01, after=60.0)
    assert set(table) == {rule.name for rule in own}
    assert all(table.values())
    assert set(table.values()) <= {rule["alert"] for rule in prometheus_rules()}


def test_every_setting_that_it_names_exists() -> None:
    example = (Path(__file__).parents[2] / ".env.example").read_text(encoding="utf-8")
    known = set(re.findall(r"^#(CACHE_[A-Z0-9_]+)=", example, re.MULTILINE))
    assert set(re.findall(r"CACHE_[A-Z0-9_]+", PAGE)) <= known
