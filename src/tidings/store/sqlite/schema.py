"""The tables, as numbered migrations. A migration that has been released is never edited; a new one is added."""

from __future__ import annotations

import sqlite3
import uuid

from ...errors import StoreError, StoreNewer, StoreNotInitialised

_EVENT_COLUMNS = """
    lane            INTEGER NOT NULL,
    topic           TEXT NOT NULL,
    type            TEXT NOT NULL,
    version         INTEGER NOT NULL,
    key_name        TEXT,
    key             TEXT,
    event_id        TEXT NOT NULL,
    time            INTEGER NOT NULL,
    source          TEXT NOT NULL,
    data            BLOB NOT NULL,
    correlation_id  TEXT NOT NULL,
    causation_id    TEXT,
    traceparent     TEXT,
    headers         TEXT"""

MIGRATIONS: tuple[tuple[int, str, str], ...] = (
    (
        1,
        "the log and its readers",
        f"""
-- Facts about this store: schema, log_id, incarnation, retained (rows up to here may be gone), control (raised by operators' commands).
CREATE TABLE tidings_meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;

-- The log. One writer at a time, so positions are in the order of commits; AUTOINCREMENT never gives one out again after a trim.
-- No index beside the primary key: each would be paid by every publish.
CREATE TABLE tidings_log (
    position        INTEGER PRIMARY KEY AUTOINCREMENT,{_EVENT_COLUMNS}
);

-- Who reads. types: JSON list of type names; held: why it stopped reading by itself.
CREATE TABLE tidings_subscriptions (
    name        TEXT PRIMARY KEY,
    app         TEXT NOT NULL,
    types       TEXT NOT NULL,
    ordering    TEXT NOT NULL,
    created     INTEGER NOT NULL,
    paused      INTEGER NOT NULL DEFAULT 0,
    held        TEXT,
    held_since  INTEGER
) WITHOUT ROWID;

-- Living processes. until: end of the lease on the machine's monotonic clock, which only means something within one boot.
CREATE TABLE tidings_workers (
    worker         TEXT PRIMARY KEY,
    app            TEXT NOT NULL,
    host           TEXT NOT NULL,
    pid            INTEGER NOT NULL,
    boot           TEXT NOT NULL,
    until          REAL NOT NULL,
    started        INTEGER NOT NULL,
    subscriptions  TEXT NOT NULL,
    info           TEXT
) WITHOUT ROWID;

-- Progress: everything in the lane up to position is done but what open lists (JSON). epoch rises whenever the lane changes hands.
CREATE TABLE tidings_lanes (
    subscription  TEXT NOT NULL,
    lane          INTEGER NOT NULL,
    position      INTEGER NOT NULL,
    open          TEXT,
    worker        TEXT,
    epoch         INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (subscription, lane)
) WITHOUT ROWID;

-- Events whose handler failed (retry), those of the same key behind them (waiting), and those that used up their attempts (dead).
-- Each row carries its own copy of the event. holds: a dead one that its key waits for.
CREATE TABLE tidings_parked (
    subscription    TEXT NOT NULL,
    position        INTEGER NOT NULL,
    state           TEXT NOT NULL CHECK (state IN ('retry', 'waiting', 'dead')),
    holds           INTEGER NOT NULL DEFAULT 0,
    attempts        INTEGER NOT NULL,
    due             INTEGER NOT NULL,
    delay           INTEGER NOT NULL,
    since           INTEGER NOT NULL,
    error           TEXT,
    traceback       TEXT,{_EVENT_COLUMNS},
    PRIMARY KEY (subscription, position)
) WITHOUT ROWID;
CREATE INDEX tidings_parked_key ON tidings_parked (subscription, lane, key);

-- Failed attempts, for whoever asks what happened. Handled events leave no row: the checkpoint says it.
CREATE TABLE tidings_attempts (
    subscription  TEXT NOT NULL,
    position      INTEGER NOT NULL,
    attempt       INTEGER NOT NULL,
    time          INTEGER NOT NULL,
    worker        TEXT NOT NULL,
    outcome       TEXT NOT NULL,
    error         TEXT,
    PRIMARY KEY (subscription, position, attempt, time)
) WITHOUT ROWID;

-- Events that are to be published later.
CREATE TABLE tidings_scheduled (
    event_id_       TEXT PRIMARY KEY,
    due             INTEGER NOT NULL,{_EVENT_COLUMNS}
) WITHOUT ROWID;
CREATE INDEX tidings_scheduled_due ON tidings_scheduled (due);
""",
    ),
    (
        2,
        "finding events without an index on the log",
        """
-- Full blocks of the log, condensed by workers when there is time; see search.py. Any of the rows may be missing.
CREATE TABLE tidings_blocks (
    block    INTEGER PRIMARY KEY,
    oldest   INTEGER NOT NULL,
    newest   INTEGER NOT NULL,
    entries  BLOB NOT NULL
);

-- The position behind which a subscription began: what is at or below it was never its business.
ALTER TABLE tidings_subscriptions ADD COLUMN start INTEGER NOT NULL DEFAULT 0;
""",
    ),
    (
        3,
        "a name that no other log has",
        """
-- An empty view whose name holds the log_id, made by the program: tidings_is_<log_id without its dashes>. The INSERT of a publish
-- names it, so that on any other database it can't be prepared.
""",
    ),
    (
        4,
        "events whose handler ends the process",
        """
-- What is in handlers' hands in a lane whose last holder died (JSON: deaths in a row, alone, attempts by position); else NULL.
ALTER TABLE tidings_lanes ADD COLUMN begun TEXT;
""",
    ),
    (
        5,
        "what comes in from a broker",
        """
-- Who brings events in from a broker. dead: the last number given to a record that could not be read.
CREATE TABLE tidings_intakes (
    intake  TEXT PRIMARY KEY,
    app     TEXT NOT NULL,
    broker  TEXT NOT NULL,
    since   INTEGER NOT NULL,
    dead    INTEGER NOT NULL
) WITHOUT ROWID;

-- How far each partition was read: next is moved in the transaction of the events that lie before it, from what its reader expects, or not
-- at all. topic_id: which topic of that name; ending: where it ended when last asked; reached: time of the last record taken;
-- trouble: why it is not read; resume: where an operator wants it to go on.
CREATE TABLE tidings_offsets (
    intake     TEXT NOT NULL,
    topic      TEXT NOT NULL,
    partition  INTEGER NOT NULL,
    topic_id   TEXT NOT NULL,
    next       INTEGER NOT NULL,
    ending     INTEGER NOT NULL,
    reached    INTEGER NOT NULL DEFAULT 0,
    owner      TEXT,
    trouble    TEXT,
    resume     TEXT,
    PRIMARY KEY (intake, topic, partition)
) WITHOUT ROWID;

-- The highest sequence taken of each lane of each log, from each partition; lanes: 64 texts with commas between them.
CREATE TABLE tidings_marks (
    intake     TEXT NOT NULL,
    topic      TEXT NOT NULL,
    partition  INTEGER NOT NULL,
    log_id     TEXT NOT NULL,
    series     TEXT NOT NULL,
    lanes      TEXT NOT NULL,
    PRIMARY KEY (intake, topic, partition, log_id, series)
) WITHOUT ROWID;

-- What was taken lately that no mark can tell: digests of source and event id. The oldest go.
CREATE TABLE tidings_window (
    number  INTEGER PRIMARY KEY AUTOINCREMENT,
    intake  TEXT NOT NULL,
    digest  BLOB NOT NULL,
    UNIQUE (intake, digest)
);
""",
    ),
    (
        6,
        "subscriptions that lapse",
        """
-- lapse: the limit past which it does (JSON: age in seconds, events). lapsed: JSON list of time, position reached, and highest epoch of the
-- lanes that it had; it has none until it is rewound.
ALTER TABLE tidings_subscriptions ADD COLUMN lapse TEXT;
ALTER TABLE tidings_subscriptions ADD COLUMN lapsed TEXT;
""",
    ),
    (
        7,
        "sagas",
        """
-- Instances of sagas, one for each key. state, since when; due: when somebody should look at it (NULL: an event will tell, or a worker has
-- it); worker, epoch: who has it; arrived: how many events came for it; waits: JSON list of what it waits for; then the event that
-- started it.
CREATE TABLE tidings_sagas (
    saga            TEXT NOT NULL,
    version         INTEGER NOT NULL,
    app             TEXT NOT NULL,
    state           TEXT NOT NULL,
    since           INTEGER NOT NULL,
    started         INTEGER NOT NULL,
    due             INTEGER,
    worker          TEXT,
    epoch           INTEGER NOT NULL,
    arrived         INTEGER NOT NULL,
    waits           TEXT,
    error           TEXT,
    position        INTEGER NOT NULL,
    lane            INTEGER NOT NULL,
    topic           TEXT NOT NULL,
    type            TEXT NOT NULL,
    version_        INTEGER NOT NULL,
    key_name        TEXT NOT NULL,
    key             TEXT NOT NULL,
    event_id        TEXT NOT NULL,
    time            INTEGER NOT NULL,
    source          TEXT NOT NULL,
    data            BLOB NOT NULL,
    correlation_id  TEXT NOT NULL,
    causation_id    TEXT,
    traceparent     TEXT,
    headers         TEXT,
    PRIMARY KEY (saga, key)
) WITHOUT ROWID;
CREATE INDEX tidings_sagas_due ON tidings_sagas (due) WHERE due IS NOT NULL AND worker IS NULL;
CREATE INDEX tidings_sagas_worker ON tidings_sagas (worker) WHERE worker IS NOT NULL;
CREATE INDEX tidings_sagas_alarm ON tidings_sagas (saga, state) WHERE state IN ('stuck', 'parked');

-- What became of each call of an instance (kind: step, undo, sleep, wait), by branch, name and counter. seq: the order in which results
-- were handed on; result: JSON; digest: of the arguments.
CREATE TABLE tidings_saga_journal (
    saga      TEXT NOT NULL,
    key       TEXT NOT NULL,
    kind      TEXT NOT NULL,
    branch    TEXT NOT NULL,
    step      TEXT NOT NULL,
    number    INTEGER NOT NULL,
    seq       INTEGER,
    state     TEXT NOT NULL,
    result    TEXT,
    error     TEXT,
    attempts  INTEGER NOT NULL,
    started   INTEGER NOT NULL,
    ended     INTEGER NOT NULL,
    due       INTEGER,
    digest    TEXT,
    PRIMARY KEY (saga, key, kind, branch, step, number)
) WITHOUT ROWID;

-- Events that came for an instance, until it is closed.
CREATE TABLE tidings_saga_events (
    saga      TEXT NOT NULL,
    key       TEXT NOT NULL,
    position  INTEGER NOT NULL,
    type      TEXT NOT NULL,
    version   INTEGER NOT NULL,
    time      INTEGER NOT NULL,
    data      BLOB NOT NULL,
    PRIMARY KEY (saga, key, position)
) WITHOUT ROWID;

-- Who intervened, and why.
CREATE TABLE tidings_saga_actions (
    saga    TEXT NOT NULL,
    key     TEXT NOT NULL,
    time    INTEGER NOT NULL,
    actor   TEXT NOT NULL,
    action  TEXT NOT NULL,
    reason  TEXT NOT NULL
);
CREATE INDEX tidings_saga_actions_key ON tidings_saga_actions (saga, key);
""",
    ),
    (
        8,
        "sagas that give a result, have children, and go away",
        """
-- result: JSON, of one that is completed. parent_saga, parent_key: whose child it is. undo: why it is to be undone, whatever its body would
-- do. What is gone after its retention keeps its row as a tombstone, in the state gone.
ALTER TABLE tidings_sagas ADD COLUMN result TEXT;
ALTER TABLE tidings_sagas ADD COLUMN parent_saga TEXT;
ALTER TABLE tidings_sagas ADD COLUMN parent_key TEXT;
ALTER TABLE tidings_sagas ADD COLUMN undo TEXT;
CREATE INDEX tidings_sagas_parent ON tidings_sagas (parent_saga, parent_key) WHERE parent_saga IS NOT NULL;
CREATE INDEX tidings_sagas_closed ON tidings_sagas (since) WHERE state IN ('completed', 'compensated', 'cancelled');
CREATE INDEX tidings_sagas_gone ON tidings_sagas (position) WHERE state = 'gone';
""",
    ),
    (
        9,
        "operators of sagas",
        """
-- back: compensate or cancel, once an operator wants an instance undone; pause: the state that one goes on with that is paused, or shall
-- be; detail: what exactly was done by hand.
ALTER TABLE tidings_sagas ADD COLUMN back TEXT;
ALTER TABLE tidings_sagas ADD COLUMN pause TEXT;
ALTER TABLE tidings_saga_actions ADD COLUMN detail TEXT;
""",
    ),
)

