"""The finer points of the same rules: every spelling of a directive, a date or a number, every status and method, and
what an origin may do on the wire. As in `cases`, each names its section; `ALL` is both together.
"""

from collections.abc import Sequence
from typing import Final

from tests.conformance.cases import (
    CASES,
    ETAG,
    FRESH,
    MODIFIED,
    NEW,
    SPENT,
    STALE_AFTER,
    Ask,
    Case,
    From,
    cc,
    part,
    twice,
)
from tests.conformance.stand import Date, Reply

STORED: Final[From] = "stored"
ORIGIN: Final[From] = "origin"
VALIDATED: Final[From] = "validated"
CHANGED: Final = ("last-modified", "Mon, 02 Jan 2023 10:00:00 GMT")
DIGITS: Final = b"0123456789"
GONE: Final = Reply(closes=True)


def wire(head: str, body: bytes = b"") -> Reply:
    """An answer as the origin writes it."""
    return Reply(raw=head.replace("\n", "\r\n").encode("latin-1") + b"\r\n\r\n" + body)


def spelled(section: str, name: str, table: Sequence[tuple[str, From]], *fields: tuple[str, str | Date]) -> list[Case]:
    """The same exchange for every value of one field."""
    return [twice(section, f"{name}: {value}", expect, (name, value), *fields, after=10) for value, expect in table]


STATUSES: Final = [
    *(
        twice("9111 §3", f"{status} with a lifetime is stored, too", STORED, FRESH, status=status)
        for status in (
            *(201, 202, 205, 226, 300, 305, 401, 402, 403, 405, 406, 408, 409, 411, 412, 413, 415, 416, 417, 421),
            *(422, 423, 424, 425, 426, 428, 429, 431, 451, 505, 506, 507, 508, 510, 511),
        )
    ),
    *(
        twice(
            "9110 §15.1", f"{status} is not known, and may not be kept by heuristics", ORIGIN, MODIFIED, status=status
        )
        for status in (226, 299, 429, 451, 499, 599)
    ),
    *(
        case
        for status in (299, 499, 599)
        for case in (
            twice("9111 §3", f"{status} with Expires is stored", STORED, ("expires", Date(100)), status=status),
            twice("9111 §3", f"{status} with s-maxage is stored", STORED, cc("s-maxage=100"), status=status),
            twice("9111 §4.2.2", f"{status} and public", STORED, cc("public"), MODIFIED, status=status, after=10),
        )
    ),
    *(
        case
        for status in (203, 204, 300, 301, 308, 404, 405, 410, 414, 501)
        for case in (
            twice(
                "9111 §4.2.2",
                f"{status}: a tenth of a thousand seconds",
                STORED,
                ("last-modified", Date(-1000)),
                status=status,
                after=99,
            ),
            twice(
                "9111 §4.2.2",
                f"{status}: and no more",
                ORIGIN,
                ("last-modified", Date(-1000)),
                status=status,
                after=100,
            ),
        )
    ),
    *(
        twice(
            "9111 §5.2.2.3", f"must-understand, of {status}", expect, cc("must-understand, max-age=60"), status=status
        )
        for status, expect in ((404, STORED), (301, STORED), (503, STORED), (299, ORIGIN), (599, ORIGIN))
    ),
    twice(
        "9111 §5.2.2.3",
        "must-understand, and no-store, of an unknown status",
        ORIGIN,
        cc("must-understand, no-store, max-age=60"),
        status=599,
    ),
]

DATES: Final = [
    *(
        twice("9110 §5.6.7", f"Expires: {value}", expect, ("expires", value), after=10)
        for value, expect in (
            ("Thu, 18 Aug 2050 02:01:18 GMT", STORED),
            ("Thu, 18 Aug 9999 02:01:18 GMT", STORED),
            ("thu, 18 aug 2050 02:01:18 gmt", STORED),
            ("Wednesday, 18-Aug-27 02:01:18 GMT", STORED),
            ("Monday, 18-Aug-94 02:01:18 GMT", ORIGIN),
            ("thu aug 18 02:01:18 2050", STORED),
            ("Mon Aug  8 02:01:18 2050", STORED),
            ("Mon Aug 8 02:01:18 2050", ORIGIN),
            ("Thu Aug 18 02:01:18 2050 GMT", ORIGIN),
            ("Thu, 18 Aug 2050 2:01:18 GMT", ORIGIN),
            ("Mon, 8 Aug 2050 02:01:18 GMT", ORIGIN),
            ("Thu,18 Aug 2050 02:01:18 GMT", ORIGIN),
            ("Thu, 18  Aug 2050 02:01:18 GMT", ORIGIN),
            ("Thu, 18-Aug-2050 02:01:18 GMT", ORIGIN),
            ("Thu, 18-Aug-50 02:01:18 GMT", ORIGIN),
            ("Thu, 18 Aug 50 02:01:18 GMT", ORIGIN),
            ("Thu, 18 Aug 2050 02.01.18 GMT", ORIGIN),
            ("Thu, 18 Aug 2050 02:01 GMT", ORIGIN),
            ("Thu, 18 Aug 2050 02:01:18", ORIGIN),
            ("Thu, 18 Aug 2050 02:01:18 UTC", ORIGIN),
            ("Thu, 18 Aug 2050 02:01:18 +0000", ORIGIN),
            ("18 Aug 2050 02:01:18 GMT", ORIGIN),
            ("Xxx, 18 Aug 2050 02:01:18 GMT", ORIGIN),
            ("2050-08-18T02:01:18Z", ORIGIN),
            ("2544400878", ORIGIN),
            ('"Thu, 18 Aug 2050 02:01:18 GMT"', ORIGIN),
            ("Thu, 18 Aug 2050 02:01:18 GMT, Thu, 18 Aug 2050 02:01:18 GMT", ORIGIN),
        )
    ),
    *(
        twice("9111 §5.3", f"Expires: {value!r}, and heuristics would do", ORIGIN, ("expires", value), MODIFIED)
        for value in ("0", "-1", "", "Thu, 01 Jan 1970 00:00:00 GMT", "Thu, 18 Aug 1850 02:01:18 GMT")
    ),
    twice(
        "9111 §5.3",
        "the same Expires twice",
        STORED,
        ("expires", "Thu, 18 Aug 2050 02:01:18 GMT"),
        ("expires", "Thu, 18 Aug 2050 02:01:18 GMT"),
    ),
    twice("9111 §5.3", "Expires from Date on", STORED, ("date", Date(-50)), ("expires", Date(100)), after=99),
    twice("9111 §5.3", "and until then", ORIGIN, ("date", Date(-50)), ("expires", Date(100)), after=100),
    twice("9111 §5.3", "Expires without Date", STORED, ("expires", Date(100)), date=False, after=99),
    twice("9111 §5.3", "Expires without Date, over", ORIGIN, ("expires", Date(100)), date=False, after=100),
    twice("9111 §5.3", "Expires before a Date to come", ORIGIN, ("date", Date(1000)), ("expires", Date(900))),
    twice("9110 §6.6.1", "a Date that is none", STORED, ("date", "0"), FRESH, after=90, has={"age": "90"}),
    twice("9111 §4.2.2", "Last-Modified that is no date", ORIGIN, ("last-modified", "yesterday")),
    twice("9111 §4.2.2", "Last-Modified in an old format", STORED, ("last-modified", "Monday, 02-Jan-23 10:00:00 GMT")),
    twice("9111 §4.2.2", "heuristics, and max-age=0", ORIGIN, cc("max-age=0"), ("last-modified", Date(-1000))),
    twice("9111 §4.2.2", "heuristics, and must-revalidate", STORED, cc("must-revalidate"), MODIFIED, after=10),
]

