"""What a store must keep of an intake (``tidings.store.intakes``), as tests: a part of ``StoreContract``."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from ...store.intakes import NO_MARKS, IntakeUnit, MarkRow, Move, Offset
from ...store.port import Store, Unit
from .events import NOW, an_event

T = TypeVar("T")


class IntakeStatements:
    def test_many_events_are_appended_in_their_order_and_as_they_were(self, store: Store) -> None:
        odd = an_event(2, "ключ 🔑\n'\"{},\\", data=b"\x00\xff no JSON", traceparent="00-a-b-01", headers='{"a":"b"}', causation_id="x")
        events = [an_event(1), odd, an_event(3, None), *(an_event(number, str(number % 7)) for number in range(4, 3_000))]
        with store.transaction() as connection:
            store.unit(connection).append_many(events)
            store.unit(connection).append_many([])
        rows, _ = store.read(0, 10_000)
        assert [row[1:] for row in rows] == [event[1:] for event in events]
        assert [row[0] for row in rows] == sorted({row[0] for row in rows})

    def test_an_intake_is_known_by_its_name(self, store: Store) -> None:
        for broker in ("one:9092", "two:9092"):
            _intake(store, lambda unit, broker=broker: unit.register("shop", broker, NOW))  # type: ignore[misc]
        found = store.query(lambda unit: unit.intakes())
        assert [(row.name, row.app, row.broker, row.since) for row in found] == [("kafka", "shop", "two:9092", NOW)]

    def test_a_partition_begins_once(self, store: Store) -> None:
        for next_ in (10, 20):
            _intake(store, lambda unit, next_=next_: unit.begin("orders", 1, "id1", next_, 100))  # type: ignore[misc]
        _intake(store, lambda unit: unit.begin("orders", 0, "id1", 5, 90))
        assert _offsets(store) == [Offset("orders", 0, "id1", 5, 90), Offset("orders", 1, "id1", 10, 100)]
        assert _offsets(store)[1].behind == 90
        assert store.query(lambda unit: unit.intake("another").offsets()) == []

    def test_an_offset_moves_from_where_it_is_expected_or_not_at_all(self, store: Store) -> None:
        for partition in range(3):
            _intake(store, lambda unit, partition=partition: unit.begin("orders", partition, "id1", 0, 100))  # type: ignore[misc]
        assert _intake(store, lambda unit: unit.move([])) == []
        assert _intake(store, lambda unit: unit.move([Move("orders", n, "id1", 0, 10 + n, 120, NOW) for n in (0, 2)])) == []
        left = _intake(
            store,
            lambda unit: unit.move(
                [
                    Move("orders", 2, "id1", 0, 50, 120, NOW),  # it stands elsewhere
                    Move("orders", 1, "id2", 0, 50, 120, NOW),  # it is another topic
                    Move("orders", 7, "id1", 0, 50, 120, NOW),  # nobody knows it
                    Move("orders", 0, "id1", 10, 11, 90, 0),
                ]
            ),
        )
        assert sorted(left) == [("orders", 1), ("orders", 2), ("orders", 7)]
        assert _offsets(store) == [
            Offset("orders", 0, "id1", 11, 120, NOW),
            Offset("orders", 1, "id1", 0, 100),
            Offset("orders", 2, "id1", 12, 120, NOW),
        ]

    def test_of_two_who_move_the_same_partition_one_does(self, store: Store, second: Store) -> None:
        """Also while the first one's transaction is open: the second waits, and then finds another offset."""
        for partition in range(2):
            _intake(store, lambda unit, partition=partition: unit.begin("orders", partition, "id1", 0, 100))  # type: ignore[misc]
        moved, leave = threading.Event(), threading.Event()

        def first() -> None:
            with store.transaction() as connection:
                unit = store.unit(connection)
                assert unit.intake("kafka").move([Move("orders", n, "id1", 0, 10, 100, 0) for n in (0, 1)]) == []
                unit.append_many([an_event(1)])
                moved.set()
                leave.wait(10)

        other = threading.Thread(target=first)
        other.start()
        moved.wait(10)
        threading.Timer(0.1, leave.set).start()
        with second.transaction() as connection:
            moves = [Move("orders", n, "id1", 0, 20, 100, 0) for n in (1, 0)]
            assert sorted(second.unit(connection).intake("kafka").move(moves)) == [("orders", 0), ("orders", 1)]
        other.join()
        assert [row.next for row in _offsets(store)] == [10, 10]

    def test_a_transaction_that_is_rolled_back_moves_nothing(self, store: Store) -> None:
        _intake(store, lambda unit: unit.begin("orders", 0, "id1", 0, 100))
        try:
            with store.transaction() as connection:
                unit = store.unit(connection)
                unit.intake("kafka").move([Move("orders", 0, "id1", 0, 1, 100, 0)])
                unit.append_many([an_event(1)])
                raise ZeroDivisionError
        except ZeroDivisionError:
            pass
        assert _offsets(store)[0].next == 0
        assert store.read(0, 100)[0] == []

    def test_who_reads_what(self, store: Store) -> None:
        for partition in range(3):
            _intake(store, lambda unit, partition=partition: unit.begin("orders", partition, "id1", 0, 100))  # type: ignore[misc]
        _intake(store, lambda unit: unit.own([("orders", 0), ("orders", 1)], "a"))
        _intake(store, lambda unit: unit.own([("orders", 2)], "b"))
        _intake(store, lambda unit: unit.own([("orders", 1), ("orders", 2)], "a"))
        assert [row.owner for row in _offsets(store)] == [None, "a", "a"]
        _intake(store, lambda unit: unit.own([], "a"))
        assert [row.owner for row in _offsets(store)] == [None, None, None]

    def test_trouble_and_what_an_operator_wishes(self, store: Store) -> None:
        for partition in range(2):
            _intake(store, lambda unit, partition=partition: unit.begin("orders", partition, "id1", 0, 100))  # type: ignore[misc]
        _intake(store, lambda unit: unit.trouble("orders", 1, "offsets 0 to 9 are gone"))
        before = store.query(lambda unit: unit.control())
        assert _intake(store, lambda unit: unit.resume("orders", None, "first")) == 2
        assert _intake(store, lambda unit: unit.resume("orders", 1, "17")) == 1
        assert _intake(store, lambda unit: unit.resume("orders", 9, "17")) == 0
        assert store.query(lambda unit: unit.control()) > before
        assert [(row.trouble, row.resume) for row in _offsets(store)] == [(None, "first"), ("offsets 0 to 9 are gone", "17")]
        _intake(store, lambda unit: unit.settle("orders", 1, "id2", 17, 90))
        assert _offsets(store)[1] == Offset("orders", 1, "id2", 17, 90)

    def test_marks(self, store: Store) -> None:
        lanes = ["", *(f"{lane:020d}" for lane in range(1, 64))]
        rows = [
            MarkRow("orders", 0, "log1", "1", NO_MARKS),
            MarkRow("orders", 0, "log1", "2", lanes),
            MarkRow("orders", 1, "log1", "1", lanes),
        ]
        _intake(store, lambda unit: unit.set_marks(rows))
        _intake(store, lambda unit: unit.set_marks([]))
        _intake(store, lambda unit: unit.set_marks([rows[0]._replace(lanes=lanes)]))
        found = sorted(store.query(lambda unit: unit.intake("kafka").marks("orders", 0)))
        assert [(row.series, list(row.lanes)) for row in found] == [("1", lanes), ("2", lanes)]
        assert store.query(lambda unit: unit.intake("another").marks("orders", 0)) == []

    def test_a_window_of_what_was_seen(self, store: Store) -> None:
        digests = [bytes([number]) * 16 for number in range(20)]
        assert _intake(store, lambda unit: unit.unseen([])) == set()
        assert _intake(store, lambda unit: unit.unseen(digests[:10])) == set(digests[:10])
        assert _intake(store, lambda unit: unit.unseen([*digests[5:15], digests[14]])) == set(digests[10:15])
        assert store.write(lambda unit: unit.intake("another").unseen(digests[:1])).result(10) == set(digests[:1])
        assert _intake(store, lambda unit: unit.forget(15)) == 0
        assert _intake(store, lambda unit: unit.forget(12)) == 3
        assert _intake(store, lambda unit: unit.unseen([*digests[3:15], digests[16]])) == {digests[16]}
        assert _intake(store, lambda unit: unit.unseen(digests[:4])) == set(digests[:3])

    def test_two_who_bring_the_same_id_find_it_unseen_once(self, store: Store, second: Store) -> None:
        ours, theirs = bytes(16), bytes([1]) * 16
        asked, leave = threading.Event(), threading.Event()
        found: list[set[bytes]] = []

        def first() -> None:
            with store.transaction() as connection:
                found.append(store.unit(connection).intake("kafka").unseen([ours]))
                asked.set()
                leave.wait(10)

        other = threading.Thread(target=first)
        other.start()
        asked.wait(10)
        threading.Timer(0.1, leave.set).start()
        with second.transaction() as connection:
            found.append(second.unit(connection).intake("kafka").unseen([theirs, ours]))
        other.join()
        assert found == [{ours}, {theirs}]

    def test_records_that_cannot_be_read_are_numbered(self, store: Store) -> None:
        _intake(store, lambda unit: unit.register("shop", "one:9092", NOW))
        assert [_intake(store, lambda unit: unit.next_dead()) for _ in range(3)] == [1, 2, 3]
        _intake(store, lambda unit: unit.register("shop", "one:9092", NOW))
        assert _intake(store, lambda unit: unit.next_dead()) == 4


def _intake(store: Store, job: Callable[[IntakeUnit], T]) -> T:
    def run(unit: Unit) -> T:
        return job(unit.intake("kafka"))

    return store.write(run).result(10)


def _offsets(store: Store) -> list[Offset]:
    return store.query(lambda unit: unit.intake("kafka").offsets())
