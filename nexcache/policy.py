"""Policies: which responses are cached, for how long, and what they depend on. Pure."""

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol, TypeAlias
from urllib.parse import unquote_to_bytes

from nexcache.errors import ConfigurationError, InvalidName
from nexcache.invalidation.targets import check_name, is_glob, to_regex
from nexcache.message import StoredResponse

Duration: TypeAlias = float | str
Size: TypeAlias = int | str
Derived: TypeAlias = Callable[[StoredResponse], Iterable[str]]
"""Finds tags in a response."""

_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|[smhdw])", re.IGNORECASE | re.ASCII)
_NUMBER: Final = re.compile(r"\d+(?:\.\d*)?", re.ASCII)
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
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([kmg]?i?b?)", re.IGNORECASE | re.ASCII)
_LARGEST: Final = 2**40
_MOST_TAGS: Final = 32
_LONGEST_QUERY: Final = 16 * 1024
_LONGEST_PATH: Final = 4096
_REMEMBERED_PATH: Final = 512
_REMEMBERED: Final = 4096
_LONGEST_VERSION: Final = 64
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
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110 §5.6.2
_ACTED_ON: Final = frozenset(
    (
        "cache-control",
        "content-length",
        "if-match",
        "if-modified-since",
        "if-none-match",
        "if-unmodified-since",
        "range",
        "transfer-encoding",
    )
)
"""Request fields that make the cache do something; no handler behind it can be asked to tell requests apart by them."""


def seconds(duration: Duration, name: str = "duration") -> float:
    """Read a duration given in seconds or as text such as `"2m"` or `"1h30m"`; raises ConfigurationError."""
    if isinstance(duration, int | float) and not isinstance(duration, bool):
        value = duration
    else:
        text = str(duration).strip()
        parts = _DURATION.findall(text)
        if _NUMBER.fullmatch(text):
            value = float(text)
        elif parts and "".join(_DURATION.split(text)[::3]).strip() == "":
            value = sum(float(number) * _UNITS[unit.lower()] for number, unit in parts)
        else:
            raise ConfigurationError(f'{name} must be seconds or text such as "90s", "2m" or "1h30m", not {text!a}')
    if not 0 <= value <= _LARGEST:
        raise ConfigurationError(f"{name} must be a finite number of seconds, and not negative")
    return float(value)


def size_in_bytes(size: Size, name: str = "size") -> int:
    """Read a number of bytes given as a number or as text such as `"1MiB"`; raises ConfigurationError."""
    match = _SIZE.fullmatch(str(size).strip())
    unit = match.group(2).lower() if match else None
    if match is None or unit not in _SIZES:
        raise ConfigurationError(f'{name} must be bytes or text such as "64KiB" or "1MiB", not {size!a}')
    value = float(match.group(1)) * _SIZES[unit]
    if value > _LARGEST:
        raise ConfigurationError(f"{name} must be at most 1 TiB")
    return int(value)


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
            raise ConfigurationError(f"Query takes a list of names, such as [{names!a}], not one string")
        names = tuple(names)
        if not all(isinstance(name, str) for name in names):
            raise ConfigurationError("Query takes names of parameters, which are strings")
        pattern = re.compile("|".join(f"(?:{to_regex(name)})" for name in names) or r"(?!)")
        wanted = self.allow is not None
        object.__setattr__(self, "allow" if wanted else "ignore", names)
        object.__setattr__(self, "_kept", lambda name: (pattern.match(name) is not None) is wanted)

    def canonical(self, query: bytes) -> bytes:
        """Return the parameters that are keyed, ordered by name; those of one name keep their order.

        Raw spellings stay as they are: two spellings of one value are two keys, never one. A query that holds `;`,
        which some parsers take for `&`, is kept whole: nobody can hide a parameter in one that is left out.
        """
        if b";" in query or len(query) > _LONGEST_QUERY:  # the latter is too long for a key, whatever it holds
            return query
        kept = []
        for part in query.split(b"&"):
            name = parameter_name(part.partition(b"=")[0])
            if part and self._kept(name):
                kept.append((name, part))
        return b"&".join(part for _, part in sorted(kept, key=lambda pair: pair[0]))

    def keeps(self, name: str) -> bool:
        """Whether the parameter of this (decoded) name is part of the key."""
        return self._kept(name)


