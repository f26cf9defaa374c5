"""A prepared folder -> data sets of examples: a record, the time up to which it is seen, and its labels."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from torch.utils.data import Dataset

from hymate_training.data.mapped import give_back
from hymate_training.data.pool import FolderPool, concatenated
from hymate_training.data.prepared_folder import PreparedFolder
from hymate_training.data.schema import TaskInfo
from modeling_hymate import Events, HyMaTEFeatureExtractor


@dataclass
class Examples:
    """A batch before it is encoded: clinical units, full records, the examples of one record after each other.

    Attributes:
        events: of the records, `(records,)`.
        records: position of each example's record in `events`, ascending, `(examples,)`.
        prediction_times: hours, float32; what comes later must not be seen, `(examples,)`.
        labels: as `TaskDataset.labels`; None in pretraining.
        indices: position of each example in the data set.
        epoch: how often the data set has been gone through, so that augmentation differs and can be repeated.
        asks_once: whether the data set has one example per record, which needs no mention of its time.
    """

    events: Events
    records: np.ndarray
    prediction_times: np.ndarray
    labels: np.ndarray | None
    indices: np.ndarray
    epoch: int
    asks_once: bool


def join_examples(parts: Sequence[Examples]) -> Examples:
    """Batches one after the other as one, as where examples were taken one by one: by PyTorch's `ConcatDataset`, by
    another wrapper of a data set, or into a list.

    Raises:
        ValueError: if there is none, or if some have labels and others have none.
    """
    if not parts or not all(isinstance(part, Examples) for part in parts):
        raise ValueError("a batch must be what a data set of examples returns, or a list of such examples")
    labels = [part.labels for part in parts if part.labels is not None]
    if len(labels) not in (0, len(parts)):
        raise ValueError("some of the batch's examples have labels, and others have none")
    starts = np.cumsum([0, *(len(part.events) for part in parts)])
    return Examples(
        events=Events.join([part.events for part in parts]),
        records=np.concatenate([part.records + start for part, start in zip(parts, starts, strict=False)]),
        prediction_times=np.concatenate([part.prediction_times for part in parts]),
        labels=np.concatenate(labels) if labels else None,
        indices=np.concatenate([part.indices for part in parts]),
        epoch=parts[0].epoch,
        asks_once=all(part.asks_once for part in parts),
    )


class Visits(Sequence[np.ndarray]):
    """The examples of each visit to a record, in their order: a sequence of arrays of their positions.

    Attributes:
        order: positions of all examples, visit after visit, `(examples,)`.
        bounds: where each visit begins in `order`, and the end, `(visits + 1,)`.
    """

    def __init__(self, visits: np.ndarray) -> None:
        self.order = np.argsort(visits, kind="stable")
        ends = np.flatnonzero(np.diff(visits[self.order])) + 1
        self.bounds = np.array([0, *ends, len(visits)] if len(visits) else [0])

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __getitem__(self, at: Any) -> Any:
        visit = range(len(self))[at]
        return self.order[self.bounds[visit] : self.bounds[visit + 1]]


class ExampleDataset(Dataset):
    """Examples of one split: a record and the time up to which it is seen.

    The events of a prepared folder's split lie in mapped files: a batch reads what it needs of them, and what is in
    memory grows with the examples, not with their events. `__getitems__` hands a whole batch over, which a collator
    turns into tensors.

    Attributes:
        events: of all records of the split, their times in float32.
        rows: position of each example's record in `events`, `(examples,)`.
        prediction_times: hours, float32 as those of events, `(examples,)`.
        epoch: see `Examples`.
    """

    def __init__(self, events: Events, rows: np.ndarray, prediction_times: np.ndarray) -> None:
        # in float32, as the model compares them with prediction times
        self.events = replace(events, times=events.times.astype(np.float32, copy=False))
        self.rows = rows
        self.prediction_times = prediction_times.astype(np.float32, copy=False)
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def visits(self) -> np.ndarray:
        """Examples of the same number are asked in one pass over their record, `(examples,)`: by its row."""
        return self.rows

    @cached_property
    def groups(self) -> Visits:
        """Positions of the examples of each visit to a record, in their order."""
        return Visits(self.visits)

    @property
    def record_ids(self) -> np.ndarray:
        """Record of each example."""
        return np.array(self.events.record_ids, dtype=object)[self.rows]

    @cached_property
    def lengths(self) -> np.ndarray:
        """Number of events that may be seen in each example, those up to its prediction time."""
        lengths, offsets, times = np.zeros(len(self), dtype=np.int64), self.events.offsets, self.events.times
        for examples in self.groups:
            row = self.rows[examples[0]]
            own = times[offsets[row] : offsets[row + 1]]
            lengths[examples] = own.searchsorted(self.prediction_times[examples], "right")
        return lengths

    @cached_property
    def asks_once(self) -> bool:
        """Whether each record has one example."""
        return len(self.groups) == len(self)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __getitem__(self, index: int) -> Examples:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> Examples:
        """The examples at these positions, the records in the order in which they first come."""
        chosen = np.asarray(indices)
        _, first, record = np.unique(self.visits[chosen], return_index=True, return_inverse=True)
        place = np.argsort(np.argsort(first))[record]  # of each example's record in the batch
        order = np.argsort(place, kind="stable")
        events = self.events.take(self.rows[chosen[np.sort(first)]])
        give_back()
        return Examples(
            events=events,
            records=place[order],
            prediction_times=self.prediction_times[chosen[order]],
            labels=None,
            indices=chosen[order],
            epoch=self.epoch,
            asks_once=self.asks_once,
        )


class TaskDataset(ExampleDataset):
    """Examples with labels.

    Attributes, beside those of `ExampleDataset`:
        outcomes: as `outcomes_array` returns them, `(examples, ...)`.
        is_timed: whether these are times by the clock of the record.
    """

    def __init__(
        self,
        events: Events,
        rows: np.ndarray,
        prediction_times: np.ndarray,
        outcomes: np.ndarray,
        is_timed: bool = False,
    ) -> None:
        super().__init__(events, rows, prediction_times)
        self.outcomes = outcomes
        self.is_timed = is_timed

    @property
    def labels(self) -> np.ndarray:
        """What the model is to say of each example; see `labels_of`."""
        return self.labels_of(np.arange(len(self)))

    def labels_of(self, examples: np.ndarray) -> np.ndarray:
        """What the model is to say of some: their outcomes, times measured from the prediction times, as float32."""
        outcomes = self.outcomes[examples]
        if not self.is_timed:
            return outcomes
        hours = outcomes[:, 0] - self.prediction_times[examples].astype(np.float64)
        return np.column_stack([hours, outcomes[:, 1]]).astype(np.float32)

    def __getitems__(self, indices: Sequence[int]) -> Examples:
        examples = super().__getitems__(indices)
        return replace(examples, labels=self.labels_of(examples.indices))


class ForecastDataset(ExampleDataset):
    """Records of one source or several, each asked once, for forecast pretraining.

    Attributes, beside those of `ExampleDataset`:
        origins: which source each example is from, `(examples,)`.
    """

    def __init__(self, events: Events, rows: np.ndarray, prediction_times: np.ndarray, origins: np.ndarray) -> None:
        super().__init__(events, rows, prediction_times)
        self.origins = origins


class SampledDataset(ExampleDataset):
    """Of each source as many records per epoch as a temperature says.

    An epoch has as many examples as `dataset`. A source of n records has a share that grows as n ** (1 / temperature):
    in proportion to its size at temperature 1, and the more like the others' the higher the temperature. A source
    whose share is larger than itself is gone through as often as fits; what remains of its share is drawn without
    replacement, anew for each epoch by its number and the seed alone. Each draw is a visit of its own, at which cuts
    and augmentation differ.

    Attributes, beside those of `ExampleDataset`:
        shares: of the epoch, of each source, `(sources,)`.
    """

    def __init__(self, dataset: ForecastDataset, temperature: float, seed: int) -> None:
        self.dataset, self.seed = dataset, seed
        self.members = [np.flatnonzero(dataset.origins == source) for source in range(dataset.origins.max() + 1)]
        sizes = np.array([len(members) for members in self.members], dtype=np.float64)
        self.quotas = _divided(len(dataset), sizes ** (1 / temperature))
        self.shares = self.quotas / len(dataset)
        self._draw(0)
        super().__init__(dataset.events, self.rows, self.prediction_times)

    @property
    def visits(self) -> np.ndarray:
        return np.arange(len(self))

    @property
    def lengths(self) -> np.ndarray:
        return self.dataset.lengths[self.drawn]

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        self._draw(epoch)

    def _draw(self, epoch: int) -> None:
        parts = []
        for source, (members, quota) in enumerate(zip(self.members, self.quotas, strict=True)):
            times, rest = divmod(int(quota), len(members))
            order = np.random.default_rng([self.seed, epoch, source]).permutation(len(members))
            parts += [*[members] * times, members[np.sort(order[:rest])]]
        self.drawn = np.concatenate(parts)
        self.rows, self.prediction_times = self.dataset.rows[self.drawn], self.dataset.prediction_times[self.drawn]


def _divided(total: int, weights: np.ndarray) -> np.ndarray:
    """`total` in whole parts in proportion to the weights, by largest remainders."""
    exact = total * weights / weights.sum()
    parts = np.floor(exact).astype(np.int64)
    parts[np.argsort(parts - exact, kind="stable")[: total - parts.sum()]] += 1
    return parts


class DrawnTimesDataset(TaskDataset):
    """A task that asks each record once, asked at further times that are drawn anew for each epoch.

    Each record is asked at its own prediction time, and at `count` times that are uniform between its first event and
    that time and depend on the seed, the epoch and the record alone. The label is that of its outcome at each of them.
    """

    def __init__(self, dataset: TaskDataset, count: int, seed: int) -> None:
        self.count, self.seed = count, seed
        self.first = np.minimum(first_times(dataset.events)[dataset.rows], dataset.prediction_times)
        self.last = dataset.prediction_times
        self.last_lengths = dataset.lengths
        rows, outcomes = (np.repeat(array, count + 1, axis=0) for array in (dataset.rows, dataset.outcomes))
        super().__init__(dataset.events, rows, self._draw(0), outcomes, dataset.is_timed)

    @property
    def lengths(self) -> np.ndarray:
        """Number of events up to the last time at which the example's record is asked."""
        return np.repeat(self.last_lengths, self.count + 1)

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        self.prediction_times = self._draw(epoch)

    def _draw(self, epoch: int) -> np.ndarray:
        records = range(len(self.last))
        share = np.array([np.random.default_rng([self.seed, epoch, record]).random(self.count) for record in records])
        drawn = self.first[:, None] + share * (self.last - self.first)[:, None]
        return np.column_stack([drawn, self.last]).ravel().astype(np.float32)


