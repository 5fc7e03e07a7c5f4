"""One slot's thread: fetch, send, commit. It owns its reader of the log and its way to the broker.

Taking over, in this order: the lanes are leased (by the worker), the slot is opened, which shuts out the predecessor, its mark is read, the
mark is compared with the log and the store, and only then something is sent. A sender that froze at any point of this and wakes up is shut
out in turn by whoever opened the slot meanwhile. Shut out itself, it asks the store: if the lanes are still its own under the same epoch,
it opens the slot again; if not, somebody else has them and it ends.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from ..brokers.port import Record, size
from ..envelope import Envelope
from ..errors import BrokerError, ConfigurationError, LogWentBack, PositionUnclear, SlotFenced, StoreError, TopicMissing
from ..store.port import FailedAttempt, Parked
from . import mark as marks
from .cloudevents import recorder
from .mark import Mark

if TYPE_CHECKING:
    from ..brokers.port import Broker, Slot
    from ..store.port import Cursor, Store, Unit

log = logging.getLogger("tidings.relay")

DATA, TOPIC, HEADERS = 10, 2, 14
"""Places in a row."""
SWEEP_SECONDS = 2.0
"""Where nothing is to be sent but the log has grown, the mark follows this often."""
UNSYNCED_SECONDS = 0.05
"""So long somebody's commit is waited for that syncs what belongs to other slots."""
PAUSES = (0.05, 2.0)
"""Seconds between two tries when something is wrong: the first, and the longest."""
LATE = 100
"""Retried dead letters that are sent at a time."""


class Facts(NamedTuple):
    """What the store says when a slot is opened. ``table``: the position of each of its lanes."""

    log: str
    incarnation: int
    retained: int
    history: tuple[int, ...]
    table: dict[int, int]
    start: int
    question: Question | None


class Question(msgspec.Struct, frozen=True):
    """Noted in the store where a slot waits for somebody to choose. ``answer``: ``broker``, ``store`` or ``start``.

    ``sent``: lowest position that the broker keeps, None if it keeps none. ``back``: the log went back in time.
    """

    ask: str
    sent: int | None
    stored: int
    back: bool
    answer: str | None = None


class NotOurs(Exception):
    """The lanes are somebody else's now, or they are shared out in another way."""


def note_of(relay: str, slot: int) -> str:
    """Under which a question is noted."""
    return f"relay {relay} asks {slot}"


def slots_note(relay: str) -> str:
    """Under which the number of slots of each generation is noted."""
    return f"relay {relay} slots"