def parameter_name(text: bytes) -> str:
    """Decode a name or a value of a query string."""
    return unquote_to_bytes(text.replace(b"+", b" ")).decode("utf-8", "replace")


def query_parameters(query: bytes) -> Mapping[str, tuple[str, ...]]:
    """Decode a query string; repeated names keep all their values."""
    found: dict[str, list[str]] = {}
    for part in query.split(b"&"):
        if part:
            name, _, value = part.partition(b"=")
            found.setdefault(parameter_name(name), []).append(parameter_name(value))
    return {name: tuple(values) for name, values in found.items()}


class Covered(NamedTuple):
    """What a window says of one request."""

    query: bytes
    """The query string that is keyed, and that the handler is asked with."""
    tags: tuple[str, ...]
    """Those of the times that the response covers."""
    ttl: float
    """Seconds for which the response is kept."""


@dataclass(frozen=True, slots=True)
class Shadow:
    """Computes a share of the hits again in the background, and compares: it tells how often a stored answer is wrong.

    `share` is that part of the hits, 0 to 1. JSON members named in `ignore` (a time of generation, say) are not
    compared. An answer counts as wrong if it differs and is still stored `grace` later: until then what changed the
    data may be about to invalidate it. When more than `limit` of the last checks, at least `after` of them, were
    wrong, the operation is sent past the cache for `bypass_for`, in this process.
    Raises ConfigurationError for what cannot work.
    """

    share: float
    ignore: Sequence[str] = ()
    grace: Duration = "1s"
    limit: float = 0.01
    after: int = 20
    bypass_for: Duration = "5m"

    def __post_init__(self) -> None:
        for name, low in (("share", False), ("limit", True)):
            value: object = getattr(self, name)
            if (
                isinstance(value, bool)
                or not isinstance(value, int | float)
                or not (0 <= value <= 1 and (value or low))
            ):
                raise ConfigurationError(f"Shadow: {name} is a part: {'0' if low else 'more than 0'} to 1")
        if isinstance(self.ignore, str) or not all(isinstance(name, str) for name in self.ignore):
            raise ConfigurationError("Shadow: ignore takes a list of names of JSON members")
        object.__setattr__(self, "ignore", frozenset(self.ignore))
        after: object = self.after
        if type(after) is not int or not 1 <= after <= 200:  # noqa: PLR2004 - as many as are remembered
            raise ConfigurationError("Shadow: after is a number of checks, 1 to 200")
        seconds(self.grace, "Shadow: grace")
        if not seconds(self.bypass_for, "Shadow: bypass_for"):
            raise ConfigurationError("Shadow: bypass_for must be more than 0 seconds")


