"""Every case through two real servers: client, cache, origin."""

import itertools
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.conformance.cases import Case
from tests.conformance.details import ALL
from tests.conformance.stand import Reply, Stand
from tests.servers import Valkey

_numbers = itertools.count(1)


@pytest.fixture(scope="module", params=["memory", "valkey"])
def stand(request: pytest.FixtureRequest) -> Iterator[Stand]:
    """The cache in this process behind one HTTP parser, and on a real server behind the other."""
    if request.param == "memory":
        stand = Stand(http="httptools")
    else:
        server: Valkey = request.getfixturevalue("valkey")
        stand = Stand(http="h11", redis_url=server.url)
    stand.start()
    yield stand
    stand.stop()


@pytest.mark.parametrize("case", [pytest.param(case, id=case.id) for case in ALL])
def test_the_cache_does_what_the_specification_says(stand: Stand, case: Case) -> None:
    run(stand, case)


def run(stand: Stand, case: Case) -> None:
    """Play a case, and compare."""
    path = f"/{next(_numbers)}"
    last = b""
    for number, ask in enumerate(case.asks, 1):
        where = f"request {number}"
        stand.clock.now += ask.after
        if ask.reply is not None:
            stand.tell(path, _placed(stand, ask.reply, path))
        before = len(stand.received(path))
        answer = stand.ask(path, method=ask.method, fields=ask.fields, query=ask.query, body=ask.body)
        reached = stand.received(path)[before:]
        match ask.expect:
            case "stored":
                assert not reached, f"{where} went to the origin: {answer}"
            case "origin":
                assert reached, f"{where} was answered without the origin: {answer}"
            case "validated":
                assert reached, f"{where} was answered without the origin: {answer}"
                sent = reached[-1]
                assert sent.get("if-none-match") or sent.get("if-modified-since"), f"{where} validated nothing: {sent}"
                assert answer.status == 200, f"{where}: {answer}"
                assert answer.body == last, f"{where}: {answer}"
        if ask.status is not None:
            assert answer.status == ask.status, f"{where}: {answer}"
        for name, value in ask.has.items():
            assert answer.get(name) == value, f"{where}: {name} of {answer}"
        for name, value in ask.sends.items():
            assert reached[-1].get(name) == value, f"{where}: {name} of {reached[-1]}"
        if ask.content is not None:
            assert answer.body == ask.content, f"{where}: {answer}"
        if answer.status == 200 and ask.method == "GET":
            last = answer.body


def _placed(stand: Stand, reply: Reply, path: str) -> Reply:
    origin = f"http://127.0.0.1:{stand.origin_port}"
    fields = [
        (name, value.replace("{path}", path).replace("{origin}", origin) if isinstance(value, str) else value)
        for name, value in reply.fields
    ]
    return replace(reply, fields=fields)
