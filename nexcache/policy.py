"""Policies: which responses are cached, for how long, and what they depend on. Pure."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import translate
from typing import Final, TypeAlias
from urllib.parse import unquote_to_bytes

from nexcache.errors import ConfigurationError, InvalidName
from nexcache.invalidation.targets import check_name, is_glob

Duration: TypeAlias = float | str
Size: TypeAlias = int | str

_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|[smhdw])", re.IGNORECASE)
_SIZES: Final = {
    "": 1,
    "b": 1,
    "kb": 1000,
    "kib": 1024,
    "mb": 1000**2,
    "mib": 1024**2,
    "gb": 1000**3,
    "gib": 1024**3,
}
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([kmg]?i?b?)", re.IGNORECASE)
_MOST_TAGS: Final = 32
LONGEST: Final = 30 * 86400.0
"""Seconds after which an entry leaves the store whatever its policy says."""

# What Starlette's convertors accept (https://www.starlette.io/routing/#path-parameters).
_CONVERTORS: Final = {
    "str": r"[^/]+",
    "path": r".*",
    "int": r"[0-9]+",
    "float": r"[0-9]+(?:\.[0-9]+)?",
    "uuid": r"[0-9a-fA-F]{8}-?(?:[0-9a-fA-F]{4}-?){3}[0-9a-fA-F]{12}",
}
_PARAMETER: Final = re.compile(r"\{([a-zA-Z_][a-zA-Z0-9_]*)(?::([a-zA-Z_][a-zA-Z0-9_]*))?\}")
_PLACEHOLDER: Final = re.compile(r"\{([^{}]*)\}")
_METHODS: Final = frozenset(("GET", "HEAD", "POST", "QUERY"))


def seconds(duration: Duration, name: str = "duration") -> float:
    """Read a duration given in seconds or as text such as `"2m"` or `"1h30m"`; raises ConfigurationError."""
    if isinstance(duration, int | float) and not isinstance(duration, bool):
        value = float(duration)
    else:
        text = str(duration).strip()
        parts = _DURATION.findall(text)
        if text.replace(".", "", 1).isdigit():
            value = float(text)
        elif parts and "".join(_DURATION.split(text)[::3]).strip() == "":
            value = sum(float(number) * _UNITS[unit.lower()] for number, unit in parts)
        else:
            raise ConfigurationError(f'{name} must be seconds or text such as "90s", "2m" or "1h30m", not {text!a}')
    if not 0 <= value < float("inf"):
        raise ConfigurationError(f"{name} must be a finite number of seconds, not negative: {value}")
    return value


def size_in_bytes(size: Size, name: str = "size") -> int:
    """Read a number of bytes given as a number or as text such as `"1MiB"`; raises ConfigurationError."""
    match = _SIZE.fullmatch(str(size).strip())
    unit = match.group(2).lower() if match else None
    if match is None or unit not in _SIZES:
        raise ConfigurationError(f'{name} must be bytes or text such as "64KiB" or "1MiB", not {size!a}')
    return int(float(match.group(1)) * _SIZES[unit])


@dataclass(frozen=True, slots=True)
class Query:
    """Which query parameters are part of the key: only those in `allow`, or all but those in `ignore`.

    Names are compared after percent-decoding and may be globs (`utm_*`). Without a `Query` the whole raw query
    is keyed. A handler that reads a parameter which is left out here would be answered wrongly: list with care.
    """

    allow: Sequence[str] | None = None
    ignore: Sequence[str] = ()
    _kept: Callable[[str], bool] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.allow is not None and self.ignore:
            raise ConfigurationError("Query takes either allow=… or ignore=…, not both")
        names = self.allow if self.allow is not None else self.ignore
        if isinstance(names, str):
            raise ConfigurationError(f'Query takes a list of names, such as ["{names}"], not one string')
        pattern = re.compile("|".join(f"(?:{translate(name)})" for name in names) or r"(?!)", re.DOTALL)
        wanted = self.allow is not None
        object.__setattr__(self, "_kept", lambda name: (pattern.match(name) is not None) is wanted)

    def canonical(self, query: bytes) -> bytes:
        """Return the parameters that are keyed, ordered by name; those of one name keep their order.

        Raw spellings stay as they are: two spellings of one value are two keys, never one.
        """
        kept = []
        for part in query.split(b"&"):
            name = _decode(part.partition(b"=")[0])
            if part and self._kept(name):
                kept.append((name, part))
        return b"&".join(part for _, part in sorted(kept, key=lambda pair: pair[0]))


def _decode(text: bytes) -> str:
    return unquote_to_bytes(text.replace(b"+", b" ")).decode("utf-8", "replace")


def query_parameters(query: bytes) -> Mapping[str, tuple[str, ...]]:
    """Decode a query string; repeated names keep all their values."""
    found: dict[str, tuple[str, ...]] = {}
    for part in query.split(b"&"):
        if part:
            name, _, value = part.partition(b"=")
            decoded = _decode(name)
            found[decoded] = (*found.get(decoded, ()), _decode(value))
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How the responses of one path are cached.

    `path` is a template in Starlette's syntax, matched whole on the decoded path below `root_path`. `ttl` and the
    other durations are seconds or text such as `"2m"`; without `ttl` the setting `CACHE_TTL_SECONDS` applies.
    `tags` are templates filled from path parameters, then query parameters; a template whose parameter the
    request does not have gives no tag. `vary` names request header fields that the handler reads.
    Raises ConfigurationError for what cannot work.
    """

    path: str = field(kw_only=False)
    op: str
    ttl: Duration | None = None
    methods: Sequence[str] = ("GET",)
    statuses: Sequence[int] = (200,)
    vary: Sequence[str] = ()
    query: Query | None = None
    tags: Sequence[str] = ()
    max_body: Size = "1MiB"
    share_authenticated: bool = False
    version: str = ""

    def __post_init__(self) -> None:
        where = f"Policy({self.path!a})"
        try:
            check_name("operation", self.op)
        except InvalidName as error:
            raise ConfigurationError(f"{where}: {error}") from error
        if is_glob(self.op):
            raise ConfigurationError(f"{where}: op names one operation, so it cannot contain * or ?: {self.op!a}")
        if not self.path.startswith("/"):
            raise ConfigurationError(f"{where}: the path must start with a slash")
        for name in ("methods", "statuses", "vary", "tags"):
            if isinstance(getattr(self, name), str):
                raise ConfigurationError(f"{where}: {name} takes a tuple, not one string")
        if self.ttl is not None and seconds(self.ttl, f"{where}: ttl") <= 0:
            raise ConfigurationError(f"{where}: ttl must be more than 0 seconds")
        if self.ttl is not None and seconds(self.ttl) > LONGEST:
            raise ConfigurationError(f"{where}: ttl is at most 30 days")
        size_in_bytes(self.max_body, f"{where}: max_body")
        methods = tuple(method.upper() for method in self.methods)
        if not methods or not set(methods) <= _METHODS:
            raise ConfigurationError(f"{where}: methods are {', '.join(sorted(_METHODS))}, not {self.methods!a}")
        object.__setattr__(self, "methods", methods)
        if not all(200 <= status <= 599 and status not in (206, 304) for status in self.statuses):  # noqa: PLR2004
            raise ConfigurationError(f"{where}: statuses are final status codes other than 206 and 304")
        object.__setattr__(self, "vary", tuple(sorted({name.lower() for name in self.vary})))
        if "*" in self.vary:
            raise ConfigurationError(f"{where}: vary names header fields; `*` would match no two requests")
        for template in self.tags:
            if set("{}") & set(_PLACEHOLDER.sub("", template)) or not all(_PLACEHOLDER.findall(template)):
                raise ConfigurationError(f"{where}: a tag's placeholder is written {{name}}: {template!a}")
        _compile(self.path)


