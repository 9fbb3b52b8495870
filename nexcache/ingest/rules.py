"""From spans to what they could have changed: the rules, and the union of what they aim at. Pure."""

import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import Any, Final, TypeAlias

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from nexcache.errors import ConfigurationError, InvalidName
from nexcache.ingest.changes import WHOLE_TENANT, Changes, Target
from nexcache.ingest.spans import Attributes, MessageAttributes, Span, value_of
from nexcache.ingest.windows import SpanTimes
from nexcache.invalidation.targets import check_name, is_glob
from nexcache.policy import Duration, seconds
from nexcache.telemetry.names import SCOPE

LEAST_INTERVAL: Final = 0.1
"""Seconds; a target is invalidated at most ten times a second, unless that is given up by an interval of 0."""

MatchValue: TypeAlias = str | int | float | bool

_PLACEHOLDER: Final = re.compile(r"\{([^{}]*)\}")
_KINDS: Final = ("unspecified", "internal", "server", "client", "producer", "consumer")
_STATUSES: Final = ("unset", "ok", "error")
_CLOSED: Final = {"span.kind": _KINDS, "span.status": _STATUSES}
_REMEMBERED: Final = 8_192
"""Combinations of values whose outcome is remembered from batch to batch."""
_LONGEST_REMEMBERED: Final = 512
"""Characters of such a combination: senders choose them."""


class _Compound(Enum):
    """The value of an attribute that is an array, a map or bytes: it has no text."""

    COMPOUND = "compound"