NEWEST = MIGRATIONS[-1][0]


def name_of(log_id: str) -> str:
    """The view that only the log of this id has."""
    return f"tidings_is_{log_id.replace('-', '')}"


def sql(since: int = 0) -> str:
    """All migrations behind version ``since`` as one script, for those who own their DDL. What else a new store needs, its id among it,
    is written when it is opened."""
    parts = [f"-- {number}: {title}\n{text.strip()}\n" for number, title, text in MIGRATIONS if number > since]
    if since:
        parts.append(f"UPDATE tidings_meta SET value = '{NEWEST}' WHERE name = 'schema';\n")
    else:
        parts.append(f"INSERT INTO tidings_meta VALUES ('schema', '{NEWEST}');\n")
    return "\n".join(parts)


def version_of(conn: sqlite3.Connection) -> int | None:
    """The schema version of the tables behind ``conn``; None where there are none."""
    if conn.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'tidings_meta'").fetchone() is None:
        return None
    row = conn.execute("SELECT value FROM tidings_meta WHERE name = 'schema'").fetchone()
    return int(row[0]) if row else 0


def log_id_of(conn: sqlite3.Connection) -> str | None:
    """The store's id; None where tables were made by the script and never opened."""
    row = conn.execute("SELECT value FROM tidings_meta WHERE name = 'log_id'").fetchone()
    return None if row is None else str(row[0])


