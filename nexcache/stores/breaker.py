"""A circuit breaker as a pure state machine: time goes in, the decision comes out."""

from dataclasses import dataclass
from enum import StrEnum


class Circuit(StrEnum):
    """Whether calls are let through."""

    CLOSED = "closed"
    OPEN = "open"


@dataclass(slots=True)
class Breaker:
    """Opens after `failures` failures in a row; a single probe, made by its owner, closes it again."""

    failures: int = 5
    circuit: Circuit = Circuit.CLOSED
    in_a_row: int = 0

    def succeeded(self) -> bool:
        """Note that the store answered; True if this closed the circuit."""
        self.in_a_row = 0
        if self.circuit is Circuit.CLOSED:
            return False
        self.circuit = Circuit.CLOSED
        return True

    def failed(self) -> bool:
        """Note that the store did not answer; True if this opened the circuit."""
        self.in_a_row += 1
        opened = self.circuit is Circuit.CLOSED and self.in_a_row >= self.failures
        if opened:
            self.circuit = Circuit.OPEN
        return opened