DIRECTIVES: Final = [
    *spelled(
        "9111 §5.2",
        "cache-control",
        [
            ('max-age="100"', STORED),
            ("MaX-aGe=100", STORED),
            ("max-age=100,", STORED),
            (",max-age=100", STORED),
            ("\tmax-age=100", STORED),
            ("foo\t,\tmax-age=100", STORED),
            ("foo=bar,max-age=100", STORED),
            ("foo, bar, baz=1, max-age=100", STORED),
            ('foo="bar, max-age=0", max-age=100', STORED),
            (r'foo="a\", max-age=0", max-age=100', STORED),
            ('max-age=100, foo="no-store"', STORED),
            ("max-age=100, no-stored", STORED),
            ("max-age=100, xno-store", STORED),
            ("max-age=100, no_store", STORED),
            ("max-age=100, no-store-x", STORED),
            ("immutable, max-age=100", STORED),
            ("no-transform, max-age=100", STORED),
            ("max-age=100, stale-while-revalidate", STORED),
            ("max-age=100, stale-if-error=x", STORED),
            ("s-maxage=100", STORED),
            ('s-maxage="100"', STORED),
            ("S-MaxAge=100", STORED),
            ("max-age=0, s-maxage=100", STORED),
            ("max-age=2147483647", STORED),
            ("max-age=4294967296", STORED),
            ("max-age=18446744073709551616", STORED),
            ("max-age=99999999999999999999999999999999", STORED),
            ("max-age=+100", ORIGIN),
            ("max-age=1e3", ORIGIN),
            ("max-age=0x64", ORIGIN),
            ("max-age=100.5", ORIGIN),
            ("max-age=''", ORIGIN),
            ('max-age=""', ORIGIN),
            ('max-age="100', ORIGIN),
            ('max-age=100"', ORIGIN),
            ('"max-age"=100', ORIGIN),
            ("max-age:100", ORIGIN),
            ("max-age==100", ORIGIN),
            ("max-age=100=100", ORIGIN),
            ("max-age=100;", ORIGIN),
            ("max-age=100 foo", ORIGIN),
            ("foo max-age=100", ORIGIN),
            ("foo;max-age=100", ORIGIN),
            ("maxage=100", ORIGIN),
            ("max_age=100", ORIGIN),
            ("s-max-age=100", ORIGIN),
            ("s-maxage=0, max-age=100", ORIGIN),
            ("s-maxage=x, max-age=100", ORIGIN),
            ("s-maxage=-1, max-age=100", ORIGIN),
            ("max-age=100,\tno-store", ORIGIN),
            ("max-age=100; no-store", ORIGIN),
            ("max-age=100 no-store", ORIGIN),
            ('max-age=100, no-store=""', ORIGIN),
            ('max-age=100, private=""', ORIGIN),
            ("max-age=100, PRIVATE", ORIGIN),
        ],
    ),
    twice("9111 §5.2", "a lifetime on the second line", STORED, cc("foo"), cc("max-age=100"), after=10),
    twice("9111 §5.2", "an empty Cache-Control, and Expires", STORED, cc(""), ("expires", Date(100)), after=10),
    twice("9111 §5.2", "an unknown directive, and Expires", STORED, cc("foo"), ("expires", Date(100)), after=10),
    twice("9111 §4.2.1", "max-age=0, and Expires to come", ORIGIN, cc("max-age=0"), ("expires", Date(100))),
    twice("9111 §4.2.1", "max-age, and Expires: 0", STORED, cc("max-age=100"), ("expires", "0"), after=10),
    twice("9111 §4.2.1", "s-maxage, and Expires: 0", STORED, cc("s-maxage=100"), ("expires", "0"), after=10),
]

AGES: Final = [
    *(
        twice("9111 §5.1", f"Age: {value!r} is {age}", STORED, FRESH, ("age", value), has={"age": str(age)})
        for value, age in (
            ("0", 0),
            ("0010", 10),
            ("3599", 3599),
            ("0, 0", 0),
            ("5 ", 5),
            ("", 0),
            ('"7200"', 0),
            ("+7200", 0),
            ("7200;a=b", 0),
            ("old, 7200", 0),
        )
    ),
    *(
        twice("9111 §5.1", f"Age: {value} is too old", ORIGIN, FRESH, ("age", value))
        for value in ("3600", "7200, 10", str(2**31), str(2**32), str(2**63))
    ),
    twice("9111 §5.1", "two Ages, the large one first", ORIGIN, FRESH, ("age", "7200"), ("age", "10")),
    twice("9111 §4.2.3", "Age counts against Expires", ORIGIN, ("expires", Date(100)), ("age", "100")),
    twice("9111 §4.2.3", "and what passes since", STORED, ("expires", Date(100)), ("age", "50"), after=49),
    twice("9111 §4.2.3", "Age counts against heuristics", ORIGIN, MODIFIED, ("age", "90000")),
    Case(
        "9111 §4.2.3",
        "the time that the origin took is an age",
        [Ask(ORIGIN, reply=Reply(200, [FRESH], takes=10)), Ask(STORED, after=5, has={"age": "15"})],
    ),
    Case(
        "9111 §4.2.3",
        "and is added to Age",
        [Ask(ORIGIN, reply=Reply(200, [FRESH, ("age", "5")], takes=10)), Ask(STORED, has={"age": "15"})],
    ),
    Case(
        "9111 §5.1",
        "the Age of an answer that is passed on is the origin's",
        [Ask(ORIGIN, reply=Reply(200, [FRESH, ("age", "5")]), has={"age": "5"})],
    ),
]

