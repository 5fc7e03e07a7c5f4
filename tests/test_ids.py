from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
import time
import uuid

import pytest

from tidings import ids


@pytest.mark.parametrize("make", [ids.new_id, ids.uuid7_by_hand])
def test_ids_are_uuid7_of_now(make: object) -> None:
    before = time.time_ns() // 1_000_000
    made = uuid.UUID(make())  # type: ignore[operator]
    after = time.time_ns() // 1_000_000
    assert (made.version, made.variant) == (7, uuid.RFC_4122)
    assert before <= made.int >> 80 <= after + 1


def test_ids_by_hand_ascend_even_when_the_clock_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    made = [ids.uuid7_by_hand() for _ in range(2_000)]
    now = time.time_ns()
    monkeypatch.setattr("tidings.ids.time.time_ns", lambda: now - 3_600_000_000_000)
    made += [ids.uuid7_by_hand() for _ in range(2_000)]
    assert made == sorted(set(made))


def test_ids_of_many_threads_differ() -> None:
    made: list[str] = []

    def work() -> None:
        made.extend([ids.uuid7_by_hand() for _ in range(2_000)])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == 8_000


def test_without_the_extra_package() -> None:
    script = """
        import sys, uuid
        sys.modules["uuid_utils"] = None
        from tidings import ids
        assert uuid.UUID(ids.new_id()).version == 7
        assert ids.new_id() != ids.new_id()
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True)
