"""The tables, as numbered migrations. A migration that has been released is never edited; a new one is added."""

from __future__ import annotations

import uuid
from typing import Any

import psycopg

from ...errors import StoreError, StoreNewer, StoreNotInitialised
from ...urls import label

_EVENT_COLUMNS = """
    lane            integer NOT NULL,
    topic           text NOT NULL,
    type            text NOT NULL,
    version         integer NOT NULL,
    key_name        text,
    key             text,
    event_id        text NOT NULL,
    time            bigint NOT NULL,
    source          text NOT NULL,
    data            bytea NOT NULL,
    correlation_id  text NOT NULL,
    causation_id    text,
    traceparent     text,
    headers         text"""

MIGRATIONS: tuple[tuple[int, str, str], ...] = (
    (
        1,
        "the log and its readers",
        f"""
-- Facts about this store: schema, log_id, incarnation, retained (rows up to here may be gone), control (raised by operators' commands).
CREATE TABLE tidings_meta (name text PRIMARY KEY, value text NOT NULL);

-- CACHE 1, always: with more, a session would draw positions before others that it writes after them (horizon.py).
CREATE SEQUENCE tidings_log_position_seq AS bigint CACHE 1;

-- The log. The position comes from the column's default, so that it is drawn behind the table's lock (horizon.py).
CREATE TABLE tidings_log (
    position        bigint NOT NULL DEFAULT nextval('tidings_log_position_seq') PRIMARY KEY,{_EVENT_COLUMNS}
) WITH (fillfactor = 100);
ALTER SEQUENCE tidings_log_position_seq OWNED BY tidings_log.position;

-- Finding events by key, id, correlation and time. A block range is summarised once it is full, behind the writers, so an INSERT pays for
-- the primary key alone; what isn't summarised yet is scanned.
CREATE INDEX tidings_log_search ON tidings_log
    USING brin (key text_bloom_ops, event_id text_bloom_ops, correlation_id text_bloom_ops, time int8_minmax_ops)
    WITH (pages_per_range = 32, autosummarize = on);

-- Who reads. types: names of the types; held: why it stopped reading by itself; start: it was never given what is at or below.
CREATE TABLE tidings_subscriptions (
    name        text PRIMARY KEY,
    app         text NOT NULL,
    types       text[] NOT NULL,
    ordering    text NOT NULL,
    created     bigint NOT NULL,
    paused      boolean NOT NULL DEFAULT false,
    held        text,
    held_since  bigint,
    start       bigint NOT NULL DEFAULT 0
);

-- Living processes. until: end of the lease in seconds since 1970 on the server's clock.
CREATE TABLE tidings_workers (
    worker         text PRIMARY KEY,
    app            text NOT NULL,
    host           text NOT NULL,
    pid            integer NOT NULL,
    until          double precision NOT NULL,
    started        bigint NOT NULL,
    subscriptions  text[] NOT NULL,
    info           text
) WITH (fillfactor = 50);

-- How many groups each process's writer has committed: what a COMMIT is judged by whose answer was lost. at: day of the last one, in
-- days since 1970.
CREATE TABLE tidings_writers (
    writer  text PRIMARY KEY,
    done    bigint NOT NULL,
    at      integer NOT NULL
) WITH (fillfactor = 50);

-- Progress: everything in the lane up to position is done but what open lists. epoch rises whenever the lane changes hands.
CREATE TABLE tidings_lanes (
    subscription  text NOT NULL,
    lane          integer NOT NULL,
    position      bigint NOT NULL,
    open          bigint[] NOT NULL DEFAULT '{{}}',
    worker        text,
    epoch         integer NOT NULL DEFAULT 0,
    PRIMARY KEY (subscription, lane)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);

-- Events whose handler failed (retry), those of the same key behind them (waiting), and those that used up their attempts (dead).
-- Each row carries its own copy of the event. holds: a dead one that its key waits for.
CREATE TABLE tidings_parked (
    subscription    text NOT NULL,
    position        bigint NOT NULL,
    state           text NOT NULL CHECK (state IN ('retry', 'waiting', 'dead')),
    holds           boolean NOT NULL DEFAULT false,
    attempts        integer NOT NULL,
    due             bigint NOT NULL,
    delay           bigint NOT NULL,
    since           bigint NOT NULL,
    error           text,
    traceback       text,{_EVENT_COLUMNS},
    PRIMARY KEY (subscription, position)
);
CREATE INDEX tidings_parked_key ON tidings_parked (subscription, lane, key);

-- Failed attempts, for whoever asks what happened. Handled events leave no row: the checkpoint says it.
CREATE TABLE tidings_attempts (
    subscription  text NOT NULL,
    position      bigint NOT NULL,
    attempt       integer NOT NULL,
    time          bigint NOT NULL,
    worker        text NOT NULL,
    outcome       text NOT NULL,
    error         text,
    PRIMARY KEY (subscription, position, attempt, time)
);
CREATE INDEX tidings_attempts_position ON tidings_attempts (position);

-- Events that are to be published later.
CREATE TABLE tidings_scheduled (
    event_id_       text PRIMARY KEY,
    due             bigint NOT NULL,{_EVENT_COLUMNS}
);
CREATE INDEX tidings_scheduled_due ON tidings_scheduled (due, event_id_);
""",
    ),
    (
        2,
        "events whose handler ends the process",
        """
-- What is in handlers' hands in a lane whose last holder died (JSON: deaths in a row, alone, attempts by position); else NULL.
ALTER TABLE tidings_lanes ADD COLUMN begun text;
""",
    ),
    (
        3,
        "the log in parts",
        """
-- What is there becomes the first part, as it is: nothing is written anew, and its indexes stay. It is read once, to see that its positions
-- are in its range, and publishing waits meanwhile. The parts behind it are empty, each far wider than the one before; the last has no
-- end (partitions.py).
LOCK TABLE tidings_log IN ACCESS EXCLUSIVE MODE;
ALTER TABLE tidings_log RENAME TO tidings_log_0;
ALTER INDEX tidings_log_pkey RENAME TO tidings_log_0_pkey;
ALTER INDEX tidings_log_search RENAME TO tidings_log_0_search;
CREATE TABLE tidings_log (LIKE tidings_log_0 INCLUDING DEFAULTS, PRIMARY KEY (position)) PARTITION BY RANGE (position);
CREATE INDEX tidings_log_search ON tidings_log
    USING brin (key text_bloom_ops, event_id text_bloom_ops, correlation_id text_bloom_ops, time int8_minmax_ops)
    WITH (pages_per_range = 32, autosummarize = on);
ALTER SEQUENCE tidings_log_position_seq OWNED BY tidings_log.position;
DO $$
DECLARE
    width CONSTANT bigint := 1048576;
    since bigint := (coalesce(pg_sequence_last_value('tidings_log_position_seq'), 0) / width + 1) * width;
    first CONSTANT bigint := since;
    wider integer;
BEGIN
    EXECUTE format('ALTER TABLE tidings_log ATTACH PARTITION tidings_log_0 FOR VALUES FROM (MINVALUE) TO (%s)', since);
    FOREACH wider IN ARRAY ARRAY[1, 16, 256, 4096] LOOP
        EXECUTE format('CREATE TABLE %I PARTITION OF tidings_log FOR VALUES FROM (%s) TO (%s)',
                       'tidings_log_' || since, since, first + width * wider);
        since := first + width * wider;
    END LOOP;
    EXECUTE format('CREATE TABLE %I PARTITION OF tidings_log FOR VALUES FROM (%s) TO (MAXVALUE)', 'tidings_log_' || since, since);
END $$;
""",
    ),
    (
        4,
        "what comes in from a broker",
        """
-- Who brings events in from a broker. dead: the last number given to a record that could not be read.
CREATE TABLE tidings_intakes (
    intake  text PRIMARY KEY,
    app     text NOT NULL,
    broker  text NOT NULL,
    since   bigint NOT NULL,
    dead    bigint NOT NULL
);

-- How far each partition was read: next is moved in the transaction of the events that lie before it, from what its reader expects, or not
-- at all. topic_id: which topic of that name; ending: where it ended when last asked; reached: time of the last record taken;
-- trouble: why it is not read; resume: where an operator wants it to go on.
CREATE TABLE tidings_offsets (
    intake     text NOT NULL,
    topic      text NOT NULL,
    partition  integer NOT NULL,
    topic_id   text NOT NULL,
    next       bigint NOT NULL,
    ending     bigint NOT NULL,
    reached    bigint NOT NULL DEFAULT 0,
    owner      text,
    trouble    text,
    resume     text,
    PRIMARY KEY (intake, topic, partition)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);

-- The highest sequence taken of each lane of each log, from each partition; lanes: 64 texts with commas between them.
CREATE TABLE tidings_marks (
    intake     text NOT NULL,
    topic      text NOT NULL,
    partition  integer NOT NULL,
    log_id     text NOT NULL,
    series     text NOT NULL,
    lanes      text NOT NULL,
    PRIMARY KEY (intake, topic, partition, log_id, series)
) WITH (fillfactor = 40, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);

-- What was taken lately that no mark can tell: digests of source and event id. The oldest go.
CREATE TABLE tidings_window (
    number  bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    intake  text NOT NULL,
    digest  bytea NOT NULL,
    UNIQUE (intake, digest)
);
""",
    ),
    (
        5,
        "subscriptions that lapse",
        """
-- lapse: the limit past which it does (JSON: age in seconds, events). lapsed: time, position reached, highest epoch of the lanes it had; it
-- has none until it is rewound.
ALTER TABLE tidings_subscriptions ADD COLUMN lapse text, ADD COLUMN lapsed bigint[];
""",
    ),
    (
        6,
        "sagas",
        """
-- Instances of sagas, one for each key. state, since when; due: when somebody should look at it (NULL: an event will tell, or a worker has
-- it); worker, epoch: who has it; arrived: how many events came for it; waits: JSON list of what it waits for; then the event that
-- started it.
CREATE TABLE tidings_sagas (
    saga            text NOT NULL,
    version         integer NOT NULL,
    app             text NOT NULL,
    state           text NOT NULL,
    since           bigint NOT NULL,
    started         bigint NOT NULL,
    due             bigint,
    worker          text,
    epoch           bigint NOT NULL,
    arrived         bigint NOT NULL,
    waits           text,
    error           text,
    position        bigint NOT NULL,
    lane            integer NOT NULL,
    topic           text NOT NULL,
    type            text NOT NULL,
    version_        integer NOT NULL,
    key_name        text NOT NULL,
    key             text NOT NULL,
    event_id        text NOT NULL,
    time            bigint NOT NULL,
    source          text NOT NULL,
    data            bytea NOT NULL,
    correlation_id  text NOT NULL,
    causation_id    text,
    traceparent     text,
    headers         text,
    PRIMARY KEY (saga, key)
);
CREATE INDEX tidings_sagas_due ON tidings_sagas (due) WHERE due IS NOT NULL AND worker IS NULL;
CREATE INDEX tidings_sagas_worker ON tidings_sagas (worker) WHERE worker IS NOT NULL;
CREATE INDEX tidings_sagas_alarm ON tidings_sagas (saga, state) WHERE state IN ('stuck', 'parked');

-- What became of each call of an instance (kind: step, undo, sleep, wait), by branch, name and counter. seq: the order in which results
-- were handed on; result: JSON; digest: of the arguments.
CREATE TABLE tidings_saga_journal (
    saga      text NOT NULL,
    key       text NOT NULL,
    kind      text NOT NULL,
    branch    text NOT NULL,
    step      text NOT NULL,
    number    integer NOT NULL,
    seq       bigint,
    state     text NOT NULL,
    result    text,
    error     text,
    attempts  integer NOT NULL,
    started   bigint NOT NULL,
    ended     bigint NOT NULL,
    due       bigint,
    digest    text,
    PRIMARY KEY (saga, key, kind, branch, step, number)
);

-- Events that came for an instance, until it is closed.
CREATE TABLE tidings_saga_events (
    saga      text NOT NULL,
    key       text NOT NULL,
    position  bigint NOT NULL,
    type      text NOT NULL,
    version   integer NOT NULL,
    time      bigint NOT NULL,
    data      bytea NOT NULL,
    PRIMARY KEY (saga, key, position)
);

-- Who intervened, and why.
CREATE TABLE tidings_saga_actions (
    saga    text NOT NULL,
    key     text NOT NULL,
    time    bigint NOT NULL,
    actor   text NOT NULL,
    action  text NOT NULL,
    reason  text NOT NULL
);
CREATE INDEX tidings_saga_actions_key ON tidings_saga_actions (saga, key);
""",
    ),
    (
        7,
        "sagas that give a result, have children, and go away",
        """
-- result: JSON, of one that is completed. parent_saga, parent_key: whose child it is. undo: why it is to be undone, whatever its body would
-- do. What is gone after its retention keeps its row as a tombstone, in the state gone.
ALTER TABLE tidings_sagas ADD COLUMN result text;
ALTER TABLE tidings_sagas ADD COLUMN parent_saga text;
ALTER TABLE tidings_sagas ADD COLUMN parent_key text;
ALTER TABLE tidings_sagas ADD COLUMN undo text;
CREATE INDEX tidings_sagas_parent ON tidings_sagas (parent_saga, parent_key) WHERE parent_saga IS NOT NULL;
CREATE INDEX tidings_sagas_closed ON tidings_sagas (since) WHERE state IN ('completed', 'compensated', 'cancelled');
CREATE INDEX tidings_sagas_gone ON tidings_sagas (position) WHERE state = 'gone';
""",
    ),
    (
        8,
        "operators of sagas",
        """
-- back: compensate or cancel, once an operator wants an instance undone; pause: the state that one goes on with that is paused, or shall
-- be; detail: what exactly was done by hand.
ALTER TABLE tidings_sagas ADD COLUMN back text;
ALTER TABLE tidings_sagas ADD COLUMN pause text;
ALTER TABLE tidings_saga_actions ADD COLUMN detail text;
""",
    ),
)

