"""What RFC 9111 and its neighbours ask of a shared cache, as exchanges: what the origin says, what the client asks,
where the answer must come from. Each case names the section that it is taken from.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from tests.conformance.stand import Date, Fields, Reply, Value

From = Literal["origin", "stored", "validated", "any"]


@dataclass(frozen=True, slots=True)
class Ask:
    """One request, and what is expected of it."""

    expect: From
    """`origin`: it gets there, and its answer comes from there; `stored`: it does not; `validated`: it gets there with
    the stored response's validator, and the stored body is the answer."""
    fields: Fields = ()
    method: str = "GET"
    query: str = ""
    body: bytes = b""
    reply: Reply | None = None
    """What the origin answers from here on."""
    after: float = 0.0
    """Seconds that pass before it."""
    status: int | None = None
    has: Mapping[str, str | None] = field(default_factory=dict)
    """Fields of the answer; None: it is not there."""
    sends: Mapping[str, str | None] = field(default_factory=dict)
    """Fields that the origin must have got."""
    content: bytes | None = None


@dataclass(frozen=True, slots=True)
class Case:
    """A rule of a specification."""

    section: str
    says: str
    asks: Sequence[Ask]

    @property
    def id(self) -> str:
        """A name for the test."""
        return f"{self.section}: {self.says}"


def twice(
    section: str,
    says: str,
    expect: From,
    *response: tuple[str, Value],
    status: int = 200,
    request: Fields = (),
    again: Fields | None = None,
    after: float = 0.0,
    date: bool = True,
    has: Mapping[str, str | None] | None = None,
) -> Case:
    """Ask twice for what the origin answers with these fields; `expect` is of the second."""
    reply = Reply(status, response, date=date)
    return Case(
        section,
        says,
        [
            Ask("origin", request, reply=reply, status=status),
            Ask(expect, request if again is None else again, after=after, status=status, has=has or {}),
        ],
    )


def cc(value: str) -> tuple[str, str]:
    return "cache-control", value


FRESH: Final = cc("max-age=3600")
ETAG: Final = ("etag", '"one"')
MODIFIED: Final = ("last-modified", Date(-864_000))
STALE_AFTER: Final = 4000.0

STORING: Final = [
    twice("9111 §3", "max-age allows storing", "stored", FRESH),
    twice("9111 §3", "Expires allows storing", "stored", ("expires", Date(3600))),
    twice("9111 §3", "s-maxage allows storing", "stored", cc("s-maxage=3600")),
    twice("9111 §3", "nothing allows storing", "origin"),
    twice("9111 §5.2.2.5", "no-store", "origin", cc("no-store, max-age=3600")),
    twice("9111 §5.2.2.5", "NO-STORE, in any case", "origin", cc("No-StOrE, max-age=3600")),
    twice("9111 §5.2.2.5", "no-store on another line", "origin", FRESH, cc("no-store")),
    twice("9111 §5.2.2.5", "no-store with an argument", "origin", cc("no-store=1, max-age=3600")),
    twice("9111 §5.2.2.7", "private", "origin", cc("private, max-age=3600")),
    twice("9111 §5.2.2.7", "private before s-maxage", "origin", cc("private, s-maxage=3600")),
    twice(
        "9111 §5.2.2.7",
        "private with field names leaves those out",
        "stored",
        cc('private="x-secret", max-age=3600'),
        ("x-secret", "1"),
        ("x-open", "2"),
        has={"x-secret": None, "x-open": "2"},
    ),
    twice("9111 §5.2.2.7", "private with a broken argument is private", "origin", cc('private="x y", max-age=3600')),
    twice("9111 §5.2.2.9", "public with a lifetime", "stored", cc("public, max-age=3600")),
    twice("9111 §4.2.2", "public alone says nothing of how long", "origin", cc("public")),
    twice("9111 §5.2", "an unknown directive changes nothing", "stored", cc("foo, max-age=3600, bar=2")),
    twice("9111 §5.2", "an unknown directive with a quoted comma", "stored", cc('foo="a, no-store", max-age=3600')),
    twice("9111 §5.2", "an empty list member", "stored", cc(", max-age=3600,,")),
    twice("9111 §3.5", "Authorization", "origin", FRESH, request=[("authorization", "Basic x")]),
    twice(
        "9111 §3.5", "Authorization, and public", "stored", cc("public, max-age=60"), request=[("authorization", "x")]
    ),
    twice("9111 §3.5", "Authorization, and s-maxage", "stored", cc("s-maxage=60"), request=[("authorization", "x")]),
    twice(
        "9111 §3.5",
        "Authorization, and must-revalidate",
        "stored",
        cc("must-revalidate, max-age=60"),
        request=[("authorization", "x")],
    ),
    twice(
        "9111 §3.5",
        "Authorization, and a broken s-maxage",
        "origin",
        cc("s-maxage=x"),
        request=[("authorization", "x")],
    ),
    twice(
        "9111 §3.1",
        "fields that Connection names are not stored",
        "stored",
        FRESH,
        ("x-kept", "2"),
        has={"x-kept": "2"},
    ),
    twice(
        "9111 §3.1",
        "Proxy-Authenticate is not stored",
        "stored",
        FRESH,
        ("proxy-authenticate", "x"),
        has={"proxy-authenticate": None},
    ),
    twice("9111 §3", "repeated fields stay repeated", "stored", FRESH, ("x-a", "1"), ("x-a", "2"), has={"x-a": "1, 2"}),
    twice(
        "9111 §7.3",
        "Set-Cookie with a lifetime is stored",
        "stored",
        FRESH,
        ("set-cookie", "a=b"),
        has={"set-cookie": "a=b"},
    ),
    twice("9111 §7.3", "Set-Cookie without one is not", "origin", MODIFIED, ("set-cookie", "a=b")),
    twice(
        "9111 §5.2.2.3",
        "must-understand, and no-store, of a known status",
        "stored",
        cc("must-understand, no-store, max-age=60"),
    ),
    twice(
        "9111 §5.2.2.3", "must-understand of an unknown status", "origin", cc("must-understand, max-age=60"), status=299
    ),
    twice("9111 §5.2.1.5", "no-store of the request", "origin", FRESH, request=[cc("no-store")]),
    twice("9111 §5.2.1.5", "no-store of the first request only", "origin", FRESH, request=[cc("no-store")], again=[]),
    twice(
        "9110 §15.3.7",
        "a partial response is no whole one",
        "origin",
        FRESH,
        ("content-range", "bytes 0-3/10"),
        status=206,
    ),
    *(
        twice("9111 §3", f"{status} with a lifetime is stored", "stored", FRESH, status=status)
        for status in (
            200,
            203,
            204,
            299,
            301,
            302,
            303,
            307,
            308,
            400,
            404,
            410,
            414,
            499,
            500,
            501,
            502,
            503,
            504,
            599,
        )
    ),
    *(
        twice("9110 §15.1", f"{status} may be kept by heuristics", "stored", MODIFIED, status=status, after=3600)
        for status in (200, 203, 204, 300, 301, 308, 404, 405, 410, 414, 501)
    ),
    *(
        twice("9110 §15.1", f"{status} may not", "origin", MODIFIED, status=status, after=3600)
        for status in (201, 202, 302, 303, 307, 403, 500, 502, 503, 504)
    ),
    twice(
        "9111 §4.2.2",
        "public lets heuristics be used for any status",
        "stored",
        cc("public"),
        MODIFIED,
        status=403,
        after=3600,
    ),
    twice("9111 §3", "more fields than are stored", "origin", FRESH, *((f"x-{number}", "1") for number in range(260))),
]

