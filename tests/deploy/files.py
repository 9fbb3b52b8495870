"""The files that the tests read, parsed."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DASHBOARD = DEPLOY / "grafana/dashboards/nexcache.json"
PROVISIONING = DEPLOY / "grafana/provisioning"

Mapping: TypeAlias = dict[str, Any]


def read(path: Path) -> Any:
    return json.loads(path.read_text()) if path.suffix == ".json" else yaml.safe_load(path.read_text())


def compose() -> Mapping:
    return dict(read(ROOT / "docker-compose.yml"))


def panels() -> Iterator[Mapping]:
    """Give the dashboard's panels, those in rows too, without the rows."""
    for panel in read(DASHBOARD)["panels"]:
        yield from (each for each in (panel, *panel.get("panels", ())) if each["type"] != "row")


def variables() -> list[Mapping]:
    return list(read(DASHBOARD)["templating"]["list"])


def rules() -> list[Mapping]:
    return [rule for group in read(DEPLOY / "prometheus-rules.yml")["groups"] for rule in group["rules"]]