class Window(Protocol):
    """Says which span times a response covers (`nexcache.TimeWindow`)."""

    @property
    def of(self) -> str:
        """The timeline, a template as a tag is."""

    @property
    def names(self) -> tuple[str, str]:
        """The parameters that give the range."""

    @property
    def longest(self) -> float:
        """Seconds for which a response is kept at most."""

    @property
    def most_tags(self) -> int:
        """How many tags a response has at most because of the window."""

    def covered(
        self, query: bytes, parameters: Mapping[str, str], timeline: str, *, ttl: float, now: float
    ) -> "Covered | TagsInvalid":
        """Say what the response of one request covers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How the responses of one path are cached.

    `path` is a template in Starlette's syntax, matched whole on the decoded path below `root_path`. `ttl` and the
    other durations are seconds or text such as `"2m"`; without `ttl` the setting `CACHE_TTL_SECONDS` applies.
    `tags` are templates filled from path parameters, then query parameters; a template whose parameter the
    request does not have gives no tag; or callables that are given the complete response (`StoredResponse`) and return
    tags. A response can also name tags itself: with `Cache-Groups` (RFC 9875), `Surrogate-Key` or `Cache-Tag`.
    `vary` names request header fields that the handler reads. `window` says which span times a response covers
    (`TimeWindow`). With `compress` the handler is asked for the plain body, which is compressed once, when it is
    stored; each client is sent the coding that it accepts.

    For `stale_while_revalidate` after its end, or after a soft invalidation, a response is served while it is computed
    anew in the background; for `stale_if_error` where computing it fails (RFC 5861). Never after any other
    invalidation.

    Each entry lives up to the part `jitter` shorter than `ttl`, so that what was stored together does not end together.
    With `early_refresh` a hit shortly before the end has the answer computed again in the background. After
    `fill_soft_limit` nobody waits for another's computation any more; after `fill_hard_limit` one whose client has
    gone is ended, and other nodes are held back no longer. `shadow` checks a share of the hits (`Shadow`).
    Raises ConfigurationError for what cannot work.
    """

    path: str = field(kw_only=False)
    op: str
    ttl: Duration | None = None
    methods: Sequence[str] = ("GET",)
    statuses: Sequence[int] = (200,)
    vary: Sequence[str] = ()
    query: Query | None = None
    tags: Sequence[str | Derived] = ()
    max_body: Size = "1MiB"
    share_authenticated: bool = False
    window: Window | None = None
    compress: bool = False
    version: str = ""
    stale_while_revalidate: Duration = 0
    stale_if_error: Duration = 0
    early_refresh: bool = True
    jitter: float = 0.1
    fill_soft_limit: Duration = "30s"
    fill_hard_limit: Duration = "60s"
    shadow: Shadow | None = None
    derived: tuple[Derived, ...] = field(init=False, repr=False, compare=False, default=())
    """The callables among the tags, which have left `tags`."""
    filling: "tuple[Filling, ...]" = field(init=False, repr=False, compare=False, default=())
    """The tags that follow from the request, taken apart."""
    shape: bytes = field(init=False, repr=False, compare=False, default=b"")
    """What is keyed beside the path: a policy that learns of another parameter finds no entry of its former self."""

    def __post_init__(self) -> None:
        where = f"Policy({self.path!a})"
        path: object = self.path
        if not isinstance(path, str) or not path.startswith("/"):
            raise ConfigurationError(f"{where}: the path must be a string that starts with a slash")
        parameters = frozenset(_compile(self.path).groupindex)
        try:
            check_name("operation", self.op)
        except InvalidName as error:
            raise ConfigurationError(f"{where}: {error}") from error
        if is_glob(self.op):
            raise ConfigurationError(f"{where}: op names one operation, so it cannot contain * or ?: {self.op!a}")
        for name in ("methods", "statuses", "vary", "tags"):
            if isinstance(value := getattr(self, name), str) or not isinstance(value, Sequence | AbstractSet):
                raise ConfigurationError(f"{where}: {name} takes a list or a tuple, not {type(value).__name__}")
        if self.ttl is not None and not 0 < seconds(self.ttl, f"{where}: ttl") <= LONGEST:
            raise ConfigurationError(f"{where}: ttl must be more than 0 seconds and at most 30 days")
        size_in_bytes(self.max_body, f"{where}: max_body")
        for name in ("stale_while_revalidate", "stale_if_error"):
            if seconds(getattr(self, name), f"{where}: {name}") > LONGEST:
                raise ConfigurationError(f"{where}: {name} must be at most 30 days")
        jitter: object = self.jitter
        if isinstance(jitter, bool) or not isinstance(jitter, int | float) or not 0 <= jitter < 1:
            raise ConfigurationError(f"{where}: jitter is a part of the ttl: at least 0, less than 1")
        soft = seconds(self.fill_soft_limit, f"{where}: fill_soft_limit")
        if not 0 < soft <= seconds(self.fill_hard_limit, f"{where}: fill_hard_limit"):
            raise ConfigurationError(f"{where}: fill_soft_limit must be more than 0, and at most fill_hard_limit")
        methods = tuple(str(method).upper() for method in self.methods)
        if not set(methods) <= _METHODS or not set(methods) - {"HEAD"}:
            raise ConfigurationError(f"{where}: methods are GET, POST, QUERY, or HEAD with GET, not {self.methods!a}")
        object.__setattr__(self, "methods", methods)
        statuses = tuple(self.statuses)
        if not statuses or not all(type(status) is int and 200 <= status <= 599 for status in statuses):  # noqa: PLR2004
            raise ConfigurationError(f"{where}: statuses are numbers from 200 to 599, at least one")
        if not set(statuses).isdisjoint((206, 304)):
            raise ConfigurationError(f"{where}: 206 and 304 are parts of an answer, which cannot be stored as one")
        object.__setattr__(self, "statuses", statuses)
        object.__setattr__(self, "vary", _varied(self.vary, where))
        if self.query is not None and not isinstance(self.query, Query):
            raise ConfigurationError(f"{where}: query takes Query(allow=…) or Query(ignore=…)")
        object.__setattr__(self, "derived", tuple(tag for tag in self.tags if callable(tag)))
        object.__setattr__(self, "tags", tuple(tag for tag in self.tags if not callable(tag)))
        if len(self.tags) > _MOST_TAGS:
            raise ConfigurationError(f"{where}: more than {_MOST_TAGS} tags")
        for template in self.tags:
            self._check_tag(template, parameters, where)
        if self.shadow is not None and not isinstance(self.shadow, Shadow):
            raise ConfigurationError(f"{where}: shadow takes Shadow(share), such as Shadow(0.01)")
        if self.window is not None:
            self._check_window(self.window, parameters, where)
        version: object = self.version
        if not isinstance(version, str) or not version.isprintable() or len(version) > _LONGEST_VERSION:
            raise ConfigurationError(f"{where}: version is a string of at most {_LONGEST_VERSION} printable characters")
        rule = None if self.query is None else (self.query.allow, self.query.ignore)
        shape: tuple[object, ...] = (self.vary, rule) if self.window is None else (self.vary, rule, repr(self.window))
        object.__setattr__(self, "shape", ascii(shape).encode())
        object.__setattr__(self, "filling", tuple(_taken_apart(tag) for tag in self.tags if isinstance(tag, str)))

    @property
    def templates(self) -> tuple[str, ...]:
        """The tags that follow from the request."""
        return tuple(tag for tag in self.tags if isinstance(tag, str))

    def _check_window(self, window: Window, parameters: Collection[str], where: str) -> None:
        if not callable(getattr(window, "covered", None)):
            raise ConfigurationError(f"{where}: window takes TimeWindow(…), not {type(window).__name__}")
        self._check_tag(window.of, parameters, where)
        if len(self.tags) + window.most_tags > _MOST_TAGS:
            raise ConfigurationError(f"{where}: with a window there is room for {_MOST_TAGS - window.most_tags} tags")
        for name in window.names:
            if name not in parameters and self.query is not None and not self.query.keeps(name):
                raise ConfigurationError(f"{where}: the window needs the parameter {name!a}, which query= does not key")

    def _check_tag(self, template: object, parameters: Collection[str], where: str) -> None:
        if not isinstance(template, str):
            raise ConfigurationError(f"{where}: a tag is a string, not {type(template).__name__}")
        names: list[str] = _PLACEHOLDER.findall(template)
        if set("{}") & set(_PLACEHOLDER.sub("", template)) or not all(names):
            raise ConfigurationError(f"{where}: a tag's placeholder is written {{name}}: {template!a}")
        try:
            check_name("tag", _PLACEHOLDER.sub("x", template))
        except InvalidName as error:
            raise ConfigurationError(f"{where}: {error}") from error
        for name in names:
            if name not in parameters and self.query is not None and not self.query.keeps(name):
                raise ConfigurationError(
                    f"{where}: the tag {template!a} needs the query parameter {name!a}, which query= does not key"
                )


