"""What an invalidation is aimed at: operations by name or glob, tags, or the whole tenant. Pure."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import translate
from functools import lru_cache

from nexcache.errors import InvalidName

_NAME_LIMIT = 200


@dataclass(frozen=True, slots=True)
class Targets:
    """The union of operations (names or globs; `*` is the whole tenant) and tags."""

    operations: frozenset[str] = field(default_factory=frozenset)
    tags: frozenset[str] = field(default_factory=frozenset)

    @classmethod
    def of(cls, operations: Iterable[str] = (), tags: Iterable[str] = ()) -> "Targets":
        """Check and collect targets; raises InvalidName for one that cannot be part of a key."""
        return cls(
            frozenset(check_name("operation", name) for name in operations),
            frozenset(check_name("tag", name) for name in tags),
        )

    def __or__(self, other: "Targets") -> "Targets":
        """Aim at everything that either aims at."""
        return Targets(self.operations | other.operations, self.tags | other.tags)

    def __bool__(self) -> bool:
        """Whether there is anything to invalidate."""
        return bool(self.operations or self.tags)

    @property
    def whole_tenant(self) -> bool:
        """Whether everything of the tenant is meant."""
        return any(name.strip("*") == "" for name in self.operations)

    @property
    def scope(self) -> str:
        """The widest kind of target, as the metric's attribute says it."""
        if self.whole_tenant:
            return "tenant"
        if any(is_glob(name) for name in self.operations):
            return "pattern"
        return "operation" if self.operations else "tag"


def check_name(kind: str, name: str) -> str:
    """Return an operation's or a tag's name unchanged; raises InvalidName with the reason."""
    if not isinstance(name, str):
        raise InvalidName(f"the {kind} must be a string, not {type(name).__name__}")
    if not name:
        raise InvalidName(f"the {kind} must not be empty")
    if len(name.encode("utf-8", "surrogatepass")) > _NAME_LIMIT:
        raise InvalidName(f"the {kind} is longer than {_NAME_LIMIT} bytes")
    if not name.isprintable():
        raise InvalidName(f"the {kind} contains control or unprintable characters: {name!a}")
    return name


def is_glob(name: str) -> bool:
    """Whether a name is a pattern (`*` any characters, `?` one) rather than one operation's name."""
    return "*" in name or "?" in name


def matches(pattern: str, operation: str) -> bool:
    """Whether an operation's name matches a glob or equals a name; case counts."""
    return _compile(pattern).fullmatch(operation) is not None


def to_regex(pattern: str) -> str:
    """Write a glob as a regular expression that never backtracks; `[` is a character like any other."""
    return translate(pattern.replace("[", "[[]"))


@lru_cache(maxsize=1024)
def _compile(pattern: str) -> re.Pattern[str]:
    return re.compile(to_regex(pattern))
