from __future__ import annotations

import hypothesis
import pytest

# A machine that is busy is slow, and that is nobody's failure.
hypothesis.settings.register_profile("tidings", deadline=None)
hypothesis.settings.load_profile("tidings")


def pytest_configure(config: pytest.Config) -> None:
    # By name, so that tests and pytest see one and the same module.
    config.pluginmanager.import_plugin("tests.promises")
    config.pluginmanager.import_plugin("tests.servers.fixtures")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
