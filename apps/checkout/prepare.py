"""Make the services' tables before they start: ``python -m apps.checkout.prepare shop inventory … [--stock stock.json]``.

Each service owns its tables and makes them itself; this only asks it to.
"""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path

MODULES = {
    "shop": "orders",
    "fraud": "fraud",
    "payment": "payment",
    "inventory": "inventory",
    "shipping": "shipping",
    "email": "emails",
    "analytics": "analytics",
    "support": "support",
}
CONSUMERS = ("fraud", "payment", "inventory", "shipping", "email", "analytics")


def app_path(service: str) -> str:
    """Where ``tidings run`` finds a service's app."""
    return f"apps.checkout.{MODULES[service]}:app"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m apps.checkout.prepare", description="Make the services' tables.")
    parser.add_argument("services", nargs="+", choices=MODULES, metavar="service", help=", ".join(MODULES))
    parser.add_argument("--stock", type=Path, help="a JSON object: pieces of each article to begin with")
    given = parser.parse_args()
    for service in given.services:
        module = importlib.import_module(f"apps.checkout.{MODULES[service]}")
        if service == "inventory" and given.stock is not None:
            module.prepare(json.loads(given.stock.read_text()))
        else:
            module.prepare()


if __name__ == "__main__":
    main()
