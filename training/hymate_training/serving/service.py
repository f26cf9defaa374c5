"""The service: its addresses, what happens at its start and end, and the server that runs it."""

import asyncio
import contextlib
import ipaddress
import json
import logging
import os
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import uvicorn
from fastapi import APIRouter, Body, Depends, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.security import HTTPBearer
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

from hymate_training.files import locked
from hymate_training.inference.checkpoints import Checkpoint, load_checkpoint
from hymate_training.serving.fhir import knows_concepts, read_bundle, risk_assessments
from hymate_training.serving.guard import Guard, ServeLimits
from hymate_training.serving.messages import (
    EventsRequest,
    Hours,
    ModelDescription,
    PredictRequest,
    PredictResponse,
    Refusal,
    StreamAnswer,
    StreamHistory,
    StreamRequest,
    problem,
)
from hymate_training.serving.metrics import Metrics
from hymate_training.serving.reading import BadField, Reader
from hymate_training.serving.scoring import Batcher, Busy, answer
from hymate_training.serving.streams import HeldStreams
from hymate_training.versions import installed_version

logger = logging.getLogger(__name__)

TOKEN = "HYMATE_TOKEN"
SAVE_SECONDS = 30.0  # between two saves of streams that changed
DESCRIPTION = """Risks from health records, by a HyMaTE model. Not a medical device: nobody should be treated, or not
treated, because of what it says alone."""
REFUSALS: dict[int | str, dict[str, Any]] = {
    422: {"model": Refusal, "description": "A field is not what it must be; `loc` names it."},
    429: {"model": Refusal, "description": "Too much is asked at once."},
}


