from __future__ import annotations

import pytest


def pytest_configure(config: pytest.Config) -> None:
    # By name, so that tests and pytest see one and the same module.
    config.pluginmanager.import_plugin("tests.promises")
    config.pluginmanager.import_plugin("tests.servers.fixtures")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
