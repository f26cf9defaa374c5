"""Predictions for many requests at once: those that come while the model is at work wait, and are the next batch."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Any

import numpy as np

from hymate_training.data.collators import TaskCollator
from hymate_training.data.examples import ExampleDataset, last_times
from hymate_training.inference.checkpoints import Checkpoint
from hymate_training.inference.prediction import predict_examples
from hymate_training.serving.reading import Question
from modeling_hymate import Events

BATCH = 1 << 16  # events and predictions that requests are joined up to
MOST_WAITING = 1 << 20  # likewise, of all requests that wait


class Busy(Exception):  # noqa: N818 - said of the service
    """More is asked at once than may wait."""


def outputs_key(checkpoint: Checkpoint) -> str:
    """Under which name answers hold what the model says: `probabilities`, or `values` of a regression."""
    return "values" if checkpoint.model.config.problem_type == "regression" else "probabilities"


def answer(checkpoint: Checkpoint, questions: Sequence[Question]) -> list[list[dict[str, Any]]]:
    """The answers to each question: one per record, or per record and hour, in order."""
    answers: list[list[dict[str, Any]]] = [[] for _ in questions]
    for at_hours in (False, True):
        asked = [at for at, question in enumerate(questions) if (question.hours is not None) == at_hours]
        if asked:
            for at, own in zip(asked, _answer(checkpoint, [questions[at] for at in asked]), strict=True):
                answers[at] = own
    return answers


def _answer(checkpoint: Checkpoint, questions: Sequence[Question]) -> list[list[dict[str, Any]]]:
    """The same, of questions all of which have hours, or none."""
    events = Events.join([question.events for question in questions])
    at_hours = questions[0].hours is not None
    asked = [len(question.hours or [0]) for question in questions for _ in range(len(question.events))]
    rows = np.repeat(np.arange(len(events)), asked)
    if at_hours:
        hours = np.concatenate([np.tile(question.hours or [], len(question.events)) for question in questions])
    else:
        hours = last_times(events)
    dataset = ExampleDataset(events, rows, hours)
    dataset.asks_once = dataset.asks_once and not at_hours  # hours matter even where each record has one
    predicted = predict_examples(checkpoint.model, dataset, TaskCollator(checkpoint.extractor)).values
    key, names = outputs_key(checkpoint), checkpoint.label_names
    found = iter(zip(rows, hours.tolist(), predicted.tolist(), strict=True))
    answers = []
    for question in questions:
        own = []
        for _ in range(len(question.events) * len(question.hours or [0])):
            row, hour, numbers = next(found)
            time = {"prediction_time": hour} if at_hours else {}
            own.append({"record_id": events.record_ids[row], **time, key: dict(zip(names, numbers, strict=True))})
        answers.append(own)
    return answers


class Batcher:
    """Joins requests: the model answers one batch, and what comes meanwhile waits to be the next.

    Args:
        answer: what answers a batch of questions.
        engine: where it runs; one thread, since the model is one.
        observe: is told of each batch, how many questions it had and of how many records.
    """

    def __init__(
        self,
        answer: Callable[[Sequence[Question]], list[list[dict[str, Any]]]],
        engine: Executor,
        observe: Callable[[int, int], None],
    ):
        self._answer = answer
        self._engine = engine
        self._observe = observe
        self._waiting: deque[tuple[Question, asyncio.Future]] = deque()
        self._size = 0
        self._arrived = asyncio.Event()

    @property
    def waiting(self) -> int:
        """How many questions wait."""
        return len(self._waiting)

    async def ask(self, question: Question) -> list[dict[str, Any]]:
        """The answers to a question.

        Raises:
            Busy: if too much waits already.
        """
        if self._waiting and self._size + question.size > MOST_WAITING:
            raise Busy
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((question, future))
        self._size += question.size
        self._arrived.set()
        return await future

    async def run(self) -> None:
        """Answers, until it is cancelled."""
        while True:
            await self._arrived.wait()
            batch = self._take()
            if batch:
                await self._answer_batch(batch)
            if not self._waiting:
                self._arrived.clear()

    def _take(self) -> list[tuple[Question, asyncio.Future]]:
        batch: list[tuple[Question, asyncio.Future]] = []
        size = 0
        while self._waiting and (not batch or size + self._waiting[0][0].size <= BATCH):
            question, future = self._waiting.popleft()
            self._size -= question.size
            if not future.done():  # whoever asked has gone
                batch.append((question, future))
                size += question.size
        return batch

    async def _answer_batch(self, batch: list[tuple[Question, asyncio.Future]]) -> None:
        questions = [question for question, _ in batch]
        try:
            answers = await asyncio.get_running_loop().run_in_executor(self._engine, self._answer, questions)
        except Exception as error:
            if len(batch) > 1:
                for one in batch:
                    await self._answer_batch([one])
            elif not batch[0][1].done():
                batch[0][1].set_exception(error)
            return
        self._observe(len(questions), sum(len(question.events) for question in questions))
        for (_, future), own in zip(batch, answers, strict=True):
            if not future.done():
                future.set_result(own)