FIELDS: Final = [
    Case(
        "9111 §3.1",
        "every other field is stored",
        [
            Ask(
                ORIGIN,
                reply=Reply(
                    200,
                    [
                        FRESH,
                        *(
                            stored := [
                                ("x-unknown", "1"),
                                ("x-empty", ""),
                                ("x-latin", "caf\xe9"),
                                ("x-long", "a" * 30_000),
                                ("content-foo", "b"),
                                ("content-type", "a/b"),
                                ("content-language", "en"),
                                ("content-location", "/a"),
                                ("content-md5", "c"),
                                ("clear-site-data", '"x"'),
                                ("server", "s"),
                                ("surrogate-control", "max-age=1"),
                                ("strict-transport-security", "max-age=1"),
                                ("access-control-allow-origin", "*"),
                                ("www-authenticate", "Basic"),
                                ("alt-svc", "clear"),
                                ("warning", '199 - "w"'),
                            ]
                        ),
                    ],
                ),
            ),
            Ask(STORED, has=dict(stored)),
        ],
    ),
    Case(
        "9111 §3.1",
        "what belongs to one connection is not",
        [
            Ask(expect, reply=reply, has=dict.fromkeys(("x-hop", "keep-alive", "te", "upgrade", "proxy-connection")))
            for expect, reply in (
                (
                    ORIGIN,
                    Reply(
                        200,
                        [
                            FRESH,
                            ("connection", "X-Hop, keep-alive"),
                            ("x-hop", "1"),
                            ("keep-alive", "timeout=5"),
                            ("te", "x"),
                            ("upgrade", "x"),
                            ("proxy-connection", "x"),
                        ],
                    ),
                ),
                (STORED, None),
            )
        ],
    ),
    twice(
        "9111 §3.1",
        "what is between the proxy and its client is not",
        STORED,
        FRESH,
        ("proxy-authentication-info", "x"),
        ("proxy-authorization", "x"),
        has={"proxy-authentication-info": None, "proxy-authorization": None},
    ),
    twice(
        "9111 §5.2.2.7",
        "private with two names, one in capitals",
        STORED,
        cc('max-age=60, private="X-A, x-b"'),
        ("x-a", "1"),
        ("x-b", "2"),
        ("x-c", "3"),
        has={"x-a": None, "x-b": None, "x-c": "3"},
    ),
    twice(
        "9111 §5.2.2.7",
        "private with a name that is not quoted",
        STORED,
        cc("max-age=60, private=x-a"),
        ("x-a", "1"),
        has={"x-a": None},
    ),
    *(
        twice("9111 §5.2.2.7", f"private with a name and without: {value}", ORIGIN, cc(value), ("x-a", "1"))
        for value in ('max-age=60, private="x-a", private', 'max-age=60, private, private="x-a"')
    ),
    *(
        twice("9111 §5.2.2.4", f"no-cache with a name and without: {value}", ORIGIN, cc(value), ("x-a", "1"))
        for value in ('max-age=60, no-cache="x-a", no-cache', 'max-age=60, no-cache, no-cache="x-a"')
    ),
    twice(
        "9111 §5.2.2.7",
        "private twice, each with a name",
        STORED,
        cc('max-age=60, private="x-a"'),
        cc('private="x-b"'),
        ("x-a", "1"),
        ("x-b", "2"),
        ("x-c", "3"),
        has={"x-a": None, "x-b": None, "x-c": "3"},
    ),
    twice(
        "9111 §5.2.2.7",
        "a private Set-Cookie",
        STORED,
        cc('max-age=60, private="set-cookie"'),
        ("set-cookie", "a=b"),
        has={"set-cookie": None},
    ),
    Case(
        "9111 §5.2.2.4",
        "no-cache with a name that is not quoted",
        [
            Ask(ORIGIN, reply=Reply(200, [cc("no-cache=x-a, max-age=60"), ("x-a", "1"), ("x-b", "2")])),
            Ask(STORED, has={"x-a": None, "x-b": "2"}),
        ],
    ),
    Case(
        "9111 §5.2.2.4",
        "fields that are withheld are sent once they are confirmed",
        [
            Ask(ORIGIN, reply=Reply(200, [cc('no-cache="x-a", max-age=60'), ETAG, ("x-a", "1")])),
            Ask(STORED, has={"x-a": None}),
            Ask(VALIDATED, reply=Reply(304, [ETAG]), after=70, has={"x-a": "1"}),
        ],
    ),
    *(
        twice("9111 §7.3", f"a cookie of the request says nothing, {how}", STORED, FRESH, request=first, again=again)
        for how, first, again in (
            ("both times", [("cookie", "a=b")], [("cookie", "c=d")]),
            ("the second time", [], [("cookie", "a=b")]),
        )
    ),
    twice(
        "9111 §7.3",
        "two cookies",
        STORED,
        FRESH,
        ("set-cookie", "a=b"),
        ("set-cookie", "c=d"),
        has={"set-cookie": "a=b, c=d"},
    ),
    *(
        twice("9111 §3.5", f"Authorization, and {value}", ORIGIN, cc(value), request=[("authorization", "Basic x")])
        for value in ("private, public, max-age=60", "proxy-revalidate, max-age=60", "s-maxage=0, max-age=60")
    ),
    twice("9111 §3.5", "Authorization, and Expires", ORIGIN, ("expires", Date(60)), request=[("authorization", "x")]),
    twice(
        "9111 §3.5",
        "Authorization, must-revalidate, and heuristics",
        STORED,
        cc("must-revalidate"),
        MODIFIED,
        request=[("authorization", "x")],
    ),
    *(
        twice(
            "9111 §3.5",
            f"what is public answers {whom}",
            STORED,
            cc("public, max-age=60"),
            request=[("authorization", "one")],
            again=again,
        )
        for whom, again in (("another's credentials", [("authorization", "two")]), ("none", []))
    ),
    twice(
        "9111 §3.5",
        "what was stored without credentials answers with them",
        STORED,
        FRESH,
        again=[("authorization", "x")],
    ),
]

WIRES: Final = [
    *(
        Case(
            "9112 §6",
            f"a body {how}",
            [
                Ask(ORIGIN, reply=wire(head + "\ncache-control: max-age=60", body), status=200, content=b"hello"),
                Ask(
                    STORED,
                    content=b"hello",
                    has={"content-length": "5", "transfer-encoding": None, "x-trailer": None},
                ),
            ],
        )
        for how, head, body in (
            ("that ends with the connection", "HTTP/1.1 200 OK", b"hello"),
            ("of HTTP/1.0 that ends with the connection", "HTTP/1.0 200 OK", b"hello"),
            ("of HTTP/1.0 with a length", "HTTP/1.0 200 OK\ncontent-length: 5", b"hello"),
            ("in chunks", "HTTP/1.1 200 OK\ntransfer-encoding: chunked", b"2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\n\r\n"),
            (
                "in chunks, with trailers",
                "HTTP/1.1 200 OK\ntransfer-encoding: chunked\ntrailer: x-trailer",
                b"5\r\nhello\r\n0\r\nx-trailer: 1\r\n\r\n",
            ),
            ("whose length is said twice", "HTTP/1.1 200 OK\ncontent-length: 5\ncontent-length: 5", b"hello"),
            ("after a reason of no words", "HTTP/1.1 200 \ncontent-length: 5", b"hello"),
        )
    ),
    *(
        Case(
            "9111 §3.3",
            f"what breaks off is not stored: {how}",
            [
                Ask(ORIGIN, reply=wire("HTTP/1.1 200 OK\ncache-control: max-age=60\n" + framing, body), status=200),
                Ask(ORIGIN, reply=Reply(200, [FRESH], b"whole"), content=b"whole"),
                Ask(STORED, content=b"whole"),
            ],
        )
        for how, framing, body in (
            ("by its length", "content-length: 10", b"hello"),
            ("in a chunk", "transfer-encoding: chunked", b"5\r\nhel"),
            ("without the last chunk", "transfer-encoding: chunked", b"5\r\nhello\r\n"),
        )
    ),
    *(
        Case(
            "9110 §15.2",
            f"{interim} before the answer",
            [
                Ask(
                    ORIGIN,
                    reply=wire(
                        f"HTTP/1.1 {interim}\nlink: </a>\n\nHTTP/1.1 {interim}\n\n"
                        "HTTP/1.1 200 OK\ncache-control: max-age=60\ncontent-length: 5",
                        b"hello",
                    ),
                    status=200,
                    content=b"hello",
                    has={"link": None},
                ),
                Ask(STORED, content=b"hello"),
            ],
        )
        for interim in ("100 Continue", "102 Processing", "103 Early Hints", "199 Unknown")
    ),
    Case(
        "9112 §5.2",
        "a field on two lines",
        [
            Ask(ORIGIN, reply=wire("HTTP/1.1 200 OK\ncache-control: foo,\n max-age=60\ncontent-length: 5", b"hello")),
            Ask(STORED, content=b"hello"),
        ],
    ),
    Case(
        "9110 §5.5",
        "a field with NUL is not passed on",
        [
            Ask(
                "any", reply=wire("HTTP/1.1 200 OK\ncache-control: max-age=60\nx: a\0b\ncontent-length: 0"), status=502
            ),
            Ask(ORIGIN, reply=SPENT, status=200),
        ],
    ),
    Case(
        "9110 §15.6.3",
        "an origin that leaves in the middle of its fields",
        [
            Ask("any", reply=wire("HTTP/1.1 200 OK\ncache-control: max-age=60\nfoo"), status=502),
            Ask(ORIGIN, reply=SPENT, status=200),
        ],
    ),
    Case(
        "9111 §3",
        "an empty body",
        [
            Ask(ORIGIN, reply=Reply(200, [FRESH], b"")),
            Ask(STORED, content=b"", has={"content-length": "0"}),
        ],
    ),
    Case(
        "9111 §3",
        "no body at all",
        [
            Ask(ORIGIN, reply=Reply(204, [FRESH]), status=204),
            Ask(STORED, status=204, content=b"", has={"content-length": None}),
        ],
    ),
    twice(
        "9110 §5.5",
        "white space around a value is none of it",
        STORED,
        FRESH,
        ("vary", "foo"),
        request=[("foo", "  1 ")],
        again=[("foo", "1")],
    ),
    Case(
        "9111 §2",
        "another query is another URI",
        [
            Ask(ORIGIN, query="?a=1", reply=SPENT),
            Ask(STORED, query="?a=1"),
            Ask(ORIGIN, query="?a=2"),
            Ask(ORIGIN, query="?a=1&b=2"),
            Ask(ORIGIN, query="?A=1"),
            Ask(ORIGIN),
        ],
    ),
    Case(
        "9110 §9.3.1",
        "a GET with a body goes past the cache",
        [Ask(ORIGIN, body=b"a", reply=SPENT), Ask(ORIGIN, body=b"a"), Ask(ORIGIN), Ask(STORED)],
    ),
    *(
        Case(
            "9111 §3",
            f"{method} is not stored",
            [
                Ask(ORIGIN, method=method, body=b"x", reply=SPENT),
                Ask(ORIGIN, method=method, body=b"x"),
                Ask(ORIGIN),
            ],
        )
        for method in ("OPTIONS", "PUT", "POST", "REPORT")
    ),
]

