"""Examples -> padded tensors, through the feature extractor: the arguments of a model's `forward`."""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import BatchFeature

from hymate_training.data.examples import ExampleDataset, Examples, join_examples
from hymate_training.data.pool import FolderPool
from hymate_training.data.prepared_folder import PreparedFolder
from hymate_training.data.schema import DatasetInfo
from modeling_hymate import Events, HyMaTEFeatureExtractor


def fit_feature_extractor(folder: PreparedFolder | FolderPool) -> HyMaTEFeatureExtractor:
    """A feature extractor fitted on the training records of a prepared folder, or of several together."""
    info = folder.info
    return HyMaTEFeatureExtractor.fit(
        folder.events("train"),
        info.variables,
        numeric_columns=[column.name for column in info.static_columns if column.kind == "numeric"],
        categorical_columns={
            column.name: column.categories for column in info.static_columns if column.kind == "categorical"
        },
        units=stated_units(info, {*info.variables, *(column.name for column in info.static_columns)}),
    )


def stated_units(info: DatasetInfo, names: Container[str]) -> dict[str, str]:
    """The units that a reader states of those variables and static columns that are among `names`."""
    return {name: unit for name, unit in info.extra.get("units", {}).items() if unit and name in names}


@dataclass
class TaskCollator:
    """Examples of a task -> the arguments of a classifier's `forward`.

    Where a data set asks records more than once, or the model was trained at many hours, the examples of a record are
    asked in one pass: `prediction_times` `(batch, predictions)`, `prediction_mask` where their numbers differ, labels
    `(batch, predictions[, labels])`. The real predictions, row by row, are the examples in their order. Elsewhere a
    record is asked once, at its last event, and nothing has that dimension.

    Attributes:
        feature_extractor: standardizes and pads.
        max_events: keep the latest events before the prediction time; None keeps what the feature extractor says. A
            record that is longer is encoded once for each of its prediction times.
        variable_dropout: probability with which each variable of a record is left out altogether, events and all, as
            augmentation; 0 for validation and prediction.
        event_dropout: of each record a share of the events is left out as augmentation, the share itself drawn between
            0 and this; half of the records of a batch keep all, so that their tokens are like those of records that
            are predicted.
        seed: of the augmentation, which also depends on the epoch and the examples and on nothing else.
    """

    feature_extractor: HyMaTEFeatureExtractor
    max_events: int | None = None
    variable_dropout: float = 0.0
    event_dropout: float = 0.0
    seed: int = 0

    def __call__(self, batch: Examples | Sequence[Examples]) -> BatchFeature:
        examples = batch if isinstance(batch, Examples) else join_examples(batch)
        at_last_event = asked_at_last_event(examples, self.feature_extractor)
        features = encode_examples(self, examples, examples.records, examples.prediction_times, at_last_event)
        if examples.labels is not None:
            features["labels"] = by_prediction(features, examples.labels)
        return features


def asked_at_last_event(examples: Examples | ExampleDataset, extractor: HyMaTEFeatureExtractor) -> bool:
    """Whether records are asked at their last event, as in training, and not at the times of the examples."""
    return examples.asks_once and extractor.trained_hours is None


