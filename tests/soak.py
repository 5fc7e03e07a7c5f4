"""Real processes killed and frozen at random, on several seeds: ``python -m tests.soak --seeds 3``, or ``--seed 7`` for one.

Exits non-zero if a promise was broken on any seed, if fewer kills and freezes took place than asked for, or if fewer than half hit a
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

KILLS = 102
FREEZES = 12
"""In a whole run, however many seeds."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="so many, from 1 (default 3)")
    parser.add_argument("--seed", type=int, action="append", help="this one only; may be given several times")
    parser.add_argument("--kills", type=int, help=f"per seed; {KILLS} over all seeds unless given")
    parser.add_argument("--freezes", type=int, help=f"per seed; {FREEZES} over all seeds unless given")
    parser.add_argument("--seconds", type=float, default=240, help="at most, per seed, without the settling (default 240)")
    parser.add_argument("--keep", action="store_true", help="leave the stores, and say where")
    given = parser.parse_args()
    seeds = given.seed or list(range(1, given.seeds + 1))
    kills, freezes = given.kills or -(-KILLS // len(seeds)), given.freezes or -(-FREEZES // len(seeds))
    landed: Counter[int] = Counter()
    killed = frozen = 0
    broken: list[int] = []
    for seed in seeds:
        folder = Path(tempfile.mkdtemp(prefix=f"tidings-soak-{seed}-"))
        began = time.monotonic()
        storm = Storm(folder, seed, kills, freezes, given.seconds)
        found = storm.run()
        print(*storm.report(found), f"seed {seed}: {time.monotonic() - began:.0f} s", sep="\n", flush=True)
        landed += storm.landed()
        killed += len(storm.killed)
        frozen += len(storm.frozen)
        if found.problems:
            broken.append(seed)
        if given.keep or found.problems:
            print(f"seed {seed}: kept in {folder}", flush=True)
        else:
            shutil.rmtree(folder)
    loaded = 1 - landed[IDLE] / max(1, landed.total())
    print(f"all seeds: {killed} killed, {frozen} frozen; " + ", ".join(f"{name} {landed[phase]}" for phase, name in enumerate(NAMES)))
    print(f"all seeds: {loaded:.0%} under load")
    if loaded < 0.5:
        print("FAILED: fewer than half hit a worker at work")
    if broken:
        print(f"FAILED: a promise was broken on seed {', '.join(map(str, broken))}")
    return 1 if broken or loaded < 0.5 else 0


if __name__ == "__main__":
    sys.exit(main())
