"""Which events and variables a prediction rests on: the model's attention, integrated gradients and occlusion.

What is explained is the score of one output: the log-odds of the probability that the model predicts for a class or
label, calibrated as that is, or the regressed number. Attributions of the signed methods are in that unit, positive
where something raises the score. Attention has no sign: its attributions are shares that sum to one per record.
"""

import contextlib
import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import nn
from tqdm.auto import tqdm

from hymate_training.data.device import on_device
from hymate_training.explanations.integrated_gradients import integrated_gradients
from hymate_training.explanations.markup import table_html
from hymate_training.explanations.occlusion import logits_without, shares_work
from hymate_training.inference.checkpoints import label_names
from modeling_hymate import Events, HyMaTEFeatureExtractor, HyMaTEForSequenceClassification
from modeling_hymate.inputs import canonical_order
from modeling_hymate.losses import calibrated_logits

METHODS = {"attention": "attention", "integrated_gradients": "integrated gradients", "occlusion": "occlusion"}
UNSIGNED = ("attention",)
BATCH_SIZE = 256
RISK_MARGIN = 1e-6  # from 0 and 1, of risks whose log-odds are taken
EVENTS_AT_ONCE = 1 << 17  # of a batch with its padding
ALTERED_AT_ONCE = 1 << 19  # events of altered records that are held at a time
OF_RECORDS = ("static_values", "prediction_times")  # of a batch's tensors, those that do not hold a number per event
GRADIENTS_AT_ONCE = 64  # records times points of the line in a batch, which holds at most `EVENTS_AT_ONCE`, too
SHOWN_ROWS = 8  # of an explanation in a notebook


def progress_bar(label: str | None, iterable: Any = None, **options: Any) -> tqdm:
    """A progress bar of that label on a terminal; none elsewhere, or where there is no label."""
    return tqdm(iterable, desc=label, leave=False, disable=True if label is None else None, **options)


@dataclass(frozen=True)
class Explanation:
    """Attributions of some records' predictions, as frames in clinical units.

    Attributes:
        method: one of `METHODS`.
        label: name of the output that is explained.
        records: `record_id`, `prediction` (probability or number), `score` (log-odds or number).
        events: `record_id`, `time` (hours), `variable`, `value` (null: no number), `attribution`; one row per event.
        variables: `record_id`, `variable`, `events` (their number) and `attribution`: the sum over the events or, by
            occlusion, the effect of removing them all at once.
        hours: `record_id`, `hour` (start), `hours` (width), `events`, `attribution`, likewise per window of time.
    """

    method: str
    label: str
    records: pl.DataFrame
    events: pl.DataFrame
    variables: pl.DataFrame
    hours: pl.DataFrame

    @property
    def signed(self) -> bool:
        """Whether attributions say in which direction they move the score."""
        return self.method not in UNSIGNED

    def _repr_html_(self) -> str:
        """A short table for notebooks: a record's leading events, or the leading variables over all records."""
        unit = "attribution" if self.signed else "share of the attention"
        size = pl.col("attribution").abs()
        if self.records.height == 1:
            prediction = self.records["prediction"][0]
            title = f"{self.label}: {prediction:.4g}, record {self.records['record_id'][0]}, by {METHODS[self.method]}"
            leading = self.events.sort(size, descending=True, maintain_order=True).head(SHOWN_ROWS)
            rows = [
                (f"{row['time']:.2f}", row["variable"], row["value"], row["attribution"])
                for row in leading.iter_rows(named=True)
            ]
            return str(table_html([("hour", "variable", "value", unit), *rows], title))
        title = f"{self.label}, {self.records.height:,} records, by {METHODS[self.method]}"
        totals = self.variables.group_by("variable").agg(
            records=pl.len(), mean=size.sum() / self.records.height, events=pl.col("events").sum()
        )
        leading = totals.sort("mean", "variable", descending=[True, False]).head(SHOWN_ROWS)
        rows = [(row["variable"], row["records"], row["events"], row["mean"]) for row in leading.iter_rows(named=True)]
        return str(table_html([("variable", "records", "events", f"mean size of the {unit}"), *rows], title))


