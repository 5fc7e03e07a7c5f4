"""Brokers carry events between services: the port, and an adapter for each technology."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import ConfigurationError

if TYPE_CHECKING:
    from .port import Broker


def broker_at(url: str) -> Broker:
    """The broker that a URL names.

    Raises:
        ConfigurationError: no broker is known by such a URL, or its client isn't installed.
    """
    if url.startswith("kafka://"):
        from .kafka import KafkaBroker

        return KafkaBroker(url)
    raise ConfigurationError(f"broker={url!r}: write kafka://host:9092, several hosts with commas between them")