@dataclass
class ForecastCollator:
    """Examples of records -> the arguments of `HyMaTEForPreTraining.forward`.

    Each record is cut at random times between `min_observed_hours` and its last event, all in one pass. Input is what
    came until then, with `max_events` the latest of it, so that a long record shows other windows each epoch. The
    targets, of each cut and each horizon after it: the first value of each variable (STraTS, section 4.2), and whether
    it was measured at all.

    Attributes, beside those of `TaskCollator`:
        min_observed_hours: every cut leaves at least that much of a record.
        forecast_horizons: how far ahead is forecast, hours.
        cuts_per_record: how often each record is cut.
        cut_by: `"time"` draws cuts uniformly over the hours. `"event"` draws events uniformly and cuts at most the
            shortest horizon before them, so that there is something to forecast: for records of years, most of whose
            hours are empty.
        fixed_cuts: cuts depend on the record alone, not on the epoch.
    """

    feature_extractor: HyMaTEFeatureExtractor
    min_observed_hours: float = 12.0
    forecast_horizons: Sequence[float] = (2.0,)
    cuts_per_record: int = 1
    max_events: int | None = None
    variable_dropout: float = 0.0
    event_dropout: float = 0.0
    seed: int = 0
    cut_by: str = "time"
    fixed_cuts: bool = False

    def __call__(self, batch: Examples | Sequence[Examples]) -> BatchFeature:
        examples = batch if isinstance(batch, Examples) else join_examples(batch)
        cuts = self._cuts(examples)
        records, times = np.repeat(np.arange(len(cuts)), cuts.shape[1]), cuts.ravel()
        features = encode_examples(self, examples, records, times)
        for name, targets in self._targets(examples.events, records, times).items():
            features[name] = by_prediction(features, targets)
        return features

    def _cuts(self, examples: Examples) -> np.ndarray:
        """Hours at which each record is cut, ascending, `(records, cuts_per_record)`."""
        epoch = 0 if self.fixed_cuts else examples.epoch
        shape = (2, self.cuts_per_record)
        drawn = [np.random.default_rng([self.seed, epoch, index]).random(shape) for index in examples.indices]
        place, shift = np.array(drawn).swapaxes(0, 1)
        start = self.min_observed_hours
        if self.cut_by == "time":
            cuts = start + place * (examples.prediction_times[:, None] - start)
        else:
            events = examples.events
            late = np.bincount(events.rows[events.times > start], minlength=len(events))[:, None]
            chosen = events.times[events.offsets[1:, None] - late + (place * late).astype(np.int64)]
            cuts = np.maximum(start, chosen - (1 - shift) * min(self.forecast_horizons))
            cuts = np.minimum(cuts, np.nextafter(chosen, -np.inf))  # rounding must not move a cut to its event
        return np.sort(cuts.astype(np.float32), axis=1)

    def _targets(self, events: Events, records: np.ndarray, cuts: np.ndarray) -> dict[str, np.ndarray]:
        """What comes after each cut, arrays `(cuts, horizons, num_variables)` by the names of `forward`."""
        shape = (len(cuts), self.feature_extractor.num_variables)
        horizons = np.asarray(self.forecast_horizons, dtype=np.float32)
        ahead = events.take(records)
        after = ahead.times - cuts[ahead.rows]
        ahead = ahead.select((after > 0) & (after <= horizons.max()))
        standardized = self.feature_extractor.standardize(ahead.variable_ids, ahead.values)
        places = ahead.rows * shape[1] + ahead.variable_ids
        after = ahead.times - cuts[ahead.rows]

        def hours_until_first(kept: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            found, first = np.unique(places[kept], return_index=True)
            hours = np.full(shape, np.inf, dtype=np.float32)
            hours.ravel()[found] = after[kept][first]
            return hours, found, first

        known = ~np.isnan(standardized)
        until_value, found, first = hours_until_first(known)
        until_event, _, _ = hours_until_first(np.ones_like(known))
        values = np.zeros(shape, dtype=np.float32)
        values.ravel()[found] = standardized[known][first]
        mask = until_value[:, None] <= horizons[:, None]
        return {
            "forecast_values": np.where(mask, values[:, None], 0).astype(np.float32),
            "forecast_mask": mask,
            "measured_mask": until_event[:, None] <= horizons[:, None],
        }


def encode_examples(
    collator: TaskCollator | ForecastCollator,
    examples: Examples,
    records: np.ndarray,
    times: np.ndarray,
    at_last_event: bool = False,
) -> BatchFeature:
    """What both collators do with the events that may be seen: augment, shorten, standardize, pad.

    Args:
        collator: the options.
        examples: the batch.
        records: record of each prediction, ascending, `(predictions,)`.
        times: its hour, likewise.
        at_last_event: leave the times out, for records that are asked once.
    """
    extractor = collator.feature_extractor
    limit = event_limit(collator)
    passes, asked = in_passes(examples.events, records, times, limit, apart=at_last_event)
    if collator.variable_dropout or collator.event_dropout:
        passes = augment(collator, passes, examples)
    events = extractor.shorten(passes, limit)
    features = extractor.encode(events, prediction_times=None if at_last_event else asked)
    features["max_channels"] = max_channels(events, extractor.num_variables)
    return features


def max_channels(events: Events, num_variables: int) -> int:
    """The number of variables observed in the record that has most, which a GPU would have to wait for."""
    observed = np.zeros((len(events), num_variables), dtype=bool)
    observed[events.rows, events.variable_ids] = True
    return int(observed.sum(1).max(initial=0))


def event_limit(collator: TaskCollator | ForecastCollator) -> int | None:
    """How many events a collator keeps of longer records; None for all."""
    return collator.feature_extractor.max_events if collator.max_events is None else collator.max_events


def in_passes(
    events: Events, records: np.ndarray, times: np.ndarray, max_events: int | None, *, apart: bool = False
) -> tuple[Events, list[np.ndarray]]:
    """The events of each pass over a record, up to its last prediction, and the hours that it is asked.

    A record has one pass for all of its predictions. With `apart`, or where it is longer than `max_events` by then,
    it has one for each, whose latest events differ.
    """
    last = np.full(len(events), -np.inf, dtype=np.float32)
    np.maximum.at(last, records, times)
    begins = (np.diff(records, prepend=-1) > 0) | apart
    if max_events is not None:
        seen = np.bincount(events.rows[events.times <= last[events.rows]], minlength=len(events))
        begins |= seen[records] > max_events
    starts = np.flatnonzero(begins)
    until = np.maximum.reduceat(times, starts)
    passes = events if len(starts) == len(events) else events.take(records[starts])
    return passes.select(passes.times <= until[passes.rows]), np.split(times, starts[1:])


def augment(collator: TaskCollator | ForecastCollator, events: Events, examples: Examples) -> Events:
    """Leaves out variables and events; a record that would be left without any stays as it is."""
    count = len(events)
    rng = np.random.default_rng([collator.seed, examples.epoch, *examples.indices.tolist()])
    dropped = rng.random((count, collator.feature_extractor.num_variables)) < collator.variable_dropout
    keep = ~dropped[events.rows, events.variable_ids]
    if collator.event_dropout:
        shares = collator.event_dropout * rng.random(count)
        shares[rng.permutation(count) < (count + rng.integers(2)) // 2] = 0
        keep &= rng.random(len(events.times)) >= shares[events.rows]
    emptied = np.bincount(events.rows[keep], minlength=count) == 0
    return events.select(keep | emptied[events.rows])


def by_prediction(features: BatchFeature, numbers: np.ndarray, padding: float = 0) -> torch.Tensor:
    """Numbers of the examples `(examples, ...)` where their predictions are: `(batch, predictions, ...)`, or as they
    are where records are asked once."""
    given = torch.from_numpy(numbers)
    if "prediction_times" not in features:
        return given
    mask = prediction_mask(features)
    placed = torch.full((*mask.shape, *given.shape[1:]), padding, dtype=given.dtype)
    placed[mask] = given
    return placed


def prediction_mask(features: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Which predictions of a batch are real, boolean `(batch, predictions)`, or `(batch,)` where records are asked
    once."""
    if "prediction_mask" in features:
        return features["prediction_mask"]
    return torch.ones_like(features.get("prediction_times", features["values"][:, 0]), dtype=torch.bool)
