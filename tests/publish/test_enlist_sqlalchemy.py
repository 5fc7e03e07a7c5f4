"""Publishing in a SQLAlchemy transaction: the event is there if and only if the transaction commits. Runs against 2.0 and 2.1."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from tidings import App, Event, InvalidEvent, OutsideTransaction, Receipt, WrongStore


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    note: Mapped[str]


class Placed(Event, key="order_id"):
    order_id: int | None


def shop(tmp_path: Path) -> App:
    app = App("shop", store=f"sqlite:///{tmp_path}/shop.db")
    app.open()
    return app


def published(app: App) -> list[str | None]:
    return [envelope.key for envelope in app.store.query(lambda unit: unit.select(limit=100))]


@pytest.mark.promise("atomic publish")
def test_session(tmp_path: Path) -> None:
    app = shop(tmp_path)
    engine = create_engine(f"sqlite:///{tmp_path}/shop.db")
    Base.metadata.create_all(engine)
    with Session(engine, autoflush=False) as session:
        with session.begin():
            session.add(order := Order(note="kept"))
            session.flush()
            receipt = app.publish(Placed(order_id=order.id), tx=session)
            assert isinstance(receipt, Receipt)
            assert published(app) == []
        with pytest.raises(ZeroDivisionError), session.begin():
            app.publish(Placed(order_id=99), tx=session)
            raise ZeroDivisionError
    assert published(app) == ["1"]
    engine.dispose()
    app.close()


@pytest.mark.promise("atomic publish")
def test_a_session_is_flushed_before_the_event(tmp_path: Path) -> None:
    """Or the log's INSERT would run before the aggregate's, and draw its position before the row is locked."""
    app = shop(tmp_path)
    engine = create_engine(f"sqlite:///{tmp_path}/shop.db")
    Base.metadata.create_all(engine)
    with Session(engine, autoflush=False) as session, session.begin():
        session.add(Order(id=7, note="unflushed"))
        app.publish(Placed(order_id=7), tx=session)
        assert session.execute(text("SELECT count(*) FROM orders")).scalar() == 1
    with Session(engine) as session, pytest.raises(InvalidEvent, match="flush first"):
        session.add(order := Order(note="no id yet"))
        app.publish(Placed(order_id=order.id), tx=session)
    engine.dispose()
    app.close()


@pytest.mark.promise("atomic publish")
def test_connection(tmp_path: Path) -> None:
    app = shop(tmp_path)
    engine = create_engine(f"sqlite:///{tmp_path}/shop.db")
    with engine.connect() as connection:
        app.publish(Placed(order_id=1), tx=connection)
        connection.rollback()
        app.publish(Placed(order_id=2), tx=connection)
        connection.commit()
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection, pytest.raises(OutsideTransaction):
        app.publish(Placed(order_id=3), tx=connection)
    assert published(app) == ["2"]
    engine.dispose()
    app.close()


@pytest.mark.promise("atomic publish")
async def test_async_session_and_connection(tmp_path: Path) -> None:
    app = shop(tmp_path)
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/shop.db")
    async with AsyncSession(engine) as session:
        async with session.begin():
            await app.publish(Placed(order_id=1), tx=session)
        with pytest.raises(ZeroDivisionError):
            async with session.begin():
                await app.publish(Placed(order_id=2), tx=session)
                raise ZeroDivisionError
    async with engine.connect() as connection:
        await app.publish(Placed(order_id=3), tx=connection)
        await connection.rollback()
        await app.publish(Placed(order_id=4), tx=connection)
        await connection.commit()
    assert published(app) == ["1", "4"]
    await engine.dispose()
    app.close()


def test_another_database_is_refused(tmp_path: Path) -> None:
    app = shop(tmp_path)
    engine = create_engine(f"sqlite:///{tmp_path}/other.db")
    with Session(engine) as session, pytest.raises(WrongStore, match=r"other\.db"):
        app.publish(Placed(order_id=1), tx=session)
    assert published(app) == []
    engine.dispose()
    app.close()
