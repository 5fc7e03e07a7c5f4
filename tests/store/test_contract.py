from __future__ import annotations

from pathlib import Path

import pytest

from tidings import Clock, SQLiteStore
from tidings.store.port import Store
from tidings.testing.contracts.store import StoreContract


@pytest.mark.parametrize("synchronous", ["FULL", "NORMAL"])
class TestSQLiteStore(StoreContract):
    @pytest.fixture(autouse=True)
    def _synchronous(self, synchronous: str) -> None:
        self.synchronous = synchronous

    def make_store(self, folder: Path, clock: Clock) -> Store:
        return SQLiteStore(f"sqlite:///{folder}/log.db", clock=clock, synchronous=self.synchronous)
