import json
import subprocess
import sys
from pathlib import Path

import pytest

from nexcache.errors import ConfigurationError
from nexcache.ingest.rule_file import explained, explanation, parse_rules, read_rules
from nexcache.ingest.rules import IngestRule, RuleSet
from tests.ingest.batches import json_batch, span

TOML = """
[[rules]]
ops = ["dashboard_*"]
min_interval = "2s"

[[rules]]
match = { "span.kind" = "server", "http.status_code" = 500 }
tags = ["service:{service.name}"]
windows = ["spans"]
"""
RULES = (
    IngestRule(ops=["dashboard_*"], min_interval="2s"),
    IngestRule(
        match={"span.kind": "server", "http.status_code": 500}, tags=["service:{service.name}"], windows=["spans"]
    ),
)


def test_rules_are_read_from_toml_and_json(tmp_path: Path) -> None:
    (tmp_path / "rules.toml").write_text(TOML)
    assert read_rules(tmp_path / "rules.toml") == RULES
    (tmp_path / "rules.json").write_text(json.dumps({"rules": [{"ops": ["a"]}]}))
    assert read_rules(str(tmp_path / "rules.json")) == (IngestRule(ops=["a"]),)
    assert parse_rules('[{"ops": ["a"]}]', json_format=True) == (IngestRule(ops=["a"]),)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("rules = 1", "needs rules"),
        ("", "needs rules"),
        ("[[rules", "not TOML"),
        ("rules = [1]", "rule 1 is not a table"),
        ('[[rules]]\nops = ["a"]\n[[rules]]\nopps = ["a"]', "rule 2 has 'opps'; a rule has match, ops, tags"),
        ('[[rules]]\nops = "a"', "rule 1: ops must be a list"),
        ("[[rules]]\n", "rule 1: the ingest rule has no targets"),
        ('[[rules]]\nops=["a"]\nmatch={"span.kind"="servr"}', r"can never be 'servr': it is one of unspecified"),
        ('[[rules]]\nops=["a"]\nmatch={"span.status"="fail*"}', r"can never be 'fail\*'"),
    ],
)
def test_a_file_that_cannot_be_rules_says_which_rule_is_wrong(text: str, fault: str) -> None:
    with pytest.raises(ConfigurationError, match=fault):
        parse_rules(text)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"gone\.toml"):
        read_rules(tmp_path / "gone.toml")


def test_each_span_is_explained_and_then_the_batch() -> None:
    spans = [
        span({"http.status_code": 500}, {"service.name": "cart"}),
        span(name="tick", kind=1),
        span(scope="nexcache"),
    ]
    assert list(explained(explanation(RuleSet(RULES), spans))) == [
        "span 1: 'GET /cart' of 'cart'",
        "  rule 1: op 'dashboard_*'",
        "  rule 2: tag 'service:cart', window 'spans'",
        "    at 1544712660 s to 1544712660 s",
        "span 2: 'tick'",
        "  rule 1: op 'dashboard_*'",
        "span 3: 'GET /cart'",
        "  NexCache's own: ignored",
        "all: op 'dashboard_*', tag 'service:cart', 24 buckets of time",
    ]
    assert list(explained(explanation(RuleSet(RULES[1:]), spans[1:]))) == [
        "span 1: 'tick'",
        "  no rule matches",
        "span 2: 'GET /cart'",
        "  NexCache's own: ignored",
        "all: nothing is invalidated",
    ]


def test_the_command_explains_otlp_json_and_refuses_what_is_none(tmp_path: Path) -> None:
    file = tmp_path / "rules.toml"
    file.write_text(TOML)

    def run(text: str, *words: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "nexcache.cli", "explain-rules", str(file), *words]
        return subprocess.run(command, input=text, capture_output=True, text=True, timeout=60, check=False)

    done = run(json.dumps(json_batch("cart", attributes={"http.status_code": 500})))
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == "all: op 'dashboard_*', tag 'service:cart', 24 buckets of time"
    document = json.loads(run(json.dumps(json_batch("cart", attributes={"http.status_code": 500})), "--json").stdout)
    assert document["invalidated"] == {"operations": ["dashboard_*"], "tags": ["service:cart"], "buckets_of_time": 24}
    assert [rule["rule"] for rule in document["spans"][0]["rules"]] == [1, 2]
    done = run("{")
    assert (done.returncode, done.stderr) == (1, "nexcache explain-rules: the body is not JSON\n")
