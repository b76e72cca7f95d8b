"""What the server counts about itself, as Prometheus reads it."""

import time
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.exposition import generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cloudagent_backend.store.counts import Counts

_BUCKETS: Final = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)
#: Answers that go on for as long as somebody listens; their time says nothing.
_ENDLESS: Final = frozenset({"/v1/events"})


# When a counter began says nothing here, and doubles the text.
disable_created_metrics()


class Metrics:
    """One server's numbers."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "cloudagent_http_requests",
            "Requests answered.",
            ("method", "route", "status"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "cloudagent_http_request_seconds",
            "Time until a request was answered.",
            ("route",),
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self._connected = self._gauge("hosts_connected", "Host machines with a live link.")
        self._hosts = self._gauge("hosts", "Host machines.")
        self._agents = self._gauge("agents", "Agents.")
        self._users = self._gauge("users", "Accounts.")
        self._runs = self._gauge("runs_live", "Runs that have not ended.")
        self._deliveries = Gauge(
            "cloudagent_deliveries",
            "Deliveries that have not ended.",
            ("state",),
            registry=self._registry,
        )

    def _gauge(self, name: str, help_text: str) -> Gauge:
        return Gauge(f"cloudagent_{name}", help_text, registry=self._registry)

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        self._requests.labels(method, route, str(status)).inc()
        if route not in _ENDLESS:
            self._seconds.labels(route).observe(seconds)

    def text(self, counts: Counts, connected: int) -> bytes:
        self._connected.set(connected)
        self._hosts.set(counts.hosts)
        self._agents.set(counts.agents)
        self._users.set(counts.users)
        self._runs.set(counts.live_runs)
        self._deliveries.clear()
        for state, number in counts.deliveries.items():
            self._deliveries.labels(state).set(number)
        return generate_latest(self._registry)


class Metered:
    """Counts what passes; by route, never by what a caller wrote, so that the labels are few."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, start = 500, time.perf_counter()

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            seconds = time.perf_counter() - start
            self._metrics.answered(scope["method"], route, status, seconds)
