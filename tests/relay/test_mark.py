"""What a mark says of a lane, whatever the numbers of slots were: functions of values, against a model."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidings import ConfigurationError
from tidings.envelope import LANES
from tidings.relay.mark import Mark, decode, disagreement, earlier, lanes_of_slot, reached
from tidings.subscribe.sharing import group_of

numbers = st.integers(1, LANES)


def a_mark(generation: int, slot: int, slots: int, position: int, **fields: object) -> Mark:
    return msgspec.structs.replace(Mark("log", 1, generation, slot, slots, position), **fields)


@given(numbers)
def test_slots_share_out_every_lane_once(slots: int) -> None:
    assert sorted(lane for slot in range(slots) for lane in lanes_of_slot(slot, slots)) == list(range(LANES))


@given(st.lists(numbers, min_size=1, max_size=6), st.data())
def test_everyone_who_had_one_of_its_lanes_is_shut_out(history: list[int], data: st.DataObject) -> None:
    slot = data.draw(st.integers(0, history[-1] - 1))
    found = earlier(slot, history)
    for lane in lanes_of_slot(slot, history[-1]):
        for number in set(history) - {history[-1]}:
            assert (group_of(lane, number), number) in found
    assert len(found) == len(set(found))


@given(st.lists(numbers, min_size=1, max_size=5), st.data())
def test_a_lane_has_come_as_far_as_its_last_sender_says(history: list[int], data: st.DataObject) -> None:
    """Slots of each generation are opened or not, and send on from where the lane was. The last ones may be asked."""
    lanes = dict.fromkeys(range(LANES), 0)
    kept: dict[tuple[int, int], Mark] = {}
    for generation, slots in enumerate(history, 1):
        for slot in sorted(data.draw(st.sets(st.integers(0, slots - 1)))):
            mine = lanes_of_slot(slot, slots)
            known = [kept[one.slot, one.slots] for one in earlier(slot, history[:generation]) if (one.slot, one.slots) in kept]
            known += [kept[slot, slots]] if (slot, slots) in kept else []
            found = reached(mine, known)
            assert {lane: found.get(lane, 0) for lane in mine} == {lane: lanes[lane] for lane in mine}
            at = {lane: lanes[lane] + data.draw(st.integers(0, 5)) for lane in mine}
            base = min(at.values())
            ahead = {lane: position for lane, position in at.items() if position > base}
            kept[slot, slots] = decode(a_mark(generation, slot, slots, base, ahead=ahead).encode(), "log", slot, slots)  # type: ignore[assignment]
            lanes.update(at)


def test_a_slot_that_was_only_closed_says_nothing() -> None:
    assert reached(range(LANES), [a_mark(0, 0, 1, 0, closed=2)]) == {}
    assert reached(range(LANES), [a_mark(1, 0, 2, 7, closed=2)]) == dict.fromkeys(lanes_of_slot(0, 2), 7)


@pytest.mark.parametrize(
    ("sent", "stored", "start", "words"),
    [
        ({}, {1: 0}, 0, None),
        ({}, {1: 5}, 5, None),  # it began behind what was there
        ({1: 9}, {1: 9}, 0, None),
        ({1: 9}, {1: 3}, 0, None),  # the store's was not written
        ({}, {1: 6}, 5, "keeps no position of lane 1"),
        ({1: 8}, {1: 9}, 0, "was sent up to 8, and the store that it was up to 9"),
        ({1: 9}, {1: 9, 2: 9}, 0, "lane 2"),
    ],
)
def test_when_it_is_not_clear(sent: dict[int, int], stored: dict[int, int], start: int, words: str | None) -> None:
    found = disagreement(sent, stored, start)
    assert found == words if words is None else words in (found or "")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"{", "none of ours"),
        (b"[]", "none of ours"),
        (msgspec.json.encode({"log": "log", "incarnation": 1, "generation": 1, "slot": 0, "slots": 4, "lanes": 128}), "another version"),
        (a_mark(1, 0, 4, 5, version=2).encode(), "another version"),
        (a_mark(1, 0, 4, 5, log="other").encode(), "of the log other"),
        (a_mark(1, 1, 4, 5).encode(), "slot 1 of 4"),
        (a_mark(1, 0, 8, 5).encode(), "slot 0 of 8"),
    ],
)
def test_a_mark_that_can_not_be_gone_on_from(text: bytes, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        decode(text, "log", 0, 4)


def test_no_mark() -> None:
    assert decode(None, "log", 0, 4) is None
