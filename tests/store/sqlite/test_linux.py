from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path

import pytest

from tidings.store.sqlite.linux import Alarm, drain, inotify

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="descriptors that Linux gives")


async def readable(descriptor: int, seconds: float) -> bool:
    """Whether it became so in time."""
    loop = asyncio.get_running_loop()
    came = asyncio.Event()
    loop.add_reader(descriptor, came.set)
    try:
        await asyncio.wait_for(came.wait(), seconds)
        return True
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(descriptor)


async def test_an_alarm_goes_off_once_and_not_before_its_time() -> None:
    alarm = Alarm()
    began = time.monotonic()
    alarm.set(0.0002)
    assert await readable(alarm.descriptor, 5)
    assert time.monotonic() - began >= 0.0002
    drain(alarm.descriptor)
    drain(alarm.descriptor)  # nothing is left, and that is no error
    assert not await readable(alarm.descriptor, 0.02)
    alarm.set(0.01)
    alarm.set(0)
    assert not await readable(alarm.descriptor, 0.05)
    alarm.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(alarm.descriptor)


async def test_a_file_that_is_written_to_is_heard_of(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_text("x")
    descriptor = inotify(str(file))
    assert descriptor is not None
    assert not await readable(descriptor, 0.02)
    file.write_text("y")
    assert await readable(descriptor, 5)
    os.close(descriptor)


def test_a_file_that_is_not_there_gives_nothing(tmp_path: Path) -> None:
    assert inotify(str(tmp_path / "none")) is None
