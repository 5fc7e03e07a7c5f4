"""For tests of applications and of stores: a real store, a clock that a test moves, and no waiting."""

from ..clock import ManualClock
from .harness import Call, DeadLetter, Harness, Unsettled

__all__ = ["Call", "DeadLetter", "Harness", "ManualClock", "Unsettled"]
