"""What a run must have shown. Pure: from figures to verdicts."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from nexcache.demo.checks import Judgement
from nexcache.demo.figures import Figures

LEAST_HIT_RATIO: Final = 0.8


@dataclass(frozen=True, slots=True)
class Verdict:
    """One promise, whether it was kept, and in which words."""

    kept: bool
    text: str


def verdicts(figures: Figures, judgement: Judgement, invalidations: Mapping[str, int], seconds: float) -> list[Verdict]:
    """Judge a run in which spans arrived for `seconds`; `invalidations` are those by ingest, of each tenant."""
    wrong = judgement.wrong.total()
    failed = figures.failures.total()
    # the first second of a run may pass before its first batch has arrived
    wanted = max(1, int(seconds) - 1)
    return [
        Verdict(
            figures.hit_ratio > LEAST_HIT_RATIO,
            f"hit ratio {figures.hit_ratio:.1%} of {figures.reads:,} reads (more than {LEAST_HIT_RATIO:.0%})",
        ),
        *(
            Verdict(
                count >= wanted,
                f"{tenant}: {count:,} invalidations by ingest in {seconds:.0f} s (one a second or more)",
            )
            for tenant, count in invalidations.items()
        ),
        Verdict(
            wrong == 0 and judgement.answers > 0,
            f"{judgement.answers + judgement.canaries:,} answers checked: {wrong:,} stale or another tenant's",
        ),
        Verdict(failed == 0, f"{failed:,} requests not answered with 200"),
    ]
