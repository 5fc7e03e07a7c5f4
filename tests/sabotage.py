"""Takes out each guarded mechanism in turn, in a copy of the project: the test that guards it must fail.

``python -m tests.sabotage`` runs all, ``--only WORD`` those whose name has it. Before that, every guarding test must pass as it is. Exits
non-zero if a guard still passes, or if the text to take out is not found (then the list is out of date).

A new guard gets a line here. ``old`` is exact and stands once in its file.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
SECONDS = 120
"""A guard that takes longer counts as failed: most say that something never happens by waiting for it."""


class Sabotage(NamedTuple):
    mechanism: str
    file: str
    old: str
    new: str
    guard: str


DYING = "tests/test_promises_dying.py::test_"
HANDLING = "tests/test_promises_handling.py::test_"
PUBLISHING = "tests/test_promises_publishing.py::test_"
RACES = "tests/test_promises_races.py::test_"
SURROUNDINGS = "tests/test_promises_surroundings.py::test_"
HORIZON = "tests/store/postgres/test_horizon.py::"
HISTORY = "tests/store/postgres/test_history.py::"
PARTITIONS = "tests/store/postgres/test_partitions.py::"

LIST = (
    # -- leases, epochs, lanes
    Sabotage(
        "a checkpoint is fenced by worker and epoch",
        "store/sqlite/unit.py",
        "AND worker = ? AND lane = given.column1 AND epoch = given.column2",
        "AND (worker = ? OR 1) AND lane = given.column1 AND (epoch = given.column2 OR 1)",
        DYING + "a_handlers_transaction_is_fenced_at_its_commit",
    ),
    Sabotage(
        "a claim raises the epoch",
        "store/sqlite/unit.py",
        "lane.worker, lane.epoch = worker, lane.epoch + 1",
        "lane.worker = worker",
        DYING + "who_gets_a_lane_back_does_not_end_what_he_began_before",
    ),
    Sabotage(
        "an earlier hold of a lane is not a later one",
        "subscribe/checkpointing.py",
        "(lane.lane, lane.epoch) in fenced",
        "lane.lane in {number for number, _ in fenced}",
        DYING + "a_lane_lost_and_taken_again_while_handlers_run",
    ),
    Sabotage(
        "leases run on the monotonic clock",
        "store/sqlite/unit.py",
        '        now = self._clock.monotonic()\n        rows = self._conn.execute(\n            "SELECT worker, app',
        '        now = self._clock.time() - 1_700_000_000 + 1_000\n        rows = self._conn.execute(\n            "SELECT worker, app',
        DYING + "a_lease_does_not_depend_on_the_wall_clock",
    ),
    Sabotage(
        "nothing begins behind the lease",
        "subscribe/feed.py",
        "if self.now() > self.until:",
        "if False:",
        DYING + "a_frozen_worker_that_wakes_up_is_fenced",
    ),
    Sabotage(
        "one look at the store at a time",
        "subscribe/worker.py",
        "async with self._looking:",
        "if True:",
        DYING + "two_looks_at_the_store_at_once_leave_no_lane_without_a_reader",
    ),
    Sabotage(
        "lanes that are ours and not in memory are found",
        "subscribe/worker.py",
        "if orphans:",
        "if False:",
        DYING + "lanes_that_are_ours_and_not_in_memory_are_found",
    ),
    # -- checkpoints
    Sabotage(
        "open positions stand in the checkpoint",
        "subscribe/lanes.py",
        "high, json.dumps(below) if below else None",
        "high, None",
        DYING + "a_slow_key_does_not_make_a_crash_repeat_the_quick_ones",
    ),
    Sabotage(
        "follow-ups are in the checkpoint's transaction",
        "subscribe/checkpointing.py",
        "        unit.append([envelope for envelope, due in outputs if due is None])\n",
        "        if published := [envelope for envelope, due in outputs if due is None]:\n"
        "            self._store.write(lambda unit: unit.append(published))\n",
        HANDLING + "a_checkpoint_that_cannot_be_written_takes_its_follow_ups_with_it",
    ),
    Sabotage(
        "what ends during a flush gets a timer of its own",
        "subscribe/checkpointing.py",
        "        elif self.dirty:\n            self.begin_age()",
        "        elif False:\n            self.begin_age()",
        DYING + "what_ended_while_a_flush_was_on_its_way_is_written_in_time_too",
    ),
    Sabotage(
        "no sweep in one group with a flush",
        "subscribe/runner.py",
        "        if self.checkpointing.writes:\n            return",
        "        if False:\n            return",
        DYING + "a_sweep_behind_a_flush_does_not_take_its_checkpoint_back",
    ),
    Sabotage(
        "checkpoints go ahead of handlers that queue",
        "store/sqlite/writer.py",
        "self._waiting.appendleft(granted) if first else self._waiting.append(granted)",
        "self._waiting.append(granted)",
        RACES + "checkpoints_go_ahead_of_handlers_that_queue_for_the_file",
    ),
    Sabotage(
        "a rewind keeps what is in hand",
        "store/sqlite/unit.py",
        "json.dumps(open_) if open_ else None",
        "None",
        DYING + "a_rewind_keeps_what_is_in_hand",
    ),
    Sabotage(
        "what was read is durable before an effect leaves",
        "subscribe/tail.py",
        "if rows and not self._lasts(safe):",
        "if False:",
        HANDLING + "what_was_read_is_durable_before_an_effect_leaves_the_machine",
    ),
    Sabotage(
        "an idle worker listens on when a commit brought no events",
        "subscribe/worker.py",
        "if not woken:",
        "if False:",
        "tests/subscribe/test_worker.py::test_a_commit_that_is_no_event_leaves_an_idle_worker_listening",
    ),
    Sabotage(
        "a trip's events are taken back from behind a slow one",
        "subscribe/crew.py",
        "                self._take_back(chunk, waiting)\n            await future\n",
        "            await future\n",
        "tests/subscribe/test_runner.py::test_a_slow_handler_holds_back_nobody_it_shares_a_trip_with[1010]",
    ),
    # -- order and parking
    Sabotage(
        "events of a key wait in its chain",
        "subscribe/feed.py",
        "if chain is ctx:",
        "if True:",
        HANDLING + "each_key_in_its_order_whatever_fails[1-async]",
    ),
    Sabotage(
        "followers are parked behind their head",
        "subscribe/crew.py",
        "                if parked and not ctx.parked and ctx.key_id in parked:\n                    ctx.failure = FOLLOWS\n",
        "                if False:\n                    ctx.failure = FOLLOWS\n",
        HANDLING + "a_poison_event_parks_its_key_and_not_its_lane[async]",
    ),
    Sabotage(
        "a failure in a shared transaction parks its key there too",
        "subscribe/serial.py",
        "failed.add(ctx.key_id)",
        "pass",
        HANDLING + "each_key_in_its_order_whatever_fails[1-shared tx]",
    ),
    Sabotage(
        "a head that has just ended is not run again",
        "subscribe/parked_keys.py",
        "and key not in self.running and not self.unsettled.get(key):",
        "and key not in self.running:",
        RACES + "a_head_that_has_just_ended_is_not_scheduled_again",
    ),
    Sabotage(
        "parked keys of lanes that stay are kept",
        "subscribe/parked_keys.py",
        "if lane in lanes and key not in seen",
        "if key not in seen",
        HANDLING + "a_held_key_waits_for_someone_through_every_change_of_hands[stays-retry]",
    ),
    Sabotage(
        "a dead letter holds its key",
        "store/sqlite/unit.py",
        "(state <> 'dead' OR holds = 1)",
        "(state <> 'dead')",
        HANDLING + "a_held_key_waits_for_someone_through_every_change_of_hands[moves-drop]",
    ),
    Sabotage(
        "a wall clock that jumps can't stretch a retry",
        "store/sqlite/unit.py",
        '_DUE_IN = "max(0, min(due - ?, delay))"',
        '_DUE_IN = "max(0, due - ?)"',
        DYING + "a_lease_does_not_depend_on_the_wall_clock",
    ),
    Sabotage(
        "a failing subscription is held",
        "subscribe/parking.py",
        "if parked >= self.most_parked:",
        "if False:",
        HANDLING + "a_subscription_that_always_fails_stops_reading_and_goes_on_by_itself",
    ),
    Sabotage(
        "where chooses",
        "subscribe/serial.py",
        "if handler.where is not None and not handler.where(event):",
        "if False:",
        HANDLING + "where_chooses_and_the_rest_counts_as_handled[tx]",
    ),
    Sabotage(
        "errors that can't be stored are kept all the same",
        "subscribe/parking.py",
        'text.encode(errors="backslashreplace").decode()',
        "text",
        HANDLING + "whatever_a_handler_raises_is_kept_and_stops_nobody[async-surrogate]",
    ),
    Sabotage(
        "the idempotency key never changes",
        "subscribe/context.py",
        "{self.row[EVENT_ID]}",
        "{self.row[EVENT_ID]}:{self.attempt}",
        HANDLING + "the_idempotency_key_never_changes",
    ),
    # -- handlers' transactions
    Sabotage(
        "a savepoint for each chunk",
        "subscribe/serial.py",
        "with transaction.savepoint(), transaction.guard.closed(chunk[0].handler.name):",
        "with transaction.guard.closed(chunk[0].handler.name):",
        HANDLING + "a_failed_handler_leaves_nothing_and_its_neighbours_everything[True]",
    ),
    Sabotage(
        "a savepoint for each event of a chunk that is done again",
        "subscribe/serial.py",
        "with transaction.savepoint(), transaction.guard.closed(ctx.handler.name):",
        "with transaction.guard.closed(ctx.handler.name):",
        HANDLING + "a_failed_handler_leaves_nothing_and_its_neighbours_everything[True]",
    ),
    Sabotage(
        "the authorizer refuses COMMIT to handlers",
        "subscribe/transactions.py",
        "if self._closed and action == sqlite3.SQLITE_TRANSACTION:",
        "if False:",
        HANDLING + "a_handler_that_ends_the_transaction_counts_for_nothing[commit]",
    ),
    Sabotage(
        "a transaction that was given up is rolled back by name",
        "subscribe/transactions.py",
        "                transaction.guard.shut()\n                transaction.raw.rollback()\n",
        "                pass\n",
        SURROUNDINGS + "a_handler_that_hangs_in_its_transaction_gives_the_file_back",
    ),
    Sabotage(
        "a full disk is nobody's failure",
        "store/sqlite/store.py",
        "is_busy(one) or is_store_failure(one)",
        "is_busy(one)",
        SURROUNDINGS + "a_full_disk_is_nobodys_failure[tx]",
    ),
    # -- publishing
    Sabotage(
        "a publisher's transaction is on the app's store",
        "store/sqlite/unit.py",
        'here = f"VALUES (coalesce(?, (SELECT 1 FROM main.{schema.name_of(log_id)}))"',
        'here = "VALUES (?"',
        PUBLISHING + "another_stores_transaction_is_refused",
    ),
    Sabotage(
        "a session is flushed before it publishes",
        "publish/enlist.py",
        "        tx.flush()\n        connection = tx.connection()",
        "        connection = tx.connection()",
        PUBLISHING + "a_session_writes_its_rows_before_the_event",
    ),
    Sabotage(
        "a failed job is alone in its failure",
        "store/sqlite/writer.py",
        "                for single in group:\n                    self._commit([single])\n                return\n",
        "                pass\n",
        PUBLISHING + "one_failed_publish_takes_none_of_its_group_with_it",
    ),
    Sabotage(
        "a task that is cancelled takes its event back",
        "publish/publishing.py",
        "if self._writer.withdraw(self):",
        "if False:",
        "tests/publish/test_publisher.py::test_a_task_that_is_cancelled_takes_its_event_back",
    ),
    Sabotage(
        "a text in a statement can't end it",
        "store/sqlite/unit.py",
        """value.replace("'", "''")""",
        "value",
        "tests/publish/test_publisher.py::test_any_topic",
    ),
    Sabotage(
        "a store that is opened again is looked at anew",
        "publish/publisher.py",
        "if self._store.log_id is not self._log_id:",
        "if not self._log_id:",
        "tests/publish/test_publisher.py::test_a_store_that_was_made_anew",
    ),
    Sabotage(
        "a locked file is told to a whole group at once",
        "store/sqlite/writer.py",
        "if len(group) > 1 and not is_busy(error):",
        "if len(group) > 1:",
        PUBLISHING + "a_file_that_somebody_holds_is_an_error_that_names_him",
    ),
    # -- bounded
    Sabotage(
        "retention respects open positions",
        "store/sqlite/unit.py",
        "min(passed, lane.position, *(position - 1 for position in lane.open))",
        "min(passed, lane.position)",
        DYING + "old_events_go_once_everyone_has_passed_and_not_before",
    ),
    Sabotage(
        "a trim leaves its mark",
        "store/sqlite/unit.py",
        "UPDATE tidings_meta SET value = ? WHERE name = 'retained' AND",
        "UPDATE tidings_meta SET value = ? WHERE name = 'nothing' AND",
        DYING + "old_events_go_once_everyone_has_passed_and_not_before",
    ),
    Sabotage(
        "what may be trimmed is judged in the transaction that deletes",
        "subscribe/worker.py",
        "unit.trim(min(upto, unit.trimmable()), TRIM_CHUNK)",
        "unit.trim(upto, TRIM_CHUNK)",
        DYING + "old_events_go_once_everyone_has_passed_and_not_before",
    ),
    Sabotage(
        "a type that nobody handles any more holds nothing back",
        "subscribe/runner.py",
        "                lane.open -= lane.recovered\n",
        "                continue\n",
        DYING + "lanes_are_not_held_back_by_a_type_that_nobody_handles_any_more",
    ),
    # -- the lockers' horizon of PostgreSQL
    Sabotage(
        "a locker holds the horizon where it was before he came",
        "store/postgres/horizon.py",
        "self._since.get(locker, self._last)",
        "self._since.get(locker, reading.last)",
        HORIZON + "TestReadings",
    ),
    Sabotage(
        "of several lockers the first decides",
        "store/postgres/horizon.py",
        "min(self._since.values(), default=reading.last)",
        "max(self._since.values(), default=reading.last)",
        HORIZON + "TestReadings",
    ),
    Sabotage(
        "names of transactions are forgotten when the server may have restarted",
        "store/postgres/horizon.py",
        "if reading.backend not in self._backends:",
        "if False:",
        HORIZON + "test_a_restart_that_the_pooler_hides",
    ),
    Sabotage(
        "who writes straight into a partition holds the horizon",
        "store/postgres/horizon.py",
        " OR relation IN (SELECT relid FROM pg_partition_tree('{LOG}'))",
        " OR false",
        HORIZON + "test_whoever_drew_a_position_holds_the_horizon_until_he_ends",
    ),
    Sabotage(
        "the sequence is read with its page locked",
        "store/postgres/horizon.py",
        "coalesce(pg_sequence_last_value('{SEQUENCE}'), 0)",
        "(SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM {SEQUENCE})",
        HORIZON + "test_what_is_read_of_the_sequence_has_been_drawn",
    ),
    Sabotage(
        "the log's last part has no end",
        "store/postgres/schema.py",
        "FOR VALUES FROM (%s) TO (MAXVALUE)'",
        "FOR VALUES FROM (%s) TO (9000000000000)'",
        PARTITIONS + "test_there_is_room_for_weeks_without_a_worker",
    ),
    Sabotage(
        "a part of the log goes when every subscription has passed it",
        "store/postgres/partitions.py",
        "passed[0] < last:",
        "passed[0] < 0:",
        PARTITIONS + "test_parts_go_when_everyone_has_passed_and_not_before",
    ),
    Sabotage(
        "who wants the log for himself waits for a moment only",
        "store/postgres/partitions.py",
        "int(LOCK_SECONDS * 1000)",
        "int(LOCK_SECONDS * 30_000)",
        PARTITIONS + "test_who_holds_the_log_is_not_waited_for",
    ),
    Sabotage(
        "after a failover nobody's checkpoints from before are taken",
        "store/postgres/history.py",
        "        if known is not None:\n",
        "        if False:\n",
        HISTORY + "test_a_checkpoint_from_before_is_not_taken",
    ),
    Sabotage(
        "what was decoded at a position is not taken for what a failover put there",
        "subscribe/runner.py",
        " and known[0] is row[DATA]",
        "",
        HISTORY + "test_a_standby_that_lacks_the_last_transactions_is_promoted[False-18]",
    ),
    Sabotage(
        "after a failover rows that were read before are forgotten",
        "subscribe/tail.py",
        "        if self._store.history != self._history:\n            self.forget()\n        number",
        "        number",
        "tests/subscribe/test_tail.py::test_rows_of_another_history_are_forgotten",
    ),
    Sabotage(
        "after a failover a fetch that was under way brings nothing back",
        "subscribe/tail.py",
        "if not (history == self._history == self._store.history):",
        "if False:",
        "tests/subscribe/test_tail.py::test_rows_of_another_history_are_forgotten",
    ),
    Sabotage(
        "a log that ends below what was read is not run",
        "subscribe/worker.py",
        "if read > head:",
        "if False:",
        HISTORY + "test_a_log_that_ends_below_what_was_read_is_not_run",
    ),
    Sabotage(
        "behind a pooler no statement is prepared",
        "store/postgres/connect.py",
        "conn.prepare_threshold = None",
        "pass",
        "tests/store/postgres/test_connect.py::test_statements_are_not_prepared_where_another_backend_may_come_next",
    ),
)


def copied(to: Path) -> Path:
    """The project as it is here, without what was built."""
    built = (".git", ".venv", ".*_cache", ".hypothesis", ".cache", "__pycache__", "site", "var", "dist", "build", "*.db*")
    return Path(shutil.copytree(ROOT, to, ignore=shutil.ignore_patterns(*built), symlinks=True))


def passes(tree: Path, *guards: str) -> tuple[bool, str]:
    """Whether these tests pass there, and what pytest said."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--tb=short", "-o", "faulthandler_timeout=0", *guards]
    environment = {**os.environ, "PYTHONPATH": f"{tree / 'src'}{os.pathsep}{tree}", "PYTHONDONTWRITEBYTECODE": "1", "CI": ""}
    try:
        ran = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=SECONDS * len(guards), check=False)
    except subprocess.TimeoutExpired:
        return False, "out of time"
    return ran.returncode == 0, ran.stdout + ran.stderr


