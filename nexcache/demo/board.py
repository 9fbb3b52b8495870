"""All that the display shows, in one place: who fills it does not know how it is shown."""

import time
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from nexcache.demo.checks import Acknowledgements, Judgement
from nexcache.demo.figures import Figures


@dataclass(slots=True)
class Board:
    """The state of a running demo. Instants are those of `time.monotonic`."""

    address: str
    """Host and port."""
    keys: Mapping[str, str]
    """The tenants and their demo keys."""
    store: str
    """Which store, in a few words."""
    try_lines: tuple[str, ...]
    """Commands to copy, each at most 80 columns."""
    duration: float | None
    """Seconds; None: until it is stopped."""
    operator: str = ""
    """The key of one who may see all tenants."""
    acknowledgements: Acknowledgements = field(default_factory=Acknowledgements)
    judgement: Judgement = field(default_factory=Judgement)
    invalidations: Counter[str] = field(default_factory=Counter)
    """By ingest, of each tenant."""
    queued: Counter[str] = field(default_factory=Counter)
    """Those of them that were queued, because the store was away."""
    store_available: bool = True
    notes: deque[str] = field(default_factory=lambda: deque(maxlen=2))
    """The latest warnings of the log."""
    figures: Figures = field(default_factory=lambda: Figures(time.monotonic()))
    before: tuple[Counter[str], Counter[str]] = field(default_factory=lambda: (Counter(), Counter()))
    """Batches and spans that were acknowledged before the measured time."""
    stopped: float | None = None

    def begin(self) -> None:
        """Start measuring now: what the warm-up did is left out."""
        self.figures = Figures(time.monotonic())
        self.judgement.answers = self.judgement.canaries = 0
        self.invalidations.clear()
        self.queued.clear()
        self.before = (Counter(self.acknowledgements.batches), Counter(self.acknowledgements.spans))

    @property
    def seconds(self) -> float:
        """How long the measured time has lasted."""
        return max(0.001, (self.stopped or time.monotonic()) - self.figures.started)

    def invalidated(self) -> dict[str, int]:
        """Return how often spans invalidated something of each tenant, in the measured time."""
        return {tenant: self.invalidations[tenant] for tenant in self.keys}

    def ingested(self, tenant: str) -> tuple[float, float]:
        """Return a tenant's batches and spans per second, acknowledged in the measured time."""
        batches, spans = self.before
        return (
            (self.acknowledgements.batches[tenant] - batches[tenant]) / self.seconds,
            (self.acknowledgements.spans[tenant] - spans[tenant]) / self.seconds,
        )
