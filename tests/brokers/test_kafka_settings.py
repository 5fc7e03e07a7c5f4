"""Where settings come from, and that secrets among them stay where they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from tidings.brokers.kafka import KafkaBroker
from tidings.brokers.kafka_settings import hidden, read, surroundings
from tidings.errors import ConfigurationError


def test_the_program_before_the_environment_before_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "kafka"
    file.write_text("# for the shop\n\nsasl.username = shop\nsasl.password=in=file\nclient.id=file\nsecurity.protocol=SASL_SSL\n")
    monkeypatch.setenv("TIDINGS_KAFKA_SETTINGS", str(file))
    monkeypatch.setenv("TIDINGS_KAFKA_SASL_PASSWORD", "in the environment")
    monkeypatch.setenv("TIDINGS_KAFKA_CLIENT_ID", "environment")
    found = KafkaBroker("127.0.0.1:1", {"client.id": "program"}, linger_ms=3).settings
    wanted = {"sasl.username": "shop", "sasl.password": "in the environment", "client.id": "program", "security.protocol": "SASL_SSL"}
    assert {name: found[name] for name in wanted} == wanted
    assert found["linger.ms"] == 3


def test_a_file_that_is_named_counts_instead_of_the_environments(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("client.id=a")
    (tmp_path / "b").write_text("client.id=b")
    assert surroundings(tmp_path / "a", {"TIDINGS_KAFKA_SETTINGS": str(tmp_path / "b")}) == {"client.id": "a"}
    assert surroundings(None, {"TIDINGS_KAFKA_SETTINGS": str(tmp_path / "b"), "HOME": "/"}) == {"client.id": "b"}
    assert surroundings(None, {"HOME": "/"}) == {}


@pytest.mark.parametrize("line", ["s3cret-on-a-line-of-its-own", "sasl password: s3cret", "=s3cret", "Sasl.Password=s3cret"])
def test_a_line_that_is_no_setting_is_named_and_not_shown(tmp_path: Path, line: str) -> None:
    file = tmp_path / "kafka"
    file.write_text(f"client.id=x\n{line}\n")
    with pytest.raises(ConfigurationError, match=r"line 2: write a setting") as raised:
        read(file)
    assert "s3cret" not in str(raised.value)


@pytest.mark.parametrize(("made", "why"), [(False, "No such file"), (True, "no text")])
def test_a_file_that_cannot_be_read(tmp_path: Path, made: bool, why: str) -> None:
    file = tmp_path / "kafka"
    if made:
        file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigurationError, match=rf"settings can't be read from {file}: .*{why}"):
        KafkaBroker("127.0.0.1:1", file=file)


def test_secrets_are_hidden() -> None:
    settings = {"sasl.password": "hunter2", "ssl.key.password": "k3y", "ssl.key.pem": "-----BEGIN", "sasl.username": "shop", "linger.ms": 5}
    assert hidden("shop: hunter2 of hunter2, k3y, -----BEGIN 5", settings) == "shop: *** of ***, ***, *** 5"


def test_a_setting_that_cannot_be_shows_no_secret() -> None:
    """librdkafka repeats values that it doesn't know."""
    with pytest.raises(ConfigurationError, match=r"can't be") as raised:
        KafkaBroker("127.0.0.1:1", {"ssl.key.pem": "hunter2", "security.protocol": "ssl"}).topics(["t"])
    assert "hunter2" not in repr(raised.value) + repr(raised.value.__cause__)


def test_a_file_of_certificates_that_is_not_there() -> None:
    with pytest.raises(ConfigurationError, match=r"there is no /nowhere/ca\.pem \(ssl\.ca\.location\)"):
        KafkaBroker("127.0.0.1:1", {"ssl.ca.location": "/nowhere/ca.pem", "security.protocol": "ssl"}).topics(["t"])
