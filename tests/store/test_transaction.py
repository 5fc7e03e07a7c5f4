"""A handler's transaction: given up once or settled once, whoever is first; and where SQLAlchemy's come from."""

from __future__ import annotations

import threading
from contextlib import nullcontext

import pytest
import sqlalchemy
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

from tidings.errors import HandlerDefinitionError, HandlerTimeout
from tidings.store.transaction import OpenTransaction, sqlalchemy_source


def a_transaction() -> OpenTransaction[None, None]:
    return OpenTransaction(None, None, None, nullcontext)


@pytest.mark.promise("effects once")
def test_it_is_given_up_once_and_then_not_committed():
    """Whoever watches might else take its handler, which runs on, for that of the next transaction, and give up that one as well."""
    transaction = a_transaction()
    assert transaction.abort()
    assert not transaction.abort()
    with pytest.raises(HandlerTimeout):
        transaction.settle()


@pytest.mark.promise("effects once")
def test_what_is_being_committed_is_not_given_up():
    transaction = a_transaction()
    transaction.settle()
    assert not transaction.abort()


@pytest.mark.promise("effects once")
def test_of_a_watchdog_and_a_commit_at_once_one_wins():
    for _ in range(300):
        transaction, both = a_transaction(), threading.Barrier(2)
        given_up: list[bool] = []

        def watch(one=transaction, both=both, given_up=given_up):
            both.wait()
            given_up.append(one.abort())

        watchdog = threading.Thread(target=watch)
        watchdog.start()
        both.wait()
        try:
            transaction.settle()
            settled = True
        except HandlerTimeout:
            settled = False
        watchdog.join()
        assert given_up == [not settled]


def test_sqlalchemys_come_from_an_engine_or_a_maker_of_their_kind():
    engine, other = sqlalchemy.create_engine("sqlite://"), create_async_engine("sqlite+aiosqlite://")
    makers = sessionmaker(engine), async_sessionmaker(other)
    for given in ((engine, other), makers):
        assert sqlalchemy_source(given, "connection", "pay") is engine
        assert isinstance(sqlalchemy_source(given, "async connection", "pay"), AsyncEngine)
        assert isinstance(sqlalchemy_source(given, "session", "pay")(), Session)
        assert isinstance(sqlalchemy_source(given, "async session", "pay")(), AsyncSession)
    assert sqlalchemy_source(makers, "session", "pay") is makers[0]


@pytest.mark.parametrize(
    ("kind", "says"), [("session", "transactions=engine or sessionmaker"), ("async session", "async_engine or async_")]
)
def test_without_one_the_error_says_what_to_give(kind, says):
    other = create_async_engine("sqlite+aiosqlite://") if kind == "session" else sqlalchemy.create_engine("sqlite://")
    with pytest.raises(HandlerDefinitionError, match=says):
        sqlalchemy_source((print, other), kind, "pay")
