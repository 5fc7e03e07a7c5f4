"""What a broker must keep (``tidings.brokers.port``) of what an intake reads, as tests: a part of ``BrokerContract``."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing

import pytest

from ...brokers.port import Broker, Partition, Range, Reader, Received, Record
from ...errors import OffsetLost

SECONDS = 60.0


class Reading:
    """A reader as an intake uses one: the offsets are kept here, and given when partitions come.

    Attributes:
        at: the next offset of each partition; shared by readers that stand for processes of one store. ours: partitions that it has.
        left_out: partitions that it doesn't want. records: what came, in the order in which it came.
    """

    def __init__(
        self, broker: Broker, topics: Sequence[str], *, group: str | None = None, at: dict[Partition, int] | None = None, first: int = 0
    ) -> None:
        self.at = {} if at is None else at
        self.ours: set[Partition] = set()
        self.left_out: set[Partition] = set()
        self.records: list[Received] = []
        self.reached: dict[Partition, int] = {}
        self._first = first
        self.reader: Reader = broker.reader(group or f"group-{uuid.uuid4().hex[:12]}", topics, self._assigned, self._revoked)

    def _assigned(self, partitions: Sequence[Partition]) -> Mapping[Partition, int]:
        self.ours.update(partitions)
        return {one: self.at.get(one, self._first) for one in partitions if one not in self.left_out}

    def _revoked(self, partitions: Sequence[Partition]) -> None:
        self.ours.difference_update(partitions)

    def poll(self, most: int = 100, seconds: float = 0.05) -> list[Received]:
        found = self.reader.poll(most, seconds)
        for record in found:
            assert record.offset >= self.at.get(Partition(record.topic, record.partition), self._first), "an offset came twice"
            self.at[Partition(record.topic, record.partition)] = record.offset + 1
        self.records += found
        self.reached.update(self.reader.reached())
        return found

    def until(self, condition: Callable[[], object], *others: Reading) -> None:
        """Poll until that is so; the others meanwhile, as their processes would."""
        end = time.monotonic() + SECONDS
        while not condition():
            assert time.monotonic() < end, f"it did not happen in time; trouble: {self.reader.trouble}"
            for one in (self, *others):
                one.poll()

    def lost(self) -> OffsetLost:
        """What it is told of an offset that isn't there."""
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            try:
                self.poll()
            except OffsetLost as error:
                return error
        raise AssertionError(f"it was told of nothing, and read {self.values()}")

    def values(self, partition: int | None = None) -> list[bytes | None]:
        return [one.value for one in self.records if partition in (None, one.partition)]

    def close(self) -> None:
        self.reader.close()


