"""For tests of applications and of stores: a real store, a clock that a test moves, and no waiting."""

from ..clock import ManualClock
from .harness import Call, DeadLetter, Harness, Unkilled, Unsettled
from .proof import Proof, prove

__all__ = ["Call", "DeadLetter", "Harness", "ManualClock", "Proof", "Unkilled", "Unsettled", "prove"]
