"""Numbers and names that a user gives."""

from __future__ import annotations


def is_count(given: object, most: int | None = None) -> bool:
    """Whether it is a whole number from 1 to ``most``."""
    return isinstance(given, int) and not isinstance(given, bool) and given >= 1 and (most is None or given <= most)


def is_name(given: object) -> bool:
    """Whether it is a text that is not empty."""
    return isinstance(given, str) and bool(given)
