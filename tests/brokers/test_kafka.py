from __future__ import annotations

import pytest

from servers.kafka import Kafka
from tests.brokers.reading import WithKafka
from tidings.brokers import broker_at
from tidings.brokers.kafka import KafkaBroker
from tidings.brokers.port import Broker
from tidings.errors import BrokerUnavailable, ConfigurationError
from tidings.testing.contracts.broker import BrokerContract


class TestKafka(WithKafka, BrokerContract):
    @pytest.fixture(autouse=True)
    def _server(self, kafka: Kafka) -> None:
        self.kafka = kafka

    def make_broker(self) -> Broker:
        return KafkaBroker(self.kafka.url)


@pytest.mark.parametrize(
    "address",
    ["", "kafka://", "kafka://user:secret@host:9092", "amqp://user:secret@host", "kafka://a:sec@ret@b", "host:9092/topic", "a:1,,b:2"],
)
def test_an_address_that_is_none(address: str) -> None:
    for make in (KafkaBroker, broker_at):
        with pytest.raises(ConfigurationError, match="kafka://host:9092") as caught:
            make(address)
        assert "secret" not in str(caught.value)


def test_a_setting_that_does_not_exist() -> None:
    broker = KafkaBroker("127.0.0.1:1", sasl_flavour="mint")
    with pytest.raises(ConfigurationError, match=r"sasl\.flavour"):
        broker.topics(["t"])


def test_nobody_there() -> None:
    broker = KafkaBroker("127.0.0.1:1", {"socket.connection.setup.timeout.ms": 1000})
    with pytest.raises(BrokerUnavailable, match=r"127\.0\.0\.1:1"):
        broker.topics(["t"])