NEWEST = MIGRATIONS[-1][0]

_ADVISORY_LOCK = 0x7469_6469_6E67_73
"""Held while migrating, so that processes that start together migrate once."""


def sql(since: int = 0) -> str:
    """All migrations behind version ``since`` as one script, for those who own their DDL. It leaves the tables as ``store init`` does."""
    parts = [f"-- {number}: {title}\n{text.strip()}\n" for number, title, text in MIGRATIONS if number > since]
    if since:
        return "\n".join([*parts, f"UPDATE tidings_meta SET value = '{NEWEST}' WHERE name = 'schema';\n"])
    parts.append(
        f"""-- what the library finds out about the store
INSERT INTO tidings_meta VALUES
    ('schema', '{NEWEST}'), ('log_id', gen_random_uuid()::text), ('incarnation', '1'), ('retained', '0'), ('control', '0');
"""
    )
    return "\n".join(parts)


def version_of(conn: psycopg.Connection[Any]) -> int | None:
    """The schema version of the tables behind ``conn``; None where there are none."""
    # Not by to_regclass: it may answer from what this session knew before it waited for the lock below.
    if conn.execute("SELECT 1 FROM pg_class WHERE relname = 'tidings_meta' AND pg_table_is_visible(oid)").fetchone() is None:
        return None
    row = conn.execute("SELECT value FROM tidings_meta WHERE name = 'schema'").fetchone()
    return int(row[0]) if row else 0


