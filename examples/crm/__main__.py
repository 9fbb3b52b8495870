"""A day of the engine: `python -m examples.crm`."""

import logging
import sys
import time
from collections.abc import Callable
from typing import Any

from examples.crm.engine import Engine, Preferences


def timed(call: Callable[[], Any], times: int) -> float:
    """Return the microseconds of one call."""
    began = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - began) / times * 1e6


def main() -> None:
    """Do what a CRM does, and say what it cost."""
    level = logging.DEBUG if "--debug" in sys.argv else logging.INFO
    logging.basicConfig(level=level, format="%(levelname)-7s %(name)s  %(message)s", stream=sys.stdout)
    with Engine() as crm:
        crm.templates.save("welcome", "Hello!")
        for client_id in range(100):
            crm.clients.update(Preferences(client_id, "en", "whatsapp"))
        for _ in range(3):
            for client_id in range(100):
                crm.send(client_id, "welcome")
        print(crm.send(7, "welcome"))
        crm.clients.update(Preferences(7, "de", "mail"))
        print(crm.send(7, "welcome"))
        crm.templates.save("welcome", "Welcome!")
        print(crm.send(7, "welcome"))
        print(f"the preferences of a client, from memory: {timed(lambda: crm.clients.preferences(7), 10_000):8.1f} µs")
        print(f"a template, kept without expiry:          {timed(lambda: crm.templates.get('welcome'), 500):8.1f} µs")
        crm.statistics()
        print(crm.health())


if __name__ == "__main__":
    main()