FRESHNESS: Final = [
    twice("9111 §4.2", "fresh before its end", "stored", FRESH, after=3599),
    twice("9111 §4.2", "stale at its end", "origin", FRESH, after=3600),
    twice("9111 §4.2.1", "s-maxage before max-age", "stored", cc("max-age=1, s-maxage=3600"), after=100),
    twice("9111 §4.2.1", "a short s-maxage before max-age", "origin", cc("max-age=3600, s-maxage=1"), after=100),
    twice("9111 §4.2.1", "max-age before Expires", "stored", FRESH, ("expires", Date(-100)), after=100),
    twice(
        "9111 §4.2.1", "a short max-age before Expires", "origin", cc("max-age=1"), ("expires", Date(3600)), after=100
    ),
    twice("9111 §5.3", "Expires counts from Date", "origin", ("date", Date(-3600)), ("expires", Date(-10))),
    twice("9111 §5.3", "Expires in the past", "origin", ("expires", Date(-100))),
    twice("9111 §5.3", "Expires now", "origin", ("expires", Date())),
    twice("9111 §5.3", "Expires: 0", "origin", ("expires", "0")),
    twice("9111 §5.3", "Expires that is no date", "origin", ("expires", "tomorrow"), MODIFIED),
    twice("9111 §5.3", "Expires twice with two values", "origin", ("expires", Date(3600)), ("expires", Date(-3600))),
    twice("9111 §4.2", "Expires in another zone", "origin", ("expires", "Thu, 18 Aug 2050 02:01:18 EST")),
    twice("9111 §4.2", "Expires far ahead", "stored", ("expires", "Thu, 18 Aug 2050 02:01:18 GMT")),
    twice("9110 §5.6.7", "Expires in the format of RFC 850", "stored", ("expires", "Thursday, 18-Aug-50 02:01:18 GMT")),
    twice("9110 §5.6.7", "Expires in the format of asctime", "stored", ("expires", "Thu Aug 18 02:01:18 2050")),
    twice("9110 §5.6.7", "Expires with too many digits", "origin", ("expires", "Thu, 18 Aug 20500 02:01:18 GMT")),
    twice("9111 §4.2", "the case of a date says nothing", "stored", ("expires", "THU, 18 AUG 2050 02:01:18 gmt")),
    twice("9111 §1.2.2", "an enormous max-age", "stored", cc("max-age=99999999999999999999"), after=10_000),
    twice("9111 §1.2.2", "max-age that fills 31 bits", "stored", cc("max-age=2147483648"), after=10_000),
    twice("9111 §5.2.2.1", "max-age in quotes", "stored", cc('max-age="3600"')),
    twice("9111 §5.2.2.1", "max-age with leading zeros", "stored", cc("max-age=003600")),
    twice("9111 §5.2.2.1", "max-age in any case", "stored", cc("MAX-AGE=3600")),
    twice("9111 §4.2.1", "max-age=0", "origin", cc("max-age=0")),
    twice("9111 §4.2.1", "a negative max-age", "origin", cc("max-age=-3600")),
    twice("9111 §4.2.1", "max-age with a fraction", "origin", cc("max-age=3600.0")),
    twice("9111 §4.2.1", "max-age in single quotes", "origin", cc("max-age='3600'")),
    twice("9111 §4.2.1", "max-age with a letter", "origin", cc("max-age=3600a")),
    twice("9111 §4.2.1", "max-age without a value", "origin", cc("max-age")),
    twice("9111 §4.2.1", "max-age with an empty value", "origin", cc("max-age=")),
    twice("9111 §5.2", "white space before =", "origin", cc("max-age =3600")),
    twice("9111 §5.2", "white space after =", "origin", cc("max-age= 3600")),
    twice("9111 §4.2.1", "two values of max-age", "origin", cc("max-age=3600, max-age=1"), after=10),
    twice(
        "9111 §4.2.1", "two values of max-age, the small one first", "origin", cc("max-age=1, max-age=3600"), after=10
    ),
    twice("9111 §4.2.1", "two values of max-age on two lines", "origin", FRESH, cc("max-age=1"), after=10),
    twice("9111 §4.2.1", "the same value twice", "stored", FRESH, FRESH, after=10),
    twice("9111 §5.2", "max-age inside another's quotes", "origin", cc('foo="max-age=3600"')),
    twice("9111 §5.2", "another directive that ends alike", "origin", cc("x-max-age=3600")),
    twice("9111 §4.2.1", "broken max-age and good Expires", "origin", cc("max-age=x"), ("expires", Date(3600))),
    twice("9111 §4.2.2", "a tenth of the time since the last change", "stored", MODIFIED, after=80_000),
    twice("9111 §4.2.2", "and no more", "origin", MODIFIED, after=90_000),
    twice("9111 §4.2.2", "a change in the future tells nothing", "origin", ("last-modified", Date(3600))),
    twice("9111 §5.1", "Age counts", "origin", FRESH, ("age", "3601")),
    twice("9111 §5.1", "a small Age", "stored", FRESH, ("age", "100"), has={"age": "100"}),
    twice("9111 §5.1", "Age is added to", "stored", FRESH, ("age", "100"), after=50, has={"age": "150"}),
    twice("9111 §5.1", "the first member of a list of ages", "stored", FRESH, ("age", "10, 7200"), has={"age": "10"}),
    twice(
        "9111 §5.1", "the first of two Age fields", "stored", FRESH, ("age", "10"), ("age", "7200"), has={"age": "10"}
    ),
    twice("9111 §5.1", "Age that is no number is ignored", "stored", FRESH, ("age", "old"), has={"age": "0"}),
    twice("9111 §5.1", "a negative Age is ignored", "stored", FRESH, ("age", "-1"), has={"age": "0"}),
    twice("9111 §5.1", "Age with a fraction is ignored", "stored", FRESH, ("age", "7200.0"), has={"age": "0"}),
    twice("9111 §5.1", "an enormous Age", "origin", FRESH, ("age", "99999999999999999999")),
    twice(
        "9111 §5.1",
        "an enormous Age, and a lifetime as long",
        "origin",
        cc("max-age=2147483648"),
        ("age", "2147483649"),
    ),
    twice("9111 §4.2.3", "a Date in the past is an age", "origin", FRESH, ("date", Date(-4000))),
    twice(
        "9111 §4.2.3",
        "a Date in the past is an age that is told",
        "stored",
        FRESH,
        ("date", Date(-100)),
        has={"age": "100"},
    ),
    twice(
        "9111 §4.2.3",
        "the larger of Date and Age",
        "stored",
        FRESH,
        ("date", Date(-100)),
        ("age", "50"),
        has={"age": "100"},
    ),
    twice(
        "9111 §4.2.3",
        "a Date in the future makes nobody younger",
        "stored",
        FRESH,
        ("date", Date(100)),
        after=10,
        has={"age": "10"},
    ),
    twice("9111 §4.2.3", "no Date", "stored", FRESH, date=False, after=10, has={"age": "10"}),
    twice("9111 §5.4", "Pragma in a response says nothing against a lifetime", "stored", FRESH, ("pragma", "no-cache")),
    twice("9110 §5.6.7", "a day that is not in the calendar", "origin", ("expires", "Thu, 31 Feb 2050 02:01:18 GMT")),
    twice("9110 §5.6.7", "no day at all", "origin", ("expires", "Thu, 00 Feb 2050 02:01:18 GMT")),
    twice(
        "9110 §5.6.7",
        "the year nought",
        "origin",
        ("date", "Thu, 18 Aug 0000 02:01:18 GMT"),
        ("expires", "Thu, 18 Aug 0000 02:01:18 GMT"),
    ),
    twice("9110 §5.6.7", "an hour that is not in the day", "origin", ("expires", "Thu, 18 Aug 2050 24:01:18 GMT")),
    twice("9110 §5.6.7", "a minute that is not in the hour", "origin", ("expires", "Thu, 18 Aug 2050 02:60:18 GMT")),
    twice("9110 §5.6.7", "a second that is not in the minute", "origin", ("expires", "Thu, 18 Aug 2050 02:01:61 GMT")),
    twice("9110 §5.6.7", "a leap second", "stored", ("expires", "Thu, 30 Jun 2050 23:59:60 GMT")),
    twice("9111 §4.2.2", "a change a moment ago", "stored", ("last-modified", Date(-5))),
    twice("9111 §4.2.2", "and not for long", "origin", ("last-modified", Date(-5)), after=1),
]

