"""For your own tests: a clock that is moved by hand, faults of a store and of the way to it, and a store's contract.

Nothing here needs pytest but the fixtures, which are loaded where they are asked for:

    pytest_plugins = ["nexcache.testing.plugin"]
"""

from nexcache.testing.clock import FakeClock
from nexcache.testing.contract import KEY, OPERATION, REGISTRY, TAG, TENANT, TOKENS, StoreContract
from nexcache.testing.proxy import FaultProxy, Way
from nexcache.testing.store import FaultyStore

__all__ = [
    "KEY",
    "OPERATION",
    "REGISTRY",
    "TAG",
    "TENANT",
    "TOKENS",
    "FakeClock",
    "FaultProxy",
    "FaultyStore",
    "StoreContract",
    "Way",
]