def ask_at(dataset: TaskDataset, hours: Sequence[float], *, own: bool = False) -> TaskDataset:
    """A task that asks each record once, asked at fixed hours instead, and with `own` at its own time as well.

    A record is asked at an hour if its own prediction time, up to which its outcome is open, is not earlier.

    Raises:
        ValueError: if the task asks records more than once, for an hour that is negative or no number, and if no
            record is asked at all.
    """
    if not dataset.asks_once:
        raise ValueError("the task asks records more than once, at hours of its own")
    chosen = np.unique(np.asarray(hours, dtype=np.float32))
    if not (np.isfinite(chosen) & (chosen >= 0)).all():
        raise ValueError(f"hours must be finite numbers that are not negative, got {', '.join(map(str, hours))}")
    last = dataset.prediction_times
    times = np.column_stack([np.broadcast_to(chosen, (len(last), len(chosen))), last])
    asked = times < last[:, None] if own else times <= last[:, None]
    asked[:, -1] = own
    if not asked.any():
        raise ValueError(f"no record is asked at hour {chosen[0]:g} or later: the last is at {last.max(initial=0):g}")
    examples, _ = np.nonzero(asked)
    rows, outcomes = dataset.rows[examples], dataset.outcomes[examples]
    return TaskDataset(dataset.events, rows, times[asked], outcomes, dataset.is_timed)