VARYING: Final = [
    twice("9111 §4.1", "the same value", "stored", FRESH, ("vary", "foo"), request=[("foo", "1")]),
    twice("9111 §4.1", "another value", "origin", FRESH, ("vary", "foo"), request=[("foo", "1")], again=[("foo", "2")]),
    twice("9111 §4.1", "no value after one", "origin", FRESH, ("vary", "foo"), request=[("foo", "1")], again=[]),
    twice("9111 §4.1", "a value after none", "origin", FRESH, ("vary", "foo"), again=[("foo", "1")]),
    twice("9111 §4.1", "an empty value is a value", "origin", FRESH, ("vary", "foo"), again=[("foo", "")]),
    twice("9111 §4.1", "neither has it", "stored", FRESH, ("vary", "foo")),
    twice("9111 §4.1", "Vary: *", "origin", FRESH, ("vary", "*"), request=[("foo", "1")]),
    twice("9111 §4.1", "Vary: * in a list", "origin", FRESH, ("vary", "foo, *"), request=[("foo", "1")]),
    twice("9111 §4.1", "Vary: * on another line", "origin", FRESH, ("vary", "foo"), ("vary", "*")),
    twice("9111 §4.1", "the case of names says nothing", "stored", FRESH, ("vary", "FOO"), request=[("foo", "1")]),
    twice(
        "9111 §4.1",
        "the case of values does",
        "origin",
        FRESH,
        ("vary", "foo"),
        request=[("foo", "a")],
        again=[("foo", "A")],
    ),
    twice(
        "9111 §4.1",
        "two names, one differs",
        "origin",
        FRESH,
        ("vary", "foo, bar"),
        request=[("foo", "1"), ("bar", "1")],
        again=[("foo", "1"), ("bar", "2")],
    ),
    twice(
        "9111 §4.1",
        "two names on two lines, one differs",
        "origin",
        FRESH,
        ("vary", "foo"),
        ("vary", "bar"),
        request=[("foo", "1"), ("bar", "1")],
        again=[("foo", "1"), ("bar", "2")],
    ),
    twice(
        "9111 §4.1",
        "what is not named says nothing",
        "stored",
        FRESH,
        ("vary", "foo"),
        request=[("foo", "1"), ("baz", "1")],
        again=[("foo", "1"), ("baz", "2")],
    ),
    twice(
        "9111 §4.1",
        "lines of one field are one list",
        "stored",
        FRESH,
        ("vary", "foo"),
        request=[("foo", "1"), ("foo", "2")],
        again=[("foo", "1, 2")],
    ),
    twice(
        "9111 §4.1",
        "white space around commas says nothing",
        "stored",
        FRESH,
        ("vary", "foo"),
        request=[("foo", "1,2")],
        again=[("foo", "1 , 2")],
    ),
    twice(
        "9111 §4.1",
        "order of values does",
        "origin",
        FRESH,
        ("vary", "foo"),
        request=[("foo", "1, 2")],
        again=[("foo", "2, 1")],
    ),
    twice(
        "9111 §4.1",
        "order of languages says nothing",
        "stored",
        FRESH,
        ("vary", "accept-language"),
        request=[("accept-language", "en, de;q=0.5")],
        again=[("accept-language", "de;q=0.5,en")],
    ),
    twice(
        "9111 §4.1",
        "case of languages says nothing",
        "stored",
        FRESH,
        ("vary", "accept-language"),
        request=[("accept-language", "en-GB")],
        again=[("accept-language", "EN-gb")],
    ),
    twice(
        "9111 §4.1",
        "case of encodings says nothing",
        "stored",
        FRESH,
        ("vary", "accept-encoding"),
        request=[("accept-encoding", "gzip, br")],
        again=[("accept-encoding", "BR,GZip")],
    ),
    Case(
        "9111 §4.1",
        "several responses side by side",
        [
            Ask("origin", [("foo", "1")], reply=Reply(200, [FRESH, ("vary", "foo")], b"one")),
            Ask("origin", [("foo", "2")], reply=Reply(200, [FRESH, ("vary", "foo")], b"two")),
            Ask("stored", [("foo", "1")], content=b"one"),
            Ask("stored", [("foo", "2")], content=b"two"),
            Ask("origin", [("foo", "3")], reply=Reply(200, [FRESH, ("vary", "foo")], b"three")),
            Ask("stored", [("foo", "1")], content=b"one"),
        ],
    ),
    Case(
        "9111 §4.1",
        "two responses that vary by different fields",
        [
            Ask("origin", [("foo", "1"), ("bar", "1")], reply=Reply(200, [FRESH, ("vary", "foo")], b"one")),
            Ask("origin", [("foo", "2"), ("bar", "2")], reply=Reply(200, [FRESH, ("vary", "bar")], b"two")),
            Ask("stored", [("foo", "1"), ("bar", "9")], content=b"one"),
            Ask("stored", [("foo", "9"), ("bar", "2")], content=b"two"),
        ],
    ),
    Case(
        "9111 §4.1",
        "a later default without Vary leaves the preferable one",
        [
            Ask("origin", [("foo", "1")], reply=Reply(200, [FRESH, ("vary", "foo")], b"one")),
            Ask("origin", [], reply=Reply(200, [FRESH], b"default"), after=1),
            Ask("stored", [("foo", "1")], content=b"one"),
        ],
    ),
    twice(
        "9111 §4.1",
        "white space within a value counts",
        "origin",
        FRESH,
        ("vary", "foo"),
        request=[("foo", "a b")],
        again=[("foo", "ab")],
    ),
    twice(
        "9111 §4.1",
        "white space around a weight says nothing",
        "stored",
        FRESH,
        ("vary", "accept-language"),
        request=[("accept-language", "en ; q=0.5")],
        again=[("accept-language", "en;q=0.5")],
    ),
]