def _varied(names: Iterable[str], where: str) -> tuple[str, ...]:
    fields = {str(name).lower() for name in names}
    if "*" in fields:
        raise ConfigurationError(f"{where}: vary names header fields; `*` would match no two requests")
    for name in sorted(fields):
        if not _TOKEN.fullmatch(name):
            raise ConfigurationError(f"{where}: vary: not the name of a header field: {name!a}")
        if name in _ACTED_ON:
            raise ConfigurationError(f"{where}: vary: {name} tells the cache what to do, so it cannot be part of a key")
    return tuple(sorted(fields))


@dataclass(frozen=True, slots=True)
class TagsInvalid:
    """A tag of a request cannot be part of a key, so that its response could not be invalidated by it."""

    reason: str


def tags_of(policy: Policy, parameters: Mapping[str, str], query: bytes) -> tuple[str, ...] | TagsInvalid:
    """Fill a policy's tag templates from a request; sorted, without repetition."""
    return _filled(policy.filling, parameters, query)


def covered_by(matched: "Matched", query: bytes, *, ttl: float, now: float) -> Covered | TagsInvalid:
    """Fill a policy's tag templates from a request, and ask its window, if it has one, what the response covers."""
    policy, parameters, tags = matched.policy, matched.parameters, matched.tags
    if tags is None:
        tags = _filled(policy.filling, parameters, query)
    if policy.window is None or isinstance(tags, TagsInvalid):
        return tags if isinstance(tags, TagsInvalid) else Covered(query, tags, ttl)
    timelines = _filled((_taken_apart(policy.window.of),), parameters, query)
    if isinstance(timelines, TagsInvalid) or len(timelines) != 1:
        return TagsInvalid("the request names no one timeline of the window")
    found = policy.window.covered(query, parameters, timelines[0], ttl=ttl, now=now)
    if isinstance(found, TagsInvalid):
        return found
    both = tuple(sorted({*tags, *found.tags}))
    return (
        TagsInvalid(f"more than {_MOST_TAGS} tags") if len(both) > _MOST_TAGS else Covered(found.query, both, found.ttl)
    )


