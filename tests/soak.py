"""Real processes killed and frozen at random, on several seeds: ``python -m tests.soak --seeds 3``, or ``--seed 7`` for one.

Each seed rages on SQLite and on PostgreSQL, where the server crashes and connections are cut as well; ``--store`` chooses one of them.
Exits non-zero if a promise was broken on any seed, if less took place than asked for, or if fewer than half of the kills and freezes hit a
worker at work. ``--keep`` leaves the files.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.storm.phases import IDLE, NAMES
from tests.storm.storm import Storm

KILLS = {"sqlite": 102, "postgres": 66}
FREEZES = {"sqlite": 12, "postgres": 12}
RESTARTS = {"sqlite": 24, "postgres": 18}
CRASHES = 24
CUTS = 36
"""In a whole run, however many seeds. Crashes of the server, and how often some of its connections are cut."""
VERSIONS = (15, 18)
"""Of PostgreSQL, in turn."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="so many, from 1 (default 3)")
    parser.add_argument("--seed", type=int, action="append", help="this one only; may be given several times")
    parser.add_argument("--store", choices=["sqlite", "postgres"], action="append", help="this one only (default: both)")
    parser.add_argument("--version", type=int, help=f"of PostgreSQL; {' and '.join(map(str, VERSIONS))} in turn unless given")
    parser.add_argument("--kills", type=int, help="per seed and store")
    parser.add_argument("--freezes", type=int, help="per seed and store")
    parser.add_argument("--restarts", type=int, help="of workers that are asked to end, per seed and store")
    parser.add_argument("--crashes", type=int, help="of the server, per seed")
    parser.add_argument("--cuts", type=int, help="of connections, per seed")
    parser.add_argument("--seconds", type=float, default=240, help="at most, per seed and store, without the settling (default 240)")
    parser.add_argument("--keep", action="store_true", help="leave the files, and say where")
    given = parser.parse_args()
    seeds = given.seed or list(range(1, given.seeds + 1))

    def part(asked: int | None, whole: int) -> int:
        return asked if asked is not None else -(-whole // len(seeds))

    failed = False
    for store in given.store or ["sqlite", "postgres"]:
        totals: Counter[str] = Counter()
        landed: Counter[int] = Counter()
        broken: list[int] = []
        for place, seed in enumerate(seeds):
            folder = Path(tempfile.mkdtemp(prefix=f"tidings-soak-{store}-{seed}-"))
            began = time.monotonic()
            storm = Storm(folder, seed, part(given.kills, KILLS[store]), part(given.freezes, FREEZES[store]), given.seconds)
            storm.restarts = part(given.restarts, RESTARTS[store])
            if store == "postgres":
                storm.postgres = given.version or VERSIONS[place % len(VERSIONS)]
                storm.crashes, storm.cuts = part(given.crashes, CRASHES), part(given.cuts, CUTS)
            found = storm.run()
            print(*storm.report(found), f"seed {seed}: {time.monotonic() - began:.0f} s", sep="\n", flush=True)
            landed += storm.landed()
            totals.update(
                killed=len(storm.killed), frozen=len(storm.frozen), restarted=storm.restarted, events=found.deposits + found.follow_ups
            )
            if store == "postgres":
                totals.update({"crashes of the server": len(storm.downs), "connections cut": storm.cut.total()})
            if found.problems:
                broken.append(seed)
            if given.keep or found.problems:
                print(f"seed {seed}: kept in {folder}", flush=True)
            else:
                shutil.rmtree(folder)
        loaded = 1 - landed[IDLE] / max(1, landed.total())
        print(f"{store}, all seeds: " + ", ".join(f"{count} {what}" for what, count in totals.items()))
        print(
            f"{store}, all seeds: "
            + ", ".join(f"{name} {landed[phase]}" for phase, name in enumerate(NAMES))
            + f"; {loaded:.0%} under load"
        )
        if loaded < 0.5:
            print("FAILED: fewer than half hit a worker at work")
        if broken:
            print(f"FAILED: a promise was broken on {store}, seed {', '.join(map(str, broken))}")
        failed = failed or loaded < 0.5 or bool(broken)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
