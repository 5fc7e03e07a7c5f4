"""URLs of databases and brokers as they may be shown."""

from __future__ import annotations

import re

_IN_QUERY = re.compile(r"(?i)\b((?:ssl)?password=)[^&]*")
_BEFORE_HOST = re.compile(r"^((?:[\w+]+://)?[^:/?#@]*):(?!//).*@", re.DOTALL)


def label(url: str) -> str:
    """The URL without its passwords, for messages: also one that was written in a way that no driver understands."""
    before, mark, query = url.partition("?")
    if "@" not in before:  # an unescaped question mark in a password
        early, equals, rest = url.partition("=")
        return _IN_QUERY.sub(r"\1***", _BEFORE_HOST.sub(r"\1:***@", early) + equals + rest)
    return _BEFORE_HOST.sub(r"\1:***@", before) + mark + _IN_QUERY.sub(r"\1***", query)


def password_of(url: str) -> str:
    """The password between user and host, as it is written; empty if there is none."""
    found = re.search(r"://[^:/?#@]*:(.*)@", url.partition("?")[0], re.DOTALL)
    return "" if found is None else found[1]
