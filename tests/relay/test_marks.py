"""Marks against a model that remembers every event."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidings.relay.cloudevents import Origin
from tidings.relay.marks import Marks
from tidings.store.intakes import MarkRow

LANES = st.integers(0, 3)


@st.composite
def sendings(draw: st.DrawFn) -> list[list[Origin]]:
    """What reaches one partition: of two logs in two incarnations, each lane in order but sent again from anywhere, in batches."""
    series = [(log, incarnation) for log in ("a", "b") for incarnation in (1, 2)]
    last = {(one, lane): 0 for one in series for lane in range(4)}
    batches = []
    for _ in range(draw(st.integers(1, 8))):
        batch = []
        for _ in range(draw(st.integers(0, 12))):
            one, lane = draw(st.sampled_from(series)), draw(LANES)
            back = draw(st.integers(0, 4))
            first = max(1, last[one, lane] + 1 - back)
            step = draw(st.integers(1, 3))
            for sequence in range(first, first + back + step):
                batch.append(Origin(*one, lane, sequence))
                last[one, lane] = max(last[one, lane], sequence)
        batches.append(batch)
    return batches


@pytest.mark.promise("effects once")
@pytest.mark.promise("nothing lost")
@settings(max_examples=300, deadline=None)
@given(sendings(), st.data())
def test_each_event_passes_once_and_none_is_dropped_unseen(batches: list[list[Origin]], data: st.DataObject) -> None:
    """Also when the intake ends between two batches, or a batch is rolled back and read again by one that knows only what was written."""
    stored: dict[tuple[str, str], MarkRow] = {}
    seen: set[Origin] = set()
    marks = Marks("shop", 0)
    for batch in batches:
        if data.draw(st.booleans(), label="another intake"):
            marks = Marks("shop", 0, stored.values())
        while data.draw(st.booleans(), label="rolled back"):
            for origin in batch:
                marks.passes(origin)
            marks.changed()
            marks = Marks("shop", 0, stored.values())
        for origin in batch:
            assert marks.passes(origin) == (origin not in seen), origin
            seen.add(origin)
        for row in marks.changed():
            stored[row.log_id, row.series] = row
    assert marks.changed() == []


def test_what_the_store_is_told_is_what_changed() -> None:
    marks = Marks("shop", 3, [MarkRow("shop", 3, "a", "1", ["7", *[""] * 63])])
    assert not marks.passes(Origin("a", 1, 0, 7))
    assert marks.changed() == []
    assert marks.passes(Origin("a", 1, 63, 9))
    assert marks.changed() == [MarkRow("shop", 3, "a", "1", ["7", *[""] * 62, "9"])]
