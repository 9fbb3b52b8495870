import re
import subprocess
import sys
from hashlib import sha256
from importlib.metadata import version
from typing import Any

import pytest

from nexcache import Settings
from tests.deploy.files import DEPLOY, ROOT, compose

SERVICES: dict[str, dict[str, Any]] = compose()["services"]
PROGRAMS = {
    "app": {"python"},  # python:slim
    "valkey": {"valkey-cli"},  # alpine
    "jaeger": {"wget"},  # alpine
    "prometheus": {"wget"},  # busybox
    "grafana": {"wget"},  # alpine
}
"""What a health check can run: what the image is known to hold."""
UNCHECKED = {"otel-collector", "traffic"}
"""Services without a health check: the one's image is one program and no shell, the other serves nothing."""


def test_the_file_conforms_to_the_compose_specification() -> None:
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*check, ROOT / "docker-compose.yml"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_file_has_a_name_and_no_version() -> None:
    assert compose()["name"] == "nexcache"
    assert "version" not in compose()


def test_without_a_profile_only_the_app_and_its_store_start() -> None:
    assert {name for name, service in SERVICES.items() if "profiles" not in service} == {"app", "valkey"}
    assert {tuple(service["profiles"]) for service in SERVICES.values() if "profiles" in service} == {
        ("observability",)
    }


@pytest.mark.parametrize("name", SERVICES)
def test_every_image_is_pinned_to_a_release(name: str) -> None:
    assert re.fullmatch(r"[a-z0-9./-]+:v?\d+\.\d+\.\d+[a-z0-9.-]*", SERVICES[name]["image"])


@pytest.mark.parametrize("name", SERVICES)
def test_every_port_is_bound_to_loopback(name: str) -> None:
    for port in SERVICES[name].get("ports", ()):
        assert re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port)


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_waits_for_services_that_start_with_it(name: str) -> None:
    for other, how in SERVICES[name].get("depends_on", {}).items():
        assert set(SERVICES[other].get("profiles", ())) <= set(SERVICES[name].get("profiles", ()))
        assert how == {"condition": "service_healthy"}
        assert "healthcheck" in SERVICES[other]


@pytest.mark.parametrize("name", SERVICES)
def test_a_health_check_runs_a_program_that_the_image_holds(name: str) -> None:
    if name in UNCHECKED:
        assert "healthcheck" not in SERVICES[name]
        return
    check = SERVICES[name]["healthcheck"]
    how, program, *_ = check["test"]
    assert how == "CMD"  # no shell is needed
    assert program in PROGRAMS[name]
    assert {"interval", "timeout", "retries"} <= set(check)


@pytest.mark.parametrize("name", SERVICES)
def test_everything_mounted_is_there_and_read_only_or_a_declared_volume(name: str) -> None:
    for volume in SERVICES[name].get("volumes", ()):
        source, _, *mode = volume.split(":")
        if source.startswith("./"):
            assert (ROOT / source).exists()
            assert mode == ["ro"]
        else:
            assert source in compose()["volumes"]


@pytest.mark.parametrize("name", ["app", "traffic", "valkey", "otel-collector"])
def test_what_needs_no_disk_and_no_rights_has_none(name: str) -> None:
    assert SERVICES[name]["read_only"] is True
    assert SERVICES[name]["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in SERVICES[name]["security_opt"]


def test_the_store_keeps_nothing_on_disk_and_forgets_what_was_not_used() -> None:
    options = " ".join(f"{word or '<empty>'}" for word in SERVICES["valkey"]["command"])
    assert "--maxmemory 128mb --maxmemory-policy allkeys-lru --save <empty>" in options


def test_the_apps_settings_can_work(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SERVICES["app"]["environment"].items():
        monkeypatch.setenv(name, re.sub(r"\$\{\w+:-\}", "", value))
    settings = Settings(_env_file=None)
    assert settings.get_redis_url() == "redis://valkey:6379"
    hashes = {key.tenant: key.digest for key in settings.api_keys}
    assert hashes == {name: sha256(f"{name}-demo-key".encode()).hexdigest() for name in ("acme", "globex")}


def test_the_traffic_knows_the_app_and_its_keys() -> None:
    command = SERVICES["traffic"]["command"]
    assert command == ["python", "traffic.py", "http://app:8000", "acme-demo-key", "globex-demo-key"]
    assert SERVICES["traffic"]["image"] == SERVICES["app"]["image"]


def test_the_image_is_named_after_the_release() -> None:
    assert SERVICES["app"]["image"] == f"nexcache-demo:{version('nexcache')}"


def test_what_the_image_is_built_from_is_there_and_not_ignored() -> None:
    assert SERVICES["app"]["build"] == {"context": ".", "dockerfile": "deploy/Dockerfile"}
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    copied = [
        source
        for line in lines
        if line.startswith("COPY ") and "--from" not in line
        for source in line.removeprefix("COPY ").split()[:-1]
    ]
    sent = {line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")}
    assert set(copied) == sent
    assert all((ROOT / source).exists() for source in copied)


def test_the_image_runs_as_nobody_in_particular() -> None:
    users = [line for line in (DEPLOY / "Dockerfile").read_text().splitlines() if line.startswith("USER ")]
    assert users == ["USER 10001:10001"]
    assert int(SERVICES["valkey"]["user"].split(":")[0]) > 0


def test_grafana_lets_anybody_look_and_nobody_log_in() -> None:
    environment = SERVICES["grafana"]["environment"]
    assert environment["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    assert environment["GF_AUTH_DISABLE_LOGIN_FORM"] == "true"
    assert environment["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"


def test_the_page_about_it_names_every_port_and_key() -> None:
    page = (ROOT / "docs/compose.md").read_text()
    ports = [port.rpartition(":")[0] for service in SERVICES.values() for port in service.get("ports", ())]
    assert ports
    assert all(f"http://{port}" in page for port in ports)
    assert all(f"`{tenant}-demo-key`" in page for tenant in ("acme", "globex"))
