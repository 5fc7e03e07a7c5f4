from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidings.store.port import Lane
from tidings.subscribe.lanes import LaneState


def lane(position: int = 0, *open_: int) -> LaneState:
    return LaneState(Lane("mail", 3, position, open_, "worker", 7))


def test_a_new_lane_is_read_from_behind_its_position() -> None:
    assert lane(5).first == 5
    assert lane(5, 2, 4).first == 1
    assert lane(5).checkpoint((), 5) == (3, 7, 5, None)


@pytest.mark.promise("nothing lost")
@given(st.data())
def test_a_checkpoint_never_forgets_what_is_unfinished_and_never_repeats_what_is_finished(data: st.DataObject) -> None:
    """Whatever the order of ends and commits: done is what is at or below the position and not open."""
    mine = sorted(data.draw(st.sets(st.integers(1, 60), max_size=25)))  # the lane's events among all positions
    recovered = set(data.draw(st.lists(st.sampled_from(mine), unique=True)) if mine else [])
    began = max(recovered, default=0) and data.draw(st.integers(max(recovered), 60))
    state = lane(began, *recovered)
    unread = [position for position in mine if position > began]
    taken, committed = set(recovered), {position for position in mine if position <= began} - recovered
    cursor = state.start
    for _ in range(data.draw(st.integers(0, 40))):
        running = sorted(taken)
        step = data.draw(st.sampled_from(["take", "pass", "end", "end"]))
        if step == "take" and unread:
            position = unread.pop(0)
            state.open.add(position)  # in this order, as the feed does
            cursor = position
            taken.add(position)
        elif step == "pass":  # rows of others: the cursor moves up to the next of ours
            cursor = max(cursor, data.draw(st.integers(cursor, (unread[0] - 1) if unread else 61)))
        elif step == "end" and running:
            finished = set(data.draw(st.lists(st.sampled_from(running), unique=True, min_size=1)))
            number, epoch, position, open_ = state.checkpoint(finished, cursor)
            assert (number, epoch) == (3, 7)
            done = committed | finished
            opened = set(json.loads(open_)) if open_ else set()
            for one in mine:
                says_done = one <= position and one not in opened
                assert says_done == (one in done)
            assert position >= began
            if data.draw(st.booleans()):  # the commit may fail: then it is as if nothing had been asked
                state.committed(finished)
                committed |= finished
                taken -= finished
                began = position


@given(st.sets(st.integers(1, 1000), min_size=1), st.randoms())
def test_when_all_has_ended_nothing_is_open(positions: set[int], random: object) -> None:
    state = lane()
    for position in sorted(positions):
        state.open.add(position)
    order = list(positions)
    random.shuffle(order)  # type: ignore[attr-defined]
    last = None
    for position in order:
        last = state.checkpoint({position}, max(positions))
        state.committed({position})
    assert last == (3, 7, max(positions), None)


def test_positions_of_a_checkpoint_never_go_back() -> None:
    state = lane()
    state.open.update((3, 9))
    assert state.checkpoint({9}, 20) == (3, 7, 9, "[3]")
    state.committed({9})
    assert state.checkpoint((), 20) == (3, 7, 9, "[3]")
    assert state.checkpoint({3}, 20) == (3, 7, 20, None)
