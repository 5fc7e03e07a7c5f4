from __future__ import annotations

import pytest

from tidings import ConfigurationError, StoreFailed
from tidings.store import store_at
from tidings.store.postgres.connect import connect
from tidings.urls import label


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://ada:geheim@db/shop", "postgresql://ada:***@db/shop"),
        ("postgresql://:geheim@db/shop", "postgresql://:***@db/shop"),
        ("postgresql://ada:ge@heim@db/shop", "postgresql://ada:***@db/shop"),
        ("postgresql://ada:ge/heim@db/shop", "postgresql://ada:***@db/shop"),
        ("postgresql://ada:ge?heim@db/shop?sslmode=require", "postgresql://ada:***@db/shop?sslmode=require"),
        ("postgresql://db/shop?user=ada&password=geheim", "postgresql://db/shop?user=ada&password=***"),
        ("postgresql://db/shop?sslpassword=geheim&user=ada@home", "postgresql://db/shop?sslpassword=***&user=ada@home"),
        ("postgresql://ada:geheim@a:5432,b:5432/shop?PASSWORD=geheim", "postgresql://ada:***@a:5432,b:5432/shop?PASSWORD=***"),
        ("postgresql://db:5432/shop", "postgresql://db:5432/shop"),
        ("postgresql://ada@db:5432/shop", "postgresql://ada@db:5432/shop"),
        ("postgresql+psycopg://ada:geheim@db/shop", "postgresql+psycopg://ada:***@db/shop"),
        ("sqlite:///shop.db", "sqlite:///shop.db"),
        ("sqlite:///of@ada/shop.db", "sqlite:///of@ada/shop.db"),
        ("kafka://ada:ge@heim@a:9092,b:9092", "kafka://ada:***@a:9092,b:9092"),
        ("ada:geheim@a:9092", "ada:***@a:9092"),
        ("a:9092,b:9092", "a:9092,b:9092"),
    ],
)
def test_passwords_are_not_shown(url: str, shown: str) -> None:
    assert label(url) == shown


@pytest.mark.parametrize("scheme", ["postgresql+psycopg", "postgresql+asyncpg", "mysql"])
def test_another_librarys_url_is_told_without_its_password(scheme: str) -> None:
    with pytest.raises(ConfigurationError, match="postgresql://user@host:5432/database") as caught:
        store_at(f"{scheme}://ada:geheim@db/shop")
    assert "geheim" not in str(caught.value)
    assert ("SQLAlchemy's" in str(caught.value)) == ("+" in scheme)


def test_a_password_with_an_at_sign_is_told_and_not_shown() -> None:
    """libpq takes what is behind it for the host, and says so."""
    with pytest.raises(StoreFailed, match="as %40") as caught:
        connect("postgresql://ada:ge@heim@127.0.0.1:1/shop")
    assert "heim" not in str(caught.value)
    assert "\n" not in str(caught.value)
