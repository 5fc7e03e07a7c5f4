"""What a running process knows, as Prometheus metrics. Read from the workers at each scrape: handling an event costs nothing for it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from ..app import App
from ..store.port import Behind

COUNTERS = (
    ("handled", "Events whose handling ended well in this process."),
    ("failed", "Attempts that failed in this process."),
    ("dead", "Events that became dead letters in this process."),
    ("published", "Events that handlers published in this process."),
)
MOVED = (
    ("relay_sent", "Events that this process sent to the broker."),
    ("intake_taken", "Events that this process took in from the broker."),
    ("intake_dropped", "Those that it dropped, since they were here already."),
    ("intake_unread", "Records that it could not read, and made dead letters of."),
)
GAUGES = (
    ("events_behind", "Events in the log that the subscription has not ended yet, over all workers; an estimate when far behind."),
    ("seconds_behind", "Age of the oldest of these."),
    ("parked_keys", "Keys parked in the lanes of this process."),
    ("in_flight", "Handlers running in this process."),
    ("lanes_held", "Lanes held by this process, of 64."),
    ("stuck_threads", "Threads that ran past their timeout and go on."),
    ("held", "1 while it stopped reading by itself because nearly everything fails."),
)


def exposition(
    apps: Sequence[App], behind: Mapping[tuple[str, str], Behind], lease_age: Mapping[str, float], *, healthy: bool
) -> tuple[str, bytes]:
    """Content type and body of an answer to a scrape."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Apps(apps, behind, lease_age, healthy))
    return CONTENT_TYPE_LATEST, generate_latest(registry)


class _Apps(Collector):
    def __init__(
        self, apps: Sequence[App], behind: Mapping[tuple[str, str], Behind], lease_age: Mapping[str, float], healthy: bool
    ) -> None:
        self._apps, self._behind, self._lease_age, self._healthy = apps, behind, lease_age, healthy

    def collect(self) -> Iterator[Metric]:
        labels = ["app", "subscription"]
        counters = {name: CounterMetricFamily(f"tidings_{name}", text, labels=labels) for name, text in COUNTERS}
        gauges = {name: GaugeMetricFamily(f"tidings_{name}", text, labels=labels) for name, text in GAUGES}
        lease = GaugeMetricFamily("tidings_lease_age_seconds", "Seconds since the process last renewed its lease.", labels=["app"])
        text = "Seconds for which what may be read has stood still before a transaction that published and is still open (PostgreSQL)."
        horizon = GaugeMetricFamily("tidings_horizon_held_seconds", text, labels=["app"])
        text = "Records in the partitions that this process reads that it has not taken in yet."
        left = GaugeMetricFamily("tidings_intake_behind", text, labels=["app"])
        moved = {name: CounterMetricFamily(f"tidings_{name}", text, labels=["app"]) for name, text in MOVED}
        yield GaugeMetricFamily("tidings_healthy", "1 if /health answers 200.", value=float(self._healthy))
        now = time.time()
        for app in self._apps:
            if app.worker is None:
                continue
            lease.add_metric([app.name], self._lease_age[app.name])
            horizon.add_metric([app.name], app.store.held_back())
            if app.relay is not None:
                moved["relay_sent"].add_metric([app.name], app.relay.sent)
                self._tell_behind(gauges, app.name, app.relay.name, now)
            if app.intake is not None:
                moved["intake_taken"].add_metric([app.name], app.intake.taken)
                moved["intake_dropped"].add_metric([app.name], app.intake.dropped)
                moved["intake_unread"].add_metric([app.name], app.intake.unread)
                left.add_metric([app.name], app.intake.behind)
            for name, runner in app.worker.runners.items():
                values = [app.name, name]
                for counter, total in (
                    ("handled", runner.handled),
                    ("failed", runner.failed),
                    ("dead", runner.dead),
                    ("published", runner.published),
                ):
                    counters[counter].add_metric(values, total)
                self._tell_behind(gauges, app.name, name, now)
                gauges["parked_keys"].add_metric(values, runner.parked_keys)
                gauges["in_flight"].add_metric(values, runner.in_flight)
                gauges["lanes_held"].add_metric(values, len(runner.held_lanes()))
                gauges["stuck_threads"].add_metric(values, len(runner.stuck()))
                gauges["held"].add_metric(values, float(runner.health.reason is not None))
        yield from counters.values()
        yield from moved.values()
        yield from gauges.values()
        yield left
        yield lease
        yield horizon

    def _tell_behind(self, gauges: Mapping[str, GaugeMetricFamily], app: str, name: str, now: float) -> None:
        found = self._behind.get((app, name))
        if found is not None:
            gauges["events_behind"].add_metric([app, name], found.events)
            gauges["seconds_behind"].add_metric([app, name], 0.0 if found.oldest is None else max(0.0, now - found.oldest / 1e6))
