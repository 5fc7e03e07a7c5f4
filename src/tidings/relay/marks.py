"""What was taken already, told by the place that an event has in the log it was published to.

A relay sends the events of a lane in the order of their sequence, and all of a key go to one partition. So in each partition, of each lane
of each log, what comes is above all that came before; what isn't was sent twice, by whatever way. That takes one number for each, however
many events there are.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..envelope import LANES
from ..store.intakes import MarkRow
from .cloudevents import Origin


class Marks:
    """The marks of one partition.

    Args:
        rows: what the store has of them.
    """

    def __init__(self, topic: str, partition: int, rows: Iterable[MarkRow] = ()) -> None:
        self._topic = topic
        self._partition = partition
        self._lanes: dict[tuple[str, int], list[int]] = {
            (row.log_id, int(row.series)): [int(text) if text else -1 for text in row.lanes] for row in rows
        }
        self._changed: set[tuple[str, int]] = set()

    def passes(self, origin: Origin) -> bool:
        """Whether it is new; then it, and what lies below, is not from now on. A log, or a log's incarnation, that was not seen yet begins
        its own series, wherever others stand."""
        series = origin[:2]
        lanes = self._lanes.get(series)
        if lanes is None:
            lanes = self._lanes[series] = [-1] * LANES
        if origin.sequence <= lanes[origin.lane]:
            return False
        lanes[origin.lane] = origin.sequence
        self._changed.add(series)
        return True

    def changed(self) -> list[MarkRow]:
        """What the store is to be told, once."""
        rows = [
            MarkRow(self._topic, self._partition, log, str(incarnation), _texts(self._lanes[log, incarnation]))
            for log, incarnation in self._changed
        ]
        self._changed.clear()
        return rows


def _texts(marks: list[int]) -> list[str]:
    return ["" if mark < 0 else str(mark) for mark in marks]
