"""A program that has used its cache before it forks, in two event loops and a thread: what its children are told.

`python -m tests.faults.preloaded <url>` prints one line of JSON for each process.
"""

import asyncio
import json
import os
import sys
import threading
from typing import Any

from pydantic import SecretStr

from nexcache import CacheMiddleware, NexCache, Policy, Settings, tenants
from nexcache.asgi import Receive, Scope, Send
from tests.wire.server import Exchange

CHILDREN, ROUNDS, AT_ONCE = 3, 15, 20


async def _echo(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": scope["path"].encode()})


class Program:
    """One cache, and a count of what it answered wrongly."""

    def __init__(self, url: str) -> None:
        settings = Settings(redis_url=SecretStr(url), redis_host=None, op_timeout_ms=2000, l1_enabled=False)
        self.cache = NexCache(settings)
        self.app = CacheMiddleware(
            _echo, cache=self.cache, tenant=tenants.fixed("acme"), policies=[Policy("/{page}", op="page", ttl="1h")]
        )
        self.told: dict[str, Any] = {"asked": 0, "hits": 0, "crossed": 0, "raised": []}

    async def ask(self, path: str) -> None:
        """Ask for a page, and for a value under its name that is nobody else's."""
        try:
            answer = (await Exchange(self.app, path).run()).answer
            values = self.cache.tenant("acme")
            await values.set(f"{os.getpid()}{path}", path)
            value = await values.get(f"{os.getpid()}{path}")
        except Exception as error:  # noqa: BLE001 - counted, and printed
            self.told["raised"].append(f"{type(error).__name__}: {error}")
            return
        self.told["asked"] += 2
        self.told["hits"] += answer.hit
        self.told["crossed"] += (answer.status, answer.body) != (200, path.encode())
        self.told["crossed"] += value != path

    async def rounds(self, *, name: str, close: bool) -> None:
        """Ask for many at once, several times."""
        for _ in range(ROUNDS):
            await asyncio.gather(*(self.ask(f"/{name}-{number % 7}") for number in range(AT_ONCE)))
        if close:
            await self.cache.aclose()

    def synchronously(self) -> None:
        """Use the same cache as a script would."""
        values = self.cache.sync.tenant("acme")
        for number in range(20):
            values.set(f"sync-{os.getpid()}-{number}", number)
            self.told["asked"] += 1
            self.told["crossed"] += values.get(f"sync-{os.getpid()}-{number}") != number

    def tell(self, who: str) -> None:
        """Print what was seen."""
        sys.stdout.write(json.dumps({"who": who, **self.told}) + "\n")
        sys.stdout.flush()


def main(url: str) -> None:
    """Use the cache in a loop, another one, and a thread; then fork, and go on in all processes together."""
    program = Program(url)
    asyncio.run(program.rounds(name="first", close=False))  # its sockets are left as they are
    asyncio.run(program.rounds(name="second", close=False))
    thread = threading.Thread(target=lambda: asyncio.run(program.rounds(name="thread", close=False)))
    thread.start()
    thread.join()
    program.synchronously()
    children = []
    for _ in range(CHILDREN):
        pid = os.fork()
        if pid == 0:
            program.told = {"asked": 0, "hits": 0, "crossed": 0, "raised": []}
            program.synchronously()
            asyncio.run(program.rounds(name="all", close=True))
            program.tell("child")
            os._exit(0)
        children.append(pid)
    asyncio.run(program.rounds(name="all", close=True))
    for pid in children:
        os.waitpid(pid, 0)
    program.tell("parent")


if __name__ == "__main__":
    main(sys.argv[1])