class Explainer:
    """A classifier, its feature extractor and the output to be explained.

    Args:
        model: a fine-tuned classifier; it is put into evaluation mode.
        extractor: its feature extractor.
        label: name of the output; may be left out for binary tasks (the second class) and for a single number.
        batch_size: records at a time.
        asked: hour at which each record is asked, by its id; at its last event where absent.

    Raises:
        ValueError: for a label that the model does not predict, or none where there are several.
    """

    def __init__(
        self,
        model: HyMaTEForSequenceClassification,
        extractor: HyMaTEFeatureExtractor,
        label: str | None = None,
        batch_size: int = BATCH_SIZE,
        asked: Mapping[str, float] | None = None,
    ):
        names = label_names(model)
        classes = model.config.problem_type in {"single_label_classification", None} and len(names) > 1
        if label is None:
            if len(names) > 2 or (len(names) == 2 and not classes):
                raise ValueError(f"name the label to be explained; the model predicts {', '.join(names)}")
            label = names[-1]
        if label not in names:
            raise ValueError(f"the model does not predict {label!r}; it predicts {', '.join(names)}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.model = model.eval()
        self.extractor = extractor
        self.label = label
        self.batch_size = batch_size
        self.asked = asked
        self._index = names.index(label)
        self._classes = classes
        problem_type = model.config.problem_type
        self._is_number = problem_type == "regression" or (problem_type is None and len(names) == 1)

    def score(self, logits: torch.Tensor) -> torch.Tensor:
        """Log-odds of the label's probability as the model predicts it, which is the risk within its horizon where the
        model says when something happens, or the number.

        Args:
            logits: the model's, (batch, [predictions,] config.num_logits).

        Returns:
            (batch, [predictions]).
        """
        logits = logits.float()
        if self.model.config.time_bins is not None:
            return self.model.predictions(logits)[..., self._index].logit(RISK_MARGIN)
        if not self._is_number:
            logits = calibrated_logits(logits, self.model.config)
        chosen = logits[..., self._index]
        if not self._classes:
            return chosen
        others = [index for index in range(logits.shape[-1]) if index != self._index]
        return chosen - logits[..., others].logsumexp(-1)

    def predictions(self, scores: np.ndarray) -> np.ndarray:
        """Scores -> probabilities of the label, or the numbers themselves."""
        return scores if self._is_number else np.exp(-np.logaddexp(0, -scores))

    @property
    def predicts_probability(self) -> bool:
        return not self._is_number

    def asking(self, asked: Mapping[str, float] | None) -> "Explainer":
        """The same, which asks each record at this hour."""
        other = copy.copy(self)
        other.asked = asked
        return other

    def encode(self, events: Events, hours: np.ndarray | None = None) -> dict[str, torch.Tensor]:
        """Tensors of a batch, on the model's device; each record is asked once: at its hour of `(records,)`, or else
        as the explainer asks it."""
        if hours is None and self.asked is not None:
            hours = np.array([self.asked[record_id] for record_id in events.record_ids])
        times = None if hours is None else hours[:, None]
        return on_device(self.extractor.encode(events, prediction_times=times), self.model.device)

    def batches(self, events: Events, progress: str | None = None, batch_size: int | None = None) -> Iterator:
        """Goes through the records, those of equal length together: yields their positions and the batch."""
        order = np.argsort(events.lengths, kind="stable")
        for rows in progress_bar(progress, self._parted(events.lengths[order], batch_size), unit="batch"):
            yield order[rows], events.take(order[rows])

    def _parted(self, lengths: np.ndarray, batch_size: int | None) -> list[slice]:
        """Batches of ascending lengths, of so many records and at most `EVENTS_AT_ONCE`."""
        starts, most = [0], batch_size or self.batch_size
        for at, length in enumerate(lengths.tolist()):
            if at > starts[-1] and (at - starts[-1] == most or (at + 1 - starts[-1]) * length > EVENTS_AT_ONCE):
                starts.append(at)
        return [slice(*bounds) for bounds in pairwise([*starts, len(lengths)])] if len(lengths) else []

    def scores_of(self, **features: torch.Tensor) -> torch.Tensor:
        """Scores of a batch, `(batch,)` or with prediction times `(batch, predictions)`."""
        return self.score(self.model(**features, output_event_weights=False, output_channel_hidden_state=False).logits)

    @torch.no_grad()
    def scores(self, events: Events, progress: str | None = None, hours: np.ndarray | None = None) -> np.ndarray:
        """Score of each record, `(records,)`. Records may be empty; hours as for `encode`."""
        scores = np.zeros(len(events))
        for rows, batch in self.batches(events, progress):
            features = self.encode(batch, None if hours is None else hours[rows])
            scores[rows] = self.scores_of(**features).flatten().cpu().numpy()
        return scores

    @torch.no_grad()
    def scores_of_versions(self, events: Events, rows: np.ndarray, keep: np.ndarray) -> np.ndarray:
        """Score of each of `rows`, which are versions of records, with some of its events.

        Args:
            events: the records.
            rows: the record of each version, ascending, `(versions,)`.
            keep: whether the version has the event, for those of `events.take(rows)`.
        """
        records, version = np.unique(rows, return_inverse=True)
        features = self.encode(events.take(records))
        if not shares_work(self.model, features["values"]):
            return self.scores(events.take(rows).select(keep))
        versions = torch.from_numpy(version)
        absent = torch.zeros(len(rows), features["values"].shape[1], dtype=torch.bool)
        absent[features["attention_mask"][versions]] = torch.from_numpy(~keep)
        return self.score(logits_without(self.model, features, versions, absent)).numpy()

    @torch.no_grad()
    def scores_until(self, record: Events, hours: np.ndarray) -> np.ndarray:
        """Score of one record from its events until each of the hours, `(hours,)`, all in one pass."""
        if self.model.config.attention_axis == "channel":
            features = self.extractor.encode(record, prediction_times=hours)
            return self.scores_of(**on_device(features, self.model.device))[0].cpu().numpy()
        until = record.take(np.zeros(len(hours), dtype=int))
        return self.scores(until.select(until.times <= np.repeat(hours, until.lengths)))


def explain(
    model: HyMaTEForSequenceClassification,
    extractor: HyMaTEFeatureExtractor,
    records: Any,
    static: Any = None,
    *,
    method: str = "attention",
    label: str | None = None,
    window_hours: float = 6.0,
    steps: int = 24,
    batch_size: int = BATCH_SIZE,
    asked: Mapping[str, float] | None = None,
    progress: bool = False,
) -> Explanation:
    """Explains the predictions of one record or many.

    Args:
        model: a fine-tuned classifier.
        extractor: its feature extractor.
        records: `Events`, or anything the feature extractor takes, in clinical units.
        static: static columns where `records` does not hold them, as for the feature extractor.
        method:
            - `"attention"`: each event's share of the attention, `event_weights` of the model;
            - `"integrated_gradients"`: along the straight line on which every event's value turns into its variable's
              mean in the training data and its variable's embedding into the mean over all variables (the number and
              the times of a variable's values, where tokens hold statistics, stay as they are); a record's
              attributions sum to the difference of the two ends' scores (Sundararajan et al., arXiv 1703.01365), up to
              an error that falls with the number of `steps`;
            - `"occlusion"`: the score minus that without some events. Events are removed by variable within a window
              of hours and share the effect equally; `variables` and `hours` are removed as a whole.
        label: name of the output to be explained; see `Explainer`.
        window_hours: width of occlusion's windows.
        steps: points on the path of integrated gradients.
        batch_size: records at a time.
        asked: hour at which each record is asked, by its id, from the events that it then has, which must not be
            later; at its last event where absent.
        progress: show progress bars.

    Raises:
        ValueError: for an unknown method or label, bad records, and records without events.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if not 0 < window_hours < math.inf:
        raise ValueError(f"window_hours must be positive, got {window_hours}")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    explainer = Explainer(model, extractor, label, batch_size, asked)
    events = records if isinstance(records, Events) else extractor.parse(records, static)
    check_events(events)
    bar = METHODS[method] if progress else None
    scores = explainer.scores(events)
    variables = hours = None
    if method == "attention":
        attributions = _attention(explainer, events, bar)
    elif method == "integrated_gradients":
        attributions = _integrated_gradients(explainer, events, steps, bar)
    else:
        attributions, variables, hours = _occlusion(explainer, events, scores, window_hours, bar)
    return _frames(explainer, method, events, scores, attributions, variables, hours, window_hours)


def explain_by_every_method(
    explainer: Explainer, events: Events, *, window_hours: float = 6.0, progress: bool = False
) -> dict[str, Explanation]:
    """Explanations of the same records by all `METHODS`; arguments as for `explain`."""
    return {
        method: explain(
            explainer.model,
            explainer.extractor,
            events,
            method=method,
            label=explainer.label,
            window_hours=window_hours,
            batch_size=explainer.batch_size,
            asked=explainer.asked,
            progress=progress,
        )
        for method in METHODS
    }


def check_events(events: Events) -> None:
    """Raises ValueError naming the first record that has no events, or a name that two records share."""
    if (events.lengths == 0).any():
        raise ValueError(f"record {events.record_ids[int(np.argmin(events.lengths))]!r} has no events to explain")
    repeated = pl.Series(events.record_ids).is_duplicated()
    if repeated.any():
        raise ValueError(f"record_id {events.record_ids[repeated.arg_max() or 0]!r} appears more than once")


def event_positions(events: Events, rows: np.ndarray) -> np.ndarray:
    """Where the events of `events.take(rows)` stand in `events`."""
    lengths = events.lengths[rows]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return np.repeat(events.offsets[rows] - offsets[:-1], lengths) + np.arange(offsets[-1])


@torch.no_grad()
def _attention(explainer: Explainer, events: Events, progress: str | None) -> np.ndarray:
    attributions = np.zeros(len(events.times))
    for rows, batch in explainer.batches(events, progress):
        features = explainer.encode(batch)
        weights = explainer.model(**features, output_event_weights=True).event_weights
        weights = weights.view_as(features["attention_mask"])
        attributions[event_positions(events, rows)] = weights[features["attention_mask"]].float().cpu().numpy()
    return attributions


def _integrated_gradients(explainer: Explainer, events: Events, steps: int, progress: str | None) -> np.ndarray:
    attributions = np.zeros(len(events.times))
    at_once = max(1, min(GRADIENTS_AT_ONCE, explainer.batch_size) // steps)
    for rows, batch in explainer.batches(events, progress, at_once):
        features = explainer.encode(batch)
        found = integrated_gradients(explainer.model, explainer.score, features, steps, EVENTS_AT_ONCE)
        attributions[event_positions(events, rows)] = found[features["attention_mask"]].cpu().numpy()
    return attributions


def _occlusion(
    explainer: Explainer, events: Events, scores: np.ndarray, window_hours: float, progress: str | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each event's share of the effect of its cell, and the effects of its variable and of its window, as a whole."""
    windows = np.floor(events.times / window_hours).astype(np.int64)
    cells = events.variable_ids * (windows.max() + 1) + windows
    by_cell, by_variable, by_window = (
        _removal_effects(explainer, events, scores, keys, progress) for keys in (cells, events.variable_ids, windows)
    )
    return by_cell / _group_sizes(events, cells), by_variable, by_window


def in_model_order(features: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """The features with their events in the order in which the model goes through them, and that order."""
    values = features["values"].masked_fill(~features["value_mask"], torch.inf)
    order = canonical_order(values, features["times"], features["variable_ids"], features["attention_mask"])
    ordered = {name: tensor if name in OF_RECORDS else tensor.gather(1, order) for name, tensor in features.items()}
    return ordered, order


def version_chunks(events: Events, rows: np.ndarray) -> list[np.ndarray]:
    """Positions in `rows`, the records of versions, in parts that end where enough events are together."""
    part = np.cumsum(events.lengths[rows]) // ALTERED_AT_ONCE  # a version is as long as its record
    return np.split(np.arange(len(rows)), np.flatnonzero(np.diff(part)) + 1)


def _groups(events: Events, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers the groups of events that share a key within a record: group of each event, first event of each."""
    combined = events.rows * (keys.max(initial=0) + 1) + keys
    _, first, group = np.unique(combined, return_index=True, return_inverse=True)
    return group, first


def _group_sizes(events: Events, keys: np.ndarray) -> np.ndarray:
    """Size of each event's group."""
    group, _ = _groups(events, keys)
    return np.bincount(group)[group]


def _removal_effects(
    explainer: Explainer, events: Events, scores: np.ndarray, keys: np.ndarray, progress: str | None
) -> np.ndarray:
    """For each event, by how much the score falls when the events of its record with its key are removed."""
    group, first = _groups(events, keys)
    row_of_group = events.rows[first]
    effects = np.zeros(len(first))
    with progress_bar(progress, total=len(first), unit="removal") as bar:
        for chunk in version_chunks(events, row_of_group):
            rows = row_of_group[chunk]
            keep = group[event_positions(events, rows)] != np.repeat(chunk, events.lengths[rows])
            effects[chunk] = scores[rows] - explainer.scores_of_versions(events, rows, keep)
            bar.update(len(chunk))
    return effects[group]


def _frames(
    explainer: Explainer,
    method: str,
    events: Events,
    scores: np.ndarray,
    attributions: np.ndarray,
    variables: np.ndarray | None,
    hours: np.ndarray | None,
    window_hours: float,
) -> Explanation:
    names = np.array(explainer.extractor.variables, dtype=object)
    width = 1.0 if hours is None else window_hours
    frame = pl.DataFrame(
        {
            "record_id": pl.Series(events.record_ids)[events.rows],
            "time": events.times.astype(np.float64),
            "variable": pl.Series(names[events.variable_ids], dtype=pl.String),
            "value": pl.Series(events.values.astype(np.float64)).fill_nan(None),
            "attribution": attributions,
            # the effect of a whole group stands at each of its events
            "of_variable": attributions if variables is None else variables,
            "of_hours": attributions if hours is None else hours,
            "hour": np.floor(events.times.astype(np.float64) / width) * width,
        }
    )

    def grouped(keys: list[str], column: str, whole: bool) -> pl.DataFrame:
        total = pl.col(column).first() if whole else pl.col(column).sum()
        return frame.group_by("record_id", *keys, maintain_order=True).agg(
            events=pl.len().cast(pl.Int64), attribution=total
        )

    by_hour = grouped(["hour"], "of_hours", hours is not None).with_columns(hours=pl.lit(width))
    return Explanation(
        method=method,
        label=explainer.label,
        records=pl.DataFrame(
            {"record_id": events.record_ids, "prediction": explainer.predictions(scores), "score": scores}
        ),
        events=frame.select("record_id", "time", "variable", "value", "attribution"),
        variables=grouped(["variable"], "of_variable", variables is not None),
        hours=by_hour.select("record_id", "hour", "hours", "events", "attribution"),
    )


@contextlib.contextmanager
def eager_attention(model: HyMaTEForSequenceClassification) -> Iterator[None]:
    """For the while, attention that returns its weights."""
    usual = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(usual)


@torch.no_grad()
def channel_attentions(explainer: Explainer, events: Events, progress: str | None = None) -> pl.DataFrame | None:
    """The self-attention between variables, averaged over layers, heads and the records that hold both.

    Returns:
        One row per pair that some record holds: `variable`, `attended`, `weight` (share of the variable's attention),
        `ratio` (to an even spread over the record's tokens) and `records`; None for a model without attention layers.
    """
    model = explainer.model
    if not model.config.num_attention_layers:
        return None
    size = model.config.num_variables
    weights, ratios, counts = (np.zeros((size, size)) for _ in range(3))
    with eager_attention(model):
        for _, batch in explainer.batches(events, progress):
            features, _ = in_model_order(explainer.encode(batch))
            outputs = model(**features, output_attentions=True)
            attention = torch.stack([layer.float().mean(1) for layer in outputs.attentions]).mean(0)
            if model.config.attention_axis == "channel":
                ids = outputs.channel_ids
            else:
                ids = features["variable_ids"].masked_fill(~features["attention_mask"], -1)
            belongs = nn.functional.one_hot(ids + 1, size + 1)[..., 1:].float()  # (batch, tokens, variables)
            tokens = belongs.sum(1)
            share = belongs.transpose(1, 2) @ (attention @ belongs) / tokens.clamp(min=1).unsqueeze(-1)
            even = (tokens / tokens.sum(1, keepdim=True).clamp(min=1)).unsqueeze(1)
            both = (tokens > 0).unsqueeze(2) & (tokens > 0).unsqueeze(1)
            weights += share.where(both, 0).sum(0).cpu().numpy()
            ratios += (share / even.clamp(min=1e-12)).where(both, 0).sum(0).cpu().numpy()
            counts += both.sum(0).cpu().numpy()
    query, key = np.nonzero(counts)
    names = explainer.extractor.variables
    return pl.DataFrame(
        {
            "variable": [names[index] for index in query],
            "attended": [names[index] for index in key],
            "weight": weights[query, key] / counts[query, key],
            "ratio": ratios[query, key] / counts[query, key],
            "records": counts[query, key].astype(np.int64),
        }
    )
