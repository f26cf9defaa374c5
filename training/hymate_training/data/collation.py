"""Prepared rows -> padded tensors, through the feature extractor."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch.utils.data import Dataset
from transformers import BatchFeature

from hymate_training.data.prepared_folder import read_info, read_records, read_task
from hymate_training.data.schema import DatasetInfo, TaskInfo
from modeling_hymate import Events, HyMaTEFeatureExtractor


@dataclass
class Examples:
    """A batch before it is encoded: clinical units, full records.

    Attributes:
        events: one record an example, `(examples,)`.
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

    The events of the split are held in memory once, as flat arrays (12 bytes an event). `__getitems__` hands a whole
    batch over, which a collator turns into tensors.
    """

    def __init__(self, events: Events, rows: np.ndarray, prediction_times: np.ndarray):
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

    def set_epoch(self, epoch: int):
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

    def __init__(self, events: Events, rows: np.ndarray, prediction_times: np.ndarray, labels: np.ndarray):
        super().__init__(events, rows, prediction_times)
        self.labels = labels

    def __getitems__(self, indices: Sequence[int]) -> Examples:
        examples = super().__getitems__(indices)
        return replace(examples, labels=self.labels[examples.indices])


def load_task(folder: str | Path, task: str, split: str, variables: Sequence[str]) -> TaskDataset:
    """Examples of a task's split in a prepared folder, variable ids as positions in `variables`.

    Raises:
        ValueError: if folder, task or split are not there, or the folder has variables that `variables` lacks.
    """
    info = read_info(folder)
    events = read_events(folder, split, variables)
    table = read_task(folder, task, split)
    position = {record_id: row for row, record_id in enumerate(events.record_ids)}
    rows = np.array([position[record_id] for record_id in table["record_id"].to_pylist()], dtype=np.int64)
    times = table["prediction_time"].to_numpy()
    return TaskDataset(events, rows, times, labels_array(table, info.task(task)))


def load_forecast(
    folder: str | Path, split: str, variables: Sequence[str], min_observed_hours: float
) -> ExampleDataset:
    """Records of a split that go on for longer than `min_observed_hours`, for forecast pretraining.

    Raises:
        ValueError: if the folder or split is not there, or no record is long enough.
    """
    events = read_events(folder, split, variables)
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


def check_static_columns(folder: str | Path, extractor: HyMaTEFeatureExtractor):
    """Raises ValueError if the folder lacks a static column that the model was trained with: it would be missing for
    every record."""
    held = [column.name for column in read_info(folder).static_columns]
    for column in extractor.static_columns:
        if column["name"] not in held:
            raise ValueError(
                f"{folder} lacks the static column {column['name']!r}, with which the model was trained; it has "
                f"{', '.join(map(repr, held)) or 'none'}: rename yours, or add it, empty where it is unknown"
            )


def read_events(folder: str | Path, split: str, variables: Sequence[str]) -> Events:
    """All records of a split as flat arrays, variable ids as positions in `variables`."""
    info = read_info(folder)
    table = read_records(folder, split)
    columns = {name: table[name].combine_chunks() for name in ("time", "variable", "value")}
    offsets = columns["time"].offsets.to_numpy()
    position = {name: index for index, name in enumerate(variables)}
    unknown = [name for name in info.variables if name not in position]
    if unknown:
        raise ValueError(f"{folder} holds variables that the model's feature extractor does not know: {unknown[:5]}")
    to_known = np.array([position[name] for name in info.variables], dtype=np.int32)
    return Events(
        offsets=(offsets - offsets[0]).astype(np.int64),
        times=columns["time"].flatten().to_numpy(),
        variable_ids=to_known[columns["variable"].flatten().to_numpy()],
        values=columns["value"].flatten().to_numpy(zero_copy_only=False),
        static={column.name: _static_array(table[column.name]) for column in info.static_columns},
        record_ids=table["record_id"].to_pylist(),
    )


def _static_array(column: pa.ChunkedArray) -> np.ndarray:
    if pa.types.is_floating(column.type):
        return column.to_numpy()  # NaN where unknown
    return np.array(column.to_pylist(), dtype=object)


def labels_array(table: pa.Table, task: TaskInfo) -> np.ndarray:
    """Labels of a task's table: int64 class indices `(n,)` (binary, multiclass), float32 zeros and ones
    `(n, labels)` (multilabel) or float32 numbers `(n,)` (regression)."""
    columns = [table[name] for name in task.label_columns]
    if task.problem_type == "multilabel":
        return np.stack([pc.cast(column, pa.float32()).to_numpy() for column in columns], axis=1)
    if task.problem_type == "binary":
        return pc.cast(columns[0], pa.int64()).to_numpy()
    if task.problem_type == "multiclass":
        position = {name: index for index, name in enumerate(task.label_names)}
        return np.array([position[name] for name in columns[0].to_pylist()], dtype=np.int64)
    return pc.cast(columns[0], pa.float32()).to_numpy()


def fit_feature_extractor(folder: str | Path) -> HyMaTEFeatureExtractor:
    """A feature extractor fitted on the training records of a prepared folder."""
    info: DatasetInfo = read_info(folder)
    return HyMaTEFeatureExtractor.fit(
        read_events(folder, "train", info.variables),
        info.variables,
        numeric_columns=[column.name for column in info.static_columns if column.kind == "numeric"],
        categorical_columns={
            column.name: column.categories for column in info.static_columns if column.kind == "categorical"
        },
    )


@dataclass
class TaskCollator:
    """Examples of a task -> the arguments of a classifier's `forward`.

    Attributes:
        feature_extractor: standardizes and pads.
        max_events: keep the latest events before the prediction time; None keeps what the feature extractor says.
        variable_dropout: probability with which each variable of a record is left out altogether, events and all, as
            augmentation; 0 for validation and prediction.
        event_dropout: of each record a share of the events is left out as augmentation, the share itself drawn between
            0 and this.
        seed: of the augmentation, which also depends on the epoch and the examples and on nothing else.
    """

    feature_extractor: HyMaTEFeatureExtractor
    max_events: int | None = None
    variable_dropout: float = 0.0
    event_dropout: float = 0.0
    seed: int = 0

    def __call__(self, examples: Examples) -> BatchFeature:
        events = examples.events
        events = events.select(events.times <= np.repeat(examples.prediction_times, events.lengths))
        features = encode_events(self, events, examples)
        if examples.labels is not None:
            features["labels"] = torch.from_numpy(examples.labels)
        return features


@dataclass
class ForecastCollator:
    """Examples of records -> the arguments of `HyMaTEForPreTraining.forward`.

    Each record is cut at a random time between `min_observed_hours` and its last event. Input is what came until then,
    with `max_events` the latest of it, so that a long record shows another window each epoch; to be forecast is the
    first value of each variable in the `forecast_hours` after (STraTS, section 4.2).

    Attributes: those of `TaskCollator`, and
        cut_by: `"time"` draws the cut uniformly over the hours. `"event"` draws one of the events uniformly and cuts
            at most `forecast_hours` before it, so that there is something to forecast: for records of years, most of
            whose hours are empty.
        fixed_cuts: the cut depends on the record alone, not on the epoch.
    """

    feature_extractor: HyMaTEFeatureExtractor
    min_observed_hours: float = 12.0
    forecast_hours: float = 2.0
    max_events: int | None = None
    variable_dropout: float = 0.0
    event_dropout: float = 0.0
    seed: int = 0
    cut_by: str = "time"
    fixed_cuts: bool = False

    def __call__(self, examples: Examples) -> BatchFeature:
        events = examples.events
        cuts = self._cuts(examples)
        cut_of_event = np.repeat(cuts, events.lengths)
        features = encode_events(self, events.select(events.times <= cut_of_event), examples)
        ahead = (events.times > cut_of_event) & (events.times <= cut_of_event + self.forecast_hours)
        values, mask = self._targets(events.select(ahead))
        features["forecast_values"], features["forecast_mask"] = values.unsqueeze(1), mask.unsqueeze(1)  # one horizon
        return features

    def _cuts(self, examples: Examples) -> np.ndarray:
        """Hours at which each record is cut, `(examples,)`."""
        epoch = 0 if self.fixed_cuts else examples.epoch
        generators = (np.random.default_rng([self.seed, epoch, index]) for index in examples.indices)
        place, shift = np.array([generator.random(2) for generator in generators]).T
        start = self.min_observed_hours
        if self.cut_by == "time":
            return start + place * (examples.prediction_times - start)
        events = examples.events
        late = np.bincount(events.rows[events.times > start], minlength=len(events))
        chosen = events.times[events.offsets[1:] - late + (place * late).astype(np.int64)]
        return np.maximum(start, chosen - (1 - shift) * self.forecast_hours)

    def _targets(self, ahead: Events) -> tuple[torch.Tensor, torch.Tensor]:
        extractor = self.feature_extractor
        standardized = extractor.standardize(ahead.variable_ids, ahead.values)
        known = ~np.isnan(standardized)
        rows, variable_ids, standardized = ahead.rows[known], ahead.variable_ids[known], standardized[known]
        values = np.zeros((len(ahead), extractor.num_variables), dtype=np.float32)
        mask = np.zeros(values.shape, dtype=bool)
        _, first = np.unique(rows * extractor.num_variables + variable_ids, return_index=True)
        values[rows[first], variable_ids[first]] = standardized[first]
        mask[rows[first], variable_ids[first]] = True
        return torch.from_numpy(values), torch.from_numpy(mask)


def encode_events(collator: TaskCollator | ForecastCollator, events: Events, examples: Examples) -> BatchFeature:
    """What both collators do with the events that may be seen: augment, shorten, standardize, pad."""
    if collator.variable_dropout or collator.event_dropout:
        rng = np.random.default_rng([collator.seed, examples.epoch, *examples.indices])
        dropped = rng.random((len(events), collator.feature_extractor.num_variables)) < collator.variable_dropout
        keep = ~dropped[events.rows, events.variable_ids]
        if collator.event_dropout:
            shares = collator.event_dropout * rng.random(len(events))
            keep &= rng.random(len(events.times)) >= shares[events.rows]
        # a record that would be left without events stays as it is
        emptied = np.bincount(events.rows[keep], minlength=len(events)) == 0
        events = events.select(keep | emptied[events.rows])
    extractor = collator.feature_extractor
    return extractor.encode(extractor.shorten(events, collator.max_events))
