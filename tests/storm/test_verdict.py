"""What explains a repeated call, and what does not."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.storm import verdict
from tests.storm.storm import Outage


@pytest.mark.parametrize(
    ("ended", "killed", "frozen", "explained"),
    [
        (None, None, None, False),  # cut off, and nobody was hit
        (10.1, None, None, False),
        (None, (10.0, 10.2), None, True),
        (None, (9.9, 11.4), None, True),  # it took so long to be gone that its lease ran out meanwhile
        (10.1, (10.2, 10.3), None, True),
        (10.1, (13.2, 13.3), None, False),  # that was in a checkpoint long since
        (None, (8.0, 8.1), None, False),
        (None, None, (9.9, 11.4), True),  # another stood still, perhaps with the file
        (10.1, None, (8.0, 9.0), False),
    ],
)
def test_what_explains_a_repeat(
    tmp_path: Path, ended: float | None, killed: tuple[float, float] | None, frozen: tuple[float, float] | None, explained: bool
) -> None:
    if ended is None:
        lines = ["begin 7 1 1 key 10.0", "begin 8 1 1 key 11.3", "end 8 1 1 key 11.4"]
    else:
        lines = ["begin 7 1 1 key 10.0", f"end 7 1 1 key {ended}", "begin 8 1 1 key 13.4", "end 8 1 1 key 13.5"]
    (tmp_path / "calls").write_text("\n".join(lines))
    (tmp_path / "renewals").write_text("")
    (tmp_path / "checkpoints").write_text("")
    hit = [] if killed is None else [Outage(7, killed[0], 1, killed[1])]
    still = [] if frozen is None else [Outage(9, frozen[0], 1, frozen[1])]
    found = verdict.Verdict()
    verdict._calls(tmp_path, found, Counter({1: 1}), hit, still, [])
    assert found.repeats == 1
    assert (found.problems == []) is explained
    assert explained or any(" by 7 from 10.00 to " in problem for problem in found.problems)
