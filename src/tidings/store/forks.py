"""A forked child has its parent's open store, but none of its threads: what it writes would wait for ever. So it is told."""

from __future__ import annotations

import os
from weakref import WeakSet

from ..errors import StoreError

_open: WeakSet[OfOneProcess] = WeakSet()
_left_behind: list[object] = []
"""In a child: what its parent's stores held, kept and never touched."""


class OfOneProcess:
    """A store that the process uses which opened it, and nobody else. It says when it is opened and closed, and asks before it is used."""

    label: str
    _was_forked = False

    def _opened_here(self) -> None:
        _open.add(self)

    def _closed_here(self) -> None:
        _open.discard(self)

    def leave_behind(self) -> object:
        """In a forked child: let go of everything without touching it; what is returned is kept."""
        raise NotImplementedError

    def _refuse_if_forked(self) -> None:
        """Raises StoreError."""
        if self._was_forked:
            raise StoreError(
                f"this process was forked from one that had {self.label} open, whose threads and connections it doesn't have: open the app"
                " only behind the fork (gunicorn: without --preload, or app.open() in post_fork; multiprocessing: spawn)",
                store=self.label,
            )


def _forked() -> None:
    for store in list(_open):
        store._was_forked = True
        _left_behind.append(store.leave_behind())
    _open.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
