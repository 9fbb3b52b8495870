"""Two replicas behind one Valkey, one of which is killed: `python -m examples.session_platform`."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, closing

import httpx2

from nexcache.demo.valkey import EmbeddedValkey

USERS = 20
READS = 50
PATIENCE = 30.0


class Replica:
    """A process that serves the application."""

    def __init__(self, redis_url: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{free.getsockname()[1]}"
        command = ["uvicorn", "examples.session_platform.app:app", "--port", self.url.rpartition(":")[2]]
        self.process = subprocess.Popen(  # noqa: S603 - our own application
            [sys.executable, "-m", *command, "--log-level", "error"],
            env=os.environ | {"REDIS_URL": redis_url, "CACHE_LOG_LEVEL": "error"},
            start_new_session=True,
        )

    async def ready(self, http: httpx2.AsyncClient) -> dict[str, object]:
        """Wait until it serves, and return what it says of itself."""
        end = time.monotonic() + PATIENCE
        while True:
            try:
                said: dict[str, object] = (await http.get(f"{self.url}/ready")).json()
            except httpx2.TransportError:
                if self.process.poll() is not None or time.monotonic() > end:
                    raise
                await asyncio.sleep(0.05)
            else:
                return said

    def end(self) -> None:
        """Stop it, if it still runs."""
        self.process.terminate()
        self.process.wait()


async def main(redis_url: str, stack: ExitStack) -> None:
    """Log users in at one replica, kill it, and go on at the other."""
    first, second = (Replica(redis_url) for _ in range(2))
    for each in (first, second):
        stack.callback(each.end)
    async with httpx2.AsyncClient(timeout=20) as http:
        for name, each in (("first", first), ("second", second)):
            print(f"the {name} replica: {await each.ready(http)}")
        cookies = {}
        for number in range(USERS):
            answer = await http.post(f"{first.url}/login/user-{number}")
            cookie = {"cookie": answer.headers["set-cookie"].partition(";")[0]}
            http.cookies.clear()  # each user is another browser
            await http.put(f"{first.url}/me", json={"cart": [number]}, headers=cookie)
            cookies[number] = cookie
        first.process.send_signal(signal.SIGKILL)
        first.process.wait()
        print(f"{USERS} users logged in at the first replica, which is killed")

        known = 0
        for number, cookie in cookies.items():
            answer = await http.get(f"{second.url}/me", headers=cookie)
            known += answer.json() == {"user": f"user-{number}", "data": {"cart": [number]}}
        print(f"sessions that go on at the second: {known} of {USERS}")

        began = time.perf_counter()
        for _ in range(READS):
            await http.get(f"{second.url}/me", headers=cookies[1])
        print(f"a request with a session: {(time.perf_counter() - began) / READS * 1e3:.1f} ms, client included")
        statuses = [(await http.get(f"{second.url}/me", headers=cookies[1])).status_code for _ in range(100)]
        print(f"of 100 more within the minute: {statuses.count(200)} answered, {statuses.count(429)} told to wait")
        await http.post(f"{second.url}/logout/everywhere", headers=cookies[2])
        after = [(await http.get(f"{second.url}/me", headers=cookies[number])).status_code for number in (2, 3)]
        print(f"after user-2's sessions were revoked: user-2 gets {after[0]}, user-3 gets {after[1]}")


if __name__ == "__main__":
    with ExitStack() as stack:
        url = os.environ.get("REDIS_URL") or stack.enter_context(closing(EmbeddedValkey())).url
        asyncio.run(main(url, stack))
