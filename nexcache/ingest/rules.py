"""From spans to what they could have changed: the rules, and the union of their targets. Pure."""

import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import Final, TypeAlias

from nexcache.errors import ConfigurationError, InvalidName
from nexcache.ingest.spans import Span
from nexcache.invalidation.targets import Targets, check_name, is_glob

MAX_TAGS: Final = 1_000
"""Tags from one batch; a batch that names more invalidates the whole tenant instead, which costs less."""

WHOLE_TENANT: Final = Targets.of(operations=["*"])

MatchValue: TypeAlias = str | int | float | bool

_PLACEHOLDER: Final = re.compile(r"\{([^{}]*)\}")
_KINDS: Final = ("unspecified", "internal", "server", "client", "producer", "consumer")
_STATUSES: Final = ("unset", "ok", "error")


class _Compound(Enum):
    """The value of an attribute that is an array, a map or bytes: it has no text."""

    COMPOUND = "compound"


_Text: TypeAlias = str | _Compound | None


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestRule:
    """What a span changes: operations (names or globs) and tags, for the spans that `match`.

    A tag may hold `{name}`: the value of the span's attribute of that name, else of the resource's, written
    as text (`true`, `200`). `span.name`, `span.kind` (`server`), `span.status` (`error`) and `scope.name`
    name the span's own fields. A span without the attribute gives no tag from that template.

    `match` maps such names to a value, or to a glob (`*`, `?`) over the value's text; all must match. A span
    without the attribute does not, nor one that has an array, a map or bytes there.

    A value that exists but cannot be part of a tag (too long, control characters, an array) makes the rule
    aim at the whole tenant: which entries depend on it cannot be said, and more is invalidated, never less.
    The sender reaches no further than its own tenant with it, at the cost of one key, and the event of the
    invalidation shows the scope `tenant`.

    Raises ConfigurationError for a rule without targets, a broken template, or a name that cannot be.
    """

    match: Mapping[str, MatchValue] = field(default_factory=dict, hash=False)
    ops: Sequence[str] = ()
    tags: Sequence[str] = ()
    _conditions: tuple["_Condition", ...] = field(init=False, repr=False, compare=False)
    _templates: tuple["_Template", ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        def put(name: str, value: object) -> None:
            object.__setattr__(self, name, value)

        put("ops", _names("ops", self.ops))
        put("tags", _names("tags", self.tags))
        if not self.ops and not self.tags:
            raise ConfigurationError("the ingest rule has no targets: give it ops or tags")
        for name in self.ops:
            _checked("operation", name)
        if not isinstance(self.match, Mapping):
            raise ConfigurationError("match must map attribute names to values or globs")
        put("match", MappingProxyType(dict(self.match)))
        put("_conditions", tuple(_condition(name, value) for name, value in self.match.items()))
        put("_templates", tuple(_template(tag) for tag in self.tags))

    @property
    def names(self) -> tuple[str, ...]:
        """The names that decide what this rule makes of a span, each once."""
        return tuple(
            dict.fromkeys(
                [condition.name for condition in self._conditions]
                + [name for template in self._templates for name in template.names]
            )
        )

    def apply(self, texts: Mapping[str, "_Text"]) -> Targets | None:
        """Return the targets of a span with these values; None where the rule does not match."""
        for condition in self._conditions:
            text = texts[condition.name]
            if not isinstance(text, str) or not condition.accepts(text):
                return None
        tags = []
        for template in self._templates:
            values = [texts[name] for name in template.names]
            if None in values:
                continue
            tag = template.render(values)
            if tag is None:
                return WHOLE_TENANT
            tags.append(tag)
        return Targets(frozenset(self.ops), frozenset(tags))


def targets(rules: Iterable[IngestRule], spans: Iterable[Span]) -> Targets:
    """Return the union of what the rules make of the spans.

    Each rule is applied once per combination of the values it reads, however many spans have it; once the
    whole tenant is aimed at, or the batch has given `MAX_TAGS` tags, no further span is read.
    """
    memos = [(rule, rule.names, set[tuple[_Text, ...]]()) for rule in rules]
    names = tuple(dict.fromkeys(name for _, own_names, _ in memos for name in own_names))
    seen: set[tuple[_Text, ...]] = set()
    operations: set[str] = set()
    tags: set[str] = set()
    for span in spans:
        values = tuple([_text(span, name) for name in names])
        if values in seen:
            continue
        seen.add(values)
        texts = dict(zip(names, values, strict=True))
        for rule, own_names, memo in memos:
            own_values = tuple([texts[name] for name in own_names])
            if own_values in memo:
                continue
            memo.add(own_values)
            found = rule.apply(texts)
            if found is None:
                continue
            operations |= found.operations
            tags |= found.tags
            if found.whole_tenant or len(tags) > MAX_TAGS:
                return WHOLE_TENANT
        if not names:
            break
    return Targets(frozenset(operations), frozenset(tags))


_FIELDS: Final[Mapping[str, Callable[[Span], str]]] = {
    "span.name": lambda span: span.name,
    "span.kind": lambda span: _word(_KINDS, span.kind),
    "span.status": lambda span: _word(_STATUSES, span.status_code),
    "scope.name": lambda span: span.scope_name,
}


def _word(words: Sequence[str], number: int) -> str:
    return words[number] if 0 <= number < len(words) else str(number)


def _text(span: Span, name: str) -> _Text:
    own = _FIELDS.get(name)
    if own is not None:
        return own(span)
    value = span.attributes.get(name)
    if value is None:
        value = span.resource.get(name)
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
    if isinstance(value, str) and is_glob(value):
        # fnmatch's translation never backtracks over what a star took: senders choose the text
        return _Condition(name, "", re.compile(fnmatch.translate(value.replace("[", "[[]"))))
    return _Condition(name, _scalar(value), None)


def _template(tag: object) -> _Template:
    if not isinstance(tag, str):
        raise ConfigurationError("tags must be strings")
    parts = _PLACEHOLDER.split(tag)
    literals, names = tuple(parts[::2]), tuple(parts[1::2])
    if any("{" in literal or "}" in literal for literal in literals):
        raise ConfigurationError(f"the tag template {tag!a} has a brace without its partner")
    if not all(names):
        raise ConfigurationError(f"the tag template {tag!a} has braces without a name: write {{service.name}}")
    fixed = "".join(literals)
    if fixed or not names:
        _checked("tag", fixed)
    return _Template(names, literals)
