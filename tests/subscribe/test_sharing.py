"""However many workers come and go, with whatever concurrency: in the end each lane is read by one of them, and nobody moves any more."""

from __future__ import annotations

import random
import sqlite3

from hypothesis import given
from hypothesis import strategies as st

from tidings import ManualClock
from tidings.envelope import LANES
from tidings.store.port import WorkerRow
from tidings.store.sqlite import schema
from tidings.store.sqlite.unit import SQLiteUnit
from tidings.subscribe.sharing import able, fair_share, group_of, to_give_back, whole_groups


class Fleet:
    """Workers that look at a real table in turn and do what the functions say."""

    def __init__(self) -> None:
        conn = sqlite3.connect(":memory:", isolation_level=None)
        schema.migrate(conn, ":memory:")
        self.conn, self.unit = conn, SQLiteUnit(conn, ManualClock(), "boot")
        self.unit.register("s", "shop", ["t"], "key", 0, 0)
        self.groups: dict[str, int] = {}

    def join(self, worker: str, groups: int) -> None:
        self.groups[worker] = groups
        self.unit.enrol(WorkerRow(worker, "shop", "host", 1, 0, ("s",), True, 10.0), 1e9)

    def leave(self, worker: str) -> None:
        del self.groups[worker]
        self.unit.leave(worker)

    def owners(self) -> dict[int, str | None]:
        return {lane.lane: lane.worker for lane in self.unit.lanes("s")}

    def look(self, me: str) -> None:
        groups = min(self.groups.values())
        share = fair_share(me, list(self.groups), groups)
        held = {lane for lane, worker in self.owners().items() if worker == me}
        others = {lane: worker for lane, worker in self.owners().items() if worker is not None and worker != me}
        back = to_give_back(me, held, others, groups, share)
        if back:
            self.unit.release("s", me, back)
        elif len(whole_groups(held, groups)) < share:
            self.unit.claim("s", me, groups, share)


@given(st.dictionaries(st.text("abc", max_size=3), st.tuples(st.integers(0, 3), st.sets(st.sampled_from("ABCD"))), max_size=5))
def test_nobody_passes_by_what_another_one_handles(read: dict[str, tuple[int, set[str]]]) -> None:
    can = able(read)
    assert bool(can) == bool(read)
    if can:
        types = [read[worker][1] for worker in can]
        everything = set().union(*(one for _, one in read.values()))
        if everything in [one for _, one in read.values()]:
            assert all(one == everything for one in types)
        else:
            assert max(read, key=lambda worker: (read[worker][0], worker)) in can
            assert all(one >= min(types, key=len) for one in types)


@given(st.lists(st.integers(1, 64), min_size=1, max_size=6), st.integers(0, 5), st.randoms(use_true_random=False))
def test_every_lane_finds_its_reader(groups: list[int], leaving: int, order: random.Random) -> None:
    fleet = Fleet()
    for number, count in enumerate(groups):
        fleet.join(f"worker-{number}", count)
        for _ in range(order.randrange(8)):
            fleet.look(order.choice(list(fleet.groups)))
    if len(groups) > 1:
        fleet.leave(f"worker-{leaving % len(groups)}")
    before: dict[int, str | None] = {}
    for _ in range(20):
        before = fleet.owners()
        for worker in order.sample(list(fleet.groups), len(fleet.groups)):
            fleet.look(worker)
        if fleet.owners() == before:
            break
    assert fleet.owners() == before, "still moving"
    assert None not in before.values()
    agreed = min(fleet.groups.values())
    shares = [len(whole_groups({lane for lane, owner in before.items() if owner == worker}, agreed)) for worker in fleet.groups]
    assert sum(shares) == agreed
    assert sorted(shares) == sorted(fair_share(worker, list(fleet.groups), agreed) for worker in fleet.groups)
    fleet.conn.close()


@given(st.integers(1, 64))
def test_groups_are_as_large_as_each_other_to_within_a_lane(groups: int) -> None:
    sizes = [sum(group_of(lane, groups) == group for lane in range(LANES)) for group in range(groups)]
    assert sum(sizes) == LANES
    assert max(sizes) - min(sizes) <= 1