class Sender:
    """
    Args:
        lanes: lane and epoch, as they were claimed. changed: called when ``trouble`` changed, in this thread; ended: at the very end, with
            whether the lanes were lost; idle: when the end of the log was reached.
    """

    def __init__(
        self,
        *,
        relay: str,
        app: str,
        worker: str,
        slot: int,
        slots: int,
        lanes: Mapping[int, int],
        store: Store,
        broker: Broker,
        together: bool,
        rows: int,
        partitions: int | None,
        patience: float,
        changed: Callable[[], None],
        ended: Callable[[Sender, bool], None],
        idle: Callable[[], None],
    ) -> None:
        self.slot = slot
        self.lanes = dict(lanes)
        self.trouble: str | None = None
        self.sent = 0
        self.at_head = False
        self._relay, self._app, self._worker = relay, app, worker
        self._slots = slots
        self._numbers = sorted(lanes)
        self._store, self._broker = store, broker
        self._together, self._rows, self._partitions, self._patience = together, rows, partitions, patience
        self._changed, self._ended, self._idle = changed, ended, idle
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._look = True
        self._reopen = False
        self._paused = False
        self._way: Slot | None = None
        self._opened = False
        self._cursor: Cursor | None = None
        self._advancing: Future[Any] | None = None
        self._careful = False
        self._late: set[int] = set()
        """Sent out of order, and perhaps still parked."""
        self._after = 0
        self._ahead: dict[int, int] = {}
        self._known: tuple[int, str] | None = None
        self._unswept = 0.0
        self._record: Callable[..., Record] = recorder("", 0)
        self._facts: Facts | None = None
        self.thread = threading.Thread(target=self._run, name=f"tidings-{relay}-{slot}", daemon=True)

    # -- from the loop

    @property
    def open(self) -> bool:
        """Whether it has its way to the broker, and knows where to go on."""
        return self._opened

    def start(self) -> None:
        self.thread.start()

    def wake(self) -> None:
        """There may be something new in the log."""
        self._wake.set()

    def look(self) -> None:
        """An operator has changed something: parked rows, an answer, the incarnation."""
        self._look = self._reopen = True
        self._wake.set()

    def pause(self, paused: bool) -> None:
        self._paused = paused
        self._wake.set()

    def finish(self) -> None:
        """End behind what is being sent."""
        self._stop.set()
        self._wake.set()

    def give_up(self) -> None:
        """Don't wait for the broker either."""
        self.finish()
        way = self._way
        if way is not None:
            way.give_up()

    # -- the thread

    def _run(self) -> None:
        pause, lost = PAUSES[0], False
        try:
            while not self._stop.is_set():
                try:
                    self._work()
                except NotOurs:
                    lost = True
                    break
                except SlotFenced as error:
                    log.info("%s", error)
                    self._close_way()
                    self._stop.wait(pause)
                    pause = min(PAUSES[1], pause * 2)
                except Exception as error:  # whatever it is: a sender that ended would stop its lanes in silence
                    self._in_trouble(error)
                    self._close_way()
                    self._careful = True
                    self._stop.wait(pause)
                    pause = min(PAUSES[1], pause * 2)
                else:
                    pause = PAUSES[0]
                if self.trouble is None:
                    pause = PAUSES[0]
            try:
                self._settle()
            except NotOurs:
                lost = True
        finally:
            self._close_way()
            if self._cursor is not None:
                self._cursor.close()
            self._ended(self, lost)

    def _in_trouble(self, error: Exception) -> None:
        expected = isinstance(error, (StoreError, BrokerError, ConfigurationError))
        if not expected:
            log.error("slot %d of %s: unexpected", self.slot, self._relay, exc_info=error)
        words = str(error) if expected else f"{type(error).__name__}: {error}"
        if words != self.trouble:
            log.warning("slot %d of %s: %s", self.slot, self._relay, words)
        self._say(words)

    def _say(self, trouble: str | None) -> None:
        if trouble != self.trouble:
            self.trouble = trouble
            self._changed()

    def _close_way(self) -> None:
        self._opened = False
        way, self._way = self._way, None
        if way is not None:
            way.close()

    def _settle(self) -> None:
        """Wait for the checkpoint that is being written."""
        future, self._advancing = self._advancing, None
        if future is not None:
            try:
                lost = future.result(10.0)
            except Exception as error:
                log.info("slot %d of %s: a checkpoint was not written, the broker has it: %s", self.slot, self._relay, error)
                self._unswept = self._unswept or time.monotonic()  # so that it is written with the next
            else:
                if lost:
                    raise NotOurs

    def _work(self) -> None:
        """Send until something happens."""
        if self._way is None:
            self._open()
            self._opened = True
        while True:
            self._wake.clear()
            if self._stop.is_set():  # looked at behind the clear: who stops us sets both, and one that came before it would be lost
                return
            if self._paused:
                self._wake.wait()
                continue
            if self._reopen and self._facts_changed():
                self._close_way()
                return
            if self._look:
                self._look = False
                self._send_late()
            if self._step():
                continue
            if self._advancing is not None:  # nobody may look at what became of it for long
                self._settle()
            self.at_head = True
            self._idle()
            left = None if not self._unswept else max(0.0, self._unswept + SWEEP_SECONDS - time.monotonic())
            if self._cursor is not None and self._cursor.unsynced:
                left = UNSYNCED_SECONDS
            self._wake.wait(left)
            self.at_head = False

    def _facts_changed(self) -> bool:
        self._reopen = False
        before, now = self._facts, self._ask()
        return before is None or (before.incarnation, before.history) != (now.incarnation, now.history)

    def _step(self) -> bool:
        """One batch; False if the end of the log was reached."""
        if self._cursor is None:
            self._cursor = self._store.cursor(self._app)
        rows, upto = self._cursor.read(self._numbers, self._after, self._rows, self._known)
        if upto == self._after:
            self._say(None)
            if self._unswept and time.monotonic() >= self._unswept + SWEEP_SECONDS:
                self._send([], self._after)
            return False
        if self._ahead:
            rows = [row for row in rows if row[0] > self._ahead.get(row[1], 0)]
        if rows:
            self._send(rows, upto)
            self._say(None)
        else:
            self._after = upto
            self._unswept = self._unswept or time.monotonic()
            if time.monotonic() >= self._unswept + SWEEP_SECONDS:
                self._send([], upto)
        return True

    # -- sending

    def _send(self, rows: Sequence[tuple[Any, ...]], upto: int, late: Sequence[Envelope] = ()) -> None:
        """These rows, and the mark that everything up to ``upto`` was sent."""
        assert self._way is not None
        record = self._record
        self._limits(rows)
        records = [record(row) for row in rows]
        if rows and (self._small < 0 or max(len(row[DATA]) + 4 * len(row[HEADERS] or "") for row in rows) > self._small):
            records = self._that_fit(rows, records)
        last = rows[-1] if rows else None
        self._ahead = {lane: position for lane, position in self._ahead.items() if position > upto}
        known = self._known if last is None else (last[0], last[7])
        mark = self._as_mark(upto, known, tuple(one.position for one in late))
        records += [record(tuple(one), False) for one in late]
        if self._advancing is not None and self._advancing.done():
            self._settle()
        try:
            self._way.send(records, mark.encode())
        except TopicMissing as error:
            if self._partitions is None:
                raise
            self._broker.create(error.topic, self._partitions)  # type: ignore[attr-defined]
            self._way.send(records, mark.encode())
        self._late = set(mark.late)
        self._after, self._known, self._unswept = upto, known, 0.0
        self.sent += len(records)
        self._careful = False
        self._advance()

    def _as_mark(self, position: int, known: tuple[int, str] | None, late: tuple[int, ...] = ()) -> Mark:
        assert self._facts is not None
        row, event = known or (0, "")
        facts = self._facts
        return Mark(facts.log, facts.incarnation, len(facts.history), self.slot, self._slots, position, row, event, self._ahead, late)

    def _limits(self, rows: Sequence[tuple[Any, ...]]) -> None:
        """Below which size of its data and headers a row needs no closer look; -1 if every row needs one."""
        topics = {row[TOPIC] for row in rows}
        least = min(map(self._broker.limit, topics), default=1_000_000)
        self._small = -1 if self._careful or least < 64_000 else least - 32_000

    def _that_fit(self, rows: Sequence[tuple[Any, ...]], records: Sequence[Record]) -> list[Record]:
        """The others become dead letters, before anything passes them."""
        kept = []
        for row, record in zip(rows, records, strict=True):
            if self._broker.fits(record):
                kept.append(record)
            else:
                self._bury(Envelope(*row), 1)
        return kept

    def _bury(self, envelope: Envelope, attempts: int) -> None:
        now = int(self._store.clock.time() * 1_000_000)
        words = f"RecordTooLarge: {size(self._record(tuple(envelope))):,} bytes are more than the topic {envelope.topic} takes"
        row = Parked(self._relay, "dead", False, attempts, now, 0, now, words, None, envelope)
        attempt = FailedAttempt(self._relay, envelope.position, attempts, now, self._worker, "dead", words)

        def job(unit: Unit) -> None:
            unit.park(row)
            unit.record_attempt(attempt)

        self._store.write(job).result()
        log.warning("%s: the event %s is a dead letter: %s", self._relay, envelope.event_id, words)

    def _send_late(self) -> None:
        """Dead letters that somebody wants to be tried again: behind what was sent since, and saying so."""
        found = self._store.query(lambda unit: unit.parked(self._relay, ["retry"], LATE))
        ours = [row for row in found if row.envelope.lane in self.lanes]
        self._look = len(found) == LATE and bool(ours)
        sent_before = self._late
        self._unpark([row.envelope.position for row in ours if row.envelope.position in sent_before])
        ready = []
        self._broker.forget()
        for row in ours:
            if row.envelope.position in sent_before:
                continue
            if self._broker.fits(self._record(tuple(row.envelope), False)):
                ready.append(row.envelope)
            else:
                self._bury(row.envelope, row.attempts + 1)
        if ready:
            self._send([], self._after, ready)
            self._unpark([one.position for one in ready])

    def _unpark(self, positions: Sequence[int]) -> None:
        if positions:

            def job(unit: Unit) -> None:
                for position in positions:
                    unit.unpark(self._relay, position)

            self._store.write(job).result()

    def _advance(self) -> None:
        """Behind the broker's mark, the store's: for lag and retention. Not waited for; the next batch looks at what became of it."""
        if self._advancing is not None:
            self._settle()
        after, ahead = self._after, dict(self._ahead)
        rows = [(lane, epoch, max(after, ahead.get(lane, 0)), None) for lane, epoch in self.lanes.items()]
        relay, worker = self._relay, self._worker
        self._advancing = self._store.write(lambda unit: unit.advance(relay, worker, rows))

    # -- taking over

    def _ask(self) -> Facts:
        """What the store says now. Raises NotOurs if the lanes are no longer ours, or no longer a slot."""

        def look(unit: Unit) -> Facts:
            facts = unit.facts()
            table = {}
            for lane in unit.lanes(self._relay):
                if lane.lane in self.lanes:
                    if lane.worker != self._worker or lane.epoch != self.lanes[lane.lane]:
                        raise NotOurs
                    table[lane.lane] = lane.position
            start = next((row.start for row in unit.subscriptions() if row.name == self._relay), None)
            history = tuple(msgspec.json.decode(facts.get(slots_note(self._relay), "[]")))
            if start is None or not history or history[-1] != self._slots:
                raise NotOurs
            asked = facts.get(note_of(self._relay, self.slot))
            question = None if asked is None else msgspec.json.decode(asked, type=Question)
            return Facts(facts["log_id"], int(facts["incarnation"]), int(facts["retained"]), history, table, start, question)

        return self._store.query(look)

    def _open(self) -> None:
        """Shut out whoever sent before us, find out where he was, and see that it fits.

        Raises:
            NotOurs, PositionUnclear, SlotFenced, BrokerUnavailable, NotAllowed, StoreError
        """
        if self._advancing is not None:
            self._settle()
        self._reopen, self._look = False, True
        facts = self._facts = self._ask()
        self._record = recorder(facts.log, facts.incarnation)
        name = f"{self._relay}-{facts.log}"
        self._way = self._broker.open_slot(name, self.slot, self._slots, together=self._together, patience=self._patience)
        if not self._way.together:
            self._go_on({lane: facts.table[lane] for lane in self._numbers}, None)
            self._late = set()
            return
        generation = len(facts.history)
        mine = marks.decode(self._way.mark, facts.log, self.slot, self._slots)
        if mine is not None and (mine.generation > generation or mine.closed > generation):
            raise NotOurs
        if mine is not None and mine.generation == generation:
            known = [mine]
        else:
            known = [*self._close_earlier(name, facts), *([mine] if mine is not None else [])]
        self._late = {position for mark in known for position in mark.late}
        self._compare(facts, known)

    def _close_earlier(self, name: str, facts: Facts) -> list[Mark]:
        """Shut out every slot of another number of slots that had lanes of ours, for good, and see how far it had come."""
        generation, found = len(facts.history), []
        for one in marks.earlier(self.slot, facts.history):
            way = self._broker.open_slot(name, one.slot, one.slots, patience=self._patience)
            try:
                theirs = marks.decode(way.mark, facts.log, one.slot, one.slots)
                if theirs is not None and theirs.generation > generation:
                    raise NotOurs
                if theirs is None or theirs.closed < generation:
                    theirs = theirs or Mark(facts.log, facts.incarnation, 0, one.slot, one.slots)
                    theirs = msgspec.structs.replace(theirs, closed=generation)
                    way.send([], theirs.encode())
            finally:
                way.close()
            found.append(theirs)
        return found

    def _compare(self, facts: Facts, known: Sequence[Mark]) -> None:
        sent = marks.reached(self._numbers, known)
        why = marks.disagreement(sent, facts.table, facts.start)
        back = False
        if self._cursor is None:
            self._cursor = self._store.cursor(self._app)
        if why is None:
            try:
                for mark in known:
                    if mark.generation:
                        self._cursor.read(self._numbers, mark.position, 1, (mark.row, mark.event) if mark.row else None)
            except LogWentBack as error:
                why, back = str(error), True
        asked = facts.question
        lowest = min(sent.values(), default=None)
        if asked is not None and asked.answer is not None and (asked.sent, asked.back) == (lowest, back):
            self._apply(asked.answer, facts, sent)
            return
        if why is not None:
            question = Question(why, lowest, min(facts.table.values()), back)
            if asked != question:
                self._note(question)
            raise PositionUnclear(f"{why}. Nothing is sent until somebody chooses where to go on: tidings relay resume --help")
        if asked is not None:  # it has been settled by something else
            self._note(None)
        newest = max((mark for mark in known if mark.row), key=lambda mark: (mark.generation, mark.row), default=None)
        at = {lane: sent.get(lane, facts.table[lane]) for lane in self._numbers}
        self._go_on(at, None if newest is None else (newest.row, newest.event))
        if at != facts.table:  # who was here before us ended between the broker's commit and the store's
            self._unswept = time.monotonic()

    def _apply(self, answer: str, facts: Facts, sent: Mapping[int, int]) -> None:
        """Somebody has chosen. What he chose is in the store by now; the mark follows, and then the question is gone."""
        assert self._way is not None
        head = self._store.query(lambda unit: unit.head())
        if answer == "start":
            at = dict.fromkeys(self._numbers, facts.retained)
        elif answer == "broker":
            at = {lane: sent.get(lane, facts.table[lane]) for lane in self._numbers}
        else:
            at = {lane: min(facts.table[lane], head) for lane in self._numbers}
        self._go_on(at, None)
        mark = self._as_mark(self._after, None)
        self._way.send([], mark.encode())
        self._note(None)
        log.warning("slot %d of %s goes on behind %d, as was chosen (%s)", self.slot, self._relay, self._after, answer)

    def _go_on(self, at: Mapping[int, int], known: tuple[int, str] | None) -> None:
        self._after = min(at.values())
        self._ahead = {lane: position for lane, position in at.items() if position > self._after}
        self._known = known
        self._unswept = 0.0

    def _note(self, question: Question | None) -> None:
        text = None if question is None else msgspec.json.encode(question).decode()
        self._store.write(lambda unit: unit.note(note_of(self._relay, self.slot), text)).result()
