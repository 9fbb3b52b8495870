"""A clock that is moved by hand."""


class FakeClock:
    """A clock in seconds that stands still until it is moved."""

    def __init__(self, now: float = 1_000.0) -> None:
        self.now: float = now

    def __call__(self) -> float:
        """Return the time."""
        return self.now

    def advance(self, seconds: float) -> None:
        """Let time go by."""
        self.now += seconds
