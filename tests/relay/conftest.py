from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from servers.kafka import Kafka
from tests.relay.shops import Shop


@pytest.fixture
def new_shop(postgres_url: str, kafka: Kafka) -> Iterator[Callable[..., Shop]]:
    """What makes an application with an outbox of its own."""
    made: list[Shop] = []

    def make(**options: Any) -> Shop:
        made.append(Shop(postgres_url, kafka, **options))
        return made[-1]

    yield make
    for shop in made:
        shop.close()


@pytest.fixture
def shop(new_shop: Callable[..., Shop]) -> Shop:
    return new_shop()
