"""Rules from a file, and what they make of given spans, in words."""

import json
import tomllib
from collections.abc import Iterator, Mapping
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


def explained(rules: RuleSet, spans: Iterator[Span]) -> Iterator[str]:
    """Say of each span which rules it matches and what they aim at, then what the batch invalidates. One line each."""
    seen: list[Span] = []
    for number, span in enumerate(spans, 1):
        seen.append(span)
        service = span.service
        yield f"span {number}: {span.name!a}" + ("" if service is None else f" of {service!a}")
        if span.own:
            yield "  NexCache's own: ignored"
            continue
        matched = rules.explain(span)
        for rule, found in matched:
            aims = ", ".join(f"{target.kind} {target.name!a}" for target in sorted(found)) or "nothing: no attribute"
            yield f"  rule {next(at for at, each in enumerate(rules.rules, 1) if each is rule)}: {aims}"
            if any(target.kind == "window" for target in found):
                yield f"    at {_minutes(span)}"
        if not matched:
            yield "  no rule matches"
    targets = rules.changes(seen).targets
    tags = sorted(tag for tag in targets.tags if not tag.startswith("window:"))
    buckets = len(targets.tags) - len(tags)
    names = [*(f"op {name!a}" for name in sorted(targets.operations)), *(f"tag {tag!a}" for tag in tags)]
    if buckets:
        names.append(f"{buckets} buckets of time")
    yield "all: " + (", ".join(names) or "nothing is invalidated")


def _minutes(span: Span) -> str:
    return f"{span.start_unix_nano // 10**9} s to {max(span.start_unix_nano, span.end_unix_nano) // 10**9} s"