NEW: Final = Reply(304, [FRESH, ETAG, ("x-new", "2")])
VALIDATING: Final = [
    Case(
        "9111 §4.3.1",
        "a stale response is validated by its entity tag",
        [
            Ask("origin", reply=Reply(200, [FRESH, ETAG, ("x-old", "1")])),
            Ask(
                "validated",
                reply=NEW,
                after=STALE_AFTER,
                sends={"if-none-match": '"one"'},
                status=200,
                has={"x-new": "2", "x-old": "1", "age": "0"},
            ),
            Ask("stored", after=100, has={"x-new": "2", "age": "100"}),
        ],
    ),
    Case(
        "9111 §4.3.1",
        "a stale response is validated by Last-Modified",
        [
            Ask("origin", reply=Reply(200, [FRESH, ("last-modified", "Mon, 02 Jan 2023 10:00:00 GMT")])),
            Ask(
                "validated",
                reply=Reply(304, [FRESH]),
                after=STALE_AFTER,
                sends={"if-modified-since": "Mon, 02 Jan 2023 10:00:00 GMT"},
                status=200,
            ),
            Ask("stored", after=100),
        ],
    ),
    Case(
        "9111 §4.3.1",
        "both validators are sent",
        [
            Ask("origin", reply=Reply(200, [FRESH, ETAG, ("last-modified", "Mon, 02 Jan 2023 10:00:00 GMT")])),
            Ask(
                "validated",
                reply=NEW,
                after=STALE_AFTER,
                sends={"if-none-match": '"one"', "if-modified-since": "Mon, 02 Jan 2023 10:00:00 GMT"},
            ),
        ],
    ),
    Case(
        "9111 §4.3.1",
        "a weak tag validates too",
        [
            Ask("origin", reply=Reply(200, [FRESH, ("etag", 'W/"one"')])),
            Ask(
                "validated",
                reply=Reply(304, [FRESH, ("etag", 'W/"one"')]),
                after=STALE_AFTER,
                sends={"if-none-match": 'W/"one"'},
            ),
            Ask("stored"),
        ],
    ),
    Case(
        "9111 §4.3.3",
        "a full answer takes the place of what is stored",
        [
            Ask("origin", reply=Reply(200, [FRESH, ETAG])),
            Ask("origin", reply=Reply(200, [FRESH, ("etag", '"two"')], b"new"), after=STALE_AFTER, content=b"new"),
            Ask("stored", content=b"new", has={"etag": '"two"'}),
        ],
    ),
    Case(
        "9111 §4.3.4",
        "a 304 about another tag updates nothing",
        [
            Ask("origin", reply=Reply(200, [FRESH, ETAG])),
            Ask("any", reply=Reply(304, [FRESH, ("etag", '"two"')]), after=STALE_AFTER, has={"x-new": None}),
            Ask("any", sends={}),
        ],
    ),
    Case(
        "9111 §3.2",
        "a 304 does not change the length or the coding",
        [
            Ask("origin", reply=Reply(200, [FRESH, ETAG, ("content-encoding", "x-test")], b"12345")),
            Ask(
                "validated",
                reply=Reply(304, [FRESH, ETAG, ("content-encoding", "gzip"), ("content-length", "99")]),
                after=STALE_AFTER,
                content=b"12345",
                has={"content-encoding": "x-test", "content-length": "5"},
            ),
            Ask("stored", content=b"12345"),
        ],
    ),
    Case(
        "9111 §3.2",
        "a 304 replaces every line of a field",
        [
            Ask("origin", reply=Reply(200, [FRESH, ETAG, ("x-a", "1"), ("x-a", "2")])),
            Ask("validated", reply=Reply(304, [FRESH, ETAG, ("x-a", "3")]), after=STALE_AFTER, has={"x-a": "3"}),
            Ask("stored", has={"x-a": "3"}),
        ],
    ),
    Case(
        "9111 §3.2",
        "a 304 that forbids storing ends it",
        [
            Ask("origin", reply=Reply(200, [FRESH, ETAG])),
            Ask("validated", reply=Reply(304, [cc("no-store"), ETAG]), after=STALE_AFTER, status=200),
            Ask("origin", reply=Reply(200, [FRESH])),
        ],
    ),
    Case(
        "9111 §3.2",
        "a 304's Age counts",
        [
            Ask("origin", reply=Reply(200, [FRESH, ETAG])),
            Ask("validated", reply=Reply(304, [FRESH, ETAG, ("age", "50")]), after=STALE_AFTER, has={"age": "50"}),
        ],
    ),
    Case(
        "9111 §4.3.5",
        "a HEAD updates the stored response",
        [
            Ask("origin", reply=Reply(200, [FRESH, ETAG])),
            Ask(
                "origin",
                method="HEAD",
                reply=Reply(200, [FRESH, ETAG, ("x-new", "2"), ("content-length", "8")]),
                after=STALE_AFTER,
                has={"x-new": "2"},
            ),
            Ask("stored", has={"x-new": "2"}),
        ],
    ),
    Case(
        "9111 §4.3.5",
        "a HEAD with another tag ends the stored response",
        [
            Ask("origin", reply=Reply(200, [cc("max-age=3600"), ETAG])),
            Ask("origin", [cc("no-cache")], method="HEAD", reply=Reply(200, [FRESH, ("etag", '"two"')])),
            Ask("origin"),
        ],
    ),
    Case(
        "9111 §4.3.5",
        "a HEAD with another length ends the stored response",
        [
            Ask("origin", reply=Reply(200, [FRESH, ETAG])),
            Ask("origin", [cc("no-cache")], method="HEAD", reply=Reply(200, [FRESH, ETAG, ("content-length", "99")])),
            Ask("origin"),
        ],
    ),
    Case(
        "9110 §9.3.2",
        "a HEAD is answered from a stored GET",
        [
            Ask("origin", reply=Reply(200, [FRESH, ("x-a", "1")], b"12345")),
            Ask("stored", method="HEAD", has={"x-a": "1", "content-length": "5"}, content=b""),
        ],
    ),
    Case(
        "9111 §3",
        "a HEAD stores nothing",
        [
            Ask("origin", method="HEAD", reply=Reply(200, [FRESH])),
            Ask("origin"),
        ],
    ),
    Case(
        "9111 §5.2.2.4",
        "no-cache is validated each time",
        [
            Ask("origin", reply=Reply(200, [cc("no-cache, max-age=3600"), ETAG])),
            Ask("validated", reply=Reply(304, [cc("no-cache, max-age=3600"), ETAG]), sends={"if-none-match": '"one"'}),
            Ask("validated"),
        ],
    ),
    twice("9111 §5.2.2.4", "no-cache without a validator", "origin", cc("no-cache, max-age=3600")),
    twice("9111 §5.2.2.4", "NO-CACHE, in any case", "origin", cc("NO-cache, max-age=3600")),
    twice(
        "9111 §5.2.2.4",
        "no-cache with field names withholds those",
        "stored",
        cc('no-cache="x-a", max-age=3600'),
        ("x-a", "1"),
        ("x-b", "2"),
        has={"x-a": None, "x-b": "2"},
    ),
    Case(
        "9111 §4.3.2",
        "a client's tag is answered from what is stored",
        [
            Ask("origin", reply=Reply(200, [FRESH, ETAG, ("content-type", "text/plain"), ("expires", Date(3600))])),
            Ask(
                "stored",
                [("if-none-match", '"one"')],
                status=304,
                content=b"",
                has={"etag": '"one"', "content-type": None, "content-length": None},
            ),
            Ask("stored", [("if-none-match", 'W/"one"')], status=304),
            Ask("stored", [("if-none-match", '"two", "one"')], status=304),
            Ask("stored", [("if-none-match", '"two"'), ("if-none-match", '"one"')], status=304),
            Ask("stored", [("if-none-match", "*")], status=304),
            Ask("stored", [("if-none-match", '"two"')], status=200),
            Ask("stored", [("if-none-match", "one")], status=200),
            Ask("stored", [("if-none-match", '"two"'), ("if-modified-since", Date(100))], status=200),
            Ask("stored", [("if-none-match", '"one"')], method="HEAD", status=304),
        ],
    ),
    Case(
        "9111 §4.3.2",
        "a client's date is answered from what is stored",
        [
            Ask("origin", reply=Reply(200, [FRESH, ("last-modified", "Mon, 02 Jan 2023 10:00:00 GMT")])),
            Ask("stored", [("if-modified-since", "Mon, 02 Jan 2023 10:00:00 GMT")], status=304),
            Ask("stored", [("if-modified-since", "Tue, 03 Jan 2023 10:00:00 GMT")], status=304),
            Ask("stored", [("if-modified-since", "Sun, 01 Jan 2023 10:00:00 GMT")], status=200),
            Ask("stored", [("if-modified-since", "no date")], status=200),
        ],
    ),
    Case(
        "9111 §4.3.2",
        "where there is no Last-Modified, Date takes its place",
        [
            Ask("origin", reply=Reply(200, [FRESH])),
            Ask("stored", [("if-modified-since", Date(10))], status=304),
            Ask("stored", [("if-modified-since", Date(-10))], status=200),
        ],
    ),
    Case(
        "9110 §13.2.1",
        "conditions say nothing to what is no success",
        [
            Ask("origin", reply=Reply(404, [FRESH, ETAG])),
            Ask("stored", [("if-none-match", '"one"')], status=404),
        ],
    ),
    Case(
        "9111 §4.3.2",
        "a client's tag goes to the origin where nothing is stored",
        [
            Ask(
                "origin",
                [("if-none-match", '"one"')],
                reply=Reply(304, [ETAG, FRESH]),
                sends={"if-none-match": '"one"'},
                status=304,
            ),
            Ask("origin", reply=Reply(200, [FRESH])),
        ],
    ),
    Case(
        "9110 §13.1.2",
        "the client's tags stay beside the stored one",
        [
            Ask("origin", reply=Reply(200, [FRESH, ETAG])),
            Ask(
                "validated",
                [("if-none-match", '"mine"')],
                reply=NEW,
                after=STALE_AFTER,
                sends={"if-none-match": '"mine", "one"'},
                status=200,
            ),
        ],
    ),
    Case(
        "9110 §13.1.2",
        "a 304 about the client's tag is the client's",
        [
            Ask("origin", reply=Reply(200, [FRESH, ETAG])),
            Ask(
                "origin",
                [("if-none-match", '"mine"')],
                reply=Reply(304, [FRESH, ("etag", '"mine"')]),
                after=STALE_AFTER,
                status=304,
            ),
            Ask("origin", reply=Reply(200, [FRESH])),
        ],
    ),
    Case(
        "9111 §4.3.2",
        "a stale response that is validated for a client that has it is a 304",
        [
            Ask("origin", reply=Reply(200, [FRESH, ETAG])),
            Ask("any", [("if-none-match", '"one"')], reply=NEW, after=STALE_AFTER, status=304),
            Ask("stored"),
        ],
    ),
    Case(
        "9110 §13.1.1",
        "If-Match goes to the origin",
        [
            Ask("origin", reply=Reply(200, [FRESH, ETAG])),
            Ask("origin", [("if-match", '"one"')], sends={"if-match": '"one"'}),
            Ask("origin", [("if-unmodified-since", Date())]),
            Ask("stored"),
        ],
    ),
    Case(
        "9111 §4.3.4",
        "a 304 about another date updates nothing",
        [
            Ask("origin", reply=Reply(200, [FRESH, ("last-modified", "Mon, 02 Jan 2023 10:00:00 GMT")])),
            Ask(
                "any",
                reply=Reply(304, [FRESH, ("x-new", "2"), ("last-modified", "Tue, 03 Jan 2023 10:00:00 GMT")]),
                after=STALE_AFTER,
                sends={"if-modified-since": None},
                status=304,
            ),
        ],
    ),
    Case(
        "9111 §4.3.4",
        "a 304 about the same date does",
        [
            Ask("origin", reply=Reply(200, [FRESH, ("last-modified", "Mon, 02 Jan 2023 10:00:00 GMT")])),
            Ask(
                "validated",
                reply=Reply(304, [FRESH, ("x-new", "2"), ("last-modified", "Mon, 02 Jan 2023 10:00:00 GMT")]),
                after=STALE_AFTER,
                has={"x-new": "2"},
            ),
        ],
    ),
    Case(
        "9111 §4.3.4",
        "a 304 that names a date where a tag is stored",
        [
            Ask("origin", reply=Reply(200, [FRESH, ETAG])),
            Ask(
                "validated",
                reply=Reply(304, [FRESH, ("last-modified", "Mon, 02 Jan 2023 10:00:00 GMT")]),
                after=STALE_AFTER,
            ),
        ],
    ),
    Case(
        "9111 §4.3.4",
        "a 304 that names nothing, and the client has something else",
        [
            Ask("origin", reply=Reply(200, [FRESH, ETAG])),
            Ask("origin", [("if-none-match", '"mine"')], reply=Reply(304, [FRESH]), after=STALE_AFTER, status=304),
            Ask("origin", reply=Reply(200, [FRESH])),
        ],
    ),
    Case(
        "9111 §4.3.4",
        "a 304 that names nothing, and the client has what is stored",
        [
            Ask("origin", reply=Reply(200, [FRESH, ETAG])),
            Ask(
                "any",
                [("if-none-match", '"one"')],
                reply=Reply(304, [FRESH]),
                after=STALE_AFTER,
                status=304,
                sends={"if-none-match": '"one"'},
            ),
            Ask("stored"),
        ],
    ),
    Case(
        "9111 §4.3.4",
        "a 304 that names nothing, nothing with a tag is stored, and the client has something",
        [
            Ask("origin", reply=Reply(200, [FRESH, MODIFIED])),
            Ask("origin", [("if-none-match", '"mine"')], reply=Reply(304, [FRESH]), after=STALE_AFTER, status=304),
            Ask("origin", reply=Reply(200, [FRESH])),
        ],
    ),
    Case(
        "9110 §13.1.2",
        "a client that has anything asks with *",
        [
            Ask("origin", reply=Reply(200, [FRESH, ETAG])),
            Ask(
                "any", [("if-none-match", "*")], reply=NEW, after=STALE_AFTER, sends={"if-none-match": "*"}, status=304
            ),
        ],
    ),
    Case(
        "9111 §4.3.1",
        "only validators that there are",
        [
            Ask("origin", reply=Reply(200, [FRESH, ("last-modified", "Mon, 02 Jan 2023 10:00:00 GMT")])),
            Ask(
                "any",
                [("if-none-match", '"mine"')],
                reply=Reply(200, [FRESH]),
                after=STALE_AFTER,
                sends={"if-none-match": '"mine"', "if-modified-since": "Mon, 02 Jan 2023 10:00:00 GMT"},
            ),
        ],
    ),
]

