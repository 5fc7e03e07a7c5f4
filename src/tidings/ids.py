"""Event ids: UUIDv7 (RFC 9562) as text, by the fastest maker at hand."""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Callable

_lock = threading.Lock()
_last = 0


def uuid7_by_hand() -> str:
    """A UUIDv7 whose 12 random bits after the milliseconds count up within a process (RFC 9562, method 3 of section 6.2)."""
    global _last
    nanos = time.time_ns()
    millis, rest = divmod(nanos, 1_000_000)
    stamp = (millis << 12) | (rest * 4096 // 1_000_000)
    with _lock:
        if stamp <= _last:
            stamp = _last + 1
        _last = stamp
    value = (stamp >> 12) << 80 | 0x7 << 76 | (stamp & 0xFFF) << 64 | 0b10 << 62 | int.from_bytes(os.urandom(8), "big") >> 2
    return str(uuid.UUID(int=value))


def _fastest() -> Callable[[], str]:
    try:
        from uuid_utils import uuid7
    except ImportError:
        builtin = getattr(uuid, "uuid7", None)  # Python 3.14
        return (lambda: str(builtin())) if builtin else uuid7_by_hand
    return lambda: str(uuid7())


new_id: Callable[[], str] = _fastest()