def first_times(events: Events) -> np.ndarray:
    """Time of each record's first event, `(records,)`; 0 where there is none."""
    return _times_at(events, events.offsets[:-1])


def last_times(events: Events) -> np.ndarray:
    """Time of each record's last event, `(records,)`; 0 where there is none."""
    return _times_at(events, events.offsets[1:] - 1)


def _times_at(events: Events, places: np.ndarray) -> np.ndarray:
    times, held = np.zeros(len(events), dtype=events.times.dtype), events.lengths > 0
    times[held] = events.times[places[held]]
    return times


def load_task(folder: PreparedFolder, task: str, split: str, variables: Sequence[str]) -> TaskDataset:
    """Examples of a task's split.

    Args:
        folder: the prepared folder.
        task: name of the task.
        split: name of the split.
        variables: what variable ids point into, as a feature extractor has them.

    Raises:
        ValueError: if task or split are not there, or the folder has variables that `variables` lacks.
    """
    events = folder.events(split, variables)
    table = folder.task(task, split)
    rows = pc.index_in(table["record_id"], value_set=pa.array(events.record_ids, pa.string())).to_numpy()
    times = table["prediction_time"].to_numpy()
    asked = folder.info.task(task)
    is_timed = asked.problem_type == "time_to_event"
    return TaskDataset(events, rows.astype(np.int64), times, outcomes_array(table, asked), is_timed)