SPENT: Final = Reply(200, [FRESH])
INVALIDATING: Final = [
    *(
        Case(
            "9111 §4.4",
            f"{method} invalidates its URI",
            [
                Ask("origin", reply=SPENT),
                Ask("stored"),
                Ask("origin", method=method, body=b"x", status=200),
                Ask("origin"),
            ],
        )
        for method in ("POST", "PUT", "DELETE", "PATCH", "M-SEARCH")
    ),
    *(
        Case(
            "9111 §4.4",
            f"a failed {method} does not",
            [
                Ask("origin", reply=SPENT),
                Ask("origin", method=method, body=b"x", reply=Reply(500), status=500),
                Ask("stored"),
            ],
        )
        for method in ("POST", "PUT", "DELETE")
    ),
    *(
        Case(
            "9110 §9.2.1",
            f"{method} changes nothing",
            [Ask("origin", reply=SPENT), Ask("origin", method=method), Ask("stored")],
        )
        for method in ("OPTIONS", "TRACE")
    ),
    Case(
        "9111 §4.4",
        "a redirect is no failure",
        [
            Ask("origin", reply=SPENT),
            Ask("origin", method="POST", body=b"x", reply=Reply(303, [("location", "/elsewhere")])),
            Ask("origin", reply=SPENT),
        ],
    ),
    *(
        Case(
            "9111 §4.4",
            f"{name} is invalidated, {how}",
            [
                Ask("origin", query="?a", reply=SPENT),
                Ask("stored", query="?a"),
                Ask("origin", method="POST", body=b"x", reply=Reply(200, [(name, target)])),
                Ask("origin", query="?a", reply=SPENT),
            ],
        )
        for name in ("location", "content-location")
        for how, target in (
            ("relative", "?a"),
            ("absolute", "http://cache.test{path}?a"),
            ("by path", "{path}?a"),
            ("by the name that the origin has for itself", "{origin}{path}?a"),
        )
    ),
    *(
        Case(
            "9111 §4.4",
            f"{name} of another origin is not",
            [
                Ask("origin", query="?a", reply=SPENT),
                Ask("origin", method="POST", body=b"x", reply=Reply(200, [(name, "http://other.test{path}?a")])),
                Ask("stored", query="?a"),
            ],
        )
        for name in ("location", "content-location")
    ),
    Case(
        "9111 §4.4",
        "every variant is invalidated",
        [
            Ask("origin", [("foo", "1")], reply=Reply(200, [FRESH, ("vary", "foo")])),
            Ask("origin", [("foo", "2")]),
            Ask("origin", method="PUT", body=b"x"),
            Ask("origin", [("foo", "1")]),
            Ask("origin", [("foo", "2")]),
        ],
    ),
    Case(
        "9111 §3",
        "what answers a POST answers no GET",
        [
            Ask("origin", method="POST", body=b"x", reply=SPENT),
            Ask("origin"),
        ],
    ),
]