def require(conn: sqlite3.Connection, path: str) -> None:
    """Check that the tables are there, in the version that this library works with.

    Raises:
        StoreNotInitialised, StoreNewer, StoreError (they are older)
    """
    version = version_of(conn)
    if version is None or log_id_of(conn) is None:
        raise StoreNotInitialised(f"{path} has no Tidings tables; run `tidings store init --store sqlite:///{path}`", path=path)
    if version < NEWEST:
        raise StoreError(
            f"{path} was made by an older Tidings (schema {version}, this one works with {NEWEST}); bring it up to date with"
            f" `tidings store init --store sqlite:///{path}`",
            path=path,
        )
    _refuse_newer(version, path)


def _refuse_newer(version: int, path: str) -> None:
    if version > NEWEST:
        raise StoreNewer(
            f"{path} was made by a newer Tidings (schema {version}, this one knows {NEWEST}); upgrade tidings in this environment",
            found=version,
            known=NEWEST,
        )


def migrate(conn: sqlite3.Connection, path: str) -> list[int]:
    """Bring the tables up to date; returns the numbers of the migrations that ran. ``conn`` is in no transaction (isolation_level None).

    Raises:
        StoreNewer: nothing was changed.
    """
    done: list[int] = []
    conn.execute("BEGIN IMMEDIATE")
    try:
        version = version_of(conn)
        _refuse_newer(version or 0, path)
        for number, _title, text in MIGRATIONS:
            if number <= (version or 0):
                continue
            for statement in _statements(text):
                conn.execute(statement)
            conn.execute(
                "INSERT INTO tidings_meta VALUES ('schema', ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value", (str(number),)
            )
            done.append(number)
        new = log_id_of(conn) is None  # so it is too where the tables were made by the script
        if new:
            facts = {"log_id": str(uuid.uuid4()), "incarnation": "1", "retained": "0", "control": "0"}
            conn.executemany("INSERT INTO tidings_meta VALUES (?, ?)", facts.items())
        if 3 in done or (new and (version or 0) >= 3):
            conn.execute(f"CREATE VIEW {name_of(log_id_of(conn) or '')} AS SELECT 1 WHERE 0")
        conn.execute("COMMIT")
    except BaseException:
        conn.rollback()
        raise
    return done


def _statements(script: str) -> list[str]:
    """A script cut into statements; ``executescript`` would commit the migration's transaction first."""
    found: list[str] = []
    part = ""
    for line in script.splitlines():
        part += line + "\n"
        if sqlite3.complete_statement(part):
            found.append(part)
            part = ""
    return found