class Filling(NamedTuple):
    """A tag's template, taken apart."""

    start: str
    rest: tuple[tuple[str, str], ...]
    """The names of its parameters, each with what follows it."""


def _taken_apart(template: str) -> Filling:
    start, *rest = _PLACEHOLDER.split(template)
    return Filling(start, tuple(zip(rest[::2], rest[1::2], strict=True)))


def _filled(templates: Sequence[Filling], parameters: Mapping[str, str], query: bytes) -> tuple[str, ...] | TagsInvalid:
    if not templates:
        return ()
    if len(query) > _LONGEST_QUERY:
        return TagsInvalid("the query is too long")
    from_query: Mapping[str, tuple[str, ...]] | None = None
    tags: set[str] = set()
    for start, rest in templates:
        filled = [start]
        for name, literal in rest:
            if name in parameters:
                found: tuple[str, ...] = (parameters[name],)
            else:
                if from_query is None:
                    from_query = query_parameters(query)
                found = from_query.get(name, ())
            if len(filled) * len(found) > _MOST_TAGS:
                return TagsInvalid(f"more than {_MOST_TAGS} tags")
            filled = [before + value + literal for before in filled for value in found]
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
    tags: tuple[str, ...] | TagsInvalid | None = None
    """The tags, where the path alone decides about them."""


class Policies:
    """Finds the policy of a path: the first one whose template matches."""

    def __init__(self, policies: Iterable[Policy]) -> None:
        self.all: tuple[Policy, ...] = tuple(policies)
        self._compiled = [(_compile(policy.path), policy, index) for index, policy in enumerate(self.all)]
        self._seen: dict[str, Matched | None] = {}
        self._unclaimed: set[str] = set()
        self._asked: set[tuple[str, str]] = set()

    def match(self, path: str) -> Matched | None:
        """Return the policy of a decoded path below `root_path`, or None. Paths are remembered."""
        try:
            return self._seen[path]
        except KeyError:
            pass
        found = self._find(path)
        if len(path) <= _REMEMBERED_PATH:
            if len(self._seen) >= _REMEMBERED:  # paths come from outside: forget all rather than grow
                self._seen.clear()
                self._unclaimed.clear()
            self._seen[path] = found
            self._unclaimed.add(path)
        return found

    def missed(self, path: str, tenant: str) -> None:
        """Take as long as if no other tenant had asked for a path before, the first time that a tenant misses it.

        Otherwise the time of a miss would tell one tenant what another has asked for.
        """
        if (tenant, path) in self._asked:
            return
        if len(self._asked) >= _REMEMBERED:
            self._asked.clear()
        self._asked.add((tenant, path))
        if path not in self._unclaimed:
            self._seen.pop(path, None)
            self.match(path)
        self._unclaimed.discard(path)

    def _find(self, path: str) -> Matched | None:
        if len(path) > _LONGEST_PATH:  # no room for it in a key, and some templates take quadratic time
            return None
        for pattern, policy, index in self._compiled:
            if match := pattern.fullmatch(path):
                parameters = match.groupdict()
                of_the_path = all(name in parameters for template in policy.filling for name, _ in template.rest)
                tags = _filled(policy.filling, parameters, b"") if of_the_path else None
                return Matched(policy, index, parameters, tags)
        return None


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