HOPS: Final = [
    Case(
        "9110 §7.6.2",
        "Max-Forwards is counted down, and ends here at nought",
        [
            Ask(ORIGIN, [("max-forwards", "3")], method="OPTIONS", sends={"max-forwards": "2"}),
            Ask(ORIGIN, [("max-forwards", "1")], method="TRACE", sends={"max-forwards": "0"}),
            Ask(STORED, [("max-forwards", "0")], method="OPTIONS", status=200, content=b""),
            Ask(STORED, [("max-forwards", "0")], method="TRACE", status=405, content=b""),
            Ask(ORIGIN, [("max-forwards", "x")], method="OPTIONS", sends={"max-forwards": "x"}),
            Ask(ORIGIN, [("max-forwards", "0")], reply=SPENT, status=200),
        ],
    ),
]

VARIANTS: Final = [
    twice("9111 §4.1", "what is no name", ORIGIN, FRESH, ("vary", "foo bar"), request=[("foo", "1")]),
    twice("9111 §4.1", "what the proxy writes for each client", ORIGIN, FRESH, ("vary", "X-Forwarded-For")),
    twice("9111 §4.1", "an empty Vary", STORED, FRESH, ("vary", ""), request=[("foo", "1")], again=[("foo", "2")]),
    twice(
        "9111 §4.1", "empty members", ORIGIN, FRESH, ("vary", ", foo ,"), request=[("foo", "1")], again=[("foo", "2")]
    ),
    twice("9111 §4.1", "* before another", ORIGIN, FRESH, ("vary", "*, foo"), request=[("foo", "1")]),
    twice("9111 §4.1", "* after nothing", ORIGIN, FRESH, ("vary", ", *"), request=[("foo", "1")]),
    *(
        twice(
            "9111 §4.1",
            f"three names, {how}",
            expect,
            FRESH,
            ("vary", "a, b, c"),
            request=[("a", "1"), ("b", "2"), ("c", "3")],
            again=again,
        )
        for how, expect, again in (
            ("in another order", STORED, [("c", "3"), ("a", "1"), ("b", "2")]),
            ("one missing", ORIGIN, [("a", "1"), ("b", "2")]),
            ("one different", ORIGIN, [("a", "1"), ("b", "2"), ("c", "4")]),
        )
    ),
    twice(
        "9111 §4.1",
        "three names, one missing both times",
        STORED,
        FRESH,
        ("vary", "a, b, c"),
        request=[("a", "1"), ("c", "3")],
    ),
    twice(
        "9111 §4.1",
        "two lines in another order",
        ORIGIN,
        FRESH,
        ("vary", "foo"),
        request=[("foo", "1"), ("foo", "2")],
        again=[("foo", "2"), ("foo", "1")],
    ),
    twice(
        "9111 §4.1",
        "one of two lines",
        ORIGIN,
        FRESH,
        ("vary", "foo"),
        request=[("foo", "1"), ("foo", "2")],
        again=[("foo", "1")],
    ),
    twice(
        "9111 §4.1",
        "white space in quotes counts",
        ORIGIN,
        FRESH,
        ("vary", "foo"),
        request=[("foo", '"1, 2"')],
        again=[("foo", '"1,2"')],
    ),
    twice(
        "9111 §4.1",
        "cookies",
        ORIGIN,
        FRESH,
        ("vary", "cookie"),
        request=[("cookie", "a=b")],
        again=[("cookie", "a=B")],
    ),
    twice(
        "9111 §4.1",
        "user agents",
        ORIGIN,
        FRESH,
        ("vary", "user-agent"),
        request=[("user-agent", "a")],
        again=[("user-agent", "b")],
    ),
    twice("9111 §4.1", "a long value", STORED, FRESH, ("vary", "foo"), request=[("foo", "a" * 8000)]),
    Case(
        "9111 §4.1",
        "each variant is validated by its own tag",
        [
            Ask(ORIGIN, [("foo", "1")], reply=Reply(200, [FRESH, ("vary", "foo"), ("etag", '"a"')], b"a")),
            Ask(ORIGIN, [("foo", "2")], reply=Reply(200, [FRESH, ("vary", "foo"), ("etag", '"b"')], b"b")),
            *(
                Ask(
                    "any",
                    [("foo", value)],
                    reply=Reply(304, [FRESH, ("vary", "foo"), ("etag", tag)]),
                    after=after,
                    sends={"if-none-match": tag},
                    status=200,
                    content=content,
                )
                for value, tag, after, content in (("1", '"a"', STALE_AFTER, b"a"), ("2", '"b"', 0, b"b"))
            ),
        ],
    ),
    Case(
        "9111 §4.1",
        "a 304 that says only now by what it varies",
        [
            Ask(ORIGIN, [("foo", "1")], reply=Reply(200, [FRESH, ETAG])),
            Ask(VALIDATED, [("foo", "1")], reply=Reply(304, [FRESH, ETAG, ("vary", "foo")]), after=STALE_AFTER),
            Ask(STORED, [("foo", "1")], content=b"answer 1"),
            Ask(ORIGIN, [("foo", "2")], reply=Reply(200, [FRESH, ("vary", "foo")], b"two"), content=b"two"),
            Ask(STORED, [("foo", "1")], content=b"answer 1"),
            Ask(STORED, [("foo", "2")], content=b"two"),
        ],
    ),
    Case(
        "9111 §4.1",
        "a 304 that says that it varies by what nobody can see",
        [
            Ask(ORIGIN, reply=Reply(200, [FRESH, ETAG])),
            Ask(VALIDATED, reply=Reply(304, [FRESH, ETAG, ("vary", "*")]), after=STALE_AFTER),
            Ask(ORIGIN, reply=SPENT),
        ],
    ),
    Case(
        "9110 §9.3.2",
        "a HEAD selects as a GET does",
        [
            Ask(ORIGIN, [("foo", "1")], reply=Reply(200, [FRESH, ("vary", "foo")])),
            Ask(STORED, [("foo", "1")], method="HEAD"),
            Ask(ORIGIN, [("foo", "2")], method="HEAD"),
            Ask(STORED, [("foo", "1")]),
        ],
    ),
]

HEADS: Final = [
    Case(
        "9110 §9.3.2",
        "a HEAD is answered from a stored 404",
        [Ask(ORIGIN, reply=Reply(404, [FRESH])), Ask(STORED, method="HEAD", status=404, content=b"")],
    ),
    Case(
        "9111 §4.3.5",
        "a HEAD that fails leaves what is stored",
        [
            Ask(ORIGIN, reply=SPENT),
            Ask(ORIGIN, [cc("no-cache")], method="HEAD", reply=Reply(404), status=404),
            Ask(STORED),
        ],
    ),
    Case(
        "9111 §4.3.5",
        "a HEAD of the same length makes it fresh",
        [
            Ask(ORIGIN, reply=Reply(200, [FRESH], b"12345")),
            Ask(
                ORIGIN,
                method="HEAD",
                after=STALE_AFTER,
                reply=Reply(200, [FRESH, ("content-length", "5"), ("x-new", "1")]),
            ),
            Ask(STORED, has={"x-new": "1", "age": "0"}, content=b"12345"),
        ],
    ),
    Case(
        "9111 §4.3.5",
        "a HEAD with another date ends the stored response",
        [
            Ask(ORIGIN, reply=Reply(200, [FRESH, CHANGED])),
            Ask(ORIGIN, [cc("no-cache")], method="HEAD", reply=Reply(200, [FRESH, ("last-modified", Date())])),
            Ask(ORIGIN),
        ],
    ),
    Case(
        "5861 §4",
        "a HEAD while the origin fails",
        [
            Ask(ORIGIN, reply=Reply(200, [cc("max-age=60, stale-if-error=60")], b"12345")),
            Ask("any", method="HEAD", reply=GONE, after=70, status=200, has={"content-length": "5", "age": "70"}),
            Ask("any", method="HEAD", reply=Reply(503), status=200, content=b"", has={"content-length": "5"}),
            Ask(ORIGIN, method="HEAD", after=60, status=503),
        ],
    ),
    Case(
        "9111 §5.2.2.2",
        "a HEAD of what must be validated while the origin is away",
        [
            Ask(ORIGIN, reply=Reply(200, [cc("max-age=60, must-revalidate")])),
            Ask("any", method="HEAD", reply=GONE, after=70, status=504),
        ],
    ),
]

