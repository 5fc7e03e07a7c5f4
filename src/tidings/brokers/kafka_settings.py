"""librdkafka's settings, and where they come from: the program, the environment, a file. Secrets among them are never shown.

    TIDINGS_KAFKA_SASL_PASSWORD=…             sasl.password
    TIDINGS_KAFKA_SETTINGS=/run/secrets/kafka   a file of lines like ``sasl.password=…``

What the program says counts more than the environment, and that more than the file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ConfigurationError

PREFIX = "TIDINGS_KAFKA_"
FILE = "TIDINGS_KAFKA_SETTINGS"

_SECRET = re.compile(r"password|secret|ssl\.key\.pem|jaas|token|oauthbearer\.config|assertion\.private")


def surroundings(file: str | Path | None = None, environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """What the file and the environment say.

    Args:
        file: instead of the one that the environment names.

    Raises:
        ConfigurationError: the file can't be read, or a line of it is no setting.
    """
    environment = os.environ if environment is None else environment
    file = file or environment.get(FILE)
    found = read(Path(file)) if file else {}
    for name, value in environment.items():
        if name.startswith(PREFIX) and name != FILE:
            found[name.removeprefix(PREFIX).lower().replace("_", ".")] = value
    return found


def read(path: Path) -> dict[str, str]:
    """A file of settings: ``name=value`` in each line, ``#`` before what is none."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ConfigurationError(f"the broker's settings can't be read from {path}: {why}") from error
    found = {}
    for number, line in enumerate(text.splitlines(), 1):
        name, equals, value = line.strip().partition("=")
        if not line.strip() or name.startswith("#"):
            continue
        if not equals or not re.fullmatch(r"[a-z0-9._]+", name.strip()):  # not shown: it may be a secret on a line of its own
            raise ConfigurationError(f"{path}, line {number}: write a setting of librdkafka's as name=value, # before a comment")
        found[name.strip()] = value.strip()
    return found


def hidden(said: str, settings: Mapping[str, Any]) -> str:
    """The same words without any secret of the settings."""
    for name, value in settings.items():
        if _SECRET.search(name) and isinstance(value, str) and len(value) > 2:
            said = said.replace(value, "***")
    return said


def missing_files(settings: Mapping[str, Any]) -> list[str]:
    """Settings that name a file that isn't there."""
    return [
        f"there is no {value} ({name})"
        for name, value in settings.items()
        if name.endswith(".location") and value and value != "probe" and not os.path.exists(str(value))
    ]
