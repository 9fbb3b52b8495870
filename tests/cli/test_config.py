"""`nexcache config`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import typer

from nexcache import Settings
from nexcache.cli import app
from nexcache.cli.masked import variable_of
from nexcache.tenants import ApiKey
from tests.cli.conftest import CommandLine

ROOT = Path(__file__).parents[2]
SECRETS = {
    "REDIS_URL": "redis://user:secret-in-url@127.0.0.1:9/2",
    "CACHE_NAMESPACE_SECRET": "secret-of-the-namespace",
    "CACHE_SIGNING_KEYS": "k1:secret-that-signs-values",
    "CACHE_ENCRYPTION_KEYS": "e1:secret-that-encrypts-them",
    "CACHE_ALERT_WEBHOOK": "https://alerts.example/secret-path",
}


def test_every_setting_is_shown_with_where_it_comes_from(nexcache: CommandLine, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("CACHE_L1_LEASE_MS=100\nCACHE_TTL_SECONDS=60\n", encoding="utf-8")
    (tmp_path / "password").write_text("secret-of-a-file", encoding="utf-8")
    result = nexcache(
        "config",
        "--json",
        CACHE_TTL_SECONDS="2m",
        CACHE_TTL_OVERVIEW="30s",
        REDIS_PASSWORD_FILE=str(tmp_path / "password"),
        REDIS_URL="redis://127.0.0.1:9",
    )
    settings = json.loads(result.stdout)["settings"]

    assert settings["CACHE_L1_LEASE_MS"] == {"value": "100", "from": ".env"}
    assert settings["CACHE_TTL_SECONDS"] == {"value": "120", "from": "environment"}
    assert settings["CACHE_TTL_OVERVIEW"] == {"value": "30", "from": "environment"}
    assert settings["CACHE_L1_ENABLED"] == {"value": "true", "from": "default"}
    assert settings["REDIS_PASSWORD"] == {"value": "********", "from": "REDIS_PASSWORD_FILE"}
    assert {variable_of(field) for field in Settings.model_fields if field != "operation_ttls"} <= set(settings)


def test_no_secret_is_shown(nexcache: CommandLine) -> None:
    key = str(ApiKey.of("acme", "secret-key"))
    for words in (("config",), ("config", "--json")):
        shown = nexcache(*words, CACHE_API_KEYS=key, REDIS_PASSWORD="", **SECRETS).stdout
        assert "secret" not in shown.replace("CACHE_NAMESPACE_SECRET", "")
        assert "redis://127.0.0.1:9/2" in shown
        assert "k1:********" in shown
        assert "acme=sha256:" in shown
        assert key.partition("sha256:")[2] not in shown


def test_every_command_that_tells_something_writes_json(nexcache: CommandLine) -> None:
    commands = typer.main.get_group(app).commands
    options = {name: {word for each in command.params for word in each.opts} for name, command in commands.items()}
    without = {name for name, words in options.items() if "--json" not in words}
    assert without == {"demo", "serve"}

    made = json.loads(nexcache("key", "acme", "--json").stdout)
    entry = ApiKey.parse(made["entry"])
    assert (made["tenant"], entry) == ("acme", ApiKey.of("acme", made["key"]))


def test_the_shell_completes_commands_and_options() -> None:
    """Asked as the script asks that --install-completion installs."""

    def completed(words: str, at: int) -> set[str]:
        return set(
            subprocess.run(
                [sys.executable, "-c", "import sys; sys.argv = ['nexcache']; from nexcache.cli import main; main()"],
                env=os.environ | {"_NEXCACHE_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(at)},
                capture_output=True,
                text=True,
                check=True,
                cwd=ROOT,
            ).stdout.split()
        )

    assert completed("nexcache in", 1) == {"invalidate"}
    assert completed("nexcache monitor --mode c", 3) == {"continuous"}


def test_a_setting_that_cannot_work_is_named_without_its_value(nexcache: CommandLine) -> None:
    result = nexcache("config", CACHE_SIGNING_KEYS="secret")
    assert result.exit_code == 2
    assert "CACHE_SIGNING_KEYS is written" in result.stderr
    assert "secret" not in result.output.replace("id:secret", "").replace("each secret", "")