def join_splits(datasets: Sequence[TaskDataset], folder: PreparedFolder) -> TaskDataset:
    """Examples of several splits of a folder as one data set."""
    starts = np.cumsum([0, *(len(dataset.events) for dataset in datasets)])
    return TaskDataset(
        concatenated([dataset.events for dataset in datasets], folder.info.static_columns, folder.path),
        np.concatenate([dataset.rows + start for dataset, start in zip(datasets, starts, strict=False)]),
        np.concatenate([dataset.prediction_times for dataset in datasets]),
        np.concatenate([dataset.outcomes for dataset in datasets]),
        datasets[0].is_timed,
    )


def load_forecast(
    pool: FolderPool, split: str, variables: Sequence[str], min_observed_hours: float
) -> ForecastDataset:
    """Records of a split that go on for longer than `min_observed_hours`, for forecast pretraining.

    Args:
        pool: one prepared folder or several.
        split: name of the split.
        variables: what variable ids point into, as a feature extractor has them.
        min_observed_hours: shorter records are left out.

    Raises:
        ValueError: if the split is not there, or no record of a folder is long enough.
    """
    events = pool.events(split, variables)
    last = last_times(events)
    rows = np.flatnonzero(last > min_observed_hours)
    origins = pool.origins(split)[rows]
    for folder, found in zip(pool.folders, np.bincount(origins, minlength=len(pool.folders)), strict=True):
        if not found:
            raise ValueError(
                f"{folder.path}: no record of split {split!r} lasts longer than "
                f"min_observed_hours={min_observed_hours}"
            )
    return ForecastDataset(events, rows, last[rows], origins)


def check_static_columns(folder: PreparedFolder, extractor: HyMaTEFeatureExtractor) -> None:
    """Raise ValueError if the folder has static columns and lacks one that the model was trained with.

    It would be missing for every record, most likely because it has another name. Without any static column they are
    unknown, as they are to `predict`.
    """
    held = [column.name for column in folder.info.static_columns]
    for column in extractor.static_columns if held else []:
        if column["name"] not in held:
            raise ValueError(
                f"{folder.path} lacks the static column {column['name']!r}, with which the model was trained; it has "
                f"{', '.join(map(repr, held))}: rename yours, or add it, empty where it is unknown"
            )


def outcomes_array(table: pa.Table, task: TaskInfo) -> np.ndarray:
    """Outcomes in a task's table.

    Returns:
        int64 class indices `(n,)` (binary, multiclass), float32 zeros and ones `(n, labels)` (multilabel), float32
        numbers `(n,)` (regression), or float64 times of the event or of the last sight, in hours since the record's
        start, and ones or zeros for whether it is the event, `(n, 2)` (time to event).
    """
    columns = [table[name] for name in task.label_columns]
    if task.problem_type == "time_to_event":
        return np.stack([pc.cast(column, pa.float64()).to_numpy() for column in columns], axis=1)
    if task.problem_type == "multilabel":
        return np.stack([pc.cast(column, pa.float32()).to_numpy() for column in columns], axis=1)
    if task.problem_type == "binary":
        return pc.cast(columns[0], pa.int64()).to_numpy()
    if task.problem_type == "multiclass":
        position = {name: index for index, name in enumerate(task.label_names)}
        return np.array([position[name] for name in columns[0].to_pylist()], dtype=np.int64)
    return pc.cast(columns[0], pa.float32()).to_numpy()
