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


BACKLOG = "tests/subscribe/test_backlog.py::test_"
DYING = "tests/test_promises_dying.py::test_"
HANDLING = "tests/test_promises_handling.py::test_"
PUBLISHING = "tests/test_promises_publishing.py::test_"
RACES = "tests/test_promises_races.py::test_"
SURROUNDINGS = "tests/test_promises_surroundings.py::test_"
CAUTION = "tests/subscribe/test_caution.py::test_"
RAISED = "tests/subscribe/test_raised_by_handler.py::test_"
RELAY = "tests/relay/test_relay.py::test_"
STOPS = "tests/relay/test_relay_stops.py::test_"
SLOT = "tests/brokers/test_kafka_slot.py::test_"
READER = "tests/brokers/test_kafka.py::TestKafka::test_"
RIGHTS = "tests/brokers/test_kafka_rights.py::test_"
SECURE = "tests/relay/test_secure.py::test_"
CONTRACT = "tests/store/test_contract.py::TestPostgresStore::test_"
HORIZON = "tests/store/postgres/test_horizon.py::"
INTAKE = "tests/relay/test_intake.py::test_"
INTAKE_RACES = "tests/relay/test_intake_races.py::test_"
HISTORY = "tests/store/postgres/test_history.py::"
PARTITIONS = "tests/store/postgres/test_partitions.py::"
OUTBOX = "tests/relay/test_outbox.py::"
CURSOR = "tests/store/postgres/test_cursor.py::"
CDC = "tests/relay/test_cdc.py::"
SAGA = "tests/sagas/test_saga.py::test_"
SAGA_STORE = "tests/sagas/test_store.py::test_"
SAGA_GROUP = "tests/sagas/test_journal_writer.py::test_"
SAGA_OUTCOME = "tests/sagas/test_outcomes.py::test_"
SAGA_LOCKS = "tests/sagas/test_lock_order.py::test_"
SAGA_AHEAD = "tests/sagas/test_ahead.py::test_"
SAGA_SHARED = "tests/sagas/test_shared_steps.py::test_"
SAGA_ONCE = "tests/sagas/test_at_most_once.py::test_"
SAGA_CHILD = "tests/sagas/test_children.py::test_"
SAGA_ENDLESS = "tests/sagas/test_endless.py::test_"
SAGA_DEPLOY = "tests/sagas/test_deploys.py::test_"
OPERATOR = "tests/sagas/test_operator.py::test_"
SAGA_BODY = "tests/sagas/test_body.py::test_"

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
        "if rows and not self._lasts(rows, safe):",
        "if False:",
        HANDLING + "what_was_read_is_durable_before_an_effect_leaves_the_machine",
    ),
    Sabotage(
        "a lease that is over is not prolonged",
        "store/postgres/unit.py",
        "WHERE worker = %s AND until > {_CLOCK} RETURNING",
        "WHERE worker = %s AND (until > {_CLOCK} OR true) RETURNING",
        CONTRACT + "a_pulse_renews_a_lease_that_lasts_and_no_other",
    ),
    Sabotage(
        "a pulse tells of lanes that are nobody's",
        "store/postgres/unit.py",
        "subscription, lane, worker, epoch), ','",
        "subscription), ','",
        CONTRACT + "a_pulse_tells_what_a_look_depends_on",
    ),
    Sabotage(
        "what a pulse tells is looked at",
        "subscribe/worker.py",
        "if situation != self._situation or",
        "if self._situation is None or",
        "tests/store/postgres/test_pulse.py::test_lanes_of_a_dead_worker_are_taken_over_by_who_has_only_pulses",
    ),
    Sabotage(
        "the next block is read ahead",
        "subscribe/tail.py",
        "if self._store.reads_aside and",
        "if False and",
        "tests/subscribe/test_tail.py::test_the_next_block_is_read_while_one_is_handled",
    ),
    Sabotage(
        "a commit that changes nothing makes nothing last",
        "store/sqlite/writer.py",
        " and conn.total_changes > changes else 0",
        " else 0",
        "tests/store/sqlite/test_store.py::test_what_the_writer_has_synced_is_known_to_last",
    ),
    Sabotage(
        "what will be synced is known by the event's id",
        "store/sqlite/store.py",
        "(upto, last[_EVENT_ID]) == self._syncing",
        "upto == self._syncing[0]",
        "tests/store/sqlite/test_store.py::test_what_a_user_of_this_process_will_sync_is_known_while_somebody_waits_for_it",
    ),
    Sabotage(
        "a user's setting is looked at before his commit counts as synced",
        "store/sqlite/store.py",
        "fetchone()[0] >= _FULL",
        "fetchone()[0] >= 0",
        "tests/store/sqlite/test_store.py::test_what_a_user_of_this_process_will_sync_is_known_while_somebody_waits_for_it",
    ),
    Sabotage(
        "lanes that were let go of are looked at though nothing has changed in the store",
        "subscribe/worker.py",
        "        self._let_go = True\n",
        "",
        "tests/store/postgres/test_pulse.py::test_lanes_that_are_let_go_of_while_somebody_looks_are_claimed_again",
    ),
    Sabotage(
        "a handler's transaction is given up once, so that no neighbour's is taken for it",
        "store/transaction.py",
        "            if self.aborted or self._settling:",
        "            if self._settling:",
        "tests/store/test_transaction.py::test_it_is_given_up_once_and_then_not_committed",
    ),
    Sabotage(
        "a handler's transaction that is being committed is not given up",
        "store/transaction.py",
        "            if self.aborted or self._settling:",
        "            if self.aborted:",
        "tests/store/test_transaction.py::test_what_is_being_committed_is_not_given_up",
    ),
    Sabotage(
        "a worker's pulse tells what is scheduled",
        "subscribe/worker.py",
        "            if due is not None and (self._due is None or due < self._due):",
        "            if False:",
        "tests/store/postgres/test_pulse.py::test_what_was_scheduled_by_who_died_before_saying_so_is_found",
    ),
    Sabotage(
        "a store that is closed waits for who reads",
        "store/sqlite/store.py",
        "                self._nobody_reads.wait_for(lambda: not self._reading_now)",
        "                pass",
        "tests/store/sqlite/test_store.py::test_closing_waits_for_who_reads",
    ),
    Sabotage(
        "partitions that nobody leads yet are asked for again",
        "brokers/kafka_reader.py",
        "                    if not is_leaderless(error.__cause__) or time.monotonic() > until:",
        "                    if True:",
        "tests/brokers/test_kafka.py::TestKafka::test_a_topic_that_was_made_a_moment_ago_is_empty",
    ),
    Sabotage(
        "an idle worker listens on when a commit brought no events",
        "subscribe/worker.py",
        "if not woken:",
        "if False:",
        "tests/subscribe/test_worker.py::test_a_commit_that_is_no_event_leaves_an_idle_worker_listening",
    ),
    Sabotage(
        "a commit in the moment of the stop does not hold it up",
        "subscribe/worker.py",
        "async with asyncio.timeout(60.0 if pause is None else 1.0):\n                        await self._committed.wait()",
        "await asyncio.wait_for(self._committed.wait(), 60.0)",
        "tests/subscribe/test_worker.py::test_a_commit_in_the_moment_of_the_stop_does_not_hold_it_up",
    ),
    Sabotage(
        "a handler that waits has begun",
        "subscribe/crew.py",
        "        if not ctx.taken:\n            runner.feed.register(ctx)\n",
        "",
        "tests/subscribe/test_crew.py::test_an_event_whose_handler_waits_is_open_while_others_go_on",
    ),
    Sabotage(
        "a handler that ends the program has not ended its event",
        "subscribe/crew.py",
        "                    feed.register(ctx)\n                    raise\n",
        "                    raise\n",
        "tests/subscribe/test_crew.py::test_an_event_whose_handler_ends_the_program_is_handled_again",
    ),
    Sabotage(
        "what a rewind skipped is not told as handled",
        "story.py",
        'else "unread" if skip.types else "skipped"',
        'else "handled"',
        "tests/cli/test_trace.py::test_what_a_rewind_skipped_is_not_told_as_handled",
    ),
    Sabotage(
        "what was skipped before a lapse is known behind it",
        "store/skips.py",
        "[*(_clipped(skip, to) for skip in known), Skip(",
        "[Skip(",
        "tests/store/test_contract.py::TestSQLiteStore::test_what_a_rewind_skips_is_known[FULL]",
    ),
    Sabotage(
        "a forked process does not use its parent's open store",
        "store/forks.py",
        "    os.register_at_fork(after_in_child=_forked)\n",
        "    pass\n",
        "tests/store/test_forks.py::test_a_forked_process_is_told_that_it_can_not_use_an_open_store[postgres]",
    ),
    Sabotage(
        "who lacks a handler that another version has takes no lanes",
        "subscribe/worker.py",
        "alive = [worker for worker in alive if worker.worker in can]",
        "alive = list(alive)",
        "tests/subscribe/test_worker.py::test_a_version_that_lacks_a_type_passes_by_nothing_of_it[sqlite-True]",
    ),
    Sabotage(
        "a version with more handlers takes the lanes at once",
        "subscribe/worker.py",
        "                unit.free(subscription.name)  # who",
        "                pass  # who",
        "tests/subscribe/test_worker.py::test_a_version_that_lacks_a_type_passes_by_nothing_of_it[sqlite-False]",
    ),
    Sabotage(
        "a claim is looked at again in its transaction",
        "subscribe/worker.py",
        "if self.id not in able(_reading(name, unit.workers(), self.id)):",
        "if False:",
        "tests/subscribe/test_worker.py::test_a_claim_that_meets_a_newer_version_is_taken_back",
    ),
    Sabotage(
        "what a handler cancels is not the end of its worker",
        "subscribe/crew.py",
        "        uncancel()\n        if ctx.failure is not None:  # set by the watchdog\n",
        "        task = asyncio.current_task()\n        if task is not None and task.cancelling():\n            raise error\n"
        "        if ctx.failure is not None:  # set by the watchdog\n",
        "tests/subscribe/test_runner.py::test_a_handler_that_cancels_its_own_task_has_failed[True-1]",
    ),
    Sabotage(
        "sys.exit() in a synchronous handler is its failure",
        "subscribe/handler.py",
        "        except Exception:\n            raise\n"
        "        except BaseException as error:\n            raise RaisedByHandler(error) from None\n"
        "\n    return calling\n\n\ndef tell_apart",
        "        except Exception:\n            raise\n\n    return calling\n\n\ndef tell_apart",
        "tests/subscribe/test_runner.py::test_what_ends_a_program_is_the_failure_of_a_synchronous_handler[timed-error0]",
    ),
    Sabotage(
        "a trip's events are taken back from behind a slow one",
        "subscribe/crew.py",
        "                self._take_back(chunk, waiting)  # one of them is slow: the others go on in other threads\n"
        "            await future\n",
        "            await future\n",
        "tests/subscribe/test_runner.py::test_a_slow_handler_holds_back_nobody_it_shares_a_trip_with[1010]",
    ),
    # -- order and parking
    Sabotage(
        "what was committed before one that hangs is not handed back",
        "subscribe/serial.py",
        "others = batch if self._shared else batch[batch.index(ctx) :]",
        "others = batch",
        "tests/subscribe/test_runner.py::test_who_hangs_in_his_transaction_costs_those_before_and_behind_him_nothing",
    ),
    Sabotage(
        "a worker that ends begins nothing more of parked keys",
        "subscribe/feed.py",
        "            if self.ended:\n",
        "            if False:\n",
        "tests/subscribe/test_runner.py::test_who_stops_begins_nothing_more_of_a_parked_key[async]",
    ),
    Sabotage(
        "events of a key wait in its chain",
        "subscribe/feed.py",
        "if chained and busy and (chain := busy.get(key_id)) is not None:",
        "if False:",
        HANDLING + "each_key_in_its_order_whatever_fails[1-async]",
    ),
    Sabotage(
        "followers are parked behind their head",
        "subscribe/crew.py",
        "                if not ctx.parked and ctx.key_id in runner.parked.keys:\n                    ctx.failure = FOLLOWS\n",
        "                if False:\n                    ctx.failure = FOLLOWS\n",
        HANDLING + "a_poison_event_parks_its_key_and_not_its_lane[async]",
    ),
    Sabotage(
        "a failure in a shared transaction parks its key there too",
        "subscribe/serial.py",
        "failed.add(chunk[0].key_id)",
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
        "checkpoints that take long are written seldom",
        "subscribe/checkpointing.py",
        "max(QUIET_SECONDS, QUIET_TIMES * quiet.took)",
        "QUIET_SECONDS",
        "tests/subscribe/test_runner.py::test_a_trickle_of_events_is_not_a_trickle_of_checkpoints[0.02-0.2]",
    ),
    Sabotage(
        "readers at rest write their checkpoints together",
        "subscribe/checkpointing.py",
        "        self._quiet = quiet\n",
        "        self._quiet = Quiet()\n",
        "tests/subscribe/test_runner.py::test_readers_at_rest_write_together",
    ),
    Sabotage(
        "a savepoint for each chunk",
        "subscribe/serial.py",
        "with transaction.savepoint(), transaction.guard.closed(chunk[0].handler.name):",
        "with transaction.guard.closed(chunk[0].handler.name):",
        HANDLING + "a_failed_handler_leaves_nothing_and_its_neighbours_everything[True]",
    ),
    Sabotage(
        "a chunk in which one fails is done again until that one stands alone",
        "subscribe/serial.py",
        "                if len(chunk) > 1:\n                    again",
        "                if False:\n                    again",
        HANDLING + "a_failed_handler_leaves_nothing_and_its_neighbours_everything[True]",
    ),
    Sabotage(
        "the authorizer refuses COMMIT to handlers",
        "store/sqlite/transactions.py",
        "if self._closed and action == sqlite3.SQLITE_TRANSACTION:",
        "if False:",
        HANDLING + "a_handler_that_ends_the_transaction_counts_for_nothing[commit]",
    ),
    Sabotage(
        "a transaction that was given up is rolled back by name",
        "store/sqlite/transactions.py",
        "            transaction.guard.undo()\n",
        "            pass\n",
        SURROUNDINGS + "a_handler_that_hangs_in_its_transaction_gives_the_file_back",
    ),
    Sabotage(
        "a statement past its time-out is ended, not waited for with the interpreter's lock",
        "store/sqlite/transactions.py",
        "            self.raw.interrupt()\n",
        "            self.raw.set_authorizer(self._allow)\n",
        SURROUNDINGS + "a_statement_that_runs_past_the_time_out_stops_nobody_else[plain]",
    ),
    Sabotage(
        "a transaction that was given up can't be written to again",
        "store/sqlite/transactions.py",
        'self.raw.execute("PRAGMA query_only = 1")',
        "pass",
        SURROUNDINGS + "a_handler_that_hangs_in_its_transaction_gives_the_file_back",
    ),
    Sabotage(
        "errors about another file are the handler's, in a transaction",
        "store/sqlite/transactions.py",
        "isinstance(error, Exception) and is_about_another_file(error)",
        "False",
        RAISED + "a_handlers_own_trouble_counts[in_tx-another file busy]",
    ),
    Sabotage(
        "errors that look like the store's are the handler's, in a list",
        "subscribe/lists.py",
        "handler.tx is not None and (runner.store.is_busy(error) or isinstance(error, StoreError))",
        "runner.store.is_busy(error) or isinstance(error, StoreError)",
        RAISED + "a_handlers_own_trouble_counts[a_list-another file busy]",
    ),
    Sabotage(
        "a death while an event is alone is a failed attempt of it",
        "subscribe/caution.py",
        "                if suspects.alone:\n",
        "                if False:\n",
        CAUTION + "innocent_events_are_suspected_and_lose_an_attempt_only_for_a_death_while_they_are_alone",
    ),
    Sabotage(
        "suspects are handled alone",
        "subscribe/caution.py",
        "return ctx.suspect or (",
        "return False and (",
        CAUTION + "innocent_events_are_suspected_and_lose_an_attempt_only_for_a_death_while_they_are_alone",
    ),
    Sabotage(
        "a slow suspect holds up the others for a bounded time",
        "subscribe/caution.py",
        "if left <= 0 and (",
        "if False and (",
        CAUTION + "who_is_slow_and_suspected_does_not_hold_up_the_others_for_long",
    ),
    Sabotage(
        "who is not alone any more is not said to be",
        "subscribe/caution.py",
        "        if alone:\n            await self._note({ctx.lane for ctx in self.running}, alone=False)\n",
        "",
        CAUTION + "who_is_slow_and_suspected_does_not_hold_up_the_others_for_long",
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
        "store/sqlite/enlist.py",
        "        tx.flush()\n        connection = tx.connection()",
        "        connection = tx.connection()",
        PUBLISHING + "a_session_writes_its_rows_before_the_event",
    ),
    Sabotage(
        "a failed job is alone in its failure",
        "store/writer.py",
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
        "return is_busy(error)",
        "return False",
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
        "nothing lapses where nothing is trimmed",
        "subscribe/worker.py",
        "for held in found if self._retention is not None else ():",
        "for held in found:",
        BACKLOG + "without_retention_nothing_lapses",
    ),
    Sabotage(
        "a subscription that lapsed has no lanes to take",
        "store/sqlite/unit.py",
        'self._conn.execute("DELETE FROM tidings_lanes WHERE subscription = ?", (name,))\n        self.note(',
        "self.note(",
        BACKLOG + "only_by_name_it_lapses_and_then_someone_has_to_choose[sqlite]",
    ),
    Sabotage(
        "epochs go on behind those that lapsed",
        "store/sqlite/unit.py",
        "[(name, lane, position, json.loads(lapsed[0])[2]) for lane in range(LANES)]",
        "[(name, lane, position, 0) for lane in range(LANES)]",
        "tests/store/test_contract.py::TestSQLiteStore::test_what_has_lapsed_has_no_lanes_until_it_is_rewound",
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
        " OR relation IN (SELECT relid FROM pg_partition_tree({table}))",
        " OR false",
        HORIZON + "test_whoever_drew_a_position_holds_the_horizon_until_he_ends",
    ),
    Sabotage(
        "the sequence is read with its page locked",
        "store/postgres/horizon.py",
        "coalesce(pg_sequence_last_value({sequence}), 0)",
        "(SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM tidings_log_position_seq)",
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
    # -- the relay
    Sabotage(
        "a mark counts for its own lanes alone",
        "relay/mark.py",
        "set(lanes).intersection(lanes_of_slot(mark.slot, mark.slots))",
        "set(lanes)",
        "tests/relay/test_mark.py::test_a_lane_has_come_as_far_as_its_last_sender_says",
    ),
    Sabotage(
        "slots of another number are closed before a new one sends",
        "relay/sender.py",
        "known = [*self._close_earlier(name, facts), ",
        "known = [",
        RELAY + "the_number_of_slots_changes[sqlite-numbers2]",
    ),
    Sabotage(
        "a relay sends what its own app published, and nothing else",
        "store/sqlite/cursor.py",
        "AND source = ?",
        "AND source <> ? || '-'",
        RELAY + "only_what_its_own_app_published[sqlite]",
    ),
    Sabotage(
        "a position that the broker lost is asked about",
        "relay/mark.py",
        "if known is None and position > start:",
        "if known is None and position < start:",
        STOPS + "the_position_topic_was_deleted[sqlite]",
    ),
    Sabotage(
        "who takes a slot over tells the store how far his predecessor came",
        "relay/sender.py",
        "if at != facts.table:",
        "if False:",
        RELAY + "a_position_that_the_store_never_heard_of_is_told_it_though_nothing_new_comes[sqlite]",
    ),
    Sabotage(
        "the last event that was sent must still be in the log",
        "store/sqlite/cursor.py",
        "if event_id != known[1] and",
        "if not event_id and",
        STOPS + "the_log_went_back",
    ),
    Sabotage(
        "a producer is closed on every path",
        "brokers/kafka_slot.py",
        "            producer.purge()\n            closing = ",
        "            return\n            closing = ",
        SLOT + "no_process_dies_of_a_fenced_producer_with_records_in_transit",
    ),
    Sabotage(
        "a producer is empty when it is closed",
        "brokers/kafka_slot.py",
        "while len(producer) and time.monotonic() < until:\n        try:",
        "while False:\n        try:",
        SLOT + "no_process_dies_of_a_fenced_producer_with_records_in_transit",
    ),
    Sabotage(
        "who isn't let in is told why",
        "brokers/kafka.py",
        "if self._refused is not None and time.monotonic() - begun > REFUSED_SECONDS:",
        "if False:",
        RIGHTS + "who_is_not_let_in_is_told_why_and_soon",
    ),
    Sabotage(
        "the mark is read without a right on a group",
        "brokers/kafka_slot.py",
        "record.error().code() != KafkaError.GROUP_AUTHORIZATION_FAILED and",
        "True and",
        RIGHTS + "each_right_that_a_relay_lacks_is_named_with_the_command_that_gives_it",
    ),
    Sabotage(
        "secrets are hidden",
        "brokers/kafka_settings.py",
        'said = said.replace(value, "***")',
        "pass",
        "tests/brokers/test_kafka_settings.py::test_secrets_are_hidden",
    ),
    Sabotage(
        "a foreign outbox's relay waits for a right that went",
        "relay/outbox.py",
        "return self._led",
        "return False",
        SECURE + "a_foreign_outboxs_relay_goes_on_when_its_right_comes",
    ),
    Sabotage(
        "only what is committed is read",
        "brokers/kafka_reader.py",
        '"isolation.level": "read_committed"',
        '"isolation.level": "read_uncommitted"',
        READER + "what_is_not_committed_does_not_come_nor_what_is_behind_it",
    ),
    Sabotage(
        "an offset that is not there is not replaced by another",
        "brokers/kafka_reader.py",
        '"auto.offset.reset": "error"',
        '"auto.offset.reset": "earliest"',
        READER + "an_offset_that_is_not_there_is_told_once_and_others_are_read",
    ),
    Sabotage(
        "each slot's position has a partition of its own",
        "brokers/kafka_slot.py",
        "self._positions, self._slot, self._slots = name, slot, slots",
        "self._positions, self._slot, self._slots = name, 0, slots",
        SLOT + "another_slots_open_transaction_hides_no_mark",
    ),
    Sabotage(
        "what is too large doesn't stop the rest",
        "relay/sender.py",
        "if self._broker.fits(record):\n                kept.append(record)",
        "if True:\n                kept.append(record)",
        RELAY + "too_large_is_a_dead_letter_and_its_retry_says_that_it_is_late[sqlite]",
    ),
    # -- the intake
    Sabotage(
        "an offset moves from where it is expected (SQLite)",
        "store/sqlite/intakes.py",
        "AND topic_id = ? AND next = ?",
        "AND topic_id = ? AND next >= 0 * ?",
        INTAKE_RACES + "a_zombie_that_wakes_up_writes_nothing[sqlite]",
    ),
    Sabotage(
        "an offset moves from where it is expected (PostgreSQL)",
        "store/postgres/intakes.py",
        " AND o.next = v.expected",
        "",
        INTAKE_RACES + "a_zombie_that_wakes_up_writes_nothing[postgresql]",
    ),
    Sabotage(
        "a mark drops what is not above it",
        "relay/marks.py",
        "if origin.sequence <= lanes[origin.lane]:",
        "if False:",
        INTAKE + "what_was_sent_twice_is_taken_once[sqlite]",
    ),
    Sabotage(
        "marks are written down with the events",
        "relay/intake.py",
        "intake.set_marks(batch.marks)",
        "pass",
        INTAKE + "what_was_sent_twice_is_taken_once[sqlite]",
    ),
    Sabotage(
        "a batch's marks are those of when it was handed over",
        "relay/intake.py",
        "intake.set_marks(batch.marks)",
        "intake.set_marks([row for part in batch.parts.values() for part.marks._changed in [set(part.marks._lanes)]"
        " for row in part.marks.changed()])",
        INTAKE + "what_is_read_while_a_batch_is_written_is_not_taken_for_written[sqlite]",
    ),
    Sabotage(
        "marks are kept by log and incarnation",
        "relay/marks.py",
        "series = origin[:2]",
        'series = ("log", 1)',
        INTAKE + "another_log_or_incarnation_of_the_same_app_begins_its_own_marks[sqlite]",
    ),
    Sabotage(
        "what comes from here is not taken in",
        "relay/intake.py",
        "if envelope.source in own or (origin is not None and origin.log == log_id):",
        "if False:",
        INTAKE + "nothing_of_ones_own_comes_back[sqlite]",
    ),
    Sabotage(
        "a topic that was made anew is not read on",
        "relay/intake.py",
        "elif row.topic_id != topic_id:",
        "elif False:",
        INTAKE + "a_topic_made_anew_with_more_records_than_before_is_not_read_on[sqlite-while nobody reads]",
    ),
    Sabotage(
        "an offset that is lost is never chosen by the client",
        "brokers/kafka_reader.py",
        '"auto.offset.reset": "error"',
        '"auto.offset.reset": "earliest"',
        INTAKE + "a_range_that_retention_took_is_named_and_waits_for_an_operator[sqlite-first-then0]",
    ),
    Sabotage(
        "ends of transactions are told by a reader",
        "brokers/kafka_reader.py",
        "self._reached[Partition(told.topic(), told.partition())] = told.offset()",
        "pass",
        READER + "what_was_aborted_never_comes_and_is_known_to_be_passed",
    ),
    Sabotage(
        "ends of transactions are passed",
        "relay/intake.py",
        "if (part := self._parts.get(one)) is not None and part.next < offset:",
        "if False:",
        INTAKE + "what_was_aborted_is_not_seen_and_ends_of_transactions_are_passed[sqlite]",
    ),
    Sabotage(
        "what no mark can tell is told by its id",
        "relay/intake.py",
        "if at not in batch.doubtful or batch.doubtful[at] in new]",
        "]",
        INTAKE + "what_is_out_of_order_or_others_is_told_by_its_id[sqlite]",
    ),
    Sabotage(
        "a record that the store refuses is found",
        "relay/intake.py",
        "if not self._store.is_refusal(error):",
        "if True:",
        INTAKE + "a_record_that_cannot_be_read_is_kept_and_tried_again[postgresql]",
    ),
    # -- somebody else's outbox table
    Sabotage(
        "rows that were sent and not ticked off are ticked off first",
        "relay/outbox.py",
        "again = leader.tick(mark.ids, before=mark.point)",
        "again = 0",
        OUTBOX + "test_sent_but_not_ticked_is_known_from_never_sent",
    ),
    Sabotage(
        "a row of the outbox that was written again is another",
        "store/postgres/outbox.py",
        " AND age(xmin) > age(%s::text::xid)",
        " AND %s::text IS NOT NULL",
        OUTBOX + "test_what_the_application_did_to_a_batch_between_a_crash_and_the_next_start",
    ),
    Sabotage(
        "an outbox is read behind the horizon",
        "store/postgres/polling.py",
        "safe = horizon.observe(conn)",
        "safe = max(horizon.observe(conn), horizon.drawn)",
        OUTBOX + "test_a_row_waits_for_who_could_still_write_before_it",
    ),
    Sabotage(
        "rows above an outbox's sequence are looked at twice",
        "store/postgres/outbox.py",
        "return [id for id in found if int(id) > horizon.drawn]",
        "return found",
        OUTBOX + "test_order_per_key_beside_slow_transactions",
    ),
    Sabotage(
        "rows behind an outbox's cursor are looked for",
        "store/postgres/polling.py",
        "ids = [*table.behind(conn, self._cursor, self._most), *ids]",
        "pass",
        OUTBOX + "test_rows_that_come_behind_the_cursor",
    ),
    Sabotage(
        "rows of an outbox are on disk before they are sent",
        "store/postgres/polling.py",
        "        flush(conn)\n",
        "        pass\n",
        OUTBOX + "test_what_a_crash_of_the_server_takes_back_was_not_sent",
    ),
    Sabotage(
        "one relay of a name leads on an outbox",
        "store/postgres/leader.py",
        "return row is not None and bool(row[0])",
        "return row is not None",
        OUTBOX + "test_a_standby_takes_over_from_a_killed_and_from_a_frozen_leader",
    ),
    Sabotage(
        "where an outbox's relay has come to names the database",
        "relay/outbox.py",
        "(mark.system, mark.timeline, mark.database, mark.table) != (here.id, here.timeline, here.number, table.id)",
        "(mark.system, mark.timeline, mark.table) != (here.id, here.timeline, table.id)",
        OUTBOX + "test_relays_of_one_name_on_two_databases_made_from_one_template[poll]",
    ),
    Sabotage(
        "an outbox behind a pooler is refused",
        "store/postgres/leader.py",
        "pooled = is_pooled(conn)",
        "pooled = False",
        OUTBOX + "test_a_pooler_is_refused[poll]",
    ),
    Sabotage(
        "rows before one that can't be sent are sent",
        "store/postgres/polling.py",
        "if ids:  # those before it are nobody's failure",
        "if False:",
        OUTBOX + "test_rows_before_one_that_cannot_be_sent_are_sent[poll]",
    ),
    Sabotage(
        "the stream of changes has rows with a column's earlier name",
        "store/postgres/changes.py",
        "(name, *wanted.former.get(name, ()))",
        "(name,)",
        CDC + "test_columns_that_were_renamed_or_added_while_no_relay_ran",
    ),
    Sabotage(
        "a key is no longer than an index takes",
        "envelope.py",
        "> LONGEST_KEY:",
        "> 9 * LONGEST_KEY:",
        "tests/test_event.py::test_what_no_store_takes_for_a_key",
    ),
    Sabotage(
        "a place in the stream of changes has an ordinal",
        "store/postgres/changes.py",
        "passing = (lsn, ordinal) < after\n                        continue",
        "passing = lsn <= after[0]\n                        continue",
        CDC + "test_a_crash_in_the_middle_of_a_transaction",
    ),
    Sabotage(
        "the stream is confirmed only as far as the broker has it",
        "store/postgres/changes.py",
        "if not of._open and not self._batch.rows:",
        "if True:",
        CDC + "test_a_crash_in_the_middle_of_a_transaction",
    ),
    Sabotage(
        "an idle stream is confirmed as far as the server has looked",
        "store/postgres/changes.py",
        "0 if self._inside else self._stream.seen",
        "0",
        CDC + "test_an_idle_database_holds_no_wal_back",
    ),
    Sabotage(
        "a publication that was made anew is not trusted",
        "store/postgres/changes.py",
        "if publication != self._mark.publication:",
        "if False:",
        CDC + "test_a_publication_that_vanishes",
    ),
    Sabotage(
        "a slot that was made in a lost one's place isn't trusted before the rest was sent",
        "store/postgres/changes.py",
        "if not claimed or table.marks:",
        "if not claimed:",
        CDC + "test_a_crash_after_a_lost_slot_was_replaced",
    ),
    Sabotage(
        "a replication slot of somebody else's is left alone",
        "store/postgres/changes.py",
        "claimed = mark.slot == self._slot",
        "claimed = True",
        CDC + "test_somebody_elses_slot_is_left_alone",
    ),
    Sabotage(
        "PostgreSQL: what a relay fetched from beyond the horizon is thrown away",
        "store/postgres/cursor.py",
        "found = [row for row in found if row[0] <= upto]",
        "upto = found[-1][0]",
        CURSOR + "test_one_that_commits_between_the_reading_and_the_rows_waits_for_the_next",
    ),
    Sabotage(
        "PostgreSQL: what a relay reads is synced before it leaves the machine",
        "store/postgres/cursor.py",
        "            if not flushed:",
        "            if not found:",
        CURSOR + "test_rows_of_a_commit_that_was_not_synced_are_synced_before_they_are_given",
    ),
    Sabotage(
        "PostgreSQL: a relay with nothing to send doesn't wait for ever for somebody's sync",
        "store/postgres/cursor.py",
        "if not (found or flushed or waited):",
        "if not (found or flushed):",
        CURSOR + "test_others_rows_that_are_not_on_disk_are_passed_a_moment_later",
    ),
    Sabotage(
        "PostgreSQL: only what this process has synced itself isn't synced before it is handed out",
        "store/postgres/store.py",
        "and self._synced.issuperset([row[0] for row in rows]):",
        "and rows:",
        "tests/store/postgres/test_durable.py::test_somebody_elses_rows_are",
    ),
    Sabotage(
        "PostgreSQL: a writer whose commits aren't synced says so",
        "store/postgres/writer.py",
        'self._synced = command(conn, begin).get_value(0, 0) != b"off"',
        "self._synced = command(conn, begin) is not None",
        "tests/store/postgres/test_durable.py::test_our_own_are_if_this_database_syncs_no_commits",
    ),
    Sabotage(
        "PostgreSQL: our own synced rows say nothing of what was there before",
        "store/postgres/store.py",
        "if self._durable == begun and rows",
        "if self._durable <= begun and rows",
        "tests/store/postgres/test_durable.py::test_where_the_past_is_not_known_to_be_synced_our_own_are_too",
    ),
    Sabotage(
        "PostgreSQL: who ends doesn't wait for a server that never answers",
        "subscribe/worker.py",
        "async with asyncio.timeout(LEAVE_SECONDS):",
        "async with asyncio.timeout(None):",
        "tests/store/postgres/test_stopping.py::test_a_worker_ends_though_a_commit_was_never_answered",
    ),
    # -- sagas
    Sabotage(
        "a saga's step is written only by who holds the instance",
        "store/sagas.py",
        'f" WHERE saga = ? AND key = ? AND worker = ? AND epoch = ?{still} {share} {AGAIN}"',
        'f" WHERE saga = ? AND key = ? AND (worker = ? OR true) AND (epoch = ? OR true){still} {share} {AGAIN}"',
        "tests/sagas/test_fencing.py::test_a_transaction_whose_instance_is_another_workers_leaves_nothing[sqlite]",
    ),
    Sabotage(
        "a saga's frozen worker is fenced by the INSERT of its entry",
        "store/sagas.py",
        'f" WHERE saga = ? AND key = ? AND worker = ? AND epoch = ?{still} {share} {AGAIN}"',
        'f" WHERE saga = ? AND key = ? AND (true OR worker = ?) AND (true OR epoch = ?){still} {share} {AGAIN}"',
        SAGA_STORE + "an_earlier_hold_of_the_same_worker_is_not_a_later_one[sqlite]",
    ),
    Sabotage(
        "a saga's claim raises the epoch",
        "store/sagas.py",
        "SET worker = ?, epoch = epoch + 1, due = NULL",
        "SET worker = ?, epoch = epoch, due = NULL",
        SAGA_STORE + "an_earlier_hold_of_the_same_worker_is_not_a_later_one[sqlite]",
    ),
    Sabotage(
        "a saga whose step is being committed is not taken over",
        "store/postgres/unit.py",
        '"%s", "FOR SHARE", "FOR UPDATE", "FOR UPDATE SKIP LOCKED"',
        '"%s", "", "FOR UPDATE", "FOR UPDATE SKIP LOCKED"',
        SAGA_STORE + "nobody_takes_an_instance_whose_step_is_being_committed[postgres]",
    ),
    Sabotage(
        "a saga's line is written once",
        "store/sagas.py",
        " WHERE tidings_saga_journal.state IN ('retrying', 'begun')",
        "",
        SAGA_STORE + "a_line_is_written_once_but_for_one_that_is_tried_again[sqlite]",
    ),
    Sabotage(
        "sagas in a group: who lost his instance writes no line",
        "store/postgres/sagas.py",
        "ON s.saga = e.saga AND s.key = e.key AND s.worker = e.worker AND s.epoch = e.epoch {ORDER}",
        "ON s.saga = e.saga AND s.key = e.key AND s.worker = e.worker {ORDER}",
        SAGA_GROUP + "who_lost_his_instance_loses_only_his_own_lines[postgres]",
    ),
    Sabotage(
        "sagas in a group: who lost his instance ends nothing",
        "store/postgres/sagas.py",
        "ON s.saga = r.saga AND s.key = r.key AND s.worker = r.worker AND s.epoch = r.epoch AND {RELEASABLE}\n",
        "ON s.saga = r.saga AND s.key = r.key AND s.worker = r.worker AND {RELEASABLE}\n",
        SAGA_GROUP + "who_lost_his_instance_loses_only_his_own_lines[postgres]",
    ),
    Sabotage(
        "sagas in a group: no pivot is written in one that was ordered to be undone",
        "store/postgres/sagas.py",
        "FROM held WHERE kind <> 'pivot' OR back IS NULL\n",
        "FROM held WHERE true\n",
        SAGA_GROUP + "what_was_ordered_meanwhile_counts_in_a_group_too[postgres]",
    ),
    Sabotage(
        "sagas in a group: a child that ends tells its parent",
        "store/postgres/sagas.py",
        "if any(one.tells for one in releases):\n            for one",
        "if False:\n            for one",
        SAGA_GROUP + "a_child_that_ends_beside_others_tells_its_parent[postgres]",
    ),
    Sabotage(
        "sagas in a group: a line and the end of its instance are told of together",
        "sagas/journal_writer.py",
        "done &= item.release is None or next(released)",
        "item.release is None or next(released)",
        SAGA_GROUP + "a_last_line_and_the_end_are_written_together_beside_others[postgres]",
    ),
    Sabotage(
        "a saga's last line and its end are one write",
        "sagas/driver.py",
        "self._sagas.journal.record(self.hold, entry, self._end, written)",
        "self._end = None; self._sagas.journal.record(self.hold, entry, None, written)",
        SAGA_AHEAD + "the_last_line_and_the_end_are_one_write[sqlite]",
    ),
    Sabotage(
        "a saga that went ahead does nothing before its line stands",
        "sagas/driver.py",
        "        self._sagas.journal.record(self.hold, entry, self._end, written)\n",
        "        self._sagas.journal.record(self.hold, entry, self._end, written)\n        self._begin_steps()\n",
        SAGA_AHEAD + "nothing_that_the_body_asks_for_is_done_before_the_line_stands[sqlite]",
    ),
    Sabotage(
        "a saga whose worker is killed behind its step writes nothing more",
        "sagas/driver.py",
        "        if written.done():  # its worker was killed\n",
        "        if False:\n",
        SAGA_AHEAD + "whoever_is_killed_behind_the_step_writes_nothing_more[sqlite]",
    ),
    Sabotage(
        "a saga that went ahead with what can't be kept is read again",
        "sagas/driver.py",
        "            if self._ahead is not None:\n                raise StoreTrouble(",
        "            if False:\n                raise StoreTrouble(",
        SAGA_AHEAD + "a_result_that_the_server_refuses_is_the_steps_failure[first-postgres]",
    ),
    Sabotage(
        "who calls for a saga beside its worker has it in hand",
        "app.py",
        'if tx == "own" and self.sagas is not None and self.sagas.on_loop():',
        "if False:",
        "tests/sagas/test_beginning.py::test_what_is_called_for_beside_its_worker_is_in_hand_at_once[sqlite]",
    ),
    Sabotage(
        "what gave way in a deadlock is written again",
        "store/postgres/store.py",
        "            except StoreBusy:\n                time.sleep(PAUSE[0] * tries)\n",
        "            except ZeroDivisionError:\n                time.sleep(PAUSE[0] * tries)\n",
        "tests/store/postgres/test_plainly.py::test_what_gave_way_to_somebody_else_is_done_again",
    ),
    Sabotage(
        "what sagas write goes along keys, however few rows there were when it was planned",
        "store/postgres/store.py",
        "                conn.execute(BY_KEY)\n",
        "                pass\n",
        "tests/store/postgres/test_plainly.py::test_it_goes_along_keys_in_new_tables_too",
    ),
    Sabotage(
        "harness: of a step in which a worker is killed nothing is written",
        "testing/faults.py",
        "raise _Dies\n",
        "pass\n",
        "tests/testing/test_kills.py::test_it_dies_there_and_another_one_goes_on[after1-within1-calls1]",
    ),
    Sabotage(
        "a saga's proof: it must have ended",
        "testing/proof.py",
        "                _judge(found)\n",
        "",
        "tests/testing/test_proof.py::test_what_is_wrong_is_told_with_the_run_in_which_it_is[undo]",
    ),
    Sabotage(
        "sagas.steps: behind one that failed no other begins",
        "sagas/saga.py",
        "                if failed:\n                    return None\n",
        "",
        "tests/sagas/test_steps.py::test_when_one_fails_those_beside_it_end_and_no_other_begins[sqlite]",
    ),
    Sabotage(
        "calls of a saga side by side know their line of the body",
        "sagas/body.py",
        "while frame is not None and frame.f_code is not BodyLoop.run.__code__:",
        "while frame is not None:",
        SAGA_BODY + "calls_side_by_side_know_their_line_of_the_body",
    ),
    Sabotage(
        "operators: what fails at nothing is not tried again",
        "sagas/operating.py",
        'if action == "retry" and state == "waiting" and (there := waits(row))',
        'if action == "never" and (there := waits(row))',
        OPERATOR + "what_fails_at_nothing_is_not_tried_again[sqlite-sleep]",
    ),
    Sabotage(
        "sagas: an undo whose attempts are used up waits for a person",
        "sagas/driver.py",
        "if before is None or (before.due is not None and before.due <= now) else before",
        "if before is None or before.due is None or before.due <= now else before",
        SAGA + "an_undo_with_attempts_of_its_own_waits_for_a_person_when_they_are_used_up[sqlite]",
    ),
    Sabotage(
        "sagas: what ends programs is a step's failure",
        "sagas/attempt.py",
        "return error if isinstance(error, Exception) and not isinstance(error, (StoreError, ConnectionError)) else RaisedByHandler(error)",
        "return error",
        SAGA_OUTCOME + "what_ends_programs_and_tasks_is_a_steps_failure_as_any_other[sqlite-def-CancelledError('x')]",
    ),
    Sabotage(
        "sagas: what can't be right is told where it is declared",
        "sagas/saga.py",
        "if (mistake := next(certain(main), None)) is not None:",
        "if (mistake := None) is not None:",
        "tests/sagas/test_text.py::test_what_can_not_be_right_is_told_where_it_is_declared",
    ),
    Sabotage(
        "saga check fails for a text that can't be right",
        "cli/saga_check.py",
        "if problems or wrong:",
        "if problems:",
        "tests/cli/test_saga_check.py::test_check_fails_for_a_text_that_can_not_be_right",
    ),
    Sabotage(
        "sagas: a child that ends locks itself and its parent in everybody's order",
        "store/postgres/sagas.py",
        "if one.tells and one.parent is not None:",
        "if False:",
        SAGA_LOCKS + "an_operators_batch_with_a_parent_and_its_child_beside_the_child_that_ends[1-2]",
    ),
    Sabotage(
        "sagas: the order of locks is no language's",
        "store/postgres/sagas.py",
        'ORDER BY s.saga COLLATE "C", s.key COLLATE "C"',
        "ORDER BY s.saga, s.key",
        SAGA_LOCKS + "a_batch_beside_a_group_in_a_database_that_orders_texts_by_a_language[record-15]",
    ),
    Sabotage(
        "an error's text that a store would refuse is told in other letters",
        "subscribe/parking.py",
        '.replace("\\x00", "\\\\x00")',
        "",
        SAGA_OUTCOME + "an_error_whose_text_no_store_could_keep_counts_as_any_other[postgres-no \\x00 answer]",
    ),
    Sabotage(
        "sagas in a group: a line that is refused is tried alone",
        "sagas/journal_writer.py",
        "if error is not None and len(items) > 1 and",
        "if error is not None and len(items) > 1000 and",
        SAGA_GROUP + "a_line_that_the_store_refuses_is_nobody_elses_trouble[postgres]",
    ),
    Sabotage(
        "sagas in a group: an instance that begins is told of though nobody waits",
        "sagas/journal_writer.py",
        "if self.settled is not None:",
        "if self.settled is not None and not self.future.done():",
        SAGA_GROUP + "whoever_stopped_waiting_an_instance_that_begins_is_told_of[sqlite]",
    ),
    Sabotage(
        "a saga's worker looks when another's lease may be over",
        "sagas/runner.py",
        "return longest if self._lapse is None else min(longest, max(LAPSE_SECONDS, self._lapse + 0.01))",
        "return longest",
        "tests/sagas/test_fencing.py::test_what_a_dead_worker_had_is_taken_over_as_soon_as_its_lease_is_over[sqlite]",
    ),
    Sabotage(
        "steps that share a transaction: one that fails undoes only itself",
        "sagas/shared_steps.py",
        "with transaction.savepoint():",
        "if True:",
        SAGA_SHARED + "many_share_a_transaction_and_one_that_fails_undoes_only_itself",
    ),
    Sabotage(
        "steps that share a transaction: a commit that fails is tried with each alone",
        "sagas/shared_steps.py",
        "if len(begun) > 1 and not self._is_stores(error):",
        "if len(begun) > 1000 and not self._is_stores(error):",
        SAGA_SHARED + "a_row_that_the_commit_refuses_is_its_own_steps_failure",
    ),
    Sabotage(
        "steps that share a transaction: who lost his instance loses his own rows",
        "sagas/shared_steps.py",
        "        except Fenced as error:\n            return None, error\n",
        "        except Fenced as error:\n            raise RuntimeError from error\n",
        SAGA_SHARED + "who_lost_his_instance_writes_nothing_and_his_neighbours_do",
    ),
    Sabotage(
        "steps that share a transaction: it ends after its time",
        "sagas/shared_steps.py",
        "if ended and time.monotonic() > until:",
        "if ended and time.monotonic() > until + 100:",
        SAGA_SHARED + "a_step_that_takes_long_ends_the_transaction",
    ),
    Sabotage(
        "an event that comes while a saga is let go of makes it due",
        "store/sagas.py",
        "WHEN s.arrived <> r.arrived THEN",
        "WHEN 1 = 0 THEN",
        SAGA_STORE + "an_event_that_comes_while_an_instance_is_let_go_of_makes_it_due[sqlite-0]",
    ),
    Sabotage(
        "a saga's results are handed on in the order of the journal",
        "sagas/journal.py",
        "    for entry in entries:\n        if entry.kind",
        "    for entry in sorted(entries, key=key_of):\n        if entry.kind",
        SAGA_BODY + "results_are_handed_on_in_the_order_of_the_journal_one_by_one",
    ),
    Sabotage(
        "a saga's body runs until it is quiet before the next result",
        "sagas/body.py",
        "            _settle(call, entry)\n        self.loop.run()",
        "            _settle(call, entry)\n        if entry.seq != 1:\n            self.loop.run()",
        SAGA_BODY + "results_are_handed_on_in_the_order_of_the_journal_one_by_one",
    ),
    Sabotage(
        "a refused step of a saga is not undone",
        "sagas/compensation.py",
        'call.entry.state == "refused")',
        'call.entry.state == "never")',
        SAGA + "what_succeeded_or_is_unknown_is_undone_last_first_and_a_refusal_is_not[sqlite]",
    ),
    Sabotage(
        "an unknown step of a saga is undone",
        "sagas/compensation.py",
        'not (call.entry is not None and call.entry.state == "refused")',
        'call.entry is not None and call.entry.state == "done"',
        SAGA + "what_succeeded_or_is_unknown_is_undone_last_first_and_a_refusal_is_not[sqlite]",
    ),
    Sabotage(
        "a saga is undone last first",
        "sagas/compensation.py",
        "reverse=True",
        "reverse=False",
        SAGA_BODY + "the_last_that_ended_is_undone_first",
    ),
    Sabotage(
        "a saga's steps have ended before it is undone",
        "sagas/driver.py",
        "body doesn't go on.\n        while self._running or self._news:",
        "body doesn't go on.\n        while False:",
        SAGA + "a_sibling_of_what_failed_ends_before_anything_is_undone[sqlite]",
    ),
    Sabotage(
        "a saga is not called compensated when it isn't",
        "sagas/driver.py",
        'if isinstance(one, Entry) and one.state not in ("done", "skipped")\n',
        "if False\n",
        SAGA + "an_undo_that_fails_is_stuck_after_five_times_goes_on_and_is_never_called_compensated[sqlite]",
    ),
    Sabotage(
        "a saga has each event once",
        "sagas/journal.py",
        "if position not in taken and kind in call.types",
        "if kind in call.types",
        SAGA + "an_event_is_waited_for_also_if_it_came_before_and_each_is_had_once[sqlite]",
    ),
    Sabotage(
        "a saga whose code doesn't fit is parked",
        "sagas/journal.py",
        "            raise _mismatch(body, entry)",
        "            continue",
        SAGA + "code_that_does_not_fit_the_journal_is_parked_by_name_and_goes_on_once_mended[sqlite]",
    ),
    Sabotage(
        "a saga's arguments are those of the journal",
        "sagas/journal.py",
        "if call.digest != entry.digest:",
        "if False:",
        SAGA + "other_arguments_than_before_are_no_fit[sqlite]",
    ),
    Sabotage(
        "a saga's body awaits nothing else",
        "sagas/body.py",
        '        self.refuse(f"{name}()")\n',
        "        return lambda *args, **kwargs: 0.0\n",
        SAGA + "awaiting_anything_else_names_the_line[sqlite-timeout]",
    ),
    Sabotage(
        "a saga's step is guarded from ending its transaction",
        "sagas/attempt.py",
        "                with transaction.guard.closed(function.name):\n                    value = call()",
        "                if True:\n                    value = call()",
        SAGA + "a_step_that_ends_its_transaction_gets_an_error_and_counts_as_not_done[postgres]",
    ),
    Sabotage(
        "steps that share a transaction: each is guarded from ending it",
        "sagas/shared_steps.py",
        "                with transaction.guard.closed(step.function.name):\n                    value = step.call()",
        "                if True:\n                    value = step.call()",
        SAGA_SHARED + "one_that_tries_to_end_the_transaction_fails_alone",
    ),
    Sabotage(
        "a mistake in a saga's body undoes nothing",
        "sagas/driver.py",
        "elif compensation.is_outcome(body.error, definition.failures) and not body.pivoted:",
        "elif True:",
        SAGA_OUTCOME + "a_mistake_in_the_body_refunds_nothing_and_goes_on_once_mended[sqlite-plain]",
    ),
    Sabotage(
        "a saga's answers are handed on behind what was recorded before",
        "sagas/driver.py",
        "        self._recorded.append((call, entry))\n        await self._hand_on()\n",
        "        await _alone(lambda: self._body.hand(call, entry))\n",
        SAGA_OUTCOME + "what_falls_due_while_a_steps_line_is_written_is_handed_on_behind_it[sqlite]",
    ),
    Sabotage(
        "a step that is tried once at most is noted before",
        "sagas/driver.py",
        "            if call.once and not finding_out:\n",
        "            if False:\n",
        SAGA_ONCE + "it_is_called_once_and_what_nobody_knows_is_found_out_or_parked[sqlite-False-behind]",
    ),
    Sabotage(
        "a step that was cut off is not called again",
        "sagas/driver.py",
        "            if _cut_off(call) and call.reconcile is None:\n                continue\n",
        "",
        SAGA_ONCE + "it_is_called_once_and_what_nobody_knows_is_found_out_or_parked[sqlite-False-behind]",
    ),
    Sabotage(
        "behind its pivot a saga is not undone",
        "sagas/driver.py",
        "and not body.pivoted:",
        "and True:",
        SAGA_ONCE + "behind_its_pivot_it_only_goes_forward[sqlite-refused]",
    ),
    Sabotage(
        "behind its pivot a saga tries without end",
        "sagas/driver.py",
        "if delay is None and self._body.pivoted:",
        "if False:",
        SAGA_ONCE + "behind_its_pivot_it_only_goes_forward[sqlite-error]",
    ),
    Sabotage(
        "a child that ends wakes its parent",
        "store/sagas.py",
        "if state in CLOSED and parent is not None",
        "if False and parent is not None",
        SAGA_CHILD + "a_parent_waits_for_its_child_and_has_its_result[sqlite-False]",
    ),
    Sabotage(
        "a child is undone with its parent",
        "sagas/compensation.py",
        'call.entry.state in ("begun", "done")',
        'call.entry.state in ("never",)',
        SAGA_CHILD + "a_completed_child_is_undone_through_its_own_steps_in_its_place[sqlite-False]",
    ),
    Sabotage(
        "who is nobody's child stays what it is",
        "store/sagas.py",
        "child.parent == (hold.saga, hold.key) else refused",
        "True else refused",
        SAGA_CHILD + "an_instance_that_is_nobodys_child_stays_what_it_is[sqlite]",
    ),
    Sabotage(
        "a child that still runs is undone where it stands",
        "store/sagas.py",
        "back = coalesce(back, 'compensate'), arrived",
        "arrived",
        SAGA_CHILD + "a_child_that_still_runs_is_undone_where_it_stands[sqlite]",
    ),
    Sabotage(
        "a parent is undone behind its child",
        "sagas/driver.py",
        'row.state in ("compensated", "cancelled", "gone"):',
        'row.state in ("compensated", "cancelled", "gone", "compensating", "stuck", "completed"):',
        SAGA_CHILD + "a_parent_is_never_called_compensated_when_its_child_is_not[sqlite-stuck]",
    ),
    Sabotage(
        "a child at work hears that it is to be undone",
        "store/sagas.py",
        '        self._run(f"{CONTROL} AND EXISTS',
        '        False and self._run(f"{CONTROL} AND EXISTS',
        SAGA_CHILD + "a_child_at_a_long_step_hears_that_it_is_to_be_undone[sqlite-parent fails]",
    ),
    Sabotage(
        "a saga that begins anew has each event once",
        "store/sagas.py",
        "        for position in taken:\n",
        "        for position in ():\n",
        SAGA_ENDLESS + "each_event_is_had_once_in_all_runs[sqlite]",
    ),
    Sabotage(
        "a saga that begins anew keeps what is to be undone",
        "sagas/driver.py",
        "        for past in self._runs_before():",
        "        for past in ():",
        SAGA_ENDLESS + "it_begins_anew_with_new_state_and_carries_on_what_is_to_be_undone[sqlite-True]",
    ),
    Sabotage(
        "a closed saga leaves a tombstone",
        "store/sagas.py",
        "AND position <= {_RETAINED} AND (position > 0 OR since < ?)",
        "AND (true OR position <= {_RETAINED}) AND (true OR since < ?)",
        SAGA_ENDLESS + "a_closed_saga_goes_away_and_its_start_event_read_again_begins_nothing[sqlite]",
    ),
    Sabotage(
        "a child is kept until its parent is closed",
        "store/sagas.py",
        "AND parent.key = one.parent_key AND",
        "AND parent.key = one.parent_key AND false AND",
        SAGA_ENDLESS + "a_closed_saga_goes_away_and_its_start_event_read_again_begins_nothing[sqlite]",
    ),
    Sabotage(
        "a saga from before a change goes the old way",
        "sagas/journal.py",
        "        _answer_old(body, known, left)\n",
        "",
        SAGA_DEPLOY + "it_goes_on_or_is_parked_and_check_foretells_it[sqlite-added_as_a_change]",
    ),
    Sabotage(
        "check foretells what will be parked",
        "sagas/check.py",
        "        if failed is not None and not is_outcome(failed, definition.failures):",
        "        if False:",
        SAGA_DEPLOY + "it_goes_on_or_is_parked_and_check_foretells_it[sqlite-broken]",
    ),
    Sabotage(
        "a saga isn't migrated while somebody has it",
        "store/sagas.py",
        '" key = ? AND version = ? AND epoch = ? AND worker IS NULL"',
        '" key = ? AND version = ? AND epoch <> -1 - ? AND worker IS NULL"',
        SAGA_DEPLOY + "an_instance_that_fits_goes_on_with_another_version[sqlite]",
    ),
    Sabotage(
        "a saga that was started is not started again",
        "store/sagas.py",
        "ON CONFLICT (saga, key) DO NOTHING",
        "ON CONFLICT (saga, key) DO UPDATE SET data = excluded.data, state = 'running', due = excluded.due",
        SAGA_STORE + "an_event_for_nobody_is_left_alone[sqlite]",
    ),
    Sabotage(
        "who waits for a saga's result in another process is woken",
        "store/postgres/sagas.py",
        "for one in releases):\n            self._tell()\n",
        "for one in releases):\n            pass\n",
        "tests/sagas/test_result.py::test_who_waits_is_told_of_an_end_that_publishes_nothing[postgres]",
    ),
    Sabotage(
        "what is at its default isn't digested",
        "sagas/digest.py",
        "            continue\n",
        "            pass\n",
        "tests/sagas/test_digest.py::test_a_field_gained_with_a_default_changes_nothing",
    ),
    Sabotage(
        "a saga's step and its entry are one commit",
        "sagas/attempt.py",
        "                if not self._record(self._store.unit(transaction.raw), hold, entry, outputs):\n"
        "                    raise _fenced(hold)\n"
        "                transaction.told = bool(outputs)\n            return entry\n\n        future",
        "                transaction.told = bool(outputs)\n"
        "            if not self._store.write(lambda unit: self._record(unit, hold, entry, outputs)).result():\n"
        "                raise _fenced(hold)\n            return entry\n\n        future",
        "tests/sagas/test_fencing.py::test_a_transaction_whose_instance_is_another_workers_leaves_nothing[postgres]",
    ),
    Sabotage(
        "a saga that is due is found by its index",
        "store/sagas.py",
        "coalesce(saga, '') = ? AND version = ?",
        "saga = ? AND version = ?",
        SAGA_STORE + "what_is_due_is_found_by_its_index_and_not_among_all_that_wait[sqlite]",
    ),
    Sabotage(
        "after trouble a worker frees the sagas that nobody drives",
        "sagas/runner.py",
        "        if self._doubt:\n            await self._free_what_nobody_drives()",
        "        if False:\n            await self._free_what_nobody_drives()",
        "tests/sagas/test_lost_answers.py::test_an_instance_that_was_made_without_a_word_goes_on_on_a_server",
    ),
    Sabotage(
        "a saga that was made without a word is found though its event comes again",
        "sagas/runner.py",
        "elif mine and not made:",
        "elif False:",
        "tests/sagas/test_lost_answers.py::test_an_instance_that_is_begun_again_while_it_is_looked_for_goes_on[sqlite]",
    ),
    Sabotage(
        "an operator's order: a saga that is to be undone is not completed",
        "store/sagas.py",
        """RELEASABLE = "(r.state <> 'completed' OR s.back IS NULL)\"""",
        'RELEASABLE = "1 = 1"',
        SAGA_STORE + "one_that_is_to_be_undone_is_neither_completed_nor_rests[sqlite]",
    ),
    Sabotage(
        "an operator's order: a saga that is to be undone doesn't rest",
        "store/sagas.py",
        "WHEN s.back IS NOT NULL AND r.state IN ('running', 'waiting') THEN",
        "WHEN 1 = 0 THEN",
        SAGA_STORE + "one_that_is_to_be_undone_is_neither_completed_nor_rests[sqlite]",
    ),
    Sabotage(
        "an operator's order: a saga that is to be paused is paused when it is let go of",
        "store/sagas.py",
        "CASE WHEN {_PAUSED} THEN 'paused' WHEN",
        "CASE WHEN 1 = 0 THEN 'paused' WHEN",
        SAGA_STORE + "one_that_is_to_be_paused_is_paused_by_whoever_lets_go_of_it[sqlite-False]",
    ),
    Sabotage(
        "an operator's order: the driver hears of it between steps",
        "sagas/driver.py",
        "            if self.row.back is not None:\n                break",
        "            if False:\n                break",
        OPERATOR + "an_order_while_a_step_runs_counts_behind_it[sqlite-cancel]",
    ),
    Sabotage(
        "a pivot isn't passed once it was ordered to be undone",
        "store/sagas.py",
        'if entry.kind == "pivot":',
        "if False:",
        "tests/sagas/test_ordered.py::test_an_order_that_was_accepted_before_the_pivot_counts[sqlite]",
    ),
    Sabotage(
        "behind its pivot nothing is undone by hand",
        "sagas/operator.py",
        "if operating.is_behind_its_pivot(unit.sagas().journal(row.saga, row.key)):",
        "if False:",
        "tests/sagas/test_ordered.py::test_behind_its_pivot_nothing_is_undone_by_hand[sqlite]",
    ),
    Sabotage(
        "an operator's order: behind it the body is handed nothing, by the next worker neither",
        "sagas/journal.py",
        'back = back or entry.kind == "back"',
        "back = False",
        OPERATOR + "what_ended_behind_an_order_is_undone_and_leads_to_nothing[sqlite]",
    ),
    Sabotage(
        "an operator's action: nobody writes a step's line while a worker is at it",
        "sagas/operating.py",
        'if action in ("retry", "skip") and row.worker is not None:',
        "if False:",
        OPERATOR + "an_order_while_a_step_runs_counts_behind_it[sqlite-cancel]",
    ),
    Sabotage(
        "an operator's word that a step was not done: it is called, and no other",
        "store/sagas.py",
        "UPDATE tidings_saga_journal SET state = 'retrying', error = ?",
        "UPDATE tidings_saga_journal SET state = 'begun', error = ?",
        "tests/sagas/test_ordered.py::test_what_nobody_knows_of_is_told_by_a_person[sqlite-not done]",
    ),
    Sabotage(
        "an operator's retry says nothing of a step of which nobody knows",
        "sagas/operator.py",
        "            if not_done is not None:\n                entry",
        "            not_done = not_done or 'pay'\n            if not_done is not None:\n                entry",
        "tests/sagas/test_ordered.py::test_what_nobody_knows_of_is_told_by_a_person[sqlite-done]",
    ),
    Sabotage(
        "an operator's action on many: one that is no longer so is left",
        "sagas/operator.py",
        "if row is not None and not still(row):",
        "if row is not None and False:",
        "tests/sagas/test_many.py::test_each_has_its_line_and_what_is_no_longer_so_is_left[sqlite]",
    ),
    Sabotage(
        "an operator's action on many: it is only told until it is said",
        "cli/saga_many.py",
        "            if many.yes:\n                _do",
        "            if True:\n                _do",
        "tests/cli/test_saga_many.py::test_it_is_told_before_and_done_when_that_is_said",
    ),
    Sabotage(
        "an operator's action on many: who stops it is told how far it came",
        "cli/saga_many.py",
        "            if stop.is_set() or told.matched",
        "            if told.matched",
        "tests/cli/test_saga_many.py::test_who_stops_it_is_told_how_far_it_came",
    ),
    Sabotage(
        "an operator's action: what is closed stays closed",
        "sagas/operating.py",
        "    if row.state in CLOSED:\n        return",
        "    if False:\n        return",
        OPERATOR + "what_makes_no_sense_is_refused[sqlite]",
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
    if not chosen:
        parser.error(f"no mechanism has {given.only!r} in its name")
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
