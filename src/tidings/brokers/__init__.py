"""Brokers carry events between services: the port, and an adapter for each technology."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import ConfigurationError
from ..urls import label

if TYPE_CHECKING:
    from pathlib import Path

    from .port import Broker


def broker_at(url: str, settings: str | Path | None = None) -> Broker:
    """The broker that a URL names.

    Args:
        settings: a file with those of its client, user and password among them; what isn't there may be in the environment.

    Raises:
        ConfigurationError: no broker is known by such a URL, its client isn't installed, or the file can't be read.
    """
    if url.startswith("kafka://"):
        from .kafka import KafkaBroker

        return KafkaBroker(url, file=settings)
    raise ConfigurationError(f"broker={label(url)!r}: write kafka://host:9092, several hosts with commas between them")
