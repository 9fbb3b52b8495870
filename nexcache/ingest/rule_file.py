"""Rules from a file, and what they make of given spans, in words."""

import json
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from nexcache.errors import ConfigurationError
from nexcache.ingest.rules import IngestRule, RuleSet
from nexcache.ingest.spans import Span


def read_rules(path: str | Path) -> tuple[IngestRule, ...]:
    """Read the rules of a TOML file (tables `[[rules]]`) or a JSON file; raises ConfigurationError."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"the rules cannot be read from {path}: {error}") from None
    return parse_rules(text, json_format=path.suffix == ".json")


def parse_rules(text: str, *, json_format: bool = False) -> tuple[IngestRule, ...]:
    """Read rules from TOML or JSON; raises ConfigurationError that says which rule is wrong, and how."""
    try:
        document = json.loads(text) if json_format else tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"the rules are not {'JSON' if json_format else 'TOML'}: {error}") from None
    rules = document.get("rules") if isinstance(document, Mapping) else document
    if not isinstance(rules, list) or not rules:
        raise ConfigurationError('the file needs rules: a table [[rules]] for each, or {"rules": [...]} in JSON')
    return tuple(_rule(number, rule) for number, rule in enumerate(rules, 1))


def _rule(number: int, fields: Any) -> IngestRule:
    known = ("match", "ops", "tags", "windows", "min_interval")
    if not isinstance(fields, Mapping):
        raise ConfigurationError(f"rule {number} is not a table")
    unknown = sorted(set(fields) - set(known))
    if unknown:
        raise ConfigurationError(f"rule {number} has {unknown[0]!a}; a rule has {', '.join(known)}")
    try:
        return IngestRule(**fields)
    except ConfigurationError as error:
        raise ConfigurationError(f"rule {number}: {error}") from None


def explanation(rules: RuleSet, spans: Iterable[Span]) -> dict[str, Any]:
    """Say of each span which rules it matches and what they aim at, and what the batch invalidates: a document."""
    seen: list[Span] = []
    found: list[dict[str, Any]] = []
    for span in spans:
        seen.append(span)
        matched = [] if span.own else rules.explain(span)
        ends = max(span.start_unix_nano, span.end_unix_nano)
        found.append(
            {
                "name": span.name,
                "service": span.service,
                "own": span.own,
                "seconds": [span.start_unix_nano // 10**9, ends // 10**9],
                "rules": [
                    {
                        "rule": next(at for at, each in enumerate(rules.rules, 1) if each is rule),
                        "targets": [{"kind": target.kind, "name": target.name} for target in sorted(targets)],
                    }
                    for rule, targets in matched
                ],
            }
        )
    targets = rules.changes(seen).targets
    tags = sorted(tag for tag in targets.tags if not tag.startswith("window:"))
    invalidated = {
        "operations": sorted(targets.operations),
        "tags": tags,
        "buckets_of_time": len(targets.tags) - len(tags),
    }
    return {"spans": found, "invalidated": invalidated}


def explained(document: Mapping[str, Any]) -> Iterator[str]:
    """Write an explanation down for people, one line each."""
    for number, span in enumerate(document["spans"], 1):
        yield f"span {number}: {span['name']!a}" + ("" if span["service"] is None else f" of {span['service']!a}")
        if span["own"]:
            yield "  NexCache's own: ignored"
            continue
        for rule in span["rules"]:
            aims = [f"{target['kind']} {target['name']!a}" for target in rule["targets"]]
            yield f"  rule {rule['rule']}: {', '.join(aims) or 'nothing: no attribute'}"
            if any(target["kind"] == "window" for target in rule["targets"]):
                yield "    at {} s to {} s".format(*span["seconds"])
        if not span["rules"]:
            yield "  no rule matches"
    done = document["invalidated"]
    names = [*(f"op {name!a}" for name in done["operations"]), *(f"tag {tag!a}" for tag in done["tags"])]
    if done["buckets_of_time"]:
        names.append(f"{done['buckets_of_time']} buckets of time")
    yield "all: " + (", ".join(names) or "nothing is invalidated")