def require(conn: psycopg.Connection[Any], url: str) -> None:
    """Check that the tables are there, in the version that this library works with.

    Raises:
        StoreNotInitialised, StoreNewer, StoreError (they are older)
    """
    version = version_of(conn)
    if version is None:
        raise StoreNotInitialised(f"{label(url)} has no Tidings tables; run `tidings store init --store {label(url)}`", url=label(url))
    if version < NEWEST:
        raise StoreError(
            f"{label(url)} was made by an older Tidings (schema {version}, this one works with {NEWEST}); bring it up to date with"
            f" `tidings store init --store {label(url)}`",
            url=label(url),
        )
    _refuse_newer(version, url)


def _refuse_newer(version: int, url: str) -> None:
    if version > NEWEST:
        raise StoreNewer(
            f"{label(url)} was made by a newer Tidings (schema {version}, this one knows {NEWEST}); upgrade tidings in this environment",
            found=version,
            known=NEWEST,
        )


def migrate(conn: psycopg.Connection[Any], url: str) -> list[int]:
    """Bring the tables up to date; returns the numbers of the migrations that ran. ``conn`` is in autocommit mode.

    Raises:
        StoreNewer: nothing was changed.
    """
    if version_of(conn) == NEWEST:  # no lock and no right to create is needed by those who find it done
        return []
    done: list[int] = []
    with conn.transaction():
        conn.execute("SELECT pg_advisory_xact_lock(%s)", (_ADVISORY_LOCK,))
        version = version_of(conn)
        _refuse_newer(version or 0, url)
        for number, _title, text in MIGRATIONS:
            if number <= (version or 0):
                continue
            conn.execute(text.encode())  # no arguments: the server takes the script whole
            conn.execute(
                "INSERT INTO tidings_meta VALUES ('schema', %s) ON CONFLICT (name) DO UPDATE SET value = excluded.value", (str(number),)
            )
            done.append(number)
        if version is None:
            facts = {"log_id": str(uuid.uuid4()), "incarnation": "1", "retained": "0", "control": "0"}
            for name, value in facts.items():
                conn.execute("INSERT INTO tidings_meta VALUES (%s, %s)", (name, value))
    return done
