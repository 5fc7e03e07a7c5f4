"""Publish inside a SQLAlchemy session: the event exists if and only if the session commits. No worker runs here."""

from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from tidings import App, Event, OutsideTransaction, WrongStore

app = App("shop", store="sqlite:///outbox.db")
engine = create_engine("sqlite:///outbox.db")


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    item: Mapped[str]


class OrderPlaced(Event, key="order_id"):
    order_id: int
    item: str


def in_the_log() -> list[str]:
    return [envelope.data.decode() for envelope in app.store.query(lambda unit: unit.select(limit=100))]


Base.metadata.create_all(engine)
app.open()

# Committed: the row and the event.
with Session(engine) as session, session.begin():
    order = Order(item="lamp")
    session.add(order)
    session.flush()  # now the order has its id
    receipt = app.publish(OrderPlaced(order_id=order.id, item=order.item), tx=session)
print("committed at position", receipt.position, in_the_log())

# Rolled back: neither.
try:
    with Session(engine) as session, session.begin():
        order = Order(item="chair")
        session.add(order)
        session.flush()
        app.publish(OrderPlaced(order_id=order.id, item=order.item), tx=session)
        raise RuntimeError("the card was declined")
except RuntimeError as error:
    print("rolled back:", error, in_the_log())

# Without a transaction it is an error, and so is a transaction on another database.
try:
    app.publish(OrderPlaced(order_id=7, item="table"))
except OutsideTransaction as error:
    print("OutsideTransaction:", str(error).split(":")[0])

with create_engine("sqlite://").begin() as elsewhere:
    try:
        app.publish(OrderPlaced(order_id=7, item="table"), tx=elsewhere)
    except WrongStore as error:
        print("WrongStore:", str(error).split(",")[0])

app.close()
engine.dispose()
