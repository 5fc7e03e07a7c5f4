from __future__ import annotations

import signal

import hypothesis
import pytest

# A shell's background job ignores SIGINT, and so would every program that a test interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

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
