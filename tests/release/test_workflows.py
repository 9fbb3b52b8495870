"""The workflows: valid, careful with what they are permitted, and doing what is done here."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.admin.browser import SHOTS

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def read(path: Path) -> dict[Any, Any]:
    document: dict[Any, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return document


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_workflow_is_one_by_its_schema(path: Path) -> None:
    checked = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_workflow_may_read_only_and_ends(path: Path) -> None:
    document = read(path)
    assert document["permissions"] == {"contents": "read"}
    for name, job in document["jobs"].items():
        assert "uses" in job or job["timeout-minutes"] <= 30, name
        for step in job.get("steps", ()):
            assert re.fullmatch(r"[\w./-]+@[\w./-]+", step.get("uses", "a@b"))
            if str(step.get("uses", "")).startswith("actions/checkout"):
                assert step["with"]["persist-credentials"] is False
            # a name from outside that is put into a script would be run with it
            assert "${{" not in step.get("run", "")


def test_the_targets_that_workflows_make_exist() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in FILES)
    targets = set(re.findall(r"run: make ([\w-]+)", text))
    assert targets
    assert targets <= set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def test_the_pictures_of_the_page_are_kept() -> None:
    steps = read(ROOT / ".github" / "workflows" / "ci.yml")["jobs"]["test"]["steps"]
    kept = [step["with"]["path"] for step in steps if str(step.get("uses", "")).startswith("actions/upload-artifact")]
    assert kept == [f"{SHOTS.relative_to(ROOT)}/"]


def version(tag: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([ROOT / ".ci" / "version", tag], capture_output=True, text=True, check=False)


def test_only_the_tag_of_this_version_is_published() -> None:
    assert version("v9.9.9").returncode == 1
    assert version("v0.1.0; rm -rf /").returncode == 1


def test_a_version_is_published_with_the_changelogs_words(tmp_path: Path) -> None:
    (tmp_path / ".ci").mkdir()
    script = tmp_path / ".ci" / "version"
    script.write_text((ROOT / ".ci" / "version").read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "1.2.0"\n', encoding="utf-8")
    changelog = tmp_path / "CHANGELOG.md"
    for text, status in (
        ("## [1.2.0] - 2026-01-01\n\n- A.\n\n## [1.1.0]\n\n- B.\n", 0),
        ("## [Unreleased]\n- A.\n", 1),
    ):
        changelog.write_text(text, encoding="utf-8")
        run = subprocess.run([sys.executable, script, "v1.2.0"], capture_output=True, text=True, check=False)
        assert (run.returncode, run.stdout) == (status, "" if status else "- A.\n")
