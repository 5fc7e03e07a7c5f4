"""The lockers' horizon in a storm, beside the cursors that others use; ``python -m tests.storm.horizon --writers 100`` is a longer one."""

from __future__ import annotations

import os
import random

import pytest

from tests.storm import horizon


@pytest.fixture(scope="module")
def found() -> list[dict[type[horizon.Reader], horizon.Verdict]]:
    """Of the storms so far."""
    return []


@pytest.mark.promise("nothing lost")
@pytest.mark.promise("order per key")
@pytest.mark.parametrize(("postgres", "storm"), [(15, 1), (18, 2), (18, 3)], indirect=["postgres"])
def test_the_horizon_loses_and_reorders_nothing(postgres, storm, found):
    """TIDINGS_SEED=n repeats a seed; when the threads get their turns it cannot decide."""
    seed = int(os.environ.get("TIDINGS_SEED") or random.SystemRandom().randrange(10**6))
    one = horizon.Storm(postgres, seed)
    found.append(one.run())
    print(*one.report(found[-1]), sep="\n")
    ours = {kind: verdict for kind, verdict in found[-1].items() if kind in horizon.OURS}
    assert len(ours) == 2, "no PgBouncer; scripts/setup brings it"
    assert {kind: (v.lost, v.reordered, v.wrong) for kind, v in ours.items()} == dict.fromkeys(ours, (0, 0, 0)), f"seed {seed}"


def test_the_storm_would_have_shown_it(found):
    """The cursors that the field uses, over the same data."""
    if len(found) < 3:
        pytest.skip("some of the storms did not run")
    assert horizon.problems(horizon.total(found)) == []
