"""What a user of Kafka lacks, in words that name the fix: who, which right, on what, and the command that gives it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

PREFIX = "tidings-"
"""What relays call their own topics and transactional ids begins so."""

_OPTIONS = {"topic": "--topic", "transactional id": "--transactional-id", "group": "--group"}


class Right(NamedTuple):
    """Something that a user may do. kind: ``topic``, ``transactional id`` or ``group``. names: on one of which it is missing."""

    operations: Sequence[str]
    kind: str
    names: Sequence[str]


def lacks(label: str, settings: Mapping[str, Any], right: Right) -> str:
    """One line for a right that is missing."""
    operations, kind, names = right
    user = settings.get("sasl.username")
    who = f"the user {user}" if user else "this user"
    own = kind != "group" and all(name.startswith(PREFIX) for name in names)
    if own and kind == "topic":
        operations = ("Create", "Describe", "Read", "Write")  # a relay needs them all, so that nobody has to come back for the next
    command = " ".join(
        (
            f"kafka-acls --bootstrap-server {label} --add --allow-principal User:{user or 'NAME'}",
            *(f"--operation {one}" for one in operations),
            *(f"{_OPTIONS[kind]} {name}" for name in ([PREFIX] if own else names)),
            *(["--resource-pattern-type prefixed"] if own else []),
        )
    )
    what = f"{kind} {names[0]}" if len(names) == 1 else f"{kind}s {', '.join(names)}"
    more = " (Write, for who sends, or Read, for who reads, brings it along)" if tuple(operations) == ("Describe",) else ""
    return f"{label}: {who} lacks the right {', '.join(operations)}{more} on the {what}; let an administrator run: {command}"


def refused(label: str, settings: Mapping[str, Any], said: str, *, tls: bool) -> str:
    """One line for a connection that wasn't let in.

    Args:
        tls: the certificates are the reason; else user and password.
    """
    if tls:
        advice = (
            "name the file with the authority that signed the broker's certificate in ssl.ca.location, and reach the broker by a name that"
            " stands in the certificate"
        )
        return f"{label}: no TLS connection: {said} -- {advice}"
    user = settings.get("sasl.username")
    who = f"the user {user}" if user else "us"
    advice = "look at sasl.username, sasl.password and sasl.mechanism (the password may be in TIDINGS_KAFKA_SASL_PASSWORD)"
    return f"{label}: the broker doesn't let {who} in: {said} -- {advice}"