_Text: TypeAlias = str | _Compound | None


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestRule:
    """What a span changes: operations (names or globs), tags, and times, for the spans that `match`.

    A tag may hold `{name}`: the value of the span's attribute of that name, else of the resource's, written
    as text (`true`, `200`). `span.name`, `span.kind` (`server`), `span.status` (`error`), `scope.name` and `service`
    (the resource's `service.name`) name the span's own fields; `span.…`, `scope.…` and `resource.…` an attribute of
    only the span, its scope or its resource. A span without the attribute gives no tag from that template.

    `windows` are timelines, templates as tags are: of the responses whose policy has a `TimeWindow` on the same
    timeline, those that cover the span's time. `"spans"` is the timeline of a window that names none.

    `match` maps such names to a value, or to a glob (`*`, `?`) over the value's text; all must match. A span
    without the attribute does not, nor one that has an array, a map or bytes there.

    `min_interval` is how often at most a target of this rule is invalidated per tenant: at least 0.1 seconds, or 0
    to do it for every batch; without it the hook's applies.

    A value that exists but cannot be part of a tag (too long, control characters, an array) makes the rule
    aim at the whole tenant: which entries depend on it cannot be said, and more is invalidated, never less.
    The sender reaches no further than its own tenant with it, at the cost of one key, and the event of the
    invalidation shows the scope `tenant`.

    Raises ConfigurationError for a rule without targets, a broken template, or a name or value that cannot be.
    """

    match: Mapping[str, MatchValue] = field(default_factory=dict, hash=False)
    ops: Sequence[str] = ()
    tags: Sequence[str] = ()
    windows: Sequence[str] = ()
    min_interval: Duration | None = None
    _conditions: tuple["_Condition", ...] = field(init=False, repr=False, compare=False)
    _templates: tuple["_Template", ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        def put(name: str, value: object) -> None:
            object.__setattr__(self, name, value)

        put("ops", _names("ops", self.ops))
        put("tags", _names("tags", self.tags))
        put("windows", _names("windows", self.windows))
        if not self.ops and not self.tags and not self.windows:
            raise ConfigurationError("the ingest rule has no targets: give it ops, tags or windows")
        for name in self.ops:
            _checked("operation", name)
        if not isinstance(self.match, Mapping):
            raise ConfigurationError("match must map attribute names to values or globs")
        put("match", MappingProxyType(dict(self.match)))
        put("_conditions", tuple(_condition(name, value) for name, value in self.match.items()))
        put(
            "_templates",
            (
                *(_template("tag", tag) for tag in self.tags),
                *(_template("window", timeline) for timeline in self.windows),
            ),
        )
        if self.min_interval is not None:
            checked_interval(self.min_interval)

    @property
    def names(self) -> tuple[str, ...]:
        """The names that decide what this rule makes of a span, each once."""
        return tuple(
            dict.fromkeys(
                [condition.name for condition in self._conditions]
                + [name for template in self._templates for name in template.names]
            )
        )

    def apply(self, texts: Mapping[str, "_Text"]) -> frozenset[Target] | None:
        """Return the targets of a span with these values; None where the rule does not match."""
        for condition in self._conditions:
            text = texts[condition.name]
            if not isinstance(text, str) or not condition.accepts(text):
                return None
        found = {Target("op", name) for name in self.ops}
        for template in self._templates:
            values = [texts[name] for name in template.names]
            if None in values:
                continue
            name = template.render(values)
            if name is None:
                return frozenset((WHOLE_TENANT,))
            found.add(Target(template.kind, name))
        return frozenset(found)


def checked_interval(interval: Duration) -> float:
    """Return an interval in seconds; raises ConfigurationError for one between 0 and `LEAST_INTERVAL`."""
    value = seconds(interval, "min_interval")
    if 0 < value < LEAST_INTERVAL:
        raise ConfigurationError(
            f"min_interval must be at least {LEAST_INTERVAL} seconds, or 0 to invalidate for every batch"
        )
    return value


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What spans with the same values change."""

    targets: Mapping[Target, float]
    timelines: tuple[str, ...]


_NOTHING: Final = _Outcome({}, ())
_Values: TypeAlias = tuple["_Text", ...]


class RuleSet:
    """Rules, prepared to be applied to many spans: each combination of values that they read is decided once.

    Only what the rules read is looked at. `min_interval` is that of the rules that have none of their own.
    """

    def __init__(self, rules: Iterable[IngestRule], *, min_interval: Duration = 0) -> None:
        default = checked_interval(min_interval)
        self.rules: tuple[IngestRule, ...] = tuple(rules)
        self._intervals = [
            default if rule.min_interval is None else checked_interval(rule.min_interval) for rule in self.rules
        ]
        self.shortest: float = min(self._intervals, default=default)
        """Seconds: the least interval of any rule."""
        self.longest: float = max(self._intervals, default=default)
        """Seconds: by how much an acknowledged change may be older than an answer, beside the invalidation itself."""
        names = dict.fromkeys(name for rule in self.rules for name in rule.names)
        self._of_resource = [name for name in names if _is_of(name, "resource")]
        self._of_scope = [name for name in names if _is_of(name, "scope")]
        self._of_span = [name for name in names if not _is_of(name, "resource") and not _is_of(name, "scope")]
        self._fields = [(name, _FIELDS[name]) for name in self._of_span if name in _FIELDS]
        self._plain = [name for name in self._of_span if name not in _FIELDS]
        self._keys = {name.removeprefix("span.") for name in self._plain}
        self._reads_nothing = not names and not any(rule.windows for rule in self.rules)
        self._remembered: dict[_Values, _Outcome] = {}
        order = (*self._of_resource, *self._of_scope, *(name for name, _ in self._fields), *self._plain)
        self._order = order
        self._memos = [
            (rule, interval, tuple(order.index(name) for name in rule.names), dict[_Values, frozenset[Target]]())
            for rule, interval in zip(self.rules, self._intervals, strict=True)
        ]

    def changes(self, spans: ExportTraceServiceRequest | Iterable[Span]) -> Changes:
        """Return the union of what the rules make of the spans, NexCache's own spans excepted."""
        changes = Changes()
        if isinstance(spans, ExportTraceServiceRequest):
            self._of_request(spans, changes)
            return changes
        for span in spans:
            if span.own:
                continue
            about = self._about(span.resource, span.scope_name, span.scope_attributes)
            outcome = self._outcome((*about, *self._values(span, span.attributes, span.resource)))
            if self._collect(changes, outcome, span.start_unix_nano, span.end_unix_nano) or self._reads_nothing:
                break
        return changes

    def explain(self, span: Span) -> list[tuple[IngestRule, frozenset[Target]]]:
        """Return the rules that a span matches, each with its targets; nothing for a span of NexCache's own."""
        if span.own:
            return []
        about = self._about(span.resource, span.scope_name, span.scope_attributes)
        texts = self._texts((*about, *self._values(span, span.attributes, span.resource)))
        return [(rule, found) for rule in self.rules if (found := rule.apply(texts)) is not None]

    def _of_request(self, request: ExportTraceServiceRequest, changes: Changes) -> None:
        reads_span = bool(self._of_span)
        for resource_spans in request.resource_spans:
            resource = MessageAttributes(resource_spans.resource.attributes)
            for scope_spans in resource_spans.scope_spans:
                scope = scope_spans.scope
                if scope.name == SCOPE:
                    continue
                about = self._about(resource, scope.name, MessageAttributes(scope.attributes))
                seen: dict[_Values, _Outcome] = {}
                outcome = _NOTHING
                for index, span in enumerate(scope_spans.spans):
                    if reads_span or not index:
                        values = self._read(span, resource) if reads_span else ()
                        known = seen.get(values)
                        if known is None:
                            known = seen[values] = self._outcome((*about, *values))
                            if changes.add(known.targets):
                                return
                        outcome = known
                        if not reads_span and not outcome.timelines:
                            break
                    if outcome.timelines:
                        _touch(changes, outcome, span.start_time_unix_nano, span.end_time_unix_nano)

    def _collect(self, changes: Changes, outcome: _Outcome, start_ns: int, end_ns: int) -> bool:
        if changes.add(outcome.targets):
            return True
        if outcome.timelines:
            _touch(changes, outcome, start_ns, end_ns)
        return False

    def _about(self, resource: Attributes, scope_name: str, scope: Attributes) -> _Values:
        values: list[_Text] = [
            _text(resource.get("service.name" if name == "service" else name.removeprefix("resource.")))
            for name in self._of_resource
        ]
        values += [
            scope_name if name == "scope.name" else _text(scope.get(name.removeprefix("scope.")))
            for name in self._of_scope
        ]
        return tuple(values)

    def _values(self, span: Span, attributes: Attributes, resource: Attributes) -> _Values:
        found: list[_Text] = [read(span.name, span.kind, span.status_code) for _, read in self._fields]
        for name in self._plain:
            value = attributes.get(name.removeprefix("span."))
            if value is None and not name.startswith("span."):
                value = resource.get(name)
            found.append(_text(value))
        return tuple(found)

    def _read(self, span: Any, resource: Attributes) -> _Values:
        """Do what `_values` does for a span in a protobuf message, in one pass over its attributes."""
        found: list[_Text] = []
        if self._fields:
            code = span.status.code
            found = [read(span.name, span.kind, code) for _, read in self._fields]
        if self._plain:
            keys = self._keys
            own = {key: pair for pair in span.attributes if (key := pair.key) in keys}
            for name in self._plain:
                pair = own.get(name.removeprefix("span."))
                value = None if pair is None else value_of(pair.value)
                if value is None and not name.startswith("span."):
                    value = resource.get(name)
                found.append(_text(value))
        return tuple(found)

    def _texts(self, values: _Values) -> Mapping[str, "_Text"]:
        return dict(zip(self._order, values, strict=True))

    def _outcome(self, values: _Values) -> _Outcome:
        known = self._remembered.get(values)
        if known is not None:
            return known
        outcome = self._decide(values)
        if _length(values) <= _LONGEST_REMEMBERED:
            if len(self._remembered) >= _REMEMBERED:
                self._remembered = {}  # values come from outside: forget all rather than grow
            self._remembered[values] = outcome
        return outcome

    def _decide(self, values: _Values) -> _Outcome:
        texts = self._texts(values)
        targets: dict[Target, float] = {}
        for rule, interval, places, memo in self._memos:
            own = tuple([values[place] for place in places])
            found = memo.get(own)
            if found is None:
                found = rule.apply(texts) or frozenset()
                if len(memo) >= _REMEMBERED:
                    memo.clear()
                if _length(own) <= _LONGEST_REMEMBERED:
                    memo[own] = found
            for target in found:
                targets[target] = min(interval, targets.get(target, interval))
        return _Outcome(targets, tuple(target.name for target in targets if target.kind == "window"))


def _length(values: _Values) -> int:
    return sum(len(value) for value in values if isinstance(value, str))


def _touch(changes: Changes, outcome: _Outcome, start_ns: int, end_ns: int) -> None:
    times = changes.times
    for timeline in outcome.timelines:
        known = times.get(timeline)
        if known is None:
            known = times[timeline] = SpanTimes()
        known.add(start_ns, end_ns)


def _is_of(name: str, whose: str) -> bool:
    return name.startswith(f"{whose}.") or (whose == "resource" and name == "service")


_FIELDS: Final[Mapping[str, Callable[[str, int, int], str]]] = {
    "span.name": lambda name, _kind, _status: name,
    "span.kind": lambda _name, kind, _status: _word(_KINDS, kind),
    "span.status": lambda _name, _kind, status: _word(_STATUSES, status),
}


def _word(words: Sequence[str], number: int) -> str:
    return words[number] if 0 <= number < len(words) else str(number)


def _text(value: object) -> _Text:
    if value is None or isinstance(value, str):
        return value
    return _scalar(value) if isinstance(value, bool | int | float) else _Compound.COMPOUND


def _scalar(value: MatchValue) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


@dataclass(frozen=True, slots=True)
class _Condition:
    name: str
    equal: str
    glob: re.Pattern[str] | None

    def accepts(self, text: str) -> bool:
        return text == self.equal if self.glob is None else self.glob.match(text) is not None


@dataclass(frozen=True, slots=True)
class _Template:
    kind: str
    names: tuple[str, ...]
    literals: tuple[str, ...]
    """One more than names: the text before, between and after them."""

    def render(self, values: Sequence[_Text]) -> str | None:
        """Return the tag; None where the values cannot be part of one."""
        pieces = [self.literals[0]]
        for value, literal in zip(values, self.literals[1:], strict=True):
            if not isinstance(value, str):
                return None
            pieces += (value, literal)
        try:
            return check_name("tag", "".join(pieces))
        except InvalidName:
            return None


def _names(parameter: str, names: object) -> tuple[str, ...]:
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise ConfigurationError(f'{parameter} must be a list of names, such as {parameter}=["..."]')
    return tuple(names)


def _checked(kind: str, name: str) -> str:
    try:
        return check_name(kind, name)
    except InvalidName as error:
        raise ConfigurationError(f"in the ingest rule, {error}") from None


def _condition(name: object, value: object) -> _Condition:
    if not isinstance(name, str) or not name:
        raise ConfigurationError("match must name attributes by non-empty strings")
    if not isinstance(value, str | int | float):
        raise ConfigurationError(f"match[{name!r}] must be a string, a number or a boolean")
    possible = _CLOSED.get(name)
    text = value if isinstance(value, str) else _scalar(value)
    if possible is not None and not (
        text.lstrip("-").isdecimal() or any(fnmatch.fnmatchcase(each, text) for each in possible)
    ):
        raise ConfigurationError(f"match[{name!r}] can never be {text!a}: it is one of {', '.join(possible or ())}")
    if isinstance(value, str) and is_glob(value):
        # fnmatch's translation never backtracks over what a star took: senders choose the text
        return _Condition(name, "", re.compile(fnmatch.translate(value.replace("[", "[[]"))))
    return _Condition(name, _scalar(value), None)


def _template(kind: str, tag: object) -> _Template:
    if not isinstance(tag, str):
        raise ConfigurationError("tags and windows must be strings")
    parts = _PLACEHOLDER.split(tag)
    literals, names = tuple(parts[::2]), tuple(parts[1::2])
    if any("{" in literal or "}" in literal for literal in literals):
        raise ConfigurationError(f"the tag template {tag!a} has a brace without its partner")
    if not all(names):
        raise ConfigurationError(f"the tag template {tag!a} has braces without a name: write {{service.name}}")
    fixed = "".join(literals)
    if fixed or not names:
        _checked("tag", fixed)
    return _Template(kind, names, literals)
