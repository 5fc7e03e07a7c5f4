"""What a store must keep (``tidings.store.port``), as tests.

class TestMyStore(StoreContract):
    def make_store(self, folder: Path, clock: Clock) -> Store:
        return MyStore(f"mine:///{folder}/log", clock=clock)
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from ...clock import Clock, ManualClock
from ...envelope import LANES, LONGEST_KEY, Envelope, lane_of
from ...errors import LogWentBack, SubscriptionNameTaken
from ...store.port import FailedAttempt, Lane, Parked, Store, Unit, WorkerRow
from ...store.skips import skips_in
from .events import NOW as NOW
from .events import SECOND as SECOND
from .events import an_event as an_event
from .intakes import IntakeStatements


def a_parked(position: int, state: str = "retry", key: str | None = "1", *, due: int = NOW, delay: int = 0, **fields: Any) -> Parked:
    """A parked row of the subscription ``mail``."""
    facts: dict[str, Any] = {"holds": False, "attempts": 1, "since": NOW, "error": "Declined: no", "traceback": "…", **fields}
    return Parked("mail", state, facts["holds"], facts["attempts"], due, delay, facts["since"], facts["error"], facts["traceback"],
        an_event(position, key)._replace(position=position))  # fmt: skip


class StoreContract(IntakeStatements):
    """Subclass it under a name that begins with ``Test``, and give ``make_store``."""

    def make_store(self, folder: Path, clock: Clock) -> Store:
        """A store, not open yet. Called several times with one folder, it gives several stores on the same data, as processes have."""
        raise NotImplementedError

    @pytest.fixture
    def clock(self) -> ManualClock:
        return ManualClock(NOW / SECOND)

    @pytest.fixture
    def store(self, tmp_path: Path, clock: ManualClock) -> Iterator[Store]:
        store = self.make_store(tmp_path, clock)
        store.open()
        yield store
        store.close()

    @pytest.fixture
    def second(self, store: Store, tmp_path: Path, clock: ManualClock) -> Iterator[Store]:
        """Another store on the same data."""
        second = self.make_store(tmp_path, clock)
        second.open()
        yield second
        second.close()

    # -- the log

    def test_opening_twice_is_one_log_with_one_identity(self, store: Store, second: Store) -> None:
        assert store.log_id
        assert second.log_id == store.log_id
        store.open()
        store.close()
        assert store.query(lambda unit: unit.head()) == 0  # the first ``open`` still holds

    def test_another_log_has_another_identity(self, store: Store, tmp_path: Path, clock: ManualClock) -> None:
        (tmp_path / "other").mkdir()
        other = self.make_store(tmp_path / "other", clock)
        other.open()
        try:
            assert other.log_id != store.log_id
        finally:
            other.close()

    def test_what_was_appended_is_read_as_it_was(self, store: Store) -> None:
        odd = an_event(2, "ключ 🔑\n'\"", data=b"\x00\xff no JSON", traceparent="00-a-b-01", headers='{"a":"b"}', causation_id="x")
        positions = store.write(lambda unit: unit.append([an_event(1), odd, an_event(3, None)])).result()
        rows, complete = store.read(0, 1_000)
        assert [Envelope(*row) for row in rows] == [
            event._replace(position=position) for event, position in zip([an_event(1), odd, an_event(3, None)], positions, strict=True)
        ]
        assert complete >= positions[-1]
        assert store.query(lambda unit: unit.head()) == positions[-1]

    def test_positions_ascend_from_above_zero_and_reading_is_by_range(self, store: Store) -> None:
        positions = [position for number in range(10) for position in _append(store, an_event(number))]
        assert positions == sorted(set(positions))
        assert positions[0] > 0
        rows, complete = store.read(positions[2], positions[5])
        assert [row[0] for row in rows] == positions[3:6]
        assert complete == positions[5]
        assert store.read(positions[-1], positions[-1] + 100) == ([], positions[-1])

    def test_reading_may_stop_early_but_says_how_far_it_is_complete(self, store: Store) -> None:
        written = _append(store, *(an_event(number, data=b"x" * 3_000_000) for number in range(8)))
        seen: list[int] = []
        at = 0
        while True:
            rows, complete = store.read(at, written[-1])
            seen += [row[0] for row in rows]
            if complete == at:
                break
            assert all(at < row[0] <= complete for row in rows)
            at = complete
        assert seen == written

    def test_a_later_read_never_shows_a_smaller_position(self, store: Store, second: Store) -> None:
        """With writers in two stores at once: whatever was complete stays so."""
        stop = threading.Event()

        def write(to: Store, first: int) -> None:
            for number in range(first, first + 150):
                if stop.is_set():
                    return
                _append(to, an_event(number))

        writers = [threading.Thread(target=write, args=(to, first)) for to, first in ((store, 0), (second, 1_000))]
        for writer in writers:
            writer.start()
        seen: list[int] = []
        at = 0
        try:
            while len(seen) < 300 and (any(writer.is_alive() for writer in writers) or store.read(at, 10**9)[0]):
                rows, complete = second.read(at, 10**9)
                seen += [row[0] for row in rows]
                at = complete
        finally:
            stop.set()
            for writer in writers:
                writer.join()
        assert seen == sorted(seen)
        assert [row[0] for row in store.read(0, 10**9)[0]] == seen
        assert len(seen) == 300

    def test_selecting(self, store: Store) -> None:
        first, second, third = _append(
            store,
            an_event(1, "1"),
            an_event(2, "2", type="shop.Paid", correlation_id="story"),
            an_event(3, "1", key_name="customer", lane=lane_of("customer", "1")),
        )

        def found(**what: Any) -> list[int]:
            return [event.position for event in store.query(lambda unit: unit.select(**{"limit": 10, **what}))]

        assert found() == [first, second, third]
        assert found(after=first) == [second, third]
        assert found(limit=2) == [first, second]
        assert found(limit=2, newest=True) == [second, third]
        assert found(types=["shop.Paid", "shop.Else"]) == [second]
        assert found(key=("order", "1")) == [first]
        assert found(key=(None, "1")) == [first, third]
        assert found(since=NOW + 2) == [second, third]
        assert found(until=NOW + 2) == [first]
        assert found(event_ids=[an_event(3).event_id]) == [third]
        assert found(correlation_ids=["story"]) == [second]
        assert found(key=("order", "1"), types=["shop.Paid"]) == []

    def test_positions_by_time(self, store: Store) -> None:
        positions = _append(store, *(an_event(number) for number in range(3)))

        def at(moment: Any) -> Any:
            return store.query(lambda unit: unit.first_position_at(moment))

        assert at(NOW) < positions[0]
        assert positions[0] <= at(NOW + 1) < positions[1]
        assert at(NOW + 3) == positions[-1]

    def test_trimming(self, store: Store) -> None:
        positions = _append(store, *(an_event(number) for number in range(10)))
        assert store.write(lambda unit: unit.trim(positions[5], 4)).result() == 4
        assert [row[0] for row in store.read(0, positions[-1])[0]] == positions[4:]
        assert store.write(lambda unit: unit.trim(positions[5], 4)).result() == 2
        assert store.write(lambda unit: unit.trim(positions[5], 4)).result() == 0
        rows, complete = store.read(0, positions[-1])
        assert [row[0] for row in rows] == positions[6:]
        assert complete == positions[-1]

    def test_a_trimmed_position_is_never_given_out_again(self, store: Store, tmp_path: Path, clock: ManualClock) -> None:
        positions = _append(store, *(an_event(number) for number in range(3)))
        while store.write(lambda unit: unit.trim(positions[-1], 10)).result():
            pass
        assert store.query(lambda unit: unit.head()) == positions[-1]
        again = self.make_store(tmp_path, clock)
        again.open()
        try:
            assert _append(again, an_event(4))[0] > positions[-1]
        finally:
            again.close()

    def test_positions_go_on_behind_what_was_acknowledged(self, store: Store) -> None:
        positions = _append(store, *(an_event(number) for number in range(3)))
        store.write(lambda unit: unit.register("mail", "shop", ["shop.Placed"], "key", 0, NOW)).result()
        assert store.query(lambda unit: unit.passed()) == 0
        store.write(lambda unit: unit.park(a_parked(positions[2]))).result()
        assert store.query(lambda unit: unit.passed()) == positions[2]
        before = store.query(lambda unit: int(unit.facts()["incarnation"]))
        assert store.write(lambda unit: unit.acknowledge(positions[2] + 50)).result() == before + 1
        assert _append(store, an_event(4)) == [positions[2] + 51]
        assert store.write(lambda unit: unit.acknowledge(positions[0])).result() == before + 2
        assert _append(store, an_event(5)) == [positions[2] + 52]

    def test_upkeep_lets_nothing_go_that_is_wanted(self, store: Store) -> None:
        positions = _append(store, *(an_event(number) for number in range(3)))
        assert store.upkeep(0) == 0
        assert store.upkeep(positions[-1]) == 0
        assert [row[0] for row in store.read(0, positions[-1])[0]] == positions
        assert store.holders() == []
        assert store.held_back() == 0.0

    # -- transactions

    def test_a_job_is_all_or_nothing(self, store: Store) -> None:
        def job(unit: Unit) -> None:
            unit.append([an_event(1)])
            unit.register("mail", "shop", ["shop.Placed"], "key", 0, NOW)
            unit.schedule(an_event(2), NOW)
            unit.park(a_parked(1))
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            store.write(job).result()
        assert store.read(0, 100)[0] == []
        assert store.query(lambda unit: (unit.subscriptions(), unit.scheduled(), unit.parked())) == ([], [], [])

    def test_one_jobs_error_is_not_its_neighbours(self, store: Store) -> None:
        """Committed in groups or not: each future has its own job's result."""
        gate = threading.Event()
        blocking = store.write(lambda unit: gate.wait(10))

        def fail(unit: Unit) -> None:
            unit.append([an_event(99)])
            raise ZeroDivisionError

        futures = [store.write(fail if number % 3 == 1 else lambda unit: unit.append([an_event(1)])) for number in range(30)]
        gate.set()
        blocking.result(10)
        results = [future.exception(10) for future in futures]
        assert [isinstance(error, ZeroDivisionError) for error in results] == [number % 3 == 1 for number in range(30)]
        assert len(store.read(0, 10**6)[0]) == 20

    def test_jobs_run_in_the_order_in_which_they_were_given(self, store: Store) -> None:
        futures = [store.write(lambda unit, number=number: unit.append([an_event(number)])) for number in range(100)]  # type: ignore[misc]
        positions = [future.result(10)[0] for future in futures]
        assert positions == sorted(positions)

    def test_after_runs_behind_the_commit_and_before_the_next_transaction(self, store: Store) -> None:
        told: list[tuple[int, int]] = []

        def tell(positions: list[int]) -> None:
            told.append((positions[0], len(store.read(0, 10**6)[0])))

        futures = [store.write(lambda unit: unit.append([an_event(1)]), tell) for _ in range(5)]
        positions = [future.result(10)[0] for future in futures]
        assert [position for position, _ in told] == positions
        assert all(visible > index for index, (_, visible) in enumerate(told))

    def test_after_is_left_out_when_the_job_failed(self, store: Store) -> None:
        told: list[object] = []

        def fail(unit: Unit) -> None:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            store.write(fail, told.append).result(10)
        assert told == []

    def test_what_a_future_has_answered_is_there_for_everybody(self, store: Store, second: Store) -> None:
        for number in range(20):
            (position,) = _append(store, an_event(number))
            assert [row[0] for row in second.read(position - 1, position)[0]] == [position]
        second.durable()

    def test_closing_ends_what_was_begun(self, tmp_path: Path, clock: ManualClock) -> None:
        store = self.make_store(tmp_path, clock)
        store.open()
        futures = [store.write(lambda unit: unit.append([an_event(1)])) for _ in range(50)]
        store.close()
        assert all(future.done() for future in futures)
        again = self.make_store(tmp_path, clock)
        again.open()
        try:
            assert len(again.read(0, 10**6)[0]) == 50
        finally:
            again.close()

    def test_a_transaction_of_the_users_commits_or_not(self, store: Store) -> None:
        with store.transaction() as connection:
            store.unit(connection).append([an_event(1)])
            assert store.query(lambda unit: unit.select(limit=1)) == []
            assert store.read(0, 100)[0] == []
        with pytest.raises(ZeroDivisionError):  # noqa: PT012, SIM117
            with store.transaction() as connection:
                store.unit(connection).append([an_event(2)])
                raise ZeroDivisionError
        assert [row[7] for row in store.read(0, 100)[0]] == [an_event(1).event_id]

    def test_nothing_is_read_past_a_transaction_that_has_appended(self, store: Store, second: Store) -> None:
        """A job given while it is open runs behind it, or beside it; then nobody may read the later position before the earlier one."""
        entered, leave = threading.Event(), threading.Event()

        def hold() -> None:
            with store.transaction() as connection:
                store.unit(connection).append([an_event(1)])
                entered.set()
                leave.wait(10)

        holder = threading.Thread(target=hold)
        holder.start()
        entered.wait(10)
        future = second.write(lambda unit: unit.append([an_event(2)]))
        time.sleep(0.05)
        rows, complete = second.read(0, 100)
        assert rows == []
        leave.set()
        holder.join()
        future.result(10)
        rows, complete = second.read(complete, 100)
        assert [row[7] for row in rows] == [an_event(1).event_id, an_event(2).event_id]

    # -- a reader of its own, for what leaves the machine

    def test_a_cursor_gives_its_lanes_and_its_source(self, store: Store) -> None:
        events = [an_event(n, str(n % 40), source="shop" if n % 3 else "other") for n in range(1, 301)]
        store.write(lambda unit: unit.append(events)).result()
        mine = [lane for lane in range(LANES) if lane % 4 == 1]
        cursor = store.cursor("shop")
        try:
            found: list[str] = []
            after = 0
            while True:
                rows, upto = cursor.read(mine, after, 7)
                assert all(after < row[0] <= upto for row in rows)
                if upto == after and not cursor.unsynced:
                    break
                assert len(rows) <= 7
                found += [Envelope(*row).event_id for row in rows]
                after = upto
            assert after == store.query(lambda unit: unit.head())
            assert found == [one.event_id for one in events if one.lane in mine and one.source == "shop"]
        finally:
            cursor.close()

    def test_a_cursor_stops_at_many_bytes(self, store: Store) -> None:
        store.write(lambda unit: unit.append([an_event(n, str(n), data=b"x" * 3_000_000) for n in range(1, 9)])).result()
        cursor = store.cursor("shop")
        try:
            rows, upto = cursor.read(range(LANES), 0, 1000)
            assert 3 <= len(rows) <= 4
            assert upto == rows[-1][0]
            rest, _ = cursor.read(range(LANES), upto, 1000)
            assert rest[0][0] == upto + 1
        finally:
            cursor.close()

    def test_a_cursor_waits_for_nobody_and_goes_on(self, store: Store, second: Store) -> None:
        cursor = store.cursor("shop")
        try:
            assert cursor.read(range(LANES), 0, 10) == ([], 0)
            for number in range(1, 30):
                second.write(lambda unit, n=number: unit.append([an_event(n)])).result()  # type: ignore[misc]
                rows, upto = cursor.read(range(LANES), number - 1, 10)
                assert [row[0] for row in rows] == [number]
                assert upto == number
        finally:
            cursor.close()

    def test_a_cursor_notices_that_the_log_went_back(self, store: Store) -> None:
        events = [an_event(n) for n in range(1, 11)]
        store.write(lambda unit: unit.append(events)).result()
        cursor = store.cursor("shop")
        try:
            known = (10, events[9].event_id)
            assert cursor.read(range(LANES), 10, 10, known) == ([], 10)
            with pytest.raises(LogWentBack):
                cursor.read(range(LANES), 11, 10)
            with pytest.raises(LogWentBack):
                cursor.read(range(LANES), 10, 10, (10, "another"))
            with pytest.raises(LogWentBack):
                cursor.read(range(LANES), 10, 10, (11, "another"))
            store.write(lambda unit: unit.trim(10, 100)).result()
            assert cursor.read(range(LANES), 10, 10, known) == ([], 10)  # trimmed, and that is written down
            with pytest.raises(LogWentBack):
                cursor.read(range(LANES), 10, 10, (11, "another"))
        finally:
            cursor.close()

    def test_who_reads_everything_of_its_app_is_behind_by_that(self, store: Store) -> None:
        store.write(lambda unit: unit.register("out", "shop", ["*"], "key", 0, NOW)).result()
        store.write(lambda unit: unit.append([an_event(1), an_event(2, source="other"), an_event(3, type="shop.X")])).result()
        assert store.query(lambda unit: unit.behind("out")).events == 2

    def test_lanes_that_are_freed_are_fenced(self, store: Store) -> None:
        _register(store)
        _enrol(store, "one")
        taken = _claim(store, "one", 4, 4)
        control = store.query(lambda unit: unit.control())
        store.write(lambda unit: unit.free("mail")).result()
        assert store.query(lambda unit: unit.control()) > control
        lost = store.write(lambda unit: unit.advance("mail", "one", [(lane.lane, lane.epoch, 5, None) for lane in taken])).result()
        assert lost == [(lane.lane, lane.epoch) for lane in taken]
        assert {lane.worker for lane in store.query(lambda unit: unit.lanes("mail"))} == {None}

    def test_what_is_noted_is_a_fact(self, store: Store) -> None:
        control = store.query(lambda unit: unit.control())
        store.write(lambda unit: unit.note("relay:x", "1")).result()
        store.write(lambda unit: unit.note("relay:x", "2")).result()
        store.write(lambda unit: unit.note("relay:y", "3")).result()
        store.write(lambda unit: unit.note("relay:y", None)).result()
        facts = store.query(lambda unit: unit.facts())
        assert (facts["relay:x"], "relay:y" in facts) == ("2", False)
        assert store.query(lambda unit: unit.control()) == control + 4
        before = int(facts["incarnation"])
        assert store.write(lambda unit: unit.raise_incarnation()).result() == before + 1
        assert store.query(lambda unit: unit.facts())["incarnation"] == str(before + 1)

    # -- scheduled events

    def test_scheduling(self, store: Store) -> None:
        def job(unit: Unit) -> None:
            for number, due in ((1, 30), (2, 10), (3, 20), (4, 10)):
                unit.schedule(an_event(number), NOW + due)

        store.write(job).result()
        assert store.query(lambda unit: unit.next_due()) == NOW + 10
        assert [scheduled.due - NOW for scheduled in store.query(lambda unit: unit.scheduled())] == [10, 10, 20, 30]
        assert store.read(0, 100)[0] == []
        assert store.write(lambda unit: unit.release_due(NOW + 9, 10)).result() == 0
        assert store.write(lambda unit: unit.release_due(NOW + 20, 2)).result() == 2
        assert store.write(lambda unit: unit.release_due(NOW + 20, 2)).result() == 1
        assert [row[7] for row in store.read(0, 100)[0]] == [an_event(number).event_id for number in (2, 4, 3)]
        assert [row[8] - NOW for row in store.read(0, 100)[0]] == [10, 10, 20]  # published when they are due
        assert store.write(lambda unit: unit.cancel(an_event(1).event_id)).result()
        assert not store.write(lambda unit: unit.cancel(an_event(1).event_id)).result()
        assert store.query(lambda unit: unit.next_due()) is None

    def test_two_who_release_at_once_release_once(self, store: Store, second: Store) -> None:
        _do(store, *(lambda unit, number=number: unit.schedule(an_event(number), NOW) for number in range(20)))
        futures = [who.write(lambda unit: unit.release_due(NOW, 3)) for _ in range(10) for who in (store, second)]
        assert sum(future.result(10) for future in futures) == 20
        assert len({row[7] for row in store.read(0, 100)[0]}) == len(store.read(0, 100)[0]) == 20

    # -- subscriptions, workers, lanes

    def test_registering(self, store: Store) -> None:
        _register(store, start=5)
        assert {lane.lane for lane in _lanes(store)} == set(range(LANES))
        assert {(lane.position, lane.open, lane.worker) for lane in _lanes(store)} == {(5, (), None)}
        store.write(lambda unit: unit.register("mail", "shop", ["shop.Paid", "shop.Placed"], "log", 99, NOW)).result()
        (row,) = store.query(lambda unit: unit.subscriptions())
        assert (row.name, row.app, set(row.types), row.ordering) == ("mail", "shop", {"shop.Paid", "shop.Placed"}, "log")
        assert {lane.position for lane in _lanes(store)} == {5}  # where it stands isn't changed by a new start
        with pytest.raises(SubscriptionNameTaken, match="belongs to the app 'shop'"):
            store.write(lambda unit: unit.register("mail", "other", [], "key", 0, NOW)).result()

    @pytest.mark.parametrize("groups", [1, 3, 16, 64])
    def test_claims_are_whole_groups_up_to_the_share(self, store: Store, groups: int) -> None:
        _register(store)
        _enrol(store, "a", "b")

        def of(lanes: Any) -> Any:
            return {lane.lane * groups // LANES for lane in lanes}

        share = (groups + 1) // 2
        first = _claim(store, "a", groups, share)
        assert len(of(first)) == share
        assert len(first) == sum(lane * groups // LANES in of(first) for lane in range(LANES))
        assert _claim(store, "a", groups, share) == []
        second = _claim(store, "b", groups, groups)
        assert of(first).isdisjoint(of(second))
        assert len(first) + len(second) == LANES

    def test_lanes_change_hands_under_a_higher_epoch_when_a_lease_runs_out(self, store: Store, clock: ManualClock) -> None:
        _register(store)
        _enrol(store, "a", until=10)
        before = {lane.lane: lane.epoch for lane in _claim(store, "a", 1, 1)}
        _enrol(store, "b", until=1_000)
        clock.advance(9)
        assert _claim(store, "b", 1, 1) == []
        clock.advance(2)
        assert [worker.worker for worker in store.query(lambda unit: unit.workers()) if worker.alive] == ["b"]
        after = _claim(store, "b", 1, 1)
        assert len(after) == LANES
        assert all(lane.epoch > before[lane.lane] for lane in after)

    def test_what_a_dead_worker_had_begun_is_told_to_who_takes_its_lanes(self, store: Store, clock: ManualClock) -> None:
        _register(store)
        _enrol(store, "a", until=10)
        mine = {lane.lane: lane for lane in _claim(store, "a", 1, 1)}
        assert not any(lane.died or lane.begun for lane in mine.values())
        rows = [(7, mine[7].epoch, "seven"), (8, mine[8].epoch, "eight"), (9, mine[9].epoch - 1, "of an earlier time")]
        assert store.write(lambda unit: unit.note_begun("mail", "a", rows)).result() == [(9, mine[9].epoch - 1)]
        assert store.write(lambda unit: unit.note_begun("mail", "a", [(8, mine[8].epoch, None)])).result() == []
        _enrol(store, "b", until=1_000)
        clock.advance(11)
        taken = {lane.lane: lane for lane in _claim(store, "b", 1, 1)}
        assert all(lane.died for lane in taken.values())
        assert {lane.lane: lane.begun for lane in taken.values() if lane.begun is not None} == {7: "seven"}
        store.write(lambda unit: unit.leave("b")).result()
        _enrol(store, "c")
        passed_on = {lane.lane: lane for lane in _claim(store, "c", 1, 1)}
        assert not any(lane.died for lane in passed_on.values())
        assert passed_on[7].begun == "seven"
        store.write(lambda unit: unit.rewind("mail", 0)).result()
        assert not any(lane.begun for lane in _lanes(store))

    def test_a_renewed_lease_goes_on(self, store: Store, clock: ManualClock) -> None:
        _enrol(store, "a", until=10)
        assert store.write(lambda unit: unit.renew("a", clock.monotonic() + 30, {"running": 3})).result()
        clock.advance(20)
        (row,) = store.query(lambda unit: unit.workers())
        assert (row.alive, round(row.seconds_left), row.info) == (True, 10, {"running": 3})
        assert not store.write(lambda unit: unit.renew("b", 1e9, None)).result()

    def test_a_pulse_renews_a_lease_that_lasts_and_no_other(self, store: Store, clock: ManualClock) -> None:
        _register(store)
        _enrol(store, "a", until=10)
        _claim(store, "a", 1, 1)
        before = _pulse(store, clock, "a")
        if before is None:  # a store may leave it to ``renew``
            return
        clock.advance(20)
        (row,) = store.query(lambda unit: unit.workers())
        assert (row.alive, round(row.seconds_left), row.info) == (True, 10, {"running": 3})
        clock.advance(11)
        assert _pulse(store, clock, "a") is None
        assert _pulse(store, clock, "nobody") is None
        (row,) = store.query(lambda unit: unit.workers())
        assert not row.alive

    def test_a_pulse_tells_what_a_look_depends_on(self, store: Store, clock: ManualClock) -> None:
        _register(store)
        _enrol(store, "a", until=1_000)
        _enrol(store, "b", until=10)
        mine = {lane.lane: lane.epoch for lane in _claim(store, "a", 2, 1)}
        if _pulse(store, clock, "a") is None:
            return
        seen: list[tuple[str, int | None]] = []

        def changed() -> bool:
            pulse = _pulse(store, clock, "a")
            assert pulse is not None
            seen.append(pulse)
            return len(seen) < 2 or seen[-1][0] != seen[-2][0]

        assert changed()
        lane = min(mine)
        assert _advance(store, "a", [(lane, mine[lane], 3, "[1, 2]")]) == []
        clock.advance(5)
        assert not changed()
        _claim(store, "b", 2, 1)
        assert changed()
        clock.advance(6)  # b's lease is over
        assert changed()
        _enrol(store, "c", until=1_000)
        assert changed()
        store.write(lambda unit: unit.set_paused("mail", True)).result()
        assert changed()
        assert seen[-1][1] is None
        store.write(lambda unit: unit.schedule(an_event(1), 77)).result()
        assert not changed()
        assert seen[-1][1] == 77

    def test_whoever_lost_a_lane_cannot_write_its_checkpoint(self, store: Store, clock: ManualClock) -> None:
        _register(store)
        _enrol(store, "a", until=10)
        mine = {lane.lane: lane.epoch for lane in _claim(store, "a", 1, 1)}
        assert _advance(store, "a", [(7, mine[7], 3, None), (8, mine[8], 4, "[1, 2]")]) == []
        assert {lane.lane: (lane.position, lane.open) for lane in _lanes(store) if lane.position} == {7: (3, ()), 8: (4, (1, 2))}
        clock.advance(11)
        _enrol(store, "b", until=1_000)
        taken = {lane.lane: lane for lane in _claim(store, "b", 1, 1)}
        assert (taken[8].position, taken[8].open) == (4, (1, 2))
        assert _advance(store, "a", [(7, mine[7], 9, None), (8, mine[8], 9, None)]) == [(7, mine[7]), (8, mine[8])]
        # Neither with the new epoch under the old name, nor with the old epoch under the new one.
        assert _advance(store, "a", [(7, taken[7].epoch, 9, None)]) == [(7, taken[7].epoch)]
        assert _advance(store, "b", [(7, mine[7], 9, None)]) == [(7, mine[7])]
        assert {lane.position for lane in _lanes(store) if lane.lane == 7} == {3}

    def test_one_lost_lane_is_named_beside_those_that_are_kept(self, store: Store) -> None:
        _register(store)
        _enrol(store, "a")
        mine = {lane.lane: lane.epoch for lane in _claim(store, "a", 1, 1)}
        store.write(lambda unit: unit.release("mail", "a", [3])).result()
        assert _advance(store, "a", [(2, mine[2], 5, None), (3, mine[3], 5, None)]) == [(3, mine[3])]

    def test_releasing_and_leaving(self, store: Store) -> None:
        _register(store)
        _enrol(store, "a", "b")
        _claim(store, "a", 1, 1)
        store.write(lambda unit: unit.release("mail", "b", range(LANES))).result()  # not his
        assert {lane.worker for lane in _lanes(store)} == {"a"}
        store.write(lambda unit: unit.leave("a")).result()
        assert {lane.worker for lane in _lanes(store)} == {None}
        assert [worker.worker for worker in store.query(lambda unit: unit.workers())] == ["b"]

    def test_two_who_claim_at_once_never_hold_the_same_lane(self, store: Store, second: Store) -> None:
        _register(store)
        _enrol(store, "a", "b")
        futures = [
            who.write(lambda unit, name=name, share=share: (name, unit.claim("mail", name, 64, share)))  # type: ignore[misc]
            for share in range(1, 65)
            for who, name in ((store, "a"), (second, "b"))
        ]
        held: dict[int, str] = {}
        for future in futures:
            name, lanes = future.result(10)
            for lane in lanes:
                assert held.setdefault(lane.lane, name) == name
        assert len(held) == LANES

    # -- what an operator does

    def test_operators_commands_raise_control(self, store: Store) -> None:
        _register(store)
        _park(store, a_parked(5, "dead"))
        _park(store, a_parked(6, "dead"))
        commands = (
            lambda unit: unit.set_paused("mail", True),
            lambda unit: unit.retry_dead("mail", 5, NOW),
            lambda unit: unit.drop_dead("mail", 6, NOW),
            lambda unit: unit.rewind("mail", 0),
            lambda unit: unit.remove("mail"),
        )
        for command in commands:
            before = store.query(lambda unit: unit.control())
            store.write(command).result()
            assert store.query(lambda unit: unit.control()) > before

    def test_pausing_and_holding(self, store: Store) -> None:
        _register(store)
        assert store.write(lambda unit: unit.set_paused("mail", True)).result()
        assert not store.write(lambda unit: unit.set_paused("nobody", True)).result()
        store.write(lambda unit: unit.set_held("mail", "gateway failing", NOW)).result()
        (row,) = store.query(lambda unit: unit.subscriptions())
        assert (row.paused, row.held, row.held_since) == (True, "gateway failing", NOW)
        _do(store, lambda unit: unit.set_paused("mail", False), lambda unit: unit.set_held("mail", None, NOW))
        (row,) = store.query(lambda unit: unit.subscriptions())
        assert (row.paused, row.held, row.held_since) == (False, None, None)

    def test_rewinding_fences_whoever_holds_the_lanes(self, store: Store) -> None:
        _register(store, start=10)
        _enrol(store, "a")
        mine = {lane.lane: lane.epoch for lane in _claim(store, "a", 1, 1)}
        _park(store, a_parked(3), a_parked(7))
        assert store.write(lambda unit: unit.rewind("mail", 5)).result() == 1
        assert [row.envelope.position for row in store.query(lambda unit: unit.parked())] == [3]
        assert {(lane.position, lane.worker) for lane in _lanes(store)} == {(5, None)}
        assert _advance(store, "a", [(1, mine[1], 99, None)]) == [(1, mine[1])]

    def test_what_has_lapsed_has_no_lanes_until_it_is_rewound(self, store: Store) -> None:
        positions = _append(store, *(an_event(number) for number in range(6)))
        _do(store, lambda unit: unit.register("mail", "shop", ["shop.Placed"], "key", 0, NOW, '{"age":60.0,"events":5}'))
        _enrol(store, "a")
        for _ in range(3):  # so that its epochs are higher than those of lanes that are new
            assert _claim(store, "a", 1, 1)
            _do(store, lambda unit: unit.release("mail", "a", range(LANES)))
        mine = {lane.lane: lane.epoch for lane in _claim(store, "a", 1, 1)}
        first = positions[0]
        assert _advance(store, "a", [(lane, epoch, first, None) for lane, epoch in mine.items()]) == []
        assert not store.write(lambda unit: unit.lapse("mail", first - 1, NOW)).result()  # it has read on meanwhile
        assert store.write(lambda unit: unit.lapse("mail", first, NOW)).result()
        assert not store.write(lambda unit: unit.lapse("mail", first, NOW)).result()
        (row,) = store.query(lambda unit: unit.subscriptions())
        assert (row.lapse, row.lapsed) == ('{"age":60.0,"events":5}', (NOW, first))
        assert (_lanes(store), _claim(store, "a", 1, 1)) == ([], [])
        assert _advance(store, "a", [(1, mine[1], positions[1], None)]) == [(1, mine[1])]
        assert store.query(lambda unit: unit.trimmable()) == positions[-1]
        # Starting the app again changes nothing; only a rewind does, and no epoch comes twice.
        _register(store)
        assert _lanes(store) == []
        _do(store, lambda unit: unit.rewind("mail", positions[2]))
        (row,) = store.query(lambda unit: unit.subscriptions())
        assert (row.lapse, row.lapsed) == (None, None)
        assert {(lane.position, lane.open, lane.worker) for lane in _lanes(store)} == {(positions[2], (), None)}
        assert {lane.lane for lane in _claim(store, "a", 1, 1)} == set(range(LANES))
        assert min(lane.epoch for lane in _lanes(store)) > max(mine.values())

    def test_what_a_rewind_skips_is_known(self, store: Store) -> None:
        """Also what a lane was past when another one was not, and what was in hand; what is read again is forgotten."""
        positions = _append(store, *(an_event(number) for number in range(10)))
        first = positions[0]
        _register(store)
        _enrol(store, "a")
        mine = {lane.lane: lane.epoch for lane in _claim(store, "a", 1, 1)}
        assert _advance(store, "a", [(1, mine[1], first + 3, json.dumps([first + 1])), (2, mine[2], first + 8, None)]) == []

        def known(*lanes: int) -> list[list[int]]:
            found = skips_in(store.query(lambda unit: unit.facts()), "mail")
            skipped = [[one - first for one in positions if any(skip.has(lane, one, "shop.Placed") for skip in found)] for lane in lanes]
            return [[one for one in ones if one != 1 or lane == 1] for lane, ones in zip(lanes, skipped, strict=True)]  # it is of lane 1

        assert known(1, 2, 3) == [[], [], []]
        _do(store, lambda unit: unit.rewind("mail", first + 5))
        assert known(1, 2, 3) == [[1, 4, 5], [], [0, 2, 3, 4, 5]]
        _do(store, lambda unit: unit.rewind("mail", first + 4))
        assert known(1, 2, 3) == [[1, 4], [], [0, 2, 3, 4]]
        _do(store, lambda unit: unit.rewind("mail", first + 6))
        assert known(1, 2) == [[1, 4, 5, 6], [5, 6]]
        assert store.write(lambda unit: unit.lapse("mail", first + 6, NOW)).result()
        _do(store, lambda unit: unit.rewind("mail", first + 8))
        assert known(2) == [[5, 6, 7, 8]]
        _do(store, lambda unit: unit.rewind("mail", 0))
        assert known(1, 2, 3) == [[], [], []]
        assert store.write(lambda unit: unit.remove("mail")).result()
        assert not any("mail" in name for name in store.query(lambda unit: unit.facts()))

    def test_events_of_a_type_that_came_later_were_not_read(self, store: Store) -> None:
        positions = _append(store, *(an_event(number) for number in range(6)))
        _register(store)
        _enrol(store, "a")
        mine = {lane.lane: lane.epoch for lane in _claim(store, "a", 1, 1)}
        assert _advance(store, "a", [(1, mine[1], positions[3], None)]) == []

        def types(*names: str) -> None:
            _do(store, lambda unit: unit.register("mail", "shop", names, "key", 0, NOW))

        def known(type_: str) -> list[int]:
            found = skips_in(store.query(lambda unit: unit.facts()), "mail")
            return [number for number, one in enumerate(positions) if any(skip.has(1, one, type_) for skip in found)]

        types("shop.Placed", "shop.Paid")
        assert (known("shop.Placed"), known("shop.Paid")) == ([], [0, 1, 2, 3])
        assert _advance(store, "a", [(1, mine[1], positions[5], None)]) == []
        types("shop.Paid")  # an older version starts, and a newer one again
        types("shop.Placed", "shop.Paid")
        assert (known("shop.Placed"), known("shop.Paid")) == ([], [0, 1, 2, 3])
        _do(store, lambda unit: unit.rewind("mail", positions[1]))
        assert (known("shop.Placed"), known("shop.Paid")) == ([], [0, 1])

    def test_removing_leaves_nothing(self, store: Store) -> None:
        _register(store)

        def job(unit: Unit) -> None:
            unit.park(a_parked(1))
            unit.record_attempt(FailedAttempt("mail", 1, 1, NOW, "a", "retry", "no"))

        store.write(job).result()
        assert store.write(lambda unit: unit.remove("mail")).result()
        assert not store.write(lambda unit: unit.remove("mail")).result()
        assert store.query(lambda unit: (unit.subscriptions(), unit.lanes(), unit.parked(), unit.attempts([1]))) == ([], [], [], [])

    # -- parked events

    def test_the_longest_key_can_be_parked(self, store: Store) -> None:
        key = "".join(chr(0x10000 + number * 7919 % 50_000) for number in range(LONGEST_KEY // 4))  # nothing in it to compress
        assert len(key.encode()) == LONGEST_KEY
        _park(store, a_parked(3, "dead", key))
        assert store.query(lambda unit: unit.parked_row("mail", 3)) == a_parked(3, "dead", key)

    def test_a_parked_row_keeps_everything(self, store: Store) -> None:
        row = a_parked(3, "dead", holds=True, attempts=8, due=NOW + 5, delay=5)
        _park(store, row)
        assert store.query(lambda unit: unit.parked_row("mail", 3)) == row
        assert store.query(lambda unit: unit.parked("mail", ("dead",))) == [row]
        assert store.query(lambda unit: unit.parked("mail", ("retry",))) == []
        assert store.query(lambda unit: unit.parked("else")) == []
        assert row.error is not None
        fits: dict[str, Any] = {"type": row.envelope.type, "error": row.error[2:5], "key": ("order", "1")}
        assert store.query(lambda unit: unit.parked("mail", **fits)) == [row]
        for other in ({"type": "shop.Other"}, {"error": row.error + "%"}, {"error": "%"}, {"key": ("order", "2")}):
            assert store.query(lambda unit, other=other: unit.parked("mail", **{**fits, **other})) == []  # type: ignore[misc]
        store.write(lambda unit: unit.unpark("mail", 3)).result()
        assert store.query(lambda unit: unit.parked_row("mail", 3)) is None

    def test_a_key_is_free_when_its_last_follower_is_done(self, store: Store) -> None:
        lane, key = lane_of("order", "1"), ("order", "1")

        def state() -> tuple[str, int]:
            found = store.write(lambda unit: unit.key_state("mail", lane, key, NOW)).result()
            return found.state, found.position

        _park(store, a_parked(3), a_parked(5, "waiting"), a_parked(4, "waiting"))
        _park(store, a_parked(2, key="2"))  # another key's
        assert state() == ("retry", 3)
        for position, then in ((3, ("retry", 4)), (4, ("retry", 5)), (5, ("free", 0))):
            store.write(lambda unit, position=position: unit.unpark("mail", position)).result()  # type: ignore[misc]
            assert state() == then
        assert [row.envelope.position for row in store.query(lambda unit: unit.parked())] == [2]

    def test_a_dead_letter_holds_its_key_or_not(self, store: Store) -> None:
        lane, key = lane_of("order", "1"), ("order", "1")

        def state() -> Any:
            return store.write(lambda unit: unit.key_state("mail", lane, key, NOW)).result().state

        _park(store, a_parked(3, "dead"))
        assert state() == "free"
        _park(store, a_parked(3, "dead", holds=True))
        assert state() == "held"
        _park(store, a_parked(4, "waiting"))
        assert state() == "held"
        assert store.write(lambda unit: unit.drop_dead("mail", 3, NOW)).result()
        assert state() == "retry"

    def test_events_without_a_key_do_not_wait_for_each_other(self, store: Store) -> None:
        _park(store, a_parked(3, "retry", None), a_parked(4, "retry", None))
        lane = an_event(4, None).lane
        assert store.write(lambda unit: unit.key_state("mail", lane, 4, NOW)).result().position == 4

    def test_the_whole_subscription_waits_where_order_is_the_logs(self, store: Store) -> None:
        _park(store, a_parked(3, "retry", "1"), a_parked(4, "waiting", "2"))
        assert store.write(lambda unit: unit.key_state("mail", 0, None, NOW)).result().position == 3

    def test_a_wall_clock_that_jumps_cannot_stretch_a_delay(self, store: Store) -> None:
        _park(store, a_parked(3, due=NOW + 2 * SECOND, delay=2 * SECOND))
        lane, key = lane_of("order", "1"), ("order", "1")

        def due(now: Any) -> Any:
            return store.write(lambda unit: unit.key_state("mail", lane, key, now)).result().due_in

        assert due(NOW) == 2
        assert due(NOW + SECOND) == 1
        assert due(NOW + 9 * SECOND) == 0
        assert due(NOW - 3600 * SECOND) == 2

    def test_parked_keys_of_some_lanes(self, store: Store) -> None:
        _park(store, a_parked(1), a_parked(2, "waiting"), a_parked(3, key="2"))

        def keys(*lanes: int) -> Any:
            return [state.position for state in store.query(lambda unit: unit.parked_keys("mail", lanes, NOW))]

        assert keys(lane_of("order", "1"))[0] == 1
        assert keys(lane_of("order", "2")) == [3]
        assert keys() == []

    def test_counting_and_mending(self, store: Store) -> None:
        rows = ((1, "retry", "1"), (2, "waiting", "1"), (3, "waiting", "1"), (4, "dead", "2"), (5, "dead", "3"))
        _park(store, *(a_parked(n, state, key) for n, state, key in rows))
        assert store.query(lambda unit: unit.count_parked("mail")) == (1, 2, 2)
        assert store.write(lambda unit: unit.retry_dead("mail", 4, NOW)).result()
        assert not store.write(lambda unit: unit.retry_dead("mail", 4, NOW)).result()
        assert store.write(lambda unit: unit.drop_dead("mail", 5, NOW)).result()
        assert not store.write(lambda unit: unit.drop_dead("mail", 1, NOW)).result()  # not a dead letter
        assert store.query(lambda unit: unit.count_parked("mail")) == (2, 2, 0)

    def test_attempts(self, store: Store) -> None:
        rows = [FailedAttempt("mail", 3, number, NOW + number, "a", "retry", f"no {number}") for number in (1, 2)]
        _do(store, *(lambda unit, row=row: unit.record_attempt(row) for row in rows))
        assert store.query(lambda unit: unit.attempts([3, 4])) == rows
        assert store.query(lambda unit: unit.attempts([4])) == []


def _append(store: Store, *events: Envelope) -> list[int]:
    return store.write(lambda unit: unit.append(events)).result(10)


def _do(store: Store, *steps: Callable[..., object]) -> None:
    """All in one transaction."""

    def job(unit: Unit) -> None:
        for step in steps:
            step(unit)

    store.write(job).result(10)


def _park(store: Store, *rows: Parked) -> None:
    _do(store, *(lambda unit, row=row: unit.park(row) for row in rows))


def _register(store: Store, start: int = 0) -> None:
    store.write(lambda unit: unit.register("mail", "shop", ["shop.Placed"], "key", start, NOW)).result(10)


def _enrol(store: Store, *names: str, until: float = 1e6) -> None:
    """Workers whose lease ends ``until`` seconds from now."""
    end = store.clock.monotonic() + until
    for name in names:
        row = WorkerRow(name, "shop", "host", 1, NOW, ("mail",), True, until)
        store.write(lambda unit, row=row: unit.enrol(row, end)).result(10)  # type: ignore[misc]


def _pulse(store: Store, clock: ManualClock, worker: str) -> tuple[str, int | None] | None:
    return store.at_once(lambda unit: unit.pulse(worker, clock.monotonic() + 30, {"running": 3}))


def _claim(store: Store, worker: str, groups: int, share: int) -> list[Lane]:
    return store.write(lambda unit: unit.claim("mail", worker, groups, share)).result(10)


def _advance(store: Store, worker: str, rows: Sequence[tuple[int, int, int, str | None]]) -> list[tuple[int, int]]:
    return store.write(lambda unit: unit.advance("mail", worker, rows)).result(10)


def _lanes(store: Store) -> list[Lane]:
    return store.query(lambda unit: unit.lanes("mail"))