def attempt(sabotage: Sabotage) -> tuple[str, float]:
    """What came of it: ``guarded``, or what is wrong. And how long it took."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tidings-sabotage-") as folder:
        tree = copied(Path(folder) / "tree")
        file = tree / "src" / "tidings" / sabotage.file
        text = file.read_text()
        if (found := text.count(sabotage.old)) != 1:
            return f"NOT FOUND: the text stands {found} times in {sabotage.file}", 0.0
        file.write_text(text.replace(sabotage.old, sabotage.new))
        passed, said = passes(tree, sabotage.guard)
        if not passed and ("no tests ran" in said or "SyntaxError" in said or "IndentationError" in said):
            return f"BROKEN: {said.strip().splitlines()[-1]}", time.monotonic() - began
        return "STILL PASSES" if passed else "guarded", time.monotonic() - began


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="mechanisms with this word")
    parser.add_argument("--jobs", type=int, default=2, help="at the same time (default 2)")
    given = parser.parse_args()
    chosen = [one for one in LIST if given.only is None or given.only in one.mechanism]
    with tempfile.TemporaryDirectory(prefix="tidings-sabotage-") as folder:
        passed, said = passes(copied(Path(folder) / "tree"), *sorted({one.guard for one in chosen}))
    if not passed:
        print(said, "FAILED: the guards don't pass as they are", sep="\n")
        return 1
    wrong = 0
    with ThreadPoolExecutor(given.jobs) as pool:
        for one, (outcome, seconds) in zip(chosen, pool.map(attempt, chosen), strict=True):
            wrong += outcome != "guarded"
            print(f"{outcome:<12} {seconds:5.1f} s  {one.mechanism:<62} {one.guard.rpartition('::')[2].removeprefix('test_')}", flush=True)
    print(f"{len(chosen) - wrong} of {len(chosen)} mechanisms are guarded")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
