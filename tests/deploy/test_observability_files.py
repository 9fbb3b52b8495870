"""Each part's configuration, and whether the parts find one another."""

import re
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.deploy.files import DASHBOARD, DEPLOY, PROVISIONING, compose, panels, read, rules, variables

SERVICES: dict[str, dict[str, Any]] = compose()["services"]
COLLECTOR: dict[str, Any] = read(DEPLOY / "otel-collector.yaml")
PROMETHEUS: dict[str, Any] = read(DEPLOY / "prometheus.yml")
SOURCES: list[dict[str, Any]] = read(PROVISIONING / "datasources/datasources.yaml")["datasources"]
LISTENS = {"jaeger": {4317, 16686}, "prometheus": {9090}, "otel-collector": {4318}, "app": {8000}, "valkey": {6379}}


def mounted(service: str) -> dict[str, str]:
    """Give what a service sees, by its path there."""
    pairs = (volume.split(":")[:2] for volume in SERVICES[service]["volumes"])
    return {there: here for here, there in pairs}


@pytest.mark.parametrize("signal", ["traces", "metrics"])
def test_every_pipeline_names_parts_that_are_declared(signal: str) -> None:
    pipeline = COLLECTOR["service"]["pipelines"][signal]
    for kind in ("receivers", "processors", "exporters"):
        assert pipeline[kind]
        assert set(pipeline[kind]) <= set(COLLECTOR[kind])
    # first refuse what does not fit into memory, then make batches
    assert pipeline["processors"] == ["memory_limiter", "batch"]


@pytest.mark.parametrize("kind", ["receivers", "processors", "exporters"])
def test_every_declared_part_is_used(kind: str) -> None:
    used = {name for pipeline in COLLECTOR["service"]["pipelines"].values() for name in pipeline[kind]}
    assert used == set(COLLECTOR[kind])


@pytest.mark.parametrize(
    "url",
    [
        SERVICES["app"]["environment"]["OTEL_EXPORTER_OTLP_ENDPOINT"],
        SERVICES["app"]["environment"]["REDIS_URL"],
        SERVICES["traffic"]["command"][2],
        f"grpc://{COLLECTOR['exporters']['otlp_grpc/jaeger']['endpoint']}",
        COLLECTOR["exporters"]["otlp_http/prometheus"]["endpoint"],
        *(source["url"] for source in SOURCES),
    ],
)
def test_every_address_is_where_a_service_listens(url: str) -> None:
    parts = urlsplit(url)
    assert parts.port in LISTENS[parts.hostname or ""]


def test_the_collector_listens_where_the_app_sends() -> None:
    assert COLLECTOR["receivers"]["otlp"]["protocols"] == {"http": {"endpoint": "0.0.0.0:4318"}}
    assert mounted("otel-collector")["/etc/otel-collector.yaml"] == "./deploy/otel-collector.yaml"
    assert SERVICES["otel-collector"]["command"] == ["--config=/etc/otel-collector.yaml"]


def test_prometheus_takes_otlp_under_the_names_that_the_dashboard_has() -> None:
    assert "--web.enable-otlp-receiver" in SERVICES["prometheus"]["command"]
    assert PROMETHEUS["otlp"] == {"translation_strategy": "UnderscoreEscapingWithSuffixes"}
    assert COLLECTOR["exporters"]["otlp_http/prometheus"]["endpoint"].endswith(":9090/api/v1/otlp")


def test_prometheus_finds_its_rules() -> None:
    (there,) = PROMETHEUS["rule_files"]
    assert mounted("prometheus")[there] == "./deploy/prometheus-rules.yml"


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_an_alert_says_what_happened_and_what_to_look_at(rule: dict[str, Any]) -> None:
    assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}
    assert re.fullmatch(r"\d+[smh]", rule["for"])
    assert rule["labels"].keys() == {"severity"}
    assert rule["labels"]["severity"] in ("info", "warning", "critical")
    assert set(rule["annotations"]) == {"summary", "description"}


def test_no_two_alerts_have_the_same_name() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names)


def test_grafana_finds_the_dashboard() -> None:
    (provider,) = read(PROVISIONING / "dashboards/dashboards.yaml")["providers"]
    seen = mounted("grafana")
    assert seen[provider["options"]["path"]] == "./deploy/grafana/dashboards"
    assert seen["/etc/grafana/provisioning"] == "./deploy/grafana/provisioning"
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{provider['options']['path']}/{DASHBOARD.name}"


def test_everything_on_the_dashboard_asks_a_provisioned_source() -> None:
    provisioned = {(source["type"], source["uid"]) for source in SOURCES}
    asked = [panel["datasource"] for panel in panels()]
    asked += [target["datasource"] for panel in panels() for target in panel["targets"]]
    asked += [variable["datasource"] for variable in variables()]
    assert {(source["type"], source["uid"]) for source in asked} == {("prometheus", "prometheus")}
    assert ("prometheus", "prometheus") in provisioned


def test_grafana_knows_how_often_the_app_exports() -> None:
    (prometheus,) = (source for source in SOURCES if source["uid"] == "prometheus")
    milliseconds = int(SERVICES["app"]["environment"]["OTEL_METRIC_EXPORT_INTERVAL"])
    assert prometheus["jsonData"]["timeInterval"] == f"{milliseconds // 1000}s"


def test_panels_have_an_id_a_title_a_unit_and_room_of_their_own() -> None:
    everything = read(DASHBOARD)["panels"]
    assert len({panel["id"] for panel in everything}) == len(everything)
    taken: set[tuple[int, int]] = set()
    for panel in everything:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert panel["title"]
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, panel["title"]
        taken |= cells
    assert all(panel["fieldConfig"]["defaults"]["unit"] for panel in panels())
    assert all(target["refId"] and target["legendFormat"] for panel in panels() for target in panel["targets"])


def test_the_dashboard_links_to_ports_that_are_open() -> None:
    opened = {port.rpartition(":")[0] for service in SERVICES.values() for port in service.get("ports", ())}
    links = [urlsplit(link["url"]) for link in read(DASHBOARD)["links"]]
    assert {link.netloc for link in links} <= opened
    services = {link.query.removeprefix("service=") for link in links if link.query}
    assert services == {SERVICES["app"]["environment"]["OTEL_SERVICE_NAME"]}