ASKING: Final = [
    twice("9111 §5.2.1.1", "max-age of the request", "origin", FRESH, again=[cc("max-age=10")], after=11),
    twice("9111 §5.2.1.1", "max-age that is not over", "stored", FRESH, again=[cc("max-age=10")], after=10),
    twice("9111 §5.2.1.1", "max-age=0", "origin", FRESH, again=[cc("max-age=0")], after=1),
    twice(
        "9111 §5.2.1.1",
        "max-age counts the age of the origin's answer",
        "origin",
        FRESH,
        ("age", "100"),
        again=[cc("max-age=50")],
    ),
    twice("9111 §5.2.1.3", "min-fresh", "origin", FRESH, again=[cc("min-fresh=100")], after=3550),
    twice("9111 §5.2.1.3", "min-fresh that is there", "stored", FRESH, again=[cc("min-fresh=100")], after=3000),
    twice("9111 §5.2.1.2", "max-stale", "stored", FRESH, again=[cc("max-stale=1000")], after=4000),
    twice("9111 §5.2.1.2", "max-stale without a limit", "stored", FRESH, again=[cc("max-stale")], after=4000),
    twice("9111 §5.2.1.2", "max-stale that is over", "origin", FRESH, again=[cc("max-stale=100")], after=4000),
    twice(
        "9111 §5.2.1.2",
        "max-stale, and must-revalidate",
        "origin",
        cc("max-age=3600, must-revalidate"),
        again=[cc("max-stale=1000")],
        after=4000,
    ),
    twice(
        "9111 §5.2.1.2",
        "max-stale, and proxy-revalidate",
        "origin",
        cc("max-age=3600, proxy-revalidate"),
        again=[cc("max-stale=1000")],
        after=4000,
    ),
    twice(
        "9111 §5.2.1.2",
        "max-stale, and s-maxage",
        "origin",
        cc("s-maxage=3600"),
        again=[cc("max-stale=1000")],
        after=4000,
    ),
    twice(
        "9111 §5.2.1.2",
        "max-stale, and no-cache",
        "origin",
        cc("max-age=3600, no-cache"),
        ETAG,
        again=[cc("max-stale=1000")],
        after=4000,
    ),
    twice("9111 §5.2.1.4", "no-cache", "origin", FRESH, again=[cc("no-cache")]),
    Case(
        "9111 §5.2.1.4",
        "no-cache is satisfied by validation",
        [
            Ask("origin", reply=Reply(200, [FRESH, ETAG])),
            Ask("validated", [cc("no-cache")], reply=NEW),
            Ask("stored"),
        ],
    ),
    twice("9111 §5.4", "Pragma: no-cache", "origin", FRESH, again=[("pragma", "no-cache")]),
    twice("9111 §5.4", "another Pragma", "stored", FRESH, again=[("pragma", "foo")]),
    twice("9111 §5.2", "an unknown directive", "stored", FRESH, again=[cc("foo, bar=3")]),
    twice("9111 §5.2", "what is not a directive", "stored", FRESH, again=[cc("=, ;;")]),
    Case(
        "9111 §5.2.1.7",
        "only-if-cached, and nothing is",
        [Ask("stored", [cc("only-if-cached")], status=504), Ask("origin", reply=SPENT)],
    ),
    Case(
        "9111 §5.2.1.7",
        "only-if-cached, and something is",
        [Ask("origin", reply=SPENT), Ask("stored", [cc("only-if-cached")], status=200)],
    ),
    Case(
        "9111 §5.2.1.7",
        "only-if-cached, and it is stale",
        [Ask("origin", reply=SPENT), Ask("stored", [cc("only-if-cached")], status=504, after=4000)],
    ),
]

GONE: Final = Reply(closes=True)
FAILING: Final = [
    Case(
        "5861 §4",
        "stale-if-error, the origin fails",
        [
            Ask("origin", reply=Reply(200, [cc("max-age=60, stale-if-error=60")])),
            *(
                Ask("any", reply=Reply(status), after=after, status=200, content=b"answer 1")
                for status, after in ((500, 70), (502, 1), (503, 1), (504, 1))
            ),
            Ask("any", reply=GONE, status=200, content=b"answer 1"),
            Ask("origin", reply=Reply(503), after=60, status=503),
        ],
    ),
    Case(
        "5861 §4",
        "stale-if-error of the request",
        [
            Ask("origin", reply=Reply(200, [cc("max-age=60")])),
            Ask("any", [cc("stale-if-error=100")], reply=Reply(503), after=100, status=200, content=b"answer 1"),
        ],
    ),
    Case(
        "5861 §4",
        "an error that is the client's is told",
        [
            Ask("origin", reply=Reply(200, [cc("max-age=60, stale-if-error=600")])),
            Ask("origin", reply=Reply(404), after=70, status=404),
        ],
    ),
    Case(
        "9111 §4.2.4",
        "the origin is not to be reached",
        [
            Ask("origin", reply=Reply(200, [cc("max-age=60")])),
            Ask("any", reply=GONE, after=70, status=200, content=b"answer 1"),
        ],
    ),
    *(
        Case(
            "9111 §4.2.4",
            f"{directive}: never stale",
            [
                Ask("origin", reply=Reply(200, [cc(directive), ETAG])),
                Ask("any", reply=GONE, after=70, status=504),
                Ask("origin", reply=Reply(503), status=503),
            ],
        )
        for directive in (
            "max-age=60, must-revalidate",
            "max-age=60, proxy-revalidate",
            "s-maxage=60",
            "max-age=60, no-cache",
        )
    ),
    Case(
        "9111 §4.4",
        "never what was invalidated",
        [
            Ask("origin", reply=Reply(200, [cc("max-age=60, stale-if-error=600, stale-while-revalidate=600")])),
            Ask("origin", method="POST", body=b"x"),
            Ask("any", reply=GONE, status=502),
        ],
    ),
    Case(
        "9111 §4.3.3",
        "a stale error takes the place of no other",
        [
            Ask("origin", reply=Reply(503, [cc("max-age=60")]), status=503),
            Ask("origin", after=70, status=503),
        ],
    ),
    Case("9111 §4.3.3", "nothing is stored, and the origin fails", [Ask("any", reply=GONE, status=502)]),
    Case(
        "9111 §4.3.3",
        "an error does not end what is stored",
        [
            Ask("origin", reply=Reply(200, [FRESH])),
            Ask("any", [cc("no-cache")], reply=Reply(503), status=503),
            Ask("stored", status=200),
        ],
    ),
    Case(
        "5861 §4",
        "a client that wants no stale answer is told of the failure",
        [
            Ask("origin", reply=Reply(200, [cc("max-age=60, stale-if-error=600")])),
            Ask("origin", [cc("max-age=10")], reply=Reply(503), after=70, status=503),
            Ask("origin", [cc("no-cache")], status=503),
            Ask("any", [cc("max-age=100")], status=200, content=b"answer 1"),
        ],
    ),
    Case(
        "5861 §3",
        "stale while it is validated",
        [
            Ask("origin", reply=Reply(200, [cc("max-age=60, stale-while-revalidate=60")])),
            Ask("any", after=120, content=b"answer 1", has={"cache-status": "NexCache; hit; ttl=-60; detail=stale"}),
        ],
    ),
    Case(
        "5861 §3",
        "not for longer than it says",
        [
            Ask("origin", reply=Reply(200, [cc("max-age=60, stale-while-revalidate=60")])),
            Ask("origin", after=121, content=b"answer 2"),
        ],
    ),
    Case(
        "5861 §3",
        "not where it says nothing",
        [Ask("origin", reply=Reply(200, [cc("max-age=60")])), Ask("origin", after=60)],
    ),
    Case(
        "5861 §3",
        "not where it says never",
        [
            Ask("origin", reply=Reply(200, [cc("max-age=60, must-revalidate, stale-while-revalidate=60")])),
            Ask("origin", after=61),
        ],
    ),
    Case(
        "5861 §3",
        "not for longer than the client takes it",
        [
            Ask("origin", reply=Reply(200, [cc("max-age=60, stale-while-revalidate=60")])),
            Ask("origin", [cc("max-age=50")], after=61),
        ],
    ),
    Case(
        "5861 §4",
        "stale-if-error of the request beyond that of the response",
        [
            Ask("origin", reply=Reply(200, [cc("max-age=60, stale-if-error=10")])),
            Ask("any", [cc("stale-if-error=100")], reply=Reply(503), after=100, status=200),
            Ask("origin", [cc("stale-if-error=20")], status=503),
        ],
    ),
]

