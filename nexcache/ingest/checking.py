"""Whether rules fit the policies: an operation that nobody has, a template that can meet nothing. Pure."""

import re
from collections.abc import Iterable, Sequence
from typing import Final

from nexcache.ingest.rules import IngestRule
from nexcache.invalidation.targets import matches
from nexcache.policy import Policy

_PLACEHOLDER: Final = re.compile(r"\{[^{}]*\}")


def faults(rules: Sequence[IngestRule], policies: Sequence[Policy]) -> list[str]:
    """Return what does not fit, each in a sentence that says what to do; nothing if all is well."""
    operations = sorted({policy.op for policy in policies})
    tags = {tag for policy in policies for tag in policy.templates}
    timelines = {policy.window.of for policy in policies if policy.window is not None}
    found = []
    for number, rule in enumerate(rules, 1):
        found += [
            f"ingest rule {number}: no policy has the operation {name!a}; there are {', '.join(operations)}"
            for name in rule.ops
            if not any(matches(name, operation) for operation in operations)
        ]
        found += [
            f"ingest rule {number}: the tag {tag!a} can never be one of a policy, which have {_listed(tags)}"
            for tag in rule.tags
            if not any(may_meet(tag, each) for each in tags)
        ]
        found += [
            f"ingest rule {number}: no policy has a window on the timeline {timeline!a}; there are {_listed(timelines)}"
            for timeline in rule.windows
            if not any(may_meet(timeline, each) for each in timelines)
        ]
    found += [
        f"Policy({policy.path!a}): its window is on the timeline {policy.window.of!a}, which no ingest rule's windows "
        "reach, nor do its ops or tags: late spans would not be seen until it expires"
        for policy in policies
        if policy.window is not None and not _reached(policy, policy.window.of, rules)
    ]
    return found


def _reached(policy: Policy, timeline: str, rules: Iterable[IngestRule]) -> bool:
    return any(
        any(may_meet(each, timeline) for each in rule.windows)
        or any(matches(name, policy.op) for name in rule.ops)
        or any(may_meet(tag, own) for tag in rule.tags for own in policy.templates)
        for rule in rules
    )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(ascii(name) for name in sorted(names)) or "none"


def may_meet(one: str, other: str) -> bool:
    """Whether two templates can give the same text, whatever stands in their placeholders."""
    left, right = _symbols(one), _symbols(other)
    # Which prefixes of `right` the part of `left` read so far can be equal to; None stands for any text.
    reached = _closed({0}, right)
    for symbol in left:
        following: set[int] = set()
        if symbol is None:
            following = set(range(min(reached), len(right) + 1)) if reached else set()
        else:
            for at in reached:
                if at < len(right) and right[at] is None:
                    following.add(at)
                elif at < len(right) and right[at] == symbol:
                    following.add(at + 1)
        reached = _closed(following, right)
    return len(right) in reached


def _closed(reached: set[int], symbols: Sequence[str | None]) -> set[int]:
    """Add what is reached by letting placeholders stand for nothing (more)."""
    for at in range(len(symbols)):
        if at in reached and symbols[at] is None:
            reached.add(at + 1)
    return reached


def _symbols(template: str) -> list[str | None]:
    symbols: list[str | None] = []
    end = 0
    for match in _PLACEHOLDER.finditer(template):
        symbols += [*template[end : match.start()], None]
        end = match.end()
    return [*symbols, *template[end:]]
