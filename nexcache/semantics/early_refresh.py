"""When a stored response is computed again before its time is over, so that nobody waits for it. Pure.

XFetch (Vattani, Chierichetti, Lowenstein: Optimal Probabilistic Cache Stampede Prevention, VLDB 2015) tests at each
request whether `now - cost * beta * ln(draw) >= expiry`. Solved for `now` this is an instant; it is drawn once per
process and entry, so that a hit costs one comparison. The `cost` more is what one draw cannot give but a new one at
each request does: the new answer is usually there before the old one's end.
"""

import math

from nexcache.message import StoredResponse

_BETA = 1.0
_EARLIEST = 0.5
"""The part of its lifetime that a response is always served for, whatever it costs."""


def refresh_at(response: StoredResponse, draw: float) -> float:
    """Return the instant (seconds since the epoch) from which a request has the response computed again.

    `draw` is random in (0, 1]. A response whose cost is not known is never refreshed early.
    """
    if response.cost <= 0:
        return math.inf
    lead = response.cost * (1 - _BETA * math.log(draw))
    return response.stored_at + max(response.ttl - lead, response.ttl * _EARLIEST)


def jittered(ttl: float, jitter: float, draw: float) -> float:
    """Shorten a lifetime by at most the part `jitter`, so that what was stored together does not end together.

    `draw` is random in [0, 1).
    """
    return ttl * (1 - jitter * draw)