@dataclass(frozen=True, slots=True)
class TagsInvalid:
    """A tag of a request cannot be part of a key, so that its response could not be invalidated by it."""

    reason: str


def tags_of(policy: Policy, parameters: Mapping[str, str], query: bytes) -> tuple[str, ...] | TagsInvalid:
    """Fill a policy's tag templates from a request; sorted, without repetition."""
    if not policy.tags:
        return ()
    from_query = query_parameters(query)
    tags: set[str] = set()
    for template in policy.tags:
        literals = _PLACEHOLDER.split(template)
        filled = [literals[0]]
        for name, literal in zip(literals[1::2], literals[2::2], strict=True):
            found = (parameters[name],) if name in parameters else from_query.get(name, ())
            filled = [start + value + literal for start in filled for value in found]
            if len(filled) > _MOST_TAGS:
                return TagsInvalid(f"more than {_MOST_TAGS} tags")
        tags.update(filled)
    if len(tags) > _MOST_TAGS:
        return TagsInvalid(f"more than {_MOST_TAGS} tags")
    try:
        return tuple(sorted(check_name("tag", tag) for tag in tags))
    except InvalidName as error:
        return TagsInvalid(str(error))


@dataclass(frozen=True, slots=True)
class Matched:
    """The policy of a path, and what its template's parameters stand for."""

    policy: Policy
    index: int
    parameters: Mapping[str, str]


class Policies:
    """Finds the policy of a path: the first one whose template matches."""

    def __init__(self, policies: Iterable[Policy]) -> None:
        self.all: tuple[Policy, ...] = tuple(policies)
        self._compiled = [(_compile(policy.path), policy, index) for index, policy in enumerate(self.all)]
        self._seen: dict[str, Matched | None] = {}

    def match(self, path: str) -> Matched | None:
        """Return the policy of a decoded path below `root_path`, or None."""
        try:
            return self._seen[path]
        except KeyError:
            pass
        found = None
        for pattern, policy, index in self._compiled:
            if match := pattern.fullmatch(path):
                found = Matched(policy, index, match.groupdict())
                break
        if len(self._seen) >= 4096:  # noqa: PLR2004 - paths come from outside: forget all rather than grow
            self._seen.clear()
        self._seen[path] = found
        return found


def _compile(template: str) -> re.Pattern[str]:
    pattern, position = "", 0
    names: set[str] = set()
    for match in _PARAMETER.finditer(template):
        name, convertor = match.group(1), match.group(2) or "str"
        if convertor not in _CONVERTORS:
            raise ConfigurationError(
                f"Policy({template!a}): unknown convertor {convertor!a}; there are {', '.join(_CONVERTORS)}"
            )
        if name in names:
            raise ConfigurationError(f"Policy({template!a}): the parameter {name!a} appears twice")
        names.add(name)
        pattern += re.escape(template[position : match.start()]) + f"(?P<{name}>{_CONVERTORS[convertor]})"
        position = match.end()
    if set("{}") & set(_PARAMETER.sub("", template)):
        raise ConfigurationError(f"Policy({template!a}): a parameter is written {{name}} or {{name:convertor}}")
    return re.compile(pattern + re.escape(template[position:]), re.DOTALL)
