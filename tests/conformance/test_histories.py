"""Histories of requests and answers that nobody has thought of, against a model of what a cache must not do.

The model knows what the origin has sent and when, and nothing of the cache's own rules: of every answer that came
without the origin it says why it must not have. HEAD and 304 change what is stored; from then on only what does not
depend on the stored fields is looked at.
"""

import os
import random
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import pytest

from tests.conformance.stand import Answer, Date, Reply, Stand, Value

HISTORIES: Final = 250
CONTROLS: Final = (
    *("max-age=60", "max-age=60", "s-maxage=30", "public, max-age=60", "must-revalidate, max-age=60", ""),
    *("no-store, max-age=60", "private, max-age=60", "no-cache, max-age=60", "must-understand, no-store, max-age=60"),
    *("max-age=60, stale-while-revalidate=60", "max-age=60, stale-if-error=60"),
)
WISHES: Final = ("", "", "", "", "no-cache", "max-age=10", "max-stale=30", "min-fresh=20", "only-if-cached", "no-store")
METHODS: Final = (*["GET"] * 14, "HEAD", "POST")


@dataclass(slots=True)
class Sent:
    """An answer of the origin, and the request that it was to."""

    reply: Reply
    at: float
    fields: dict[str, str]
    writes: int
    """How many writes had been answered before it."""

    def field(self, name: str) -> Value:
        return dict(self.reply.fields).get(name, "")

    @property
    def control(self) -> str:
        return str(self.field("cache-control"))

    def age(self, now: float) -> float:
        return now - self.at + float(str(self.field("age")) or 0)

    @property
    def lifetime(self) -> float:
        if found := re.search(r"s-maxage=(\d+)", self.control) or re.search(r"max-age=(\d+)", self.control):
            return float(found[1])
        expires, modified = self.field("expires"), self.field("last-modified")
        if isinstance(expires, Date):
            return max(0.0, expires.offset)
        return -modified.offset / 10 if isinstance(modified, Date) else 0.0


@dataclass(slots=True)
class Model:
    """What is known of one URI."""

    sent: dict[bytes, Sent] = field(default_factory=dict)
    writes: int = 0
    updated: bool = False
    """Stored fields may have been changed since they were sent."""

    def faults(self, answer: Answer, asked: dict[str, str], now: float) -> Iterator[str]:
        """Say why an answer must not have come without the origin."""
        sent, wish = self.sent.get(answer.body), asked.get("cache-control", "")
        if sent is None:
            yield "nobody has ever sent this"
            return
        if sent.writes != self.writes:
            yield "it was written to (9111 §4.4)"
        if wish in {"no-cache", "no-store"}:
            yield f"the client asked for {wish} (9111 §5.2.1)"
        if sent.fields.get("cache-control") == "no-store":
            yield "its client said that it must not be stored (9111 §5.2.1.5)"
        if sent.field("vary") == "foo" and sent.fields.get("foo") != asked.get("foo"):
            yield "it is another variant (9111 §4.1)"
        if not self.updated:
            yield from self._by_its_fields(sent, wish, answer, now)

    def _by_its_fields(self, sent: Sent, wish: str, answer: Answer, now: float) -> Iterator[str]:
        control, age, lifetime = sent.control, sent.age(now), sent.lifetime
        if sent.field("vary") == "*":
            yield "nobody can know whether it fits (9111 §4.1)"
        if "private" in control or ("no-store" in control and "must-understand" not in control):
            yield "it forbids it (9111 §5.2.2)"
        if "no-cache" in control:
            yield "it must be validated (9111 §5.2.2.4)"
        if "authorization" in sent.fields and not re.search("public|s-maxage|must-revalidate", control):
            yield "it was for somebody with credentials (9111 §3.5)"
        allowed = 0.0
        if not re.search("must-revalidate|s-maxage", control):
            allowed = max(
                30.0 if wish == "max-stale=30" else 0.0,
                60.0 if "while" in control and wish not in {"max-age=10", "min-fresh=20"} else 0.0,
            )
        if age - lifetime > allowed or (age == lifetime and not allowed):
            yield f"it is {age} seconds old, and fresh for {lifetime} (9111 §4.2)"
        if (wish == "max-age=10" and age > 10) or (wish == "min-fresh=20" and lifetime - age < 20):
            yield f"it is not what the client wants: {wish} (9111 §5.2.1)"
        if answer.get("age") != f"{age:.0f}":
            yield f"its age is {age} (9111 §5.1)"


@pytest.fixture(scope="module")
def stand() -> Iterator[Stand]:
    stand = Stand()
    stand.start()
    yield stand
    stand.stop()


def origin(draw: random.Random, body: bytes) -> Reply:
    """Draw what the origin answers."""
    fields: list[tuple[str, Value]] = [
        ("cache-control", draw.choice(CONTROLS)),
        ("expires", draw.choice(("", "", Date(60), Date(-60)))),
        ("etag", draw.choice(("", '"same"', '"same"', f'"{body.decode()}"', 'W/"weak"'))),
        ("last-modified", draw.choice(("", Date(-1000)))),
        ("vary", draw.choice((*[""] * 5, "foo", "foo", "*"))),
        ("age", draw.choice(("", "", "30"))),
    ]
    status = draw.choice((*[200] * 9, 404, 302, 503, 304))
    return Reply(status, [(name, value) for name, value in fields if value], body, closes=draw.random() < 0.1)


def client(draw: random.Random) -> tuple[str, dict[str, str]]:
    """Draw what the client asks."""
    fields = {
        "foo": draw.choice(("", "1", "2")),
        "authorization": draw.choice(("", "", "", "", "x")),
        "cache-control": draw.choice(WISHES),
        "if-none-match": draw.choice(("", "", "", "", "", "", '"same"', "*", '"other"')),
    }
    return draw.choice(METHODS), {name: value for name, value in fields.items() if value}


def test_no_history_makes_the_cache_answer_what_it_must_not(stand: Stand) -> None:
    seed = int(os.environ.get("NEXCACHE_HISTORIES", time.time() // 86_400))  # others on other days
    draw, reused = random.Random(seed), 0
    for number in range(HISTORIES):
        path, model, told = f"/{number}", Model(), []
        for step in range(draw.randint(3, 9)):
            stand.clock.now += draw.choice((0, 0, 1, 5, 20, 40, 70))
            reply = origin(draw, b"%d-%d" % (number, step))
            stand.tell(path, reply)
            method, asked = client(draw)
            before, now = len(stand.received(path)), stand.clock.now
            answer = stand.ask(path, method=method, fields=list(asked.items()), body=b"x" if method == "POST" else b"")
            status = answer.get("cache-status") or ""
            in_background = status.startswith("NexCache; hit") and status.endswith("detail=stale")
            stand.settle(lambda: not stand.refreshing)
            reached = len(stand.received(path)) > before
            told.append((method, asked, reply, answer))
            if method == "GET" and answer.status == 200 and (in_background or not reached):
                reused += 1
                found = list(model.faults(answer, asked, now))
                assert not found, f"seed {seed}: {found}\n" + "\n".join(map(str, told))
            if not reached or reply.closes:
                continue
            model.updated |= (method == "HEAD" and not in_background) or reply.status == 304
            model.writes += method == "POST" and reply.status in {200, 302}
            if method == "GET" or in_background:
                kept = {name: value for name, value in asked.items() if not in_background or name != "cache-control"}
                model.sent[reply.body or b""] = Sent(reply, now, kept, model.writes)
    assert reused > HISTORIES / 4  # it is not a cache that is always empty