RANGING: Final = [
    Case(
        "9110 §14.2",
        "ranges of what is stored",
        [
            Ask("origin", reply=Reply(200, [FRESH, ETAG, ("content-type", "text/plain")], b"0123456789")),
            Ask(
                "stored",
                [("range", "bytes=2-4")],
                status=206,
                content=b"234",
                has={
                    "content-range": "bytes 2-4/10",
                    "content-length": "3",
                    "etag": '"one"',
                    "content-type": "text/plain",
                },
            ),
            Ask("stored", [("range", "bytes=7-")], status=206, content=b"789", has={"content-range": "bytes 7-9/10"}),
            Ask("stored", [("range", "bytes=-2")], status=206, content=b"89", has={"content-range": "bytes 8-9/10"}),
            Ask("stored", [("range", "bytes=-20")], status=206, content=b"0123456789"),
            Ask("stored", [("range", "BYTES=0-0")], status=206, content=b"0"),
            Ask("stored", [("range", "bytes=5-99")], status=206, content=b"56789"),
            Ask("stored", [("range", "bytes=10-")], status=416, has={"content-range": "bytes */10"}, content=b""),
            Ask("stored", [("range", "bytes=-0")], status=416),
            Ask("stored", [("range", "bytes=4-2")], status=200, content=b"0123456789"),
            Ask("stored", [("range", "lines=1-2")], status=200),
            Ask("stored", [("range", "bytes=a-b")], status=200),
            Ask("stored", [("range", "bytes=0-5, 2-7")], status=200),
            Ask("stored", [("range", "bytes=0-1, 8-9")], status=206),
            Ask("stored", [("range", "bytes=0-1")], method="HEAD", status=200),
            Ask("stored", [("range", "bytes=0-1"), ("if-none-match", '"one"')], status=304),
            Ask("stored", status=200, content=b"0123456789"),
        ],
    ),
    Case(
        "9110 §13.1.5",
        "If-Range by tag",
        [
            Ask("origin", reply=Reply(200, [FRESH, ETAG], b"0123456789")),
            Ask("stored", [("range", "bytes=2-4"), ("if-range", '"one"')], status=206),
            Ask("stored", [("range", "bytes=2-4"), ("if-range", '"two"')], status=200),
            Ask("stored", [("range", "bytes=2-4"), ("if-range", 'W/"one"')], status=200),
        ],
    ),
    Case(
        "9110 §13.1.5",
        "If-Range by a weak tag never holds",
        [
            Ask("origin", reply=Reply(200, [FRESH, ("etag", 'W/"one"')], b"0123456789")),
            Ask("stored", [("range", "bytes=2-4"), ("if-range", 'W/"one"')], status=200),
        ],
    ),
    Case(
        "9110 §13.1.5",
        "If-Range by date",
        [
            Ask("origin", reply=Reply(200, [FRESH, ("last-modified", "Mon, 02 Jan 2023 10:00:00 GMT")], b"0123456789")),
            Ask("stored", [("range", "bytes=2-4"), ("if-range", "Mon, 02 Jan 2023 10:00:00 GMT")], status=206),
            Ask("stored", [("range", "bytes=2-4"), ("if-range", "Tue, 03 Jan 2023 10:00:00 GMT")], status=200),
        ],
    ),
    Case(
        "9110 §14.2",
        "a range of what is not stored goes to the origin",
        [
            Ask(
                "origin",
                [("range", "bytes=2-4")],
                reply=Reply(206, [FRESH, ("content-range", "bytes 2-4/10")], b"234"),
                status=206,
                sends={"range": "bytes=2-4"},
            ),
            Ask("origin", reply=Reply(200, [FRESH], b"0123456789"), status=200),
        ],
    ),
    Case(
        "9110 §14.2",
        "no ranges, and very many",
        [
            Ask("origin", reply=Reply(200, [FRESH], b"0123456789" * 10)),
            Ask("stored", [("range", "bytes=")], status=200),
            Ask("stored", [("range", "bytes=,")], status=200),
            Ask(
                "stored",
                [("range", "bytes=" + ",".join(f"{number * 2}-{number * 2}" for number in range(17)))],
                status=200,
            ),
            Ask(
                "stored",
                [("range", "bytes=" + ",".join(f"{number * 2}-{number * 2}" for number in range(16)))],
                status=206,
            ),
        ],
    ),
]


def part(begin: int, end: int, etag: str = '"one"', size: int = 10) -> Reply:
    """A part of ten digits as an origin sends it."""
    fields = [FRESH, ("etag", etag), ("content-range", f"bytes {begin}-{end}/{size}")]
    return Reply(206, fields, b"0123456789"[begin : end + 1])


PARTS: Final = [
    Case(
        "9111 §3.3",
        "a stored part answers what is within it",
        [
            Ask("origin", [("range", "bytes=2-6")], reply=part(2, 6), status=206),
            Ask(
                "stored", [("range", "bytes=2-6")], status=206, content=b"23456", has={"content-range": "bytes 2-6/10"}
            ),
            Ask(
                "stored",
                [("range", "bytes=3-4")],
                status=206,
                content=b"34",
                has={"content-range": "bytes 3-4/10", "content-length": "2"},
            ),
            Ask("origin", [("range", "bytes=0-4")], reply=part(0, 4), status=206, content=b"01234"),
            Ask("stored", [("range", "bytes=0-0")], status=206, content=b"0"),
        ],
    ),
    Case(
        "9111 §3.3",
        "a part answers no request for the whole",
        [
            Ask("origin", [("range", "bytes=2-6")], reply=part(2, 6), status=206),
            Ask("origin", reply=Reply(200, [FRESH, ETAG], b"0123456789"), sends={"range": None}, status=200),
            Ask("stored", content=b"0123456789"),
        ],
    ),
    Case(
        "9111 §3.3",
        "a suffix within what is stored",
        [
            Ask("origin", [("range", "bytes=-5")], reply=part(5, 9), status=206),
            Ask("stored", [("range", "bytes=-2")], status=206, content=b"89"),
            Ask("stored", [("range", "bytes=7-")], status=206, content=b"789"),
            Ask("origin", [("range", "bytes=-6")], reply=part(4, 9), status=206),
        ],
    ),
    Case(
        "9111 §3.4",
        "a part becomes whole",
        [
            Ask("origin", [("range", "bytes=0-4")], reply=part(0, 4), status=206),
            Ask(
                "origin",
                reply=part(5, 9),
                sends={"range": "bytes=5-", "if-range": '"one"'},
                status=200,
                content=b"0123456789",
                has={"content-length": "10", "content-range": None},
            ),
            Ask("stored", status=200, content=b"0123456789"),
        ],
    ),
    Case(
        "9111 §3.4",
        "not where the other part is of another representation",
        [
            Ask("origin", [("range", "bytes=0-4")], reply=part(0, 4), status=206),
            Ask("any", reply=part(5, 9, '"two"'), sends={"range": None}),
        ],
    ),
    Case(
        "9111 §3.4",
        "not by a weak tag",
        [
            Ask("origin", [("range", "bytes=0-4")], reply=part(0, 4, 'W/"one"'), status=206),
            Ask(
                "origin",
                reply=Reply(200, [FRESH], b"0123456789"),
                sends={"range": None},
                status=200,
                content=b"0123456789",
            ),
        ],
    ),
    Case(
        "9111 §3.4",
        "where the origin sends the whole instead",
        [
            Ask("origin", [("range", "bytes=0-4")], reply=part(0, 4), status=206),
            Ask("origin", reply=Reply(200, [FRESH], b"new"), status=200, content=b"new"),
            Ask("stored", content=b"new"),
        ],
    ),
    Case(
        "9110 §14.4",
        "a part that says nothing of its place is not stored",
        [
            Ask("origin", [("range", "bytes=0-4")], reply=Reply(206, [FRESH, ETAG], b"01234"), status=206),
            Ask("origin", [("range", "bytes=0-4")]),
        ],
    ),
    Case(
        "9110 §14.4",
        "nor one that has not as many bytes as it says",
        [
            Ask(
                "origin",
                [("range", "bytes=0-4")],
                reply=Reply(206, [FRESH, ETAG, ("content-range", "bytes 0-4/10")], b"012"),
                status=206,
            ),
            Ask("origin", [("range", "bytes=0-4")]),
        ],
    ),
    Case(
        "9111 §3.3",
        "several ranges of a part go to the origin",
        [
            Ask("origin", [("range", "bytes=0-4")], reply=part(0, 4), status=206),
            Ask("origin", [("range", "bytes=0-0, 2-2")], reply=Reply(200, [FRESH], b"0123456789")),
        ],
    ),
    Case(
        "9111 §3.3",
        "what lies beyond the whole goes to the origin",
        [
            Ask("origin", [("range", "bytes=0-4")], reply=part(0, 4), status=206),
            Ask("origin", [("range", "bytes=10-")], reply=Reply(416, [("content-range", "bytes */10")]), status=416),
        ],
    ),
    Case(
        "9111 §3.4",
        "not where a part is missing between",
        [
            Ask("origin", [("range", "bytes=0-4")], reply=part(0, 4), status=206),
            Ask("any", reply=part(6, 9), sends={"range": None}),
        ],
    ),
    Case(
        "9111 §3.4",
        "not where the other part has not as many bytes as it says",
        [
            Ask("origin", [("range", "bytes=0-4")], reply=part(0, 4), status=206),
            Ask(
                "any", reply=Reply(206, [FRESH, ETAG, ("content-range", "bytes 5-9/10")], b"56"), sends={"range": None}
            ),
        ],
    ),
]

