"""When a failed handler is tried again: exponential backoff with jitter, a function of values."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from .errors import ConfigurationError
from .spelling import spelled_options


@spelled_options
@dataclass(frozen=True, slots=True)
class Retry:
    """How often, how soon, and for which errors a handler is tried again.

    The delay before attempt *n* + 1 is ``first * factor ** (n - 1)``, at most ``most``, made longer or shorter by up to ``jitter`` of
    itself, so that keys that failed together don't come back together ("Exponential Backoff And Jitter", M. Brooker, 2015).

    Args:
        attempts: how often in all, the first one included; at least 1.
        first: seconds before the second attempt.
        factor: each delay is the one before times this.
        most: no delay is longer than this, in seconds.
        jitter: part of the delay that is random, 0 to 1.
        only: exception types that are tried again; others become dead letters at once.
        give_up_on: exception types that become dead letters at once, even when ``only`` names a base of theirs.
        by_type: an own ``Retry`` for some exception types; the first that fits is taken.
    """

    attempts: int = 8
    first: float = 0.5
    factor: float = 2.0
    most: float = 300.0
    jitter: float = 0.2
    only: tuple[type[BaseException], ...] = (BaseException,)
    give_up_on: tuple[type[BaseException], ...] = ()
    by_type: tuple[tuple[type[BaseException], Retry], ...] = ()

    def __post_init__(self) -> None:
        given: Any = self  # who doesn't use a type checker may have given anything
        if not isinstance(given.attempts, int) or given.attempts < 1:
            raise ConfigurationError(f"Retry(attempts={self.attempts!r}): the first attempt counts, so give a whole number from 1")
        for name, types in (("only", given.only), ("give_up_on", given.give_up_on)):
            if not isinstance(types, tuple) or not all(isinstance(one, type) and issubclass(one, BaseException) for one in types):
                raise ConfigurationError(f"Retry({name}=…): give a tuple of exception types, for example (ValueError,)")
        if self.first < 0 or self.most < 0 or self.factor < 1:
            raise ConfigurationError("Retry: first and most are seconds (0 or more), factor is 1 or more")
        if not 0 <= self.jitter <= 1:
            raise ConfigurationError(f"Retry(jitter={self.jitter}): give a part of the delay, 0 to 1")

    def delay(self, attempt: int, error: BaseException, rng: random.Random) -> float | None:
        """Seconds to wait after ``attempt`` (1 for the first) failed with ``error``; None when it is not tried again."""
        for kind, policy in self.by_type:
            if isinstance(error, kind):
                return policy.delay(attempt, error, rng)
        if attempt >= self.attempts or isinstance(error, self.give_up_on) or not isinstance(error, self.only):
            return None
        exponent = min(attempt - 1, 64)  # past that `most` has long been reached; keeps the power finite
        wait = min(self.first * self.factor**exponent, self.most)
        return max(0.0, wait * (1 + self.jitter * (2 * rng.random() - 1)))
