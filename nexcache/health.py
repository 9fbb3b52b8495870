"""How a cache and its store are: what `GET /health` answers."""

from dataclasses import dataclass
from typing import Any

from nexcache.ladder import Rung
from nexcache.stores.base import StoreHealth


@dataclass(frozen=True, slots=True)
class Health:
    """The state of a cache, with what an operator would want to know beside it."""

    store: StoreHealth
    state: Rung
    backplane: bool | None
    """Whether invalidations of other nodes are heard at once; None where there are no other nodes."""
    queued: int
    """Tenants with invalidations that the store does not know of yet."""
    running: int
    """Computations under way."""
    listener_failures: int
    """How often a listener to events raised."""
    tracing_failures: int
    """How often the tracing SDK raised."""
    alerts: tuple[str, ...]
    """The alerts that are firing."""

    def as_dict(self, *, operator: bool) -> dict[str, Any]:
        """Give the document; what concerns more than one tenant is for operators."""
        healthy = self.state in (Rung.OK, Rung.DISABLED, Rung.BACKPLANE_LOST)
        return {
            "status": "healthy" if healthy else "degraded",
            "mode": self.store.mode if self.store.available else "fallback",
            "state": self.state.value,
            "response_time_ms": round(self.store.response_time_ms, 3),
            "connections": self.store.connections,
            "commands": self.store.commands,
            "details": {
                "backplane": self.backplane,
                "listener_failures": self.listener_failures,
                "tracing_failures": self.tracing_failures,
                **(
                    {
                        "store": self.store.detail,
                        "queued_invalidations": self.queued,
                        "running_fills": self.running,
                        "alerts": list(self.alerts),
                    }
                    if operator
                    else {}
                ),
            },
        }