TARGETED: Final = [
    *(
        case
        for name in ("cdn-cache-control", "nexcache-cache-control")
        for case in (
            twice(
                "9213 §2.2", f"{name} before Cache-Control", "stored", cc("no-store"), (name, "max-age=3600"), after=100
            ),
            twice("9213 §2.2", f"{name}: no-store", "origin", FRESH, (name, "no-store")),
            twice("9213 §2.2", f"{name} before a long max-age", "origin", FRESH, (name, "max-age=1"), after=100),
            twice(
                "9213 §2.2", f"{name} before Expires", "origin", ("expires", Date(3600)), (name, "max-age=1"), after=100
            ),
            twice("9213 §2.1", f"{name} that does not parse is ignored", "stored", FRESH, (name, "max-age=1;;;, =")),
            twice("9213 §2.1", f"{name} that is empty is ignored", "stored", FRESH, (name, "")),
            twice("9213 §2.1", f"{name} of upper case does not parse", "stored", FRESH, (name, "No-Store")),
            twice("9213 §2.1", f"{name} with a string is malformed", "origin", FRESH, (name, 'max-age="x"')),
            twice(
                "9213 §2.1",
                f"parameters of {name} are ignored",
                "stored",
                cc("no-store"),
                (name, "max-age=3600;foo=bar"),
            ),
            twice("9213 §2.1", f"{name}: false is not there", "stored", (name, "max-age=3600, no-store=?0")),
            twice("9213 §2.1", f"{name}: an unknown directive", "stored", (name, "max-age=3600, foo=(a b)")),
            twice("9213 §2.2", f"{name} is passed on", "stored", (name, "max-age=3600"), has={name: "max-age=3600"}),
        )
    ),
    twice(
        "9213 §2.2",
        "the more specific field first",
        "origin",
        ("cdn-cache-control", "max-age=3600"),
        ("nexcache-cache-control", "no-store"),
    ),
    twice(
        "9213 §2.2", "another's field says nothing", "origin", cc("no-store"), ("other-cache-control", "max-age=3600")
    ),
]


def _grouped(*groups: str) -> Reply:
    return Reply(200, [FRESH, *(("cache-groups", group) for group in groups)])


def _ending(*groups: str) -> Reply:
    return Reply(200, [("cache-group-invalidation", group) for group in groups])


GROUPING: Final = [
    Case(
        "9875 §3",
        "a group is invalidated",
        [
            Ask("origin", query="?a", reply=_grouped('"x{path}", "y{path}"')),
            Ask("origin", query="?b", reply=_grouped('"z{path}"')),
            Ask("origin", query="?c", method="POST", body=b"x", reply=_ending('"y{path}"')),
            Ask("stored", query="?b"),
            Ask("origin", query="?a", reply=_grouped('"x{path}"')),
        ],
    ),
    Case(
        "9875 §3",
        "whatever the status of the answer",
        [
            Ask("origin", query="?a", reply=_grouped('"x{path}"')),
            Ask(
                "origin",
                query="?c",
                method="POST",
                body=b"x",
                reply=Reply(404, [("cache-group-invalidation", '"x{path}"')]),
            ),
            Ask("origin", query="?a", reply=_grouped('"x{path}"')),
        ],
    ),
    Case(
        "9875 §3",
        "not by a safe method",
        [
            Ask("origin", query="?a", reply=_grouped('"x{path}"')),
            Ask("origin", query="?c", reply=_ending('"x{path}"')),
            Ask("origin", query="?c", method="OPTIONS"),
            Ask("stored", query="?a"),
        ],
    ),
    Case(
        "9875 §2",
        "case counts",
        [
            Ask("origin", query="?a", reply=_grouped('"x{path}"')),
            Ask("origin", query="?c", method="POST", body=b"x", reply=_ending('"X{path}"')),
            Ask("stored", query="?a"),
        ],
    ),
    Case(
        "9875 §2",
        "parameters do not",
        [
            Ask("origin", query="?a", reply=_grouped('"x{path}";a=1')),
            Ask("origin", query="?c", method="POST", body=b"x", reply=_ending('"x{path}";b')),
            Ask("origin", query="?a"),
        ],
    ),
    Case(
        "9651 §4.2",
        "what is no list of strings says nothing",
        [
            Ask("origin", query="?a", reply=_grouped("x{path}")),
            Ask("origin", query="?c", method="POST", body=b"x", reply=_ending('"x{path}')),
            Ask("stored", query="?a"),
        ],
    ),
    Case(
        "9875 §2",
        "many groups on several lines",
        [
            Ask("origin", query="?a", reply=_grouped(*(f'"{number}{{path}}"' for number in range(64)))),
            Ask("stored", query="?a"),
            Ask("origin", query="?c", method="POST", body=b"x", reply=_ending('"63{path}"')),
            Ask("origin", query="?a"),
        ],
    ),
    Case(
        "9875 §2.2.1",
        "what shares a group with what a write invalidates goes with it",
        [
            Ask("origin", query="?a", reply=_grouped('"x{path}"')),
            Ask("origin", query="?b", reply=_grouped('"y{path}", "x{path}"')),
            Ask("origin", query="?c", reply=_grouped('"y{path}"')),
            Ask("origin", query="?a", method="PUT", body=b"x", reply=Reply(200)),
            Ask("origin", query="?b", reply=_grouped('"x{path}"')),
            Ask("stored", query="?c"),
        ],
    ),
]

TELLING: Final = [
    Case(
        "9211 §2",
        "what the cache did",
        [
            Ask(
                "origin",
                reply=Reply(200, [FRESH, ETAG]),
                has={"cache-status": "NexCache; fwd=uri-miss; fwd-status=200; stored"},
            ),
            Ask("stored", has={"cache-status": "NexCache; hit; ttl=3600; detail=max-age"}),
            Ask("stored", after=100, has={"cache-status": "NexCache; hit; ttl=3500; detail=max-age"}),
            Ask("validated", reply=NEW, after=STALE_AFTER, has={"cache-status": "NexCache; fwd=stale; fwd-status=304"}),
            Ask("validated", [cc("no-cache")], has={"cache-status": "NexCache; fwd=request; fwd-status=304"}),
            Ask("origin", method="POST", body=b"x", reply=Reply(200), has={"cache-status": "NexCache; fwd=method"}),
            Ask(
                "origin",
                reply=Reply(200, [cc("no-store")]),
                has={"cache-status": "NexCache; fwd=uri-miss; fwd-status=200; detail=no-store"},
            ),
            Ask("origin", [cc("no-store")], has={"cache-status": "NexCache; fwd=request; detail=no-store"}),
        ],
    ),
    Case(
        "9211 §2.2",
        "another variant is missing",
        [
            Ask("origin", [("foo", "1")], reply=Reply(200, [FRESH, ("vary", "foo")])),
            Ask("origin", [("foo", "2")], has={"cache-status": "NexCache; fwd=vary-miss; fwd-status=200; stored"}),
        ],
    ),
    Case(
        "9211 §2.2",
        "stale because the origin failed",
        [
            Ask("origin", reply=Reply(200, [cc("max-age=60, stale-if-error=600")])),
            Ask(
                "any",
                reply=Reply(503),
                after=70,
                has={"cache-status": "NexCache; fwd=stale; fwd-status=503; detail=stale"},
            ),
        ],
    ),
    twice(
        "9211 §2.1",
        "which rule the lifetime was taken from",
        "stored",
        MODIFIED,
        has={"cache-status": "NexCache; hit; ttl=86400; detail=heuristic"},
    ),
    Case(
        "9211 §2.2",
        "whose wish it was",
        [
            Ask("origin", reply=Reply(200, [FRESH, ETAG])),
            Ask(
                "validated",
                [cc("max-age=10")],
                reply=NEW,
                after=100,
                has={"cache-status": "NexCache; fwd=request; fwd-status=304"},
            ),
            Ask(
                "validated",
                [cc("max-age=10")],
                after=STALE_AFTER,
                has={"cache-status": "NexCache; fwd=stale; fwd-status=304"},
            ),
        ],
    ),
]

CASES: Final = [
    *STORING,
    *FRESHNESS,
    *VARYING,
    *VALIDATING,
    *INVALIDATING,
    *ASKING,
    *FAILING,
    *RANGING,
    *PARTS,
    *TARGETED,
    *GROUPING,
    *TELLING,
]
