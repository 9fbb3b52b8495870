"""What an observability back end is asked, as SQL over the spans.

Each query is a function of a connection and a `Question`; the caller gives it one snapshot of the data.
Percentiles are nearest-rank: the smallest duration that is at least as long as that share of all.
"""

from nexcache.demo.queries.architecture import architecture
from nexcache.demo.queries.dashboard import dashboard
from nexcache.demo.queries.graph import ANALYSES, graph
from nexcache.demo.queries.metrics import METRICS, OWN_TIME, metrics
from nexcache.demo.queries.question import Answer, Question
from nexcache.demo.queries.service import service_details, service_list

__all__ = [
    "ANALYSES",
    "METRICS",
    "OWN_TIME",
    "Answer",
    "Question",
    "architecture",
    "dashboard",
    "graph",
    "metrics",
    "service_details",
    "service_list",
]
