"""A circuit breaker as a pure state machine: what happened goes in, the decision comes out."""

from dataclasses import dataclass


@dataclass(slots=True)
class Breaker:
    """Opens after `failures` failures in a row; a single probe, made by its owner, closes it again."""

    failures: int = 5
    is_open: bool = False
    """Whether calls are kept back."""
    in_a_row: int = 0

    def succeeded(self) -> bool:
        """Note that the store answered; True if this closed the circuit."""
        self.in_a_row = 0
        closed, self.is_open = self.is_open, False
        return closed

    def failed(self) -> bool:
        """Note that the store did not answer; True if this opened the circuit."""
        self.in_a_row += 1
        opened = not self.is_open and self.in_a_row >= self.failures
        self.is_open = self.is_open or opened
        return opened