CONDITIONS: Final = [
    Case(
        "9111 §4.3.1",
        "a tag without quotes is sent as it is, and still the same",
        [
            Ask(ORIGIN, reply=Reply(200, [FRESH, ("etag", "abc")])),
            Ask(STORED, [("if-none-match", "abc")], status=304),
            Ask(STORED, [("if-none-match", '"abc"')], status=200),
            Ask(
                VALIDATED,
                reply=Reply(304, [FRESH, ("etag", "abc")]),
                after=STALE_AFTER,
                sends={"if-none-match": "abc"},
            ),
            Ask(STORED),
        ],
    ),
    Case(
        "9111 §4.3.2",
        "lists of tags",
        [
            Ask(ORIGIN, reply=Reply(200, [FRESH, ("etag", '"a,b"')])),
            *(
                Ask(STORED, [("if-none-match", value)], status=status)
                for value, status in (
                    ('"x","a,b"', 304),
                    ('"x", W/"a,b" , "y"', 304),
                    (', "a,b"', 304),
                    ('"x, a,b"', 200),
                    ('"a"', 200),
                    ("a,b", 200),
                )
            ),
        ],
    ),
    Case(
        "9110 §8.8.3.2",
        "tags are compared weakly",
        [
            Ask(ORIGIN, reply=Reply(200, [FRESH, ("etag", 'W/"one"')])),
            Ask(STORED, [("if-none-match", 'W/"one"')], status=304),
            Ask(STORED, [("if-none-match", '"one"')], status=304),
            Ask(STORED, [("if-none-match", '"ONE"')], status=200),
        ],
    ),
    Case(
        "9110 §13.1.3",
        "a tag counts before a date",
        [
            Ask(ORIGIN, reply=Reply(200, [FRESH, ETAG, CHANGED])),
            Ask(STORED, [("if-none-match", '"two"'), ("if-modified-since", CHANGED[1])], status=200),
            Ask(
                STORED,
                [("if-none-match", '"one"'), ("if-modified-since", "Sun, 01 Jan 2023 10:00:00 GMT")],
                status=304,
            ),
        ],
    ),
    Case(
        "9110 §13.1.3",
        "also where what is stored has none",
        [
            Ask(ORIGIN, reply=Reply(200, [FRESH, CHANGED])),
            Ask(STORED, [("if-none-match", '"two"'), ("if-modified-since", CHANGED[1])], status=200),
        ],
    ),
    Case(
        "9110 §13.1.3",
        "dates in the old formats",
        [
            Ask(ORIGIN, reply=Reply(200, [FRESH, CHANGED])),
            Ask(STORED, [("if-modified-since", "Monday, 02-Jan-23 10:00:00 GMT")], status=304),
            Ask(STORED, [("if-modified-since", "Mon Jan  2 10:00:00 2023")], status=304),
            Ask(STORED, [("if-modified-since", "Mon Jan  2 09:59:59 2023")], status=200),
        ],
    ),
    Case(
        "9110 §15.4.5",
        "the fields of a 304",
        [
            Ask(
                ORIGIN,
                reply=Reply(
                    200,
                    [FRESH, ETAG, CHANGED, ("vary", "foo"), ("content-location", "/x"), ("content-type", "text/plain")],
                ),
            ),
            Ask(
                STORED,
                [("if-none-match", '"one"')],
                after=5,
                status=304,
                content=b"",
                has={
                    "etag": '"one"',
                    "vary": "foo",
                    "content-location": "/x",
                    "cache-control": "max-age=3600",
                    "content-type": None,
                    "content-length": None,
                    "last-modified": None,
                    "age": "5",
                },
            ),
        ],
    ),
    Case(
        "9110 §15.4.5",
        "a 304 of what has no entity tag tells its date",
        [
            Ask(ORIGIN, reply=Reply(200, [FRESH, CHANGED])),
            Ask(STORED, [("if-modified-since", CHANGED[1])], status=304, has={"last-modified": CHANGED[1]}),
        ],
    ),
    Case(
        "9111 §4.3.2",
        "a condition where nothing is stored: the whole answer is stored",
        [Ask(ORIGIN, [("if-none-match", '"x"')], reply=Reply(200, [FRESH, ETAG]), status=200), Ask(STORED)],
    ),
    Case(
        "9111 §4.3.2",
        "a date where nothing is stored goes to the origin",
        [
            Ask(
                ORIGIN,
                [("if-modified-since", CHANGED[1])],
                reply=Reply(304, [FRESH]),
                status=304,
                sends={"if-modified-since": CHANGED[1]},
            ),
            Ask(ORIGIN, reply=SPENT),
        ],
    ),
    Case(
        "9111 §4.3.3",
        "the client has what is stored, the origin has something newer",
        [
            Ask(ORIGIN, reply=Reply(200, [FRESH, ETAG])),
            Ask(
                ORIGIN,
                [("if-none-match", '"one"')],
                reply=Reply(200, [FRESH, ("etag", '"two"')], b"new"),
                after=STALE_AFTER,
                status=200,
                content=b"new",
            ),
            Ask(STORED, content=b"new"),
        ],
    ),
    Case(
        "9111 §4.3.4",
        "a 304 that names nothing is about what was asked",
        [
            Ask(ORIGIN, reply=Reply(200, [FRESH, ETAG])),
            Ask(VALIDATED, reply=Reply(304, [FRESH, ("x-new", "1")]), after=STALE_AFTER, has={"x-new": "1"}),
            Ask(STORED, has={"x-new": "1", "etag": '"one"'}),
        ],
    ),
    Case(
        "9111 §3.2",
        "what a 304 changes and what not",
        [
            Ask(
                ORIGIN,
                reply=Reply(
                    200,
                    [
                        FRESH,
                        ETAG,
                        CHANGED,
                        ("x-a", "1"),
                        ("content-type", "text/plain"),
                        ("content-language", "en"),
                        ("content-location", "/a"),
                        ("content-md5", "1"),
                        ("set-cookie", "a=1"),
                        ("expires", Date(50)),
                    ],
                    b"12345",
                ),
            ),
            *(
                Ask(
                    expect,
                    reply=reply,
                    after=after,
                    content=b"12345",
                    has={
                        "cache-control": "max-age=7200",
                        "x-a": "2",
                        "content-type": "text/plain",
                        "content-language": "de",
                        "content-location": "/b",
                        "content-md5": "2",
                        "set-cookie": "a=2",
                        "content-length": "5",
                        "content-range": None,
                        "x-hop": None,
                        "proxy-authenticate": None,
                    },
                )
                for expect, after, reply in (
                    (
                        VALIDATED,
                        STALE_AFTER,
                        Reply(
                            304,
                            [
                                cc("max-age=7200"),
                                ETAG,
                                ("x-a", "2"),
                                ("content-language", "de"),
                                ("content-location", "/b"),
                                ("content-md5", "2"),
                                ("set-cookie", "a=2"),
                                ("content-length", "9"),
                                ("content-range", "bytes 0-1/9"),
                                ("connection", "x-hop"),
                                ("x-hop", "1"),
                                ("proxy-authenticate", "x"),
                            ],
                        ),
                    ),
                    (STORED, 7000, None),
                )
            ),
        ],
    ),
    Case(
        "9111 §3.2",
        "a 304's Date makes what is stored young again",
        [
            Ask(ORIGIN, reply=Reply(200, [FRESH, ETAG])),
            Ask(VALIDATED, reply=Reply(304, [ETAG]), after=STALE_AFTER, has={"age": "0"}),
            Ask(STORED, after=3599),
            Ask(VALIDATED, after=1),
        ],
    ),
    Case(
        "9111 §3.2",
        "a 304's Expires counts",
        [
            Ask(ORIGIN, reply=Reply(200, [("expires", Date(100)), ETAG])),
            Ask(VALIDATED, reply=Reply(304, [ETAG, ("expires", Date(100))]), after=200),
            Ask(STORED, after=99),
        ],
    ),
    Case(
        "9111 §3.2",
        "a 304 may shorten the lifetime",
        [
            Ask(ORIGIN, reply=Reply(200, [FRESH, ETAG])),
            Ask(VALIDATED, reply=Reply(304, [cc("max-age=0"), ETAG]), after=STALE_AFTER),
            Ask(VALIDATED),
        ],
    ),
    *(
        Case(
            "9111 §4.3.3",
            f"{status} in answer to a validation is passed on",
            [
                Ask(ORIGIN, reply=Reply(200, [FRESH, ETAG])),
                Ask(ORIGIN, reply=Reply(status, [("location", "/x")]), after=STALE_AFTER, status=status),
                Ask(ORIGIN, status=status),
            ],
        )
        for status in (302, 404, 410, 501)
    ),
    *(
        Case(
            "9111 §5.2.2.4",
            f"no-cache, and {beside}",
            [
                Ask(ORIGIN, reply=Reply(200, [*fields, ETAG])),
                Ask(VALIDATED, again, reply=Reply(304, [ETAG])),
                Ask(VALIDATED, again),
            ],
        )
        for beside, fields, again in (
            ("stale-while-revalidate", [cc("no-cache, max-age=60, stale-while-revalidate=100")], []),
            ("Expires", [cc("no-cache"), ("expires", Date(1000))], []),
            ("max-stale of the request", [cc("no-cache")], [cc("max-stale")]),
        )
    ),
    Case(
        "8246 §2",
        "immutable is fresh as long as it says, and a client may still ask",
        [
            Ask(ORIGIN, reply=Reply(200, [cc("immutable, max-age=100"), ETAG])),
            Ask(STORED, after=99),
            Ask(VALIDATED, [cc("no-cache")], reply=Reply(304, [ETAG])),
            Ask(VALIDATED, after=100),
        ],
    ),
]

