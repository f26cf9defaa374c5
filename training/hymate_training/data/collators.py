"""Examples -> padded tensors, through the feature extractor: the arguments of a model's `forward`."""

from dataclasses import dataclass

import numpy as np
import torch
from transformers import BatchFeature

from hymate_training.data.examples import Examples
from hymate_training.data.prepared_folder import PreparedFolder
from modeling_hymate import Events, HyMaTEFeatureExtractor


def fit_feature_extractor(folder: PreparedFolder) -> HyMaTEFeatureExtractor:
    """A feature extractor fitted on the training records of a prepared folder."""
    info = folder.info
    return HyMaTEFeatureExtractor.fit(
        folder.events("train"),
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
    with `max_events` the latest of it, so that a long record shows another window each epoch. The target is the first
    value of each variable in the `forecast_hours` after (STraTS, section 4.2).

    Attributes, beside those of `TaskCollator`:
        min_observed_hours: every cut leaves at least that much of a record.
        forecast_hours: how far ahead is forecast.
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
