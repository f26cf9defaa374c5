"""What the service counts, for Prometheus: nothing about a patient."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
RECORDS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Metrics:
    """The counters of one service.

    Args:
        streams: tells how many streams are held.
        waiting: tells how many requests wait for the model.
    """

    def __init__(self, streams: Callable[[], int], waiting: Callable[[], int]):
        self._registry = registry = CollectorRegistry()
        labels = ("method", "endpoint")
        self._requests = Counter("hymate_requests", "Requests answered.", (*labels, "status"), registry=registry)
        self._seconds = Histogram(
            "hymate_request_seconds", "From a request to its answer.", labels, buckets=SECONDS, registry=registry
        )
        self._records = Counter("hymate_predicted_records", "Records predicted.", registry=registry)
        self._batches = Histogram(
            "hymate_batch_records", "Records that the model answered at once.", buckets=RECORDS, registry=registry
        )
        Gauge("hymate_streams", "Streams held.", registry=registry).set_function(streams)
        Gauge("hymate_waiting_requests", "Requests waiting for the model.", registry=registry).set_function(waiting)

    def request(self, method: str, endpoint: str, status: int, seconds: float) -> None:
        """Counts an answered request; `endpoint` is the route, never an address that names a stream."""
        self._requests.labels(method, endpoint, str(status)).inc()
        self._seconds.labels(method, endpoint).observe(seconds)

    def batch(self, records: int) -> None:
        """Counts records that were predicted at once."""
        self._records.inc(records)
        self._batches.observe(records)

    def text(self) -> bytes:
        """All of them, in the text format of Prometheus."""
        return generate_latest(self._registry)