WISHES: Final = [
    *(
        twice("9111 §5.2.1", f"{value!r}", ORIGIN, FRESH, again=[cc(value)], after=6)
        for value in ("MAX-AGE=5", "max-age=0", 'max-age="5"', "foo, max-age=5", "No-Cache", "no-cache,", "max-age=x")
    ),
    *(
        twice("9111 §5.4", f"Pragma: {value}", ORIGIN, FRESH, again=[("pragma", value)])
        for value in ("No-Cache", "foo, no-cache")
    ),
    twice("9111 §5.4", "Cache-Control before Pragma", STORED, FRESH, again=[("pragma", "no-cache"), cc("max-age=60")]),
    Case(
        "9111 §5.2.1.1",
        "who names an age takes no stale answer while it is validated",
        [
            Ask(ORIGIN, reply=Reply(200, [cc("max-age=60, stale-while-revalidate=100")])),
            Ask(ORIGIN, [cc("max-age=200")], after=100, content=b"answer 2"),
        ],
    ),
    Case(
        "9111 §5.2.1.1",
        "unless it names max-stale, too",
        [
            Ask(ORIGIN, reply=Reply(200, [cc("max-age=60")])),
            Ask(STORED, [cc("max-age=200, max-stale=100")], after=100, has={"age": "100"}),
        ],
    ),
    Case(
        "9111 §5.2.1.3",
        "min-fresh to the second",
        [
            Ask(ORIGIN, reply=Reply(200, [cc("max-age=60")])),
            Ask(STORED, [cc("min-fresh=60")]),
            Ask(ORIGIN, [cc("min-fresh=61")]),
        ],
    ),
    Case(
        "9111 §5.2.1.7",
        "only-if-cached, and another variant is",
        [
            Ask(ORIGIN, [("foo", "1")], reply=Reply(200, [FRESH, ("vary", "foo")])),
            Ask(STORED, [("foo", "2"), cc("only-if-cached")], status=504),
            Ask(STORED, [("foo", "1"), cc("only-if-cached")], status=200),
        ],
    ),
    Case(
        "9111 §5.2.1.7",
        "only-if-cached, with max-stale, and with no-cache",
        [
            Ask(ORIGIN, reply=SPENT),
            Ask(STORED, [cc("only-if-cached, max-stale=1000")], after=STALE_AFTER, status=200),
            Ask(STORED, [cc("only-if-cached, no-cache")], status=504),
        ],
    ),
    Case(
        "9111 §5.2.1.5",
        "no-store of a request leaves what is stored",
        [Ask(ORIGIN, reply=SPENT), Ask("any", [cc("no-store")]), Ask(STORED, content=b"answer 1")],
    ),
]

WRITES: Final = [
    *(
        Case(
            "9111 §4.4",
            f"{status} in answer to a POST invalidates",
            [
                Ask(ORIGIN, reply=SPENT),
                Ask(ORIGIN, method="POST", body=b"x", reply=Reply(status, [("location", "/y")])),
                Ask(ORIGIN, reply=SPENT),
            ],
        )
        for status in (200, 201, 202, 204, 205, 301, 302, 307, 308)
    ),
    *(
        Case(
            "9111 §4.4",
            f"{status} in answer to a POST does not, nor what it names",
            [
                Ask(ORIGIN, reply=SPENT),
                Ask(ORIGIN, query="?a", reply=SPENT),
                Ask(
                    ORIGIN,
                    method="POST",
                    body=b"x",
                    reply=Reply(status, [("location", "?a"), ("content-location", "?a")]),
                ),
                Ask(STORED),
                Ask(STORED, query="?a"),
            ],
        )
        for status in (400, 404, 405, 409, 500, 503)
    ),
    *(
        Case(
            "9111 §4.4",
            f"{method} without a body invalidates its URI",
            [Ask(ORIGIN, reply=SPENT), Ask(ORIGIN, method=method, reply=Reply(200)), Ask(ORIGIN, reply=SPENT)],
        )
        for method in ("POST", "LOCK", "MKCOL", "PROPPATCH", "PURGE", "MERGE", "COPY", "MOVE", "LINK", "NOTIFY", "ACL")
    ),
    Case(
        "9111 §4.4",
        "another query is another URI",
        [
            Ask(ORIGIN, query="?a", reply=SPENT),
            Ask(ORIGIN, method="POST", body=b"x", reply=Reply(200)),
            Ask(STORED, query="?a"),
        ],
    ),
    Case(
        "9111 §4.4",
        "a GET invalidates nothing, whatever it names",
        [
            Ask(ORIGIN, query="?a", reply=SPENT),
            Ask(ORIGIN, reply=Reply(302, [("location", "?a")])),
            Ask(STORED, query="?a"),
        ],
    ),
    *(
        Case(
            "9111 §4.4",
            f"Location with {how}",
            [
                Ask(ORIGIN, query="?a", reply=SPENT),
                Ask(ORIGIN, method="POST", body=b"x", reply=Reply(201, [("location", target)])),
                Ask(expect, query="?a", reply=SPENT),
            ],
        )
        for how, target, expect in (
            ("another scheme", "https://cache.test{path}?a", STORED),
            ("another port", "http://cache.test:81{path}?a", STORED),
            ("what is no URI", "http://[cache.test{path}?a", STORED),
            ("the default port, and a name in capitals", "http://CACHE.test:80{path}?a", ORIGIN),
        )
    ),
    Case(
        "9111 §4.4",
        "what was invalidated is not validated",
        [
            Ask(ORIGIN, reply=Reply(200, [FRESH, ETAG])),
            Ask(ORIGIN, method="PUT", body=b"x", reply=Reply(204)),
            Ask(ORIGIN, reply=SPENT, sends={"if-none-match": None}),
        ],
    ),
]


