"""Reading an outbox by CDC: from the server's own record of what was committed, through a replication slot.

**A row's place is (LSN of its commit, ordinal in its transaction).** All rows of a transaction share the LSN, so the LSN alone would lose
or repeat rows. ``Begin`` carries it, so rows can be sent before the end of their transaction is read: a transaction may be larger than
memory. The broker's mark holds the place of the last row that was sent; a stream begins where the slot stands, at or before that, and rows
up to it are skipped.

**The server is told to forget only what the broker has:** the end of the last transaction of which every row was sent. With nothing under
way it is told to forget what it says it has looked through, so an idle database holds no WAL back and needs no writes of its own.

**Where it begins.** A new slot's stream has what is committed after its start, and the snapshot that was made with it sees what was before.
If rows are ticked off, those without a tick are sent from that snapshot first. A crash before that is done throws the slot away and begins
anew, with the rows that have no tick by then. So it is too when a slot is lost: with ticks nothing is. Without them only what comes after
is sent.
"""

from __future__ import annotations

import os
import queue
import select
import time
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import psycopg

from ...errors import StoreError, StoreFailed
from ..outbox import Batch, Given, Mark, Row, Unsendable, Wanted
from .leader import reading
from .outbox import OutboxTable, columns_of, partition_of
from .pgoutput import Relation, begin, commit_end, decode, insert, lsn_text
from .replication import Created, Replication, SlotInfo, free_slot, publish_table, published, retention_is_limited, slot_info
from .source import BATCH_BYTES, Threaded, unhexed, weight

WAIT_SECONDS = 1.0
"""The server is listened to for so long at a time."""
LOOK_SECONDS = 5.0
_OPEN = (None, b"f")
"""What the column that says so has while a row was not sent: a boolean, or the time at which it was."""
_BYTEA = 17
"""The type's oid."""


