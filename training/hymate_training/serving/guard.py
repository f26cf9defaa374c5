"""What stands before the service: the token, limits of size, time and rate, counts, and silence about what failed.

A body is read whole before the service sees it, so that one that is too long or too slow never gets there. Nothing of
a request is logged, and of an error that nobody foresaw only its type and where it arose.
"""

import asyncio
import hmac
import json
import logging
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hymate_training.serving.messages import problem
from hymate_training.serving.metrics import Metrics

logger = logging.getLogger(__name__)

OPEN = ("/health", "/docs", "/openapi.json", "/static-offline-docs")  # to everyone: nothing of patients or the model
REMEMBERED = 10_000  # clients, for the rate
METHODS = frozenset({"GET", "POST", "DELETE", "HEAD", "OPTIONS", "PUT", "PATCH"})


@dataclass(frozen=True)
class ServeLimits:
    """What is asked of the service at most.

    Attributes:
        body_megabytes: size of a request.
        seconds: for sending a request, and again for its answer.
        requests_per_second: of one client's address, on average; twice that in a burst.
        streams: held at once.
        stream_hours: after which a stream that is not used is forgotten.
    """

    body_megabytes: float = 16.0
    seconds: float = 30.0
    requests_per_second: float = 100.0
    streams: int = 1000
    stream_hours: float = 48.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 < value < float("inf"):
                raise ValueError(f"{name} must be a positive number, got {value}")


class Rates:
    """How many requests each client may still send: a bucket of tokens that fills as time goes by."""

    def __init__(self, per_second: float, clock: Callable[[], float] = time.monotonic):
        self._per_second = per_second
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # client -> tokens, as of when

    def allow(self, client: str) -> bool:
        """Whether a client may send a request now, which is counted."""
        now, most = self._clock(), max(1.0, 2 * self._per_second)
        tokens, then = self._buckets.pop(client, (most, now))
        tokens = min(most, tokens + (now - then) * self._per_second)
        self._buckets[client] = (tokens - 1 if tokens >= 1 else tokens, now)
        if len(self._buckets) > REMEMBERED:
            self._buckets.popitem(last=False)
        return tokens >= 1


class Guard:
    """Wraps the service.

    Args:
        app: the service.
        limits: of requests.
        metrics: where requests are counted.
        token: without which nobody is answered; None lets everyone in.
    """

    def __init__(self, app: ASGIApp, limits: ServeLimits, metrics: Metrics, token: str | None = None):
        self.app = app
        self._limits = limits
        self._metrics = metrics
        self._token = None if token is None else f"Bearer {token}".encode()
        self._rates = Rates(limits.requests_per_second)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.perf_counter(), 0

        async def counting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            refusal = self._refusal(scope) or await self._answer(scope, receive, counting)
            if refusal and not status:
                await _refuse(counting, *refusal)
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            logger.error("%s in %s, line %d", type(error).__name__, last.filename, last.lineno)
            if not status:
                await _refuse(counting, 500, "the service failed")
        method = scope["method"] if scope["method"] in METHODS else "other"
        endpoint = getattr(scope.get("route"), "path", "other")
        self._metrics.request(method, endpoint, status, time.perf_counter() - began)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Status and reason for which a request is not even read; None where there is none."""
        headers = dict(scope["headers"])
        if not scope["path"].startswith(OPEN):
            given = headers.get(b"authorization", b"")
            if self._token is not None and not hmac.compare_digest(given, self._token):
                return 401, "send the header Authorization: Bearer TOKEN"
            client = (scope.get("client") or ("",))[0]
            if not self._rates.allow(client):
                return 429, f"at most {self._limits.requests_per_second:g} requests per second"
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length[:20]) > self._limits.body_megabytes * 1e6:
            return self._too_large()
        return None

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> tuple[int, str] | None:
        try:
            async with asyncio.timeout(self._limits.seconds):
                body = await self._body(receive)
        except TimeoutError:
            return 408, f"the request was not sent within {self._limits.seconds:g} seconds"
        if body is None:
            return self._too_large()
        given = False

        async def replay() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        try:
            async with asyncio.timeout(self._limits.seconds):
                await self.app(scope, replay, send)
        except TimeoutError:
            return 503, f"there was no answer within {self._limits.seconds:g} seconds: try again later"
        return None

    async def _body(self, receive: Receive) -> bytes | None:
        """The whole body; None where it is too large."""
        parts: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return b"".join(parts)
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self._limits.body_megabytes * 1e6:
                return None
            if not message.get("more_body", False):
                return b"".join(parts)

    def _too_large(self) -> tuple[int, str]:
        return 413, f"a request may have at most {self._limits.body_megabytes:g} MB: send fewer records at once"


async def _refuse(send: Send, status: int, reason: str) -> None:
    body = json.dumps(problem((), reason)).encode()
    headers: list[tuple[bytes, bytes]] = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    extra: dict[int, Any] = {
        401: (b"www-authenticate", b"Bearer"),
        429: (b"retry-after", b"1"),
        503: (b"retry-after", b"1"),
    }
    headers += [extra[status]] if status in extra else []
    if status == 413:
        headers.append((b"connection", b"close"))  # the rest of the body is not read
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