def _lasting(value: str) -> Ask:
    return Ask(ORIGIN, reply=Reply(200, [cc("max-age=60, " + value)]))


FAILURES: Final = [
    *(
        Case("5861 §3", f"{value!r} is understood", [_lasting(value), Ask("any", after=100, content=b"answer 1")])
        for value in (
            'stale-while-revalidate="100"',
            "STALE-WHILE-REVALIDATE=100",
            "stale-while-revalidate=0100",
            "stale-while-revalidate=99999999999",
        )
    ),
    *(
        Case("5861 §3", f"{value!r} allows nothing", [_lasting(value), Ask(ORIGIN, after=100, content=b"answer 2")])
        for value in (
            "stale-while-revalidate=-1",
            "stale-while-revalidate=x",
            "stale-while-revalidate",
            "stale-while-revalidate=100.5",
            "stale-while-revalidate=200, stale-while-revalidate=1",
            "stale-while-revalidate=100, proxy-revalidate",
            "stale-while-revalidate=100, s-maxage=60",
        )
    ),
    *(
        Case(
            "5861 §3",
            f"not where the client asks for {value}",
            [_lasting("stale-while-revalidate=100"), Ask(ORIGIN, [cc(value)], after=100, content=b"answer 2")],
        )
        for value in ("no-cache", "min-fresh=1", "max-age=99")
    ),
    Case(
        "5861 §3",
        "after Expires, too",
        [
            Ask(ORIGIN, reply=Reply(200, [("expires", Date(60)), cc("stale-while-revalidate=100")])),
            Ask("any", after=100, content=b"answer 1"),
        ],
    ),
    Case(
        "5861 §3",
        "Age counts",
        [
            Ask(ORIGIN, reply=Reply(200, [("age", "50"), cc("max-age=60, stale-while-revalidate=100")])),
            Ask("any", after=110, content=b"answer 1", has={"age": "160"}),
        ],
    ),
    Case(
        "5861 §3",
        "a client that has it gets a 304",
        [
            Ask(ORIGIN, reply=Reply(200, [cc("max-age=60, stale-while-revalidate=100"), ETAG])),
            Ask("any", [("if-none-match", '"one"')], after=100, status=304),
        ],
    ),
    *(
        Case(
            "5861 §4",
            f"{status} is no error of the origin's",
            [_lasting("stale-if-error=100"), Ask(ORIGIN, reply=Reply(status), after=100, status=status)],
        )
        for status in (400, 404, 410, 429, 501, 505)
    ),
    *(
        Case(
            "5861 §4",
            f"{value!r} does not allow it",
            [_lasting(f"{value}, stale-if-error=100"), Ask(ORIGIN, reply=Reply(503), after=100, status=503)],
        )
        for value in ("must-revalidate", "proxy-revalidate", "s-maxage=60")
    ),
    *(
        Case(
            "5861 §4",
            f"the origin's answer is {how}",
            [
                _lasting("stale-if-error=100"),
                Ask("any", reply=reply, after=100, status=200, content=b"answer 1"),
            ],
        )
        for how, reply in (("cut off", wire("HTTP/1.1 200 OK\nfoo")), ("no HTTP", wire("blah blah")), ("none", GONE))
    ),
    Case(
        "5861 §4",
        "and not for longer",
        [_lasting("stale-if-error=100"), Ask("any", reply=GONE, after=161, status=502)],
    ),
    Case(
        "5861 §4",
        "until the origin has recovered",
        [
            _lasting("stale-if-error=100"),
            Ask("any", reply=Reply(503), after=100, content=b"answer 1"),
            Ask(ORIGIN, reply=Reply(200, [FRESH], b"new"), content=b"new"),
            Ask(STORED, content=b"new"),
        ],
    ),
    Case(
        "5861 §4",
        "a range of what stands in",
        [
            Ask(ORIGIN, reply=Reply(200, [cc("max-age=60, stale-if-error=100")], DIGITS)),
            Ask("any", [("range", "bytes=1-2")], reply=Reply(503), after=100, status=206, content=b"12"),
        ],
    ),
    *(
        Case(
            "9111 §4.2.4",
            f"the origin is away, and the lifetime was {how}",
            [
                Ask(ORIGIN, reply=Reply(200, fields)),
                Ask("any", reply=GONE, after=100, status=200, content=b"answer 1", has={"age": "100"}),
            ],
        )
        for how, fields in (
            ("by Expires", [("expires", Date(60))]),
            ("by heuristics", [("last-modified", Date(-100))]),
            ("none", [cc("max-age=0"), ETAG]),
        )
    ),
]