class AsciiResponse(JSONResponse):
    """JSON in ASCII: what a request quotes may be half a character, which UTF-8 cannot write."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False).encode("ascii")


class Service:
    """A checkpoint, the thread in which its model runs, and the streams it follows.

    Args:
        checkpoint: the open checkpoint.
        limits: of what is asked.
        state: file of the streams, restored at the start and saved at the end and in between; None keeps them in
            memory alone.

    Raises:
        ValueError: for a `state` that is damaged, of another model, or held by another process.
    """

    def __init__(self, checkpoint: Checkpoint, limits: ServeLimits, state: Path | None = None):
        self.checkpoint = checkpoint
        self.reader = Reader(checkpoint)
        self.streams = HeldStreams(checkpoint, limits.streams, limits.stream_hours)
        self._state = state
        self._engine = ThreadPoolExecutor(max_workers=1, thread_name_prefix="hymate-model")
        self.batcher = Batcher(
            partial(answer, checkpoint), self._engine, lambda _, records: self.metrics.batch(records)
        )
        self.metrics = Metrics(lambda: len(self.streams), lambda: self.batcher.waiting)
        if state is not None:
            with locked(state):
                if state.exists():
                    self.streams.restore(state)

    async def in_engine(self, call: Callable, *arguments: Any) -> Any:
        """What a call returns that is run in the model's thread."""
        return await asyncio.get_running_loop().run_in_executor(self._engine, partial(call, *arguments))

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Answers, and saves the streams."""
        with contextlib.nullcontext() if self._state is None else locked(self._state):
            tasks = [asyncio.create_task(self.batcher.run()), asyncio.create_task(self._keep_saving())]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                if self._state is not None:
                    await self.in_engine(self.streams.save, self._state)
                self._engine.shutdown()

    async def _keep_saving(self) -> None:
        while True:
            await asyncio.sleep(SAVE_SECONDS)
            await self.in_engine(self.streams.forget_expired)
            if self._state is not None and self.streams.changed:
                try:
                    await self.in_engine(self.streams.save, self._state)
                except OSError as error:  # a full disk must not end the service; the next try may succeed
                    logger.error("streams could not be saved (%s)", type(error).__name__)


def create_app(
    checkpoint: str | Path | Checkpoint,
    limits: ServeLimits | None = None,
    state: str | Path | None = None,
    token: str | None = None,
) -> Guard:
    """The service as an ASGI application, for another server than `serve` starts.

    Args:
        checkpoint: a fine-tuned model: its folder, its name on the Hub, or an open checkpoint.
        limits: of what is asked; those of `ServeLimits` where absent.
        state: file of the streams; without one they are lost when the service ends.
        token: that clients must send; None lets everyone in.

    Raises:
        ValueError: as `load_checkpoint`; for a `state` that is damaged, of another model, or held by another process.
    """
    limits = limits or ServeLimits()
    service = Service(load_checkpoint(checkpoint), limits, None if state is None else Path(state))

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with service.running():
            yield

    app = FastAPIOffline(
        redoc_url=None,
        title="HyMaTE",
        description=DESCRIPTION,
        version=installed_version("hymate") or "0",
        lifespan=lifespan,
        dependencies=[] if token is None else [Depends(HTTPBearer(auto_error=False))],
    )
    _add_errors(app)
    _add_predictions(app, service)
    _add_streams(app, service)
    if knows_concepts(service.checkpoint):
        _add_fhir(app, service)
    _add_operations(app, service)
    return Guard(app, limits, service.metrics, token)


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(RequestValidationError)
    async def bad_shape(_: Request, error: RequestValidationError) -> AsciiResponse:
        """Where and what, but not the content: it may hold what no answer can be made of."""
        found = [{"loc": list(one["loc"]), "msg": one["msg"]} for one in error.errors()[:10]]
        return AsciiResponse({"detail": found}, 422)

    @app.exception_handler(HTTPException)
    async def no_body(_: Request, error: HTTPException) -> AsciiResponse:
        """A body that is no JSON of any shape, and whatever else FastAPI refuses by itself."""
        where = ("body",) if error.status_code == 400 else ()
        return AsciiResponse(problem(where, str(error.detail)), error.status_code, error.headers)

    @app.exception_handler(BadField)
    async def bad_field(_: Request, error: BadField) -> AsciiResponse:
        return AsciiResponse(problem(("body", *error.where) if error.where else (), str(error)), error.status)

    @app.exception_handler(Busy)
    async def busy(_: Request, __: Busy) -> AsciiResponse:
        return AsciiResponse(problem((), "too much is asked at once: try again later"), 429, {"retry-after": "1"})


def _add_predictions(app: FastAPI, service: Service) -> None:
    router = APIRouter(tags=["records"])

    @router.post("/predict", summary="Predict records", response_model_exclude_none=True, responses=REFUSALS)
    async def predict(request: PredictRequest) -> PredictResponse:
        question = await asyncio.to_thread(service.reader.question, request)
        return AsciiResponse({"predictions": await service.batcher.ask(question)})  # type: ignore[return-value]

    @router.get("/model", summary="What the model takes and answers")
    async def model() -> ModelDescription:
        extractor = service.checkpoint.extractor
        return ModelDescription.model_validate(
            {
                "labels": service.checkpoint.label_names,
                "problem_type": service.checkpoint.model.config.problem_type,
                "variables": extractor.variables,
                "static_columns": [
                    {"name": column["name"], "categories": column.get("categories")}
                    for column in extractor.static_columns
                ],
                "trained_hours": extractor.trained_hours,
            }
        )

    app.include_router(router)


def _add_streams(app: FastAPI, service: Service) -> None:
    streams = service.streams
    router = APIRouter(tags=["streams"])
    answering: dict[str, Any] = {"response_model_exclude_none": True, "responses": REFUSALS}

    @router.post("/streams", summary="Follow a further patient", status_code=201, **answering)
    async def start(request: StreamRequest) -> StreamAnswer:
        return await service.in_engine(streams.start, request.static)

    @router.post("/streams/{id}/events", summary="Take further events, and answer as of the latest", **answering)
    async def add(id: str, request: EventsRequest) -> StreamAnswer:
        """Takes all of them or none."""
        return await service.in_engine(streams.add, id, request.events)

    @router.get("/streams/{id}", summary="The risk so far", **answering)
    async def look(
        id: str,
        time: Annotated[Hours | None, Query(description="Hours; by default the latest event's.")] = None,
    ) -> StreamHistory:
        """The risk as of the latest event, or at a later time, and at each full hour before."""
        return await service.in_engine(streams.look, id, time)

    @router.delete("/streams/{id}", summary="Forget a patient", status_code=204)
    async def end(id: str) -> None:
        await service.in_engine(streams.end, id)

    app.include_router(router)


def _add_fhir(app: FastAPI, service: Service) -> None:
    router = APIRouter(tags=["records"])

    @router.post("/fhir", summary="Assess the encounters of a Bundle", responses=REFUSALS)
    async def fhir(bundle: Annotated[dict[str, Any], Body(description="A Bundle of FHIR R4.")]) -> dict[str, Any]:
        """Assesses each encounter of a Bundle of Patient, Encounter, Observation and what else is recorded; answers a
        Bundle of RiskAssessments, and an OperationOutcome that counts what was not used."""
        assessed = await asyncio.to_thread(read_bundle, service.checkpoint, bundle)
        answers = await service.batcher.ask(assessed.question)
        return AsciiResponse(risk_assessments(assessed, answers))  # type: ignore[return-value]

    app.include_router(router)


def _add_operations(app: FastAPI, service: Service) -> None:
    router = APIRouter(tags=["operation"])

    @router.get("/health", summary="Whether the service is up")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @router.get("/metrics", summary="Counts for Prometheus", response_class=Response)
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    app.include_router(router)


def serve(
    checkpoint: str | Path | Checkpoint,
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    limits: ServeLimits | None = None,
    state: str | Path | None = None,
) -> None:
    """Serves a checkpoint over HTTP until it is interrupted or terminated.

    Clients must send the token that the environment's `HYMATE_TOKEN` holds. Without one, only this machine is served.

    Args:
        checkpoint: a fine-tuned model: its folder, its name on the Hub, or an open checkpoint.
        host: the address to listen at.
        port: the port.
        limits: of what is asked.
        state: file of the streams, restored at the start and saved at the end and every half minute; without one they
            are lost when the service ends.

    Raises:
        ValueError: as `create_app`, or for an address that others can reach without a token.
    """
    token = os.environ.get(TOKEN) or None
    if token is None and not _is_loopback(host):
        raise ValueError(f"{host} can be reached from other machines: set {TOKEN}, a token that clients must send")
    app = create_app(checkpoint, limits, state, token)
    config = uvicorn.Config(
        app,
        host,
        port,
        access_log=False,  # which would hold the ids of streams
        server_header=False,
        proxy_headers=False,  # or anyone could name another address, and have its rate
        ws="none",
        lifespan="on",
        timeout_graceful_shutdown=10,
    )
    server = uvicorn.Server(config)
    server.run()
    if not server.started:
        raise ValueError(f"the service could not be started at {host}:{port}")


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