class ReaderStatements:
    """Beside what ``BrokerContract`` asks for."""

    def make_broker(self) -> Broker:
        raise NotImplementedError

    def make_topic(self, partitions: int) -> str:
        raise NotImplementedError

    def remake_topic(self, topic: str, partitions: int) -> None:
        """Delete it, and make another one of its name that can be used."""
        raise NotImplementedError

    def trim(self, topic: str, partition: int, first: int) -> None:
        """What is before this offset goes, as by the topic's retention."""
        raise NotImplementedError

    def write(self, topic: str, partition: int, values: Sequence[bytes]) -> None:
        """Records without keys, committed, by a client that isn't the adapter's."""
        raise NotImplementedError

    def write_open(self, topic: str, partition: int, values: Sequence[bytes]) -> Callable[[bool], None]:
        """The same in a transaction that is still open; what ends it: True commits, False aborts."""
        raise NotImplementedError

    @pytest.fixture
    def reading(self) -> Iterator[Callable[..., Reading]]:
        """Makes readers, each with a connection of its own, and closes them."""
        open_ones: list[tuple[Broker, Reading]] = []

        def make(*topics: str, group: str | None = None, at: dict[Partition, int] | None = None, first: int = 0) -> Reading:
            broker = self.make_broker()
            open_ones.append((broker, Reading(broker, topics, group=group, at=at, first=first)))
            return open_ones[-1][1]

        yield make
        for broker, reading in open_ones:
            reading.close()
            broker.close()

    # -- what comes

    def test_what_was_sent_comes_as_it_was(self, reading: Callable[..., Reading]) -> None:
        topic = self.make_topic(1)
        sent = [
            Record(topic, b"k", b"v", [("a", b"1"), ("b", "ü".encode())], int(time.time() * 1000)),
            Record(topic, b"", b"", [], 1_700_000_000_001),
            Record(topic, None, None, [("x", b""), ("x", b"\x00\xff")], 1_700_000_000_002),
        ]
        with closing(self.make_broker()) as broker, closing(broker.open_slot(f"relay-{uuid.uuid4().hex[:12]}", 0, 1)) as slot:
            slot.send(sent, b"m")
        one = reading(topic)
        one.until(lambda: len(one.records) == 3)
        assert [(got.topic, got.partition, got.offset) for got in one.records] == [(topic, 0, n) for n in range(3)]
        assert [(got.key, got.value, list(got.headers), got.time) for got in one.records] == [
            (record.key, record.value, list(record.headers), record.time) for record in sent
        ]

    def test_each_partition_comes_in_order_and_no_more_at_a_time_than_was_asked_for(self, reading: Callable[..., Reading]) -> None:
        topic = self.make_topic(3)
        for partition in range(3):
            self.write(topic, partition, [b"%d" % n for n in range(200)])
        one = reading(topic)
        end = time.monotonic() + SECONDS
        while len(one.records) < 600:
            assert time.monotonic() < end
            assert len(one.poll(most=7)) <= 7
        for partition in range(3):
            assert one.values(partition) == [b"%d" % n for n in range(200)]
            assert [got.offset for got in one.records if got.partition == partition] == list(range(200))

    def test_it_begins_where_it_is_told_and_leaves_out_what_it_is_not(self, reading: Callable[..., Reading]) -> None:
        topic = self.make_topic(3)
        for partition in range(3):
            self.write(topic, partition, [b"%d" % n for n in range(20)])
        one = reading(topic, at={Partition(topic, 0): 15, Partition(topic, 2): 20})
        one.left_out.add(Partition(topic, 1))
        one.until(lambda: len(one.records) == 5 and Partition(topic, 2) in one.reached)
        self.write(topic, 1, [b"not this"])
        self.write(topic, 2, [b"but this"])
        one.until(lambda: b"but this" in one.values())
        assert one.values(0) == [b"%d" % n for n in range(15, 20)]
        assert one.values(1) == []

    def test_nothing_is_kept_by_the_broker(self, reading: Callable[..., Reading]) -> None:
        """Where a group goes on is what it is told, not what it read before."""
        topic, group = self.make_topic(1), f"group-{uuid.uuid4().hex[:12]}"
        self.write(topic, 0, [b"%d" % n for n in range(10)])
        for first in (0, 7, 3):
            one = reading(topic, group=group, first=first)
            one.until(lambda one=one, first=first: len(one.records) == 10 - first)  # type: ignore[misc]
            assert one.values() == [b"%d" % n for n in range(first, 10)]
            one.close()

    # -- only what is committed

    def test_what_is_not_committed_does_not_come_nor_what_is_behind_it(self, reading: Callable[..., Reading]) -> None:
        topic = self.make_topic(1)
        self.write(topic, 0, [b"before"])
        end = self.write_open(topic, 0, [b"open"])
        self.write(topic, 0, [b"behind"])
        one = reading(topic)
        one.until(lambda: Partition(topic, 0) in one.reached)
        assert one.values() == [b"before"]
        end(True)
        one.until(lambda: len(one.records) == 3)
        assert one.values() == [b"before", b"open", b"behind"]

    def test_what_was_aborted_never_comes_and_is_known_to_be_passed(self, reading: Callable[..., Reading], broker: Broker) -> None:
        topic = self.make_topic(1)
        place = Partition(topic, 0)
        self.write(topic, 0, [b"before"])
        self.write_open(topic, 0, [b"aborted"] * 5)(False)
        one = reading(topic)
        one.until(lambda: one.reached.get(place, 0) > 1)
        assert one.values() == [b"before"]
        assert one.reached[place] == broker.ranges([place])[place].end
        assert one.reached[place] >= 6
        again = reading(topic, at={place: one.reached[place]})  # so it can be gone on from there
        self.write(topic, 0, [b"after"])
        again.until(lambda: again.records)
        assert again.values() == [b"after"]

    def test_how_far_partitions_go(self, reading: Callable[..., Reading], broker: Broker) -> None:
        topic = self.make_topic(2)
        places = [Partition(topic, n) for n in range(2)]
        assert broker.ranges([]) == {}
        assert broker.ranges(places) == {places[0]: Range(0, 0), places[1]: Range(0, 0)}
        self.write(topic, 1, [b"%d" % n for n in range(10)])
        self.trim(topic, 1, 4)
        assert broker.ranges(places) == {places[0]: Range(0, 0), places[1]: Range(4, 10)}
        one = reading(topic, at={places[1]: 4})
        one.until(lambda: len(one.records) == 6)
        assert one.reader.ends([places[1]])[places[1]] >= 10

    def test_a_topic_that_was_made_a_moment_ago_is_empty(self, broker: Broker) -> None:
        """Though nobody leads its partitions yet."""
        topic = f"made-{uuid.uuid4().hex[:12]}"
        broker.create(topic, 60)
        places = [Partition(topic, n) for n in range(60)]
        assert broker.ranges(places) == dict.fromkeys(places, Range(0, 0))

    # -- several

    def test_readers_of_one_group_share_partitions_and_hand_them_over(self, reading: Callable[..., Reading]) -> None:
        """One is joined by another, and then leaves: each record comes once, whoever reads it."""
        topic, group, at = self.make_topic(6), f"group-{uuid.uuid4().hex[:12]}", dict[Partition, int]()
        for partition in range(6):
            self.write(topic, partition, [b"%d" % n for n in range(50)])
        one = reading(topic, group=group, at=at)
        one.until(lambda: len(one.records) == 300)
        assert len(one.ours) == 6
        two = reading(topic, group=group, at=at)
        one.until(lambda: len(one.ours) == len(two.ours) == 3, two)
        assert one.ours.isdisjoint(two.ours)
        for partition in range(6):
            self.write(topic, partition, [b"%d" % n for n in range(50, 60)])
        one.until(lambda: len(one.records) + len(two.records) == 360, two)
        assert {Partition(got.topic, got.partition) for got in two.records} <= two.ours
        one.close()
        two.until(lambda: len(two.ours) == 6)
        for partition in range(6):
            self.write(topic, partition, [b"last"])
        two.until(lambda: two.values().count(b"last") == 6)
        for partition in range(6):
            found = [got.offset for got in [*one.records, *two.records] if got.partition == partition]
            assert found == list(range(61))

    def test_each_group_is_given_everything(self, reading: Callable[..., Reading]) -> None:
        topic = self.make_topic(2)
        for partition in range(2):
            self.write(topic, partition, [b"%d" % n for n in range(10)])
        one, two = reading(topic), reading(topic)
        one.until(lambda: len(one.records) == len(two.records) == 20, two)

    def test_a_topic_that_comes_later_is_read(self, reading: Callable[..., Reading], broker: Broker) -> None:
        topic, later = self.make_topic(1), f"later-{uuid.uuid4().hex[:12]}"
        self.write(topic, 0, [b"here"])
        one = reading(topic, later)
        one.until(lambda: one.records)
        assert one.values() == [b"here"]
        broker.create(later, 2)
        one.until(lambda: len(one.ours) == 3)
        self.write(later, 1, [b"there"])
        one.until(lambda: len(one.records) == 2)
        assert one.values() == [b"here", b"there"]

    # -- what goes wrong

    def test_what_the_callbacks_raise_comes_out_of_poll(self, broker: Broker) -> None:
        topic = self.make_topic(1)
        self.write(topic, 0, [b"never"])

        def assigned(partitions: Sequence[Partition]) -> Mapping[Partition, int]:
            raise ZeroDivisionError

        reader = broker.reader(f"group-{uuid.uuid4().hex[:12]}", [topic], assigned, lambda partitions: None)
        with closing(reader), pytest.raises(ZeroDivisionError):
            _poll_on(reader)

    @pytest.mark.parametrize("way", ["retention", "behind the end", "made anew"])
    def test_an_offset_that_is_not_there_is_told_once_and_others_are_read(self, reading: Callable[..., Reading], way: str) -> None:
        """Never read on somewhere else in silence."""
        topic, other = self.make_topic(2), self.make_topic(1)
        for partition in range(2):
            self.write(topic, partition, [b"%d" % n for n in range(10)])
        at = {Partition(topic, 0): 2, Partition(topic, 1): 10, Partition(other, 0): 0}
        if way == "retention":
            self.trim(topic, 0, 5)
        elif way == "behind the end":
            at[Partition(topic, 0)] = 11
        else:
            self.remake_topic(topic, 2)
            self.write(topic, 0, [b"new"])
            at[Partition(topic, 1)] = 0
        wanted = at[Partition(topic, 0)]
        one = reading(topic, other, at=at)
        assert one.lost().facts == {"topic": topic, "partition": 0, "offset": wanted}
        self.write(topic, 1, [b"goes on"])
        self.write(topic, 0, [b"not read"])
        self.write(other, 0, [b"goes on"])
        one.until(lambda: one.values().count(b"goes on") == 2)
        assert one.values(0) == [b"goes on"]
        assert one.values(1) == [b"goes on"]

    def test_a_topic_that_was_made_anew_has_another_id(self, broker: Broker) -> None:
        topic = self.make_topic(1)
        before = broker.topics([topic])[topic]
        assert broker.topics([topic])[topic] == before
        self.remake_topic(topic, 2)
        after = broker.topics([topic])[topic]
        assert after.id != before.id
        assert after.partitions == 2


def _poll_on(reader: Reader) -> None:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        assert reader.poll(10, 0.05) == []
