"""A prepared folder -> data sets of examples: a record, the time up to which it is seen, and its labels."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from torch.utils.data import Dataset

from hymate_training.data.prepared_folder import PreparedFolder
from hymate_training.data.schema import TaskInfo
from modeling_hymate import Events, HyMaTEFeatureExtractor


@dataclass
class Examples:
    """A batch before it is encoded: clinical units, full records.

    Attributes:
        events: one record per example, `(examples,)`.
        prediction_times: hours; what comes later must not be seen, `(examples,)`.
        labels: as `labels_array` returns them; None in pretraining.
        indices: position of each example in the data set.
        epoch: how often the data set has been gone through, so that augmentation differs and can be repeated.
    """

    events: Events
    prediction_times: np.ndarray
    labels: np.ndarray | None
    indices: np.ndarray
    epoch: int


class ExampleDataset(Dataset):
    """Examples of one split: a record and the time up to which it is seen.

    The events of the split are held in memory once, as flat arrays (12 bytes per event). `__getitems__` hands a whole
    batch over, which a collator turns into tensors.
    """

    def __init__(self, events: Events, rows: np.ndarray, prediction_times: np.ndarray) -> None:
        self.events = events
        self.rows = rows
        self.prediction_times = prediction_times
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def record_ids(self) -> np.ndarray:
        """Record of each example."""
        return np.array(self.events.record_ids, dtype=object)[self.rows]

    @cached_property
    def lengths(self) -> np.ndarray:
        """Number of events that may be seen in each example, those up to its prediction time."""
        starts, ends, times = self.events.offsets[self.rows], self.events.offsets[self.rows + 1], self.events.times
        seen = zip(starts.tolist(), ends.tolist(), self.prediction_times, strict=True)
        return np.array([times[start:end].searchsorted(time, "right") for start, end, time in seen], dtype=np.int64)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __getitem__(self, index: int) -> Examples:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> Examples:
        chosen = np.asarray(indices)
        return Examples(
            events=self.events.take(self.rows[chosen]),
            prediction_times=self.prediction_times[chosen],
            labels=None,
            indices=chosen,
            epoch=self.epoch,
        )


class TaskDataset(ExampleDataset):
    """Examples with labels, as `labels_array` returns them."""

    def __init__(self, events: Events, rows: np.ndarray, prediction_times: np.ndarray, labels: np.ndarray) -> None:
        super().__init__(events, rows, prediction_times)
        self.labels = labels

    def __getitems__(self, indices: Sequence[int]) -> Examples:
        examples = super().__getitems__(indices)
        return replace(examples, labels=self.labels[examples.indices])


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
    position = {record_id: row for row, record_id in enumerate(events.record_ids)}
    rows = np.array([position[record_id] for record_id in table["record_id"].to_pylist()], dtype=np.int64)
    times = table["prediction_time"].to_numpy()
    return TaskDataset(events, rows, times, labels_array(table, folder.info.task(task)))


def load_forecast(
    folder: PreparedFolder, split: str, variables: Sequence[str], min_observed_hours: float
) -> ExampleDataset:
    """Records of a split that go on for longer than `min_observed_hours`, for forecast pretraining.

    Args:
        folder: the prepared folder.
        split: name of the split.
        variables: what variable ids point into, as a feature extractor has them.
        min_observed_hours: shorter records are left out.

    Raises:
        ValueError: if the split is not there, or no record is long enough.
    """
    events = folder.events(split, variables)
    last = np.array(
        [
            events.times[end - 1] if end > start else 0.0
            for start, end in zip(events.offsets, events.offsets[1:], strict=False)
        ]
    )
    rows = np.flatnonzero(last > min_observed_hours)
    if not len(rows):
        raise ValueError(f"no record of split {split!r} lasts longer than min_observed_hours={min_observed_hours}")
    return ExampleDataset(events, rows, last[rows])


def check_static_columns(folder: PreparedFolder, extractor: HyMaTEFeatureExtractor) -> None:
    """Raise ValueError if the folder lacks a static column that the model was trained with.

    It would be missing for every record.
    """
    held = [column.name for column in folder.info.static_columns]
    for column in extractor.static_columns:
        if column["name"] not in held:
            raise ValueError(
                f"{folder.path} lacks the static column {column['name']!r}, with which the model was trained; it has "
                f"{', '.join(map(repr, held)) or 'none'}: rename yours, or add it, empty where it is unknown"
            )


def labels_array(table: pa.Table, task: TaskInfo) -> np.ndarray:
    """Labels of a task's table.

    Returns:
        int64 class indices `(n,)` (binary, multiclass), float32 zeros and ones `(n, labels)` (multilabel) or float32
        numbers `(n,)` (regression).
    """
    columns = [table[name] for name in task.label_columns]
    if task.problem_type == "multilabel":
        return np.stack([pc.cast(column, pa.float32()).to_numpy() for column in columns], axis=1)
    if task.problem_type == "binary":
        return pc.cast(columns[0], pa.int64()).to_numpy()
    if task.problem_type == "multiclass":
        position = {name: index for index, name in enumerate(task.label_names)}
        return np.array([position[name] for name in columns[0].to_pylist()], dtype=np.int64)
    return pc.cast(columns[0], pa.float32()).to_numpy()