class Changes(Threaded):
    """A slot's stream, as batches. Made once the relay leads, so whoever else streams from the slot is dead or frozen.

    Raises:
        StoreError: the slot is lost, the publication can't be made, WAL would be kept without limit; with what to do.
    """

    def __init__(self, url: str, wanted: Wanted, table: OutboxTable, mark: Mark, given: Given, conn: psycopg.Connection[Any]) -> None:
        super().__init__("cdc")
        self._url = url
        self._wanted = wanted
        self._given = given
        self._table = table
        self._record = given.record
        self._mark = mark
        self._slot = wanted.slot
        self._woken, self._waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._confirmed = 0
        self._stream: Replication | None = None
        try:
            self._prepare(conn)
        except BaseException:
            self._release()
            raise
        self._thread.start()

    def sent(self, batch: Batch) -> None:
        self._confirmed = max(self._confirmed, batch.confirm)
        super().sent(batch)
        self._wake()

    def stop(self) -> None:
        self._stop.set()
        self._wake()
        self._thread.join()

    def close(self) -> None:
        """Say what may be forgotten, and end."""
        self._stop.set()
        self._wake()
        super().close()
        self._release()

    def _wake(self) -> None:
        try:
            os.write(self._waker, b"x")
        except BlockingIOError:
            pass

    def _release(self) -> None:
        if self._stream is not None:
            if self._confirmed:
                try:
                    self._stream.confirm(self._confirmed, now=True)
                except psycopg.Error:
                    pass  # the mark knows it too
            self._stream.close()
            self._stream = None
        if self._waker:
            os.close(self._waker)
            os.close(self._woken)
            self._waker = self._woken = 0

    # -- before the stream

    def _prepare(self, conn: psycopg.Connection[Any]) -> None:
        wanted, table, mark = self._wanted, self._table, self._mark
        info = slot_info(conn, self._slot)
        claimed = mark.slot == self._slot
        if info is not None and not claimed:
            raise StoreError(
                f"there is a slot {self._slot}, of the database {info.database}, that this relay has not made; take another name with"
                " --name or --slot, or drop it if nobody needs it"
            )
        if not wanted.unlimited_wal and not retention_is_limited(conn):
            raise StoreError(
                "a relay that is down would keep WAL until the disk is full: set max_slot_wal_keep_size, as in ALTER SYSTEM SET"
                " max_slot_wal_keep_size = '20GB' and SELECT pg_reload_conf(), or accept it with --unlimited-wal"
            )
        publication = publish_table(conn, wanted.publication, table.oid, table.name)
        begun = claimed and mark.mode == "cdc" and mark.lsn > 0
        lost = self._lost(info, publication) if begun else None
        if lost and not table.marks and not self._given.anew:
            raise StoreFailed(
                f"{lost}, and rows are not ticked off: what was committed after {lsn_text(mark.lsn)} and before a new slot can't be had any"
                " more. Send those rows yourself if need be, then give --resume-from table to begin with a new slot"
            )
        if info is not None and info.pid is not None:
            free_slot(conn, self._slot)  # we lead: it is a process that is frozen or dying
        self._stream = Replication(self._url, name=f"tidings relay {wanted.relay}")
        self._created: Created | None = None
        if begun and not lost:
            return
        if not claimed or table.marks:
            # Until the rows without a tick were sent, the slot that is made now isn't to be trusted.
            self._given.claim(self._place(0, 0, []))
        if info is not None:
            self._drop(conn)
        self._created = self._stream.create(self._slot)
        text = f"{lost or 'a first start'}: made the replication slot {self._slot}, which begins at {lsn_text(self._created.start)}"
        text += "; rows without a tick are sent first" if table.marks else "; rows that are in the table already are not sent"
        self._given.note(text, slot=self._slot)
        self._mark = Mark(
            "cdc", mark.system, mark.timeline, table.oid, slot=self._slot, ticked=table.marks, publication=publication,
            database=mark.database,
        )  # fmt: skip

    def _lost(self, info: SlotInfo | None, publication: str) -> str | None:
        """Why the stream can't be gone on with; None if it can."""
        if info is None:
            return f"the slot {self._slot} is gone"
        if info.wal == "lost":
            return f"the slot {self._slot} was given up, since it kept more WAL than max_slot_wal_keep_size allows"
        if publication != self._mark.publication:
            return f"the publication {self._wanted.publication} was made anew, and what was committed without it isn't in the stream"
        return None

    def _drop(self, conn: psycopg.Connection[Any]) -> None:
        """The slot, once nobody streams from it."""
        until = time.monotonic() + 10
        while True:
            try:
                conn.execute("SELECT pg_drop_replication_slot(%s)", (self._slot,))
                return
            except psycopg.errors.ObjectInUse:
                if time.monotonic() > until:
                    raise
                time.sleep(0.02)

    # -- in the thread

    def _read(self) -> None:
        stream = self._stream
        assert stream is not None
        if self._created is not None:
            if self._table.marks and not self._snapshot(self._created):
                return
            # From here on the slot is trusted: the mark says that everything before it was sent.
            self._mark.lsn = self._created.start
            if not self._give(Batch([], [], self._place(self._created.start, 0, []))) or not self._settled():
                return
        self._start(stream)
        with reading(self._url, self._wanted.relay) as conn:
            _Reading(self, stream, conn).run()

    def _start(self, stream: Replication) -> None:
        until = time.monotonic() + 10
        while True:
            try:
                stream.start(self._slot, self._wanted.publication)
                return
            except StoreFailed as error:
                if "is active for PID" not in str(error) or time.monotonic() > until or self._stop.wait(0.02):
                    raise

    def _snapshot(self, created: Created) -> bool:
        """Send what has no tick and was committed before the slot's start; False if that was broken off."""
        with reading(self._url, self._wanted.relay) as conn, reading(self._url, self._wanted.relay) as other:
            conn.execute("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            conn.execute(f"SET TRANSACTION SNAPSHOT '{created.snapshot}'")
            for rows in self._table.everything(conn, self._wanted.batch):
                batch = Filling()
                for row in rows:
                    self.add(batch, row, None, None)
                if not self._give(batch.made(self._place(0, 0, batch.ids, self._table.now(other)))):
                    return False
        return self._settled()

    def _place(self, lsn: int, ordinal: int, ids: list[str], point: int = 0) -> Mark:
        return Mark(
            "cdc", self._mark.system, self._mark.timeline, self._table.oid, ids, point, None, lsn, ordinal, self._slot, self._table.marks,
            self._mark.publication, self._mark.database,
        )  # fmt: skip

    def add(self, batch: Filling, row: Row, sequence: bytes | None, millis: int | None) -> None:
        try:
            record = self._record(unhexed(row, self._table.binary), sequence, millis, False)
        except Unsendable as error:
            self._given.unsendable(error.id, str(error))
        else:
            batch.records.append(record)
            batch.bytes += weight(row)
        if self._table.marks:
            batch.ids.append((row[0] or b"").decode())


class Columns(NamedTuple):
    """Where a table has what is wanted. wanted: takes it out of a row's values. flag: the column that says that it was sent; -1: none."""

    wanted: Callable[[Sequence[bytes | None]], Row]
    flag: int


class Filling:
    """A batch that is being filled."""

    def __init__(self) -> None:
        self.records: list[Any] = []
        self.ids: list[str] = []
        self.bytes = 0
        self.rows = 0

    def made(self, mark: Mark, confirm: int = 0) -> Batch:
        return Batch(self.records, self.ids, mark, 0, confirm)


class _Reading:
    """One stream, from its start to its end."""

    def __init__(self, changes: Changes, stream: Replication, conn: psycopg.Connection[Any]) -> None:
        self._of = changes
        self._conn = conn
        self._stream = stream
        self._batch = Filling()
        self._lsn = 0  # of the transaction that is being read
        self._ordinal = 0
        self._millis = 0
        self._ended = 0  # the end of the last transaction that was read whole
        self._after = (changes._mark.lsn, changes._mark.ordinal)
        self._inside = False
        self._columns: dict[int, Columns | None] = {}  # of each table; None: not ours
        self._looked = 0.0

    def run(self) -> None:
        of, stream = self._of, self._stream
        while not of._stop.is_set():
            try:
                full = self._fill()
            except StoreError:
                if self._batch.records:  # what was read before is nobody's failure
                    self._flush()
                raise
            if full:
                self._look()
                self._flush()
            elif self._batch.rows and not of._open:
                self._flush()
            else:
                self._confirm()
                stream.wait(WAIT_SECONDS, of._woken)
                self._drain()
            self._look()
        # What was read and not handed over is read again next time.

    def _fill(self) -> bool:
        """Read on until the batch is full; False if nothing more has come. Written for speed: most of what comes are rows."""
        of, batch, columns = self._of, self._batch, self._columns
        most, record, marks = of._wanted.batch, of._record, of._table.marks
        records, ids = batch.records, batch.ids
        lsn, ordinal, after = self._lsn, self._ordinal, self._after
        passing = (lsn, ordinal) < after
        try:
            for data in self._stream.messages():
                kind = data[0]
                if kind == 73:  # I
                    oid, values = insert(data)
                    here = columns[oid]
                    if here is None:
                        continue
                    ordinal += 1
                    if passing:
                        passing = (lsn, ordinal) < after
                        continue
                    batch.rows += 1
                    if here.flag >= 0 and values[here.flag] not in _OPEN:
                        continue  # whoever wrote it says that it was sent
                    row = here.wanted(values)
                    try:
                        records.append(record(row, b"%020d.%010d" % (lsn, ordinal), self._millis, False))
                    except Unsendable as error:
                        ordinal -= 1  # not passed unless it may be left out
                        of._given.unsendable(error.id, str(error))
                        ordinal += 1
                    else:
                        batch.bytes += 300 + len(data)
                    if marks:
                        ids.append((row[0] or b"").decode())
                    if batch.rows >= most or batch.bytes >= BATCH_BYTES:
                        return True
                elif kind == 66:  # B
                    lsn, moment = begin(data)
                    ordinal, self._millis, self._inside = 0, moment // 1000, True
                    passing = (lsn, ordinal) < after
                elif kind == 67:  # C
                    self._ended, self._inside = commit_end(data), False
                elif kind == 82:  # R
                    relation = decode(data)
                    assert isinstance(relation, Relation)
                    self._lsn = lsn
                    columns[relation.oid] = self._find(relation)
            return False
        finally:
            self._lsn, self._ordinal = lsn, ordinal

    def _find(self, relation: Relation) -> Columns | None:
        """Where the table has the columns that are wanted; None if it is another table."""
        of = self._of
        if relation.oid != of._table.oid and not partition_of(self._conn, relation.oid, of._table.oid):
            return None
        wanted = of._wanted
        there = {column.name: number for number, column in enumerate(relation.columns)}
        found = []
        for name in (wanted.id, *wanted.columns):
            called = next((one for one in (name, *wanted.former.get(name, ())) if one in there or not one), None)
            if called is None:
                raise self._missing(name, list(there))
            found.append(there[called] if called else -1)
        flag = there.get(wanted.published, -1) if wanted.published else -1
        take = itemgetter(*found)
        binary = [at for at, number in enumerate(found) if at and number >= 0 and relation.columns[number].type == _BYTEA]
        if -1 in found:
            return Columns(lambda values: unhexed(take((*values, None)), binary), flag)
        return Columns((lambda values: unhexed(take(values), binary)) if binary else take, flag)

    def _missing(self, name: str, there: list[str]) -> StoreError:
        """A column that rows of the stream don't have: it isn't there any more, or was not there yet when they were written."""
        table, where = self._of._table, lsn_text(self._lsn)
        if name in columns_of(self._conn, table.oid):
            said = (
                f"rows of {table.name} that were written at {where} have no column {name!r}, but {', '.join(there)}; say with --columns"
                f" what it was then, as in payload={name}|EARLIER, or payload={name}| if they have none"
            )
        else:
            said = (
                f"{table.name} lost its column {name!r} before {where} -- it has {', '.join(there)}; say with --columns which one it is"
                f" now, and behind a bar what it was, as in payload=NOW|{name}, and the relay goes on from there"
            )
        return StoreError(said, columns=there)

    def _flush(self) -> None:
        """Hand over what was read."""
        of, batch = self._of, self._batch
        self._batch = Filling()
        mark = of._place(self._lsn, self._ordinal, batch.ids, of._table.now(self._conn) if batch.ids else 0)
        made = batch.made(mark, self._ended)
        with of._lock:
            of._open += 1
        while not of._stop.is_set():
            try:
                of._batches.put_nowait(made)
                return
            except queue.Full:
                self._confirm()  # the server must hear from us meanwhile
                select.select([of._woken], [], [], WAIT_SECONDS)
                self._drain()
        with of._lock:
            of._open -= 1

    def _look(self) -> None:
        """See from time to time how the slot is, and that the publication still sends the table: if it doesn't, nobody says so."""
        if time.monotonic() - self._looked < LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        of = self._of
        if published(self._conn, of._wanted.publication, of._table.oid) != of._mark.publication:
            raise psycopg.OperationalError(f"the publication {of._wanted.publication} no longer sends the table as it did")
        info = slot_info(self._conn, of._slot)
        if info is not None:
            of._given.facts({"retained_bytes": info.retained, "left_bytes": info.left, "confirmed": lsn_text(info.confirmed)})

    def _confirm(self) -> None:
        of = self._of
        done = of._confirmed
        if not of._open and not self._batch.rows:
            done = max(done, self._ended, 0 if self._inside else self._stream.seen)
            of._confirmed = done
        self._stream.confirm(done)

    def _drain(self) -> None:
        try:
            os.read(self._of._woken, 4096)
        except BlockingIOError:
            pass
