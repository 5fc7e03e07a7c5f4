"""Where servers run: a folder that goes with its owner, in memory where there is plenty."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from servers import folder
from servers.folder import Folder


def test_it_is_nobody_elses_and_goes():
    one = Folder("test")
    assert one.path.stat().st_mode & 0o077 == 0
    (one.path / "file").touch()
    one.close()
    assert not one.path.exists()


def test_in_memory_where_there_is_room():
    if folder.roomy_memory() is None:
        pytest.skip("this machine has no 4 GiB of /dev/shm and 8 GiB of memory left")
    one = Folder("test", memory=True)
    assert one.path.parent == Path("/dev/shm")
    one.close()
    assert not one.path.exists()


def test_elsewhere_where_there_is_none(monkeypatch: pytest.MonkeyPatch):
    real = os.statvfs("/")

    def small(path: object) -> os.statvfs_result:
        return os.statvfs_result((real.f_bsize, 4096, 100, 100, 100, 100, 100, 100, 0, 255))  # as a container has it: 64 MB at most

    monkeypatch.setattr(os, "statvfs", small)
    assert folder.roomy_memory() is None
    one = Folder("test", memory=True)
    assert one.path.parent != Path("/dev/shm")
    one.close()
