"""What a broker must keep (``tidings.brokers.port``), as tests: of what a relay sends here, of what an intake reads in ``reader``.

class TestMyBroker(BrokerContract):
    def make_broker(self) -> Broker:
        return MyBroker("mine://…")

    def make_topic(self, partitions: int) -> str: ...
    def remake_topic(self, topic: str, partitions: int) -> None: ...
    def trim(self, topic: str, partition: int, first: int) -> None: ...
    def everything(self, topic: str) -> list[Received]: ...
    def write(self, topic: str, partition: int, values: Sequence[bytes]) -> None: ...
    def write_open(self, topic: str, partition: int, values: Sequence[bytes]) -> Callable[[bool], None]: ...
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator

import pytest

from ...brokers.port import Broker, Received, Record, Slot, size
from ...errors import BrokerError, RecordTooLarge, SlotFenced, TopicMissing
from .reader import ReaderStatements

SLOTS = 4
NOW = int(time.time() * 1000)
"""Records are of now: a broker lets go of what is older than its topic's retention, whenever it looks for such."""


class BrokerContract(ReaderStatements):
    """Subclass it under a name that begins with ``Test``, and give the methods: these and those of ``ReaderStatements``."""

    def make_broker(self) -> Broker:
        """A connection of its own; several of them are on one cluster."""
        raise NotImplementedError

    def make_topic(self, partitions: int) -> str:
        """A new, empty topic that can be used; its name."""
        raise NotImplementedError

    def everything(self, topic: str) -> list[Received]:
        """What somebody who reads committed records only sees of it now, by a client that isn't the adapter's: each partition in order."""
        raise NotImplementedError

    @pytest.fixture
    def broker(self) -> Iterator[Broker]:
        broker = self.make_broker()
        yield broker
        broker.close()

    @pytest.fixture
    def other(self) -> Iterator[Broker]:
        """Another process's."""
        broker = self.make_broker()
        yield broker
        broker.close()

    @pytest.fixture
    def relay(self) -> str:
        """A name that no relay has used."""
        return f"relay-{uuid.uuid4().hex[:12]}"

    def records(self, topic: str, numbers: range, key: str = "k") -> list[Record]:
        return [Record(topic, f"{key}{n % 7}".encode(), b"%d" % n, [("a", b"%d" % n), ("b", "ü".encode())], NOW + n) for n in numbers]

    def values(self, topic: str) -> list[int]:
        return sorted(int(record.value or b"-1") for record in self.everything(topic))

    # -- topics

    def test_a_topic_that_is_made_is_there(self, broker: Broker) -> None:
        name = f"made-{uuid.uuid4().hex[:12]}"
        assert broker.topics([name]) == {}
        broker.create(name, 3)
        broker.create(name, 5)  # it exists
        found = broker.topics([name, f"{name}-no"])
        assert list(found) == [name]
        assert found[name].partitions == 3

    # -- sending

    def test_records_and_mark_come_together(self, broker: Broker, relay: str) -> None:
        topic = self.make_topic(4)
        slot = broker.open_slot(relay, 1, SLOTS)
        marks = [slot.mark]
        for first in (0, 100, 200):
            slot.send(self.records(topic, range(first, first + 100)), b"up to %d" % (first + 100))
            marks.append(slot.mark)
        assert marks == [None, b"up to 100", b"up to 200", b"up to 300"]
        slot.close()
        assert self.values(topic) == list(range(300))
        again = broker.open_slot(relay, 1, SLOTS)
        assert again.mark == b"up to 300"
        again.close()

    def test_a_record_arrives_as_it_was_given(self, broker: Broker, relay: str) -> None:
        topic = self.make_topic(1)
        given = [
            Record(topic, b"", b"", [], NOW),
            Record(topic, None, None, [("x", b""), ("x", b"\x00\xff")], 1_700_000_000_001),
            Record(topic, b"\xff\x00", b"\x00" * 1000, [("n" * 200, b"v" * 1000)], 0 + 1_700_000_000_002),
        ]
        slot = broker.open_slot(relay, 0, 1)
        slot.send(given, b"m")
        slot.close()
        found = self.everything(topic)
        assert [(one.key, one.value, list(one.headers), one.time) for one in found] == [
            (one.key, one.value, list(one.headers), one.time) for one in given
        ]

    def test_a_record_without_a_time_has_that_of_its_sending(self, broker: Broker, relay: str) -> None:
        topic = self.make_topic(1)
        slot = broker.open_slot(relay, 0, 1)
        before = time.time()
        slot.send([Record(topic, b"k", b"v", [], 0)], b"m")
        slot.close()
        (found,) = self.everything(topic)
        assert before - 5 < found.time / 1000 < time.time() + 5

    def test_a_key_keeps_its_partition_and_its_order(self, broker: Broker, relay: str) -> None:
        topic = self.make_topic(4)
        slot = broker.open_slot(relay, 0, SLOTS)
        for first in range(0, 500, 50):
            slot.send(self.records(topic, range(first, first + 50)), b"m")
        slot.close()
        partitions: dict[bytes | None, set[int]] = {}
        order: dict[bytes | None, list[int]] = {}
        for one in self.everything(topic):
            partitions.setdefault(one.key, set()).add(one.partition)
            order.setdefault(one.key, []).append(int(one.value or b"-1"))
        assert all(len(found) == 1 for found in partitions.values())
        assert all(numbers == sorted(numbers) for numbers in order.values())
        assert len(order) == 7

    def test_a_mark_without_records(self, broker: Broker, relay: str) -> None:
        slot = broker.open_slot(relay, 2, SLOTS)
        slot.send([], b"nothing")
        slot.close()
        again = broker.open_slot(relay, 2, SLOTS)
        assert again.mark == b"nothing"
        again.close()

    def test_each_slot_and_each_number_of_slots_has_its_own_mark(self, broker: Broker, relay: str) -> None:
        for slot, slots in [(0, 2), (1, 2), (0, 4), (1, 4)]:
            opened = broker.open_slot(relay, slot, slots)
            assert opened.mark is None
            opened.send([], b"%d of %d" % (slot, slots))
            opened.close()
        for slot, slots in [(0, 2), (1, 2), (0, 4), (1, 4)]:
            opened = broker.open_slot(relay, slot, slots)
            assert opened.mark == b"%d of %d" % (slot, slots)
            opened.close()

    def test_marks_of_long_ago_are_found(self, broker: Broker, relay: str) -> None:
        slot = broker.open_slot(relay, 0, 1)
        for number in range(60):
            slot.send([], b"%d" % number)
        slot.close()
        for _ in range(40):  # those who opened and sent nothing
            again = broker.open_slot(relay, 0, 1)
            assert again.mark == b"59"
            again.close()

    # -- who had the slot before

    def test_who_had_it_before_sends_nothing_more(self, broker: Broker, other: Broker, relay: str) -> None:
        topic = self.make_topic(2)
        old = broker.open_slot(relay, 0, 1)
        old.send(self.records(topic, range(10)), b"10")
        new = other.open_slot(relay, 0, 1)
        assert new.mark == b"10"
        with pytest.raises(SlotFenced):
            old.send(self.records(topic, range(10, 20)), b"20")
        new.send(self.records(topic, range(10, 30)), b"30")
        with pytest.raises(BrokerError):  # it stays so
            old.send(self.records(topic, range(10, 20)), b"20")
        old.close()
        new.close()
        assert self.values(topic) == list(range(30))

    def test_a_slot_that_two_fight_over_loses_and_repeats_nothing(self, relay: str) -> None:
        """Each opens it again as soon as it was shut out, reads the mark and goes on behind it."""
        topic = self.make_topic(2)
        end, most = 400, threading.Barrier(2)
        errors: list[BaseException] = []

        def fight() -> None:
            broker = self.make_broker()
            slot: Slot | None = None
            try:
                most.wait(30)
                done = 0
                while done < end:
                    try:
                        if slot is None:
                            slot = broker.open_slot(relay, 0, 1)
                        done = int(slot.mark or b"0")
                        if done < end:
                            slot.send(self.records(topic, range(done, done + 10)), b"%d" % (done + 10))
                            done += 10
                    except BrokerError:
                        if slot is not None:
                            slot.close()
                        slot = None
            except BaseException as error:
                errors.append(error)
            finally:
                if slot is not None:
                    slot.close()
                broker.close()

        threads = [threading.Thread(target=fight) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert errors == []
        assert not any(thread.is_alive() for thread in threads)
        assert self.values(topic) == list(range(end))

    def test_closing_twice_and_closing_who_was_shut_out(self, broker: Broker, other: Broker, relay: str) -> None:
        old = broker.open_slot(relay, 0, 1)
        new = other.open_slot(relay, 0, 1)
        old.close()
        old.close()
        new.send([], b"m")
        new.close()

    # -- what can't be sent

    def test_what_is_too_large_is_told_before_anything_is_sent(self, broker: Broker, relay: str) -> None:
        topic = self.make_topic(1)
        large = Record(topic, b"k", b"x" * (broker.limit(topic) + 1), [], NOW)
        assert not broker.fits(large)
        slot = broker.open_slot(relay, 0, 1)
        with pytest.raises(RecordTooLarge):
            slot.send([*self.records(topic, range(5)), large], b"no")
        slot.send(self.records(topic, range(5)), b"yes")
        slot.close()
        assert self.values(topic) == list(range(5))

    def test_what_fits_is_taken(self, broker: Broker, relay: str) -> None:
        topic = self.make_topic(1)
        most = broker.limit(topic)
        record = Record(topic, b"k", b"", [("h", b"v" * 50)], NOW)
        while not broker.fits(record._replace(value=b"x" * most)):
            most -= 1000
        slot = broker.open_slot(relay, 0, 1)
        slot.send([record._replace(value=b"x" * most)], b"m")
        slot.close()
        assert size(self.everything(topic)[0]) >= most  # type: ignore[arg-type]

    def test_a_topic_that_is_missing_is_told_before_anything_is_sent(self, broker: Broker, relay: str) -> None:
        topic, missing = self.make_topic(1), f"missing-{uuid.uuid4().hex[:12]}"
        slot = broker.open_slot(relay, 0, 1)
        with pytest.raises(TopicMissing, match=missing):
            slot.send([*self.records(topic, range(5)), Record(missing, b"k", b"v", [], 1)], b"no")
        slot.send(self.records(topic, range(5)), b"yes")
        broker.create(missing, 1)
        slot.send([Record(missing, b"k", b"7", [], 1)], b"now")
        slot.close()
        assert (self.values(topic), self.values(missing)) == (list(range(5)), [7])

    # -- without a transaction

    def test_one_by_one_has_no_mark(self, broker: Broker, relay: str) -> None:
        topic = self.make_topic(4)
        slot = broker.open_slot(relay, 0, 1, together=False)
        assert not slot.together
        for first in (0, 100, 200):
            slot.send(self.records(topic, range(first, first + 100)), b"ignored")
        slot.close()
        assert self.values(topic) == list(range(300))
        assert slot.mark is None
