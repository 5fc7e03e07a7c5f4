"""A Kafka that lets in whom it knows, over TLS, and lets each do what was allowed to him: SASL_SSL with SCRAM, and an authorizer with ACLs.

    with SecureKafka() as server:
        settings = server.user("shop")                          # librdkafka's, of a new user
        server.allow("shop", "WRITE", "TOPIC", "shop")

Beside it stands the way in without any of that, on loopback only, for ``admin``, who may do everything.
"""

from __future__ import annotations

import secrets
import shutil
from typing import Any

from .folder import Missing, free_port
from .kafka import Kafka

SECONDS = 20.0


class SecureKafka(Kafka):
    """
    Attributes:
        secure_address: where users come in.
        certificate: the file with what the server shows, which is its own authority; for ``ssl.ca.location``.
    """

    def __init__(self, *, memory: bool = False) -> None:
        self.secure_port = 0
        self._passwords: dict[str, str] = {}
        keytool = shutil.which("keytool")
        if keytool is None:
            raise Missing("no keytool is here, which comes with Java")
        self._keytool = keytool
        self._store_password = secrets.token_urlsafe(12)
        super().__init__(
            settings={
                "listener.security.protocol.map": "CLIENTS:PLAINTEXT,USERS:SASL_SSL,CONTROLLER:PLAINTEXT",
                "sasl.enabled.mechanisms": "SCRAM-SHA-512,PLAIN",
                "listener.name.users.plain.sasl.jaas.config": (
                    'org.apache.kafka.common.security.plain.PlainLoginModule required user_plain="plain-password";'
                ),
                "listener.name.users.scram-sha-512.sasl.jaas.config": "org.apache.kafka.common.security.scram.ScramLoginModule required;",
                "ssl.keystore.type": "PKCS12",
                "ssl.keystore.password": self._store_password,
                "ssl.key.password": self._store_password,
                "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
                "super.users": "User:ANONYMOUS",  # who comes over the other listeners
                "connection.failed.authentication.delay.ms": "100",
            },
            memory=memory,
        )

    @property
    def secure_address(self) -> str:
        return f"127.0.0.1:{self.secure_port}"

    def user(self, name: str) -> dict[str, Any]:
        """The settings of a user, who is made if he isn't there, and may do nothing yet."""
        from confluent_kafka.admin import ScramCredentialInfo, ScramMechanism, UserScramCredentialUpsertion  # type: ignore[attr-defined]

        if name not in self._passwords:
            self._passwords[name] = secrets.token_urlsafe(12)
            how = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096)
            change = UserScramCredentialUpsertion(name, how, self._passwords[name].encode())
            for future in self.admin().alter_user_scram_credentials([change]).values():
                future.result(SECONDS)
        return {
            "security.protocol": "SASL_SSL",
            "sasl.mechanism": "SCRAM-SHA-512",
            "sasl.username": name,
            "sasl.password": self._passwords[name],
            "ssl.ca.location": str(self.certificate),
        }

    def allow(self, user: str, operations: str, kind: str, name: str, *, prefixed: bool = False) -> None:
        """``operations``: ``"READ,WRITE"``. ``kind``: TOPIC, GROUP, TRANSACTIONAL_ID or BROKER (the cluster, named kafka-cluster)."""
        for future in self.admin().create_acls(self._rules(user, operations, kind, name, prefixed)).values():
            future.result(SECONDS)

    def forbid(self, user: str, operations: str, kind: str, name: str, *, prefixed: bool = False) -> None:
        """Take back what ``allow`` gave."""
        from confluent_kafka.admin import AclBindingFilter  # type: ignore[attr-defined]

        for rule in self._rules(user, operations, kind, name, prefixed):
            wanted = AclBindingFilter(
                rule.restype, rule.name, rule.resource_pattern_type, rule.principal, rule.host, rule.operation, rule.permission_type
            )
            for future in self.admin().delete_acls([wanted]).values():
                future.result(SECONDS)

    @staticmethod
    def _rules(user: str, operations: str, kind: str, name: str, prefixed: bool) -> list[Any]:
        from confluent_kafka.admin import AclBinding, AclOperation, AclPermissionType, ResourcePatternType, ResourceType  # type: ignore[attr-defined]

        pattern = ResourcePatternType.PREFIXED if prefixed else ResourcePatternType.LITERAL
        return [
            AclBinding(ResourceType[kind], name, pattern, f"User:{user}", "*", AclOperation[operation.strip()], AclPermissionType.ALLOW)
            for operation in operations.split(",")
        ]

    # -- making it

    def _listeners(self) -> dict[str, str]:
        self.secure_port = free_port()
        return {**super()._listeners(), "USERS": self.secure_address}

    def _first_start(self) -> None:
        kept = self._folder.path / "server.p12"
        self.certificate = self._folder.path / "server.pem"
        named = ["-keystore", str(kept), "-storetype", "PKCS12", "-storepass", self._store_password, "-alias", "server"]
        self._folder.run(
            [
                self._keytool, "-genkeypair", *named, "-keyalg", "EC", "-groupname", "secp256r1", "-dname", "CN=127.0.0.1",
                "-ext", "san=ip:127.0.0.1", "-ext", "bc:c", "-validity", "30",
            ],
            {},
        )  # fmt: skip
        self._folder.run([self._keytool, "-exportcert", "-rfc", *named, "-file", str(self.certificate)], {})
        self._settings["ssl.keystore.location"] = str(kept)
        super()._first_start()