PIECES: Final = [
    Case(
        "9110 §14.2",
        "every form of a range",
        [
            Ask(ORIGIN, reply=Reply(200, [FRESH], DIGITS)),
            *(
                Ask(STORED, [("range", value)], status=status, content=content)
                for value, status, content in (
                    ("bytes=9-9", 206, b"9"),
                    ("bytes=0-", 206, DIGITS),
                    ("bytes= 1-2", 206, b"12"),
                    ("bytes=1-2,", 206, b"12"),
                    ("bytes=0-1, 20-30", 206, b"01"),
                    ("bytes=20-30,40-50", 416, b""),
                    ("bytes=99999999999999999999999-", 416, b""),
                    ("bytes", 200, DIGITS),
                    ("", 200, DIGITS),
                    ("bytes=-", 200, DIGITS),
                    ("bytes=--1", 200, DIGITS),
                    ("bytes=1-2-3", 200, DIGITS),
                    ("bytes 1-2", 200, DIGITS),
                )
            ),
        ],
    ),
    Case(
        "9110 §14.6",
        "several ranges are one multipart message",
        [
            Ask(ORIGIN, reply=Reply(200, [FRESH, ("content-type", "text/plain")], DIGITS)),
            Ask(
                STORED,
                [("range", "bytes=0-1,-2")],
                status=206,
                has={"content-range": None},
                content=b"".join(
                    b"--d7dd0d0043b39416ff9b2af00dd851de\r\nContent-Type: text/plain\r\nContent-Range: bytes "
                    + where
                    + b"/10\r\n\r\n"
                    + digits
                    + b"\r\n"
                    for where, digits in ((b"0-1", b"01"), (b"8-9", b"89"))
                )
                + b"--d7dd0d0043b39416ff9b2af00dd851de--\r\n",
            ),
        ],
    ),
    Case(
        "9110 §15.5.17",
        "the empty has no range",
        [
            Ask(ORIGIN, reply=Reply(200, [FRESH], b"")),
            Ask(STORED, [("range", "bytes=0-")], status=416, has={"content-range": "bytes */0"}),
            Ask(STORED, [("range", "bytes=-1")], status=416),
        ],
    ),
    Case(
        "9110 §15.5.17",
        "the origin's 416 answers nobody else",
        [
            Ask(
                ORIGIN,
                [("range", "bytes=100-")],
                reply=Reply(416, [FRESH, ("content-range", "bytes */10")]),
                status=416,
                has={"content-range": "bytes */10"},
            ),
            Ask(ORIGIN, reply=Reply(200, [FRESH], DIGITS), status=200),
            Ask(STORED, status=200),
        ],
    ),
    Case(
        "9110 §14.2",
        "a range of a 404 is the whole",
        [
            Ask(ORIGIN, reply=Reply(404, [FRESH], DIGITS)),
            Ask(STORED, [("range", "bytes=1-2")], status=404, content=DIGITS),
        ],
    ),
    Case(
        "9110 §14.2",
        "an origin that knows no ranges: the whole is stored, and cut from then on",
        [
            Ask(ORIGIN, [("range", "bytes=1-2")], reply=Reply(200, [FRESH], DIGITS), status=200, content=DIGITS),
            Ask(STORED, [("range", "bytes=1-2")], status=206, content=b"12"),
            Ask(STORED, content=DIGITS),
        ],
    ),
    Case(
        "9111 §4.3.1",
        "a range of what is stale: the whole is validated, and cut",
        [
            Ask(ORIGIN, reply=Reply(200, [FRESH, ETAG], DIGITS)),
            Ask(
                "any",
                [("range", "bytes=1-2")],
                reply=NEW,
                after=STALE_AFTER,
                status=206,
                content=b"12",
                sends={"range": None, "if-none-match": '"one"'},
            ),
            Ask(STORED, content=DIGITS),
        ],
    ),
    Case(
        "9111 §3.3",
        "a stale part is asked for again",
        [
            Ask(ORIGIN, [("range", "bytes=0-4")], reply=part(0, 4), status=206),
            Ask(ORIGIN, [("range", "bytes=0-4")], after=STALE_AFTER, status=206, content=b"01234"),
        ],
    ),
    *(
        Case(
            "9111 §3.4",
            f"parts grow together: {how}",
            [
                *(Ask(ORIGIN, [("range", f"bytes={a}-{b}")], reply=part(a, b), status=206) for a, b in asked),
                Ask(STORED, [("range", f"bytes={low}-{high}")], status=206, content=DIGITS[low : high + 1]),
            ],
        )
        for how, asked, low, high in (
            ("one after the other", [(2, 4), (5, 7)], 2, 7),
            ("one before the other", [(5, 7), (2, 4)], 2, 7),
            ("one over the other", [(2, 5), (4, 7)], 2, 7),
            ("one around the other", [(4, 5), (2, 7)], 2, 7),
            ("three of them", [(2, 4), (7, 8), (5, 9)], 5, 9),
        )
    ),
    Case(
        "9111 §3.4",
        "and are whole when nothing is missing",
        [
            Ask(ORIGIN, [("range", "bytes=5-9")], reply=part(5, 9), status=206),
            Ask(ORIGIN, [("range", "bytes=0-5")], reply=part(0, 5), status=206, content=b"012345"),
            Ask(STORED, status=200, content=DIGITS, has={"content-length": "10", "content-range": None}),
        ],
    ),
    *(
        Case(
            "9111 §3.4",
            f"not where {why}",
            [
                Ask(ORIGIN, [("range", "bytes=5-9")], reply=part(5, 9, etag), status=206),
                Ask(ORIGIN, [("range", "bytes=0-4")], reply=other, status=206),
                Ask(ORIGIN, reply=Reply(200, [FRESH], DIGITS), status=200),
            ],
        )
        for why, etag, other in (
            ("the tag is another", '"one"', part(0, 4, '"two"')),
            ("the tag is weak", 'W/"one"', part(0, 4, 'W/"one"')),
            ("the whole is of another size", '"one"', part(0, 4, size=11)),
        )
    ),
    Case(
        "9111 §3.3",
        "a part answers no HEAD",
        [
            Ask(ORIGIN, [("range", "bytes=2-6")], reply=part(2, 6), status=206),
            Ask(ORIGIN, method="HEAD", reply=Reply(200, [FRESH, ETAG]), status=200),
        ],
    ),
    *(
        Case(
            "9111 §3.3",
            f"a part that is not stored: {how}",
            [
                Ask(ORIGIN, [("range", value)], reply=Reply(206, fields, b"01234"), status=206, content=b"01234"),
                Ask(ORIGIN, [("range", value)], status=206),
            ],
        )
        for how, value, fields in (
            ("no-store", "bytes=0-4", [cc("no-store"), ("content-range", "bytes 0-4/10")]),
            ("several", "bytes=0-1,4-5", [FRESH, ("content-type", "multipart/byteranges; boundary=x")]),
            ("of what size nobody knows", "bytes=0-4", [FRESH, ("content-range", "bytes 0-4/*")]),
        )
    ),
    Case(
        "9110 §13.1.5",
        "If-Range where nothing is stored goes to the origin",
        [
            Ask(
                ORIGIN,
                [("range", "bytes=0-4"), ("if-range", '"one"')],
                reply=part(0, 4),
                status=206,
                sends={"if-range": '"one"', "range": "bytes=0-4"},
            )
        ],
    ),
    Case(
        "9110 §13.1.5",
        "If-Range without Range says nothing, and a date of this second is too weak",
        [
            Ask(ORIGIN, reply=Reply(200, [FRESH, ETAG, ("last-modified", Date())], DIGITS)),
            Ask(STORED, [("if-range", '"two"')], status=200),
            Ask(STORED, [("if-range", Date()), ("range", "bytes=1-2")], status=200),
        ],
    ),
]

AIMED: Final = [
    *(
        twice("9213 §2.1", f"CDN-Cache-Control: {value}", expect, ("cdn-cache-control", value), after=100)
        for value, expect in (
            ("  max-age=3600  ", STORED),
            ("max-age=3600\t,\tfoo", STORED),
            ("max-age=1, max-age=3600", STORED),
            ("max-age=3600;a;b=1, foo", STORED),
            ("public, max-age=3600", STORED),
            ("s-maxage=3600", STORED),
            ("max-age=2147483648", STORED),
            ("must-understand, no-store, max-age=3600", STORED),
            ("max-age=9999999999999999999", ORIGIN),
            ("MAX-AGE=3600", ORIGIN),
            ("max-age = 3600", ORIGIN),
            ("max-age=3600,", ORIGIN),
            ("max-age=3600;", ORIGIN),
            ("max-age=3600 foo", ORIGIN),
            ("max-age=3600.5", ORIGIN),
            ("max-age=-1", ORIGIN),
            ("max-age", ORIGIN),
            ("max-age=()", ORIGIN),
            ("max-age=:AA==:", ORIGIN),
            ("max-age=3600, private", ORIGIN),
            ("max-age=3600, no-store", ORIGIN),
            ("&", ORIGIN),
        )
    ),
    *(
        twice(
            "9213 §2.2",
            f"CDN-Cache-Control before {how}",
            STORED,
            field,
            ("cdn-cache-control", "max-age=3600"),
            after=100,
        )
        for how, field in (
            ("private", cc("private")),
            ("max-age=0", cc("max-age=0")),
            ("Expires in the past", ("expires", "0")),
            ("Pragma", ("pragma", "no-cache")),
        )
    ),
    *(
        twice(
            "9213 §2.1",
            f"CDN-Cache-Control: {value!r} leaves it to Cache-Control: {other}",
            expect,
            cc(other),
            ("cdn-cache-control", value),
            after=100,
        )
        for value, other, expect in (
            ("max-age=0, &&&", "max-age=3600", STORED),
            ("max-age=3600, &&&", "no-store", ORIGIN),
            ("", "no-store", ORIGIN),
        )
    ),
    twice(
        "9213 §2.1",
        "two lines are one dictionary",
        ORIGIN,
        ("cdn-cache-control", "max-age=3600"),
        ("cdn-cache-control", "no-store"),
    ),
    twice("9213 §2.2", "Age counts, too", ORIGIN, ("cdn-cache-control", "max-age=3600"), ("age", "3700")),
    twice(
        "9213 §2.2",
        "Authorization, and public",
        STORED,
        ("cdn-cache-control", "public, max-age=60"),
        request=[("authorization", "x")],
    ),
    twice(
        "9213 §2.2",
        "Authorization, and public for others",
        ORIGIN,
        cc("public"),
        ("cdn-cache-control", "max-age=60"),
        request=[("authorization", "x")],
    ),
    Case(
        "9213 §2.2",
        "a 304 updates it",
        [
            Ask(ORIGIN, reply=Reply(200, [FRESH, ("cdn-cache-control", "max-age=10"), ETAG])),
            Ask(VALIDATED, reply=Reply(304, [ETAG, ("cdn-cache-control", "max-age=1000")]), after=20),
            Ask(STORED, after=999),
            Ask(VALIDATED, after=1),
        ],
    ),
]

DETAILS: Final = [
    *STATUSES,
    *DATES,
    *DIRECTIVES,
    *AGES,
    *FIELDS,
    *WIRES,
    *HOPS,
    *VARIANTS,
    *HEADS,
    *CONDITIONS,
    *WISHES,
    *WRITES,
    *FAILURES,
    *PIECES,
    *AIMED,
]
ALL: Final = [*CASES, *DETAILS]
