"""How the prediction of a record develops while its events arrive, and which of them moved it most."""

from dataclasses import dataclass

import numpy as np
import polars as pl
import torch

from hymate_training.explanations.attribution import Explainer, check_events
from hymate_training.inference.checkpoints import label_names
from hymate_training.inference.hours import is_untrained
from modeling_hymate import Events


@dataclass(frozen=True)
class Trajectory:
    """How a prediction develops while events arrive.

    Attributes:
        predictions: `record_id`, `time` (hours; the last one is when the record is asked), `prediction` from the
            events until then, `change` since the time before (null at the first), `trained`: whether the model was
            trained to answer then, which is at the last time alone for one that was trained at the end of each record.
        movers: events at the times of the largest changes: `record_id`, `time`, `variable`, `value` and `change`, the
            prediction at that time minus that without the event; largest first.
    """

    predictions: pl.DataFrame
    movers: pl.DataFrame


def risk_trajectory(explainer: Explainer, events: Events, max_times: int = 96, num_steps: int = 8) -> Trajectory:
    """Follows the predictions of records in one pass over each, and finds the events that moved them most.

    Args:
        explainer: the model and the output that is followed.
        events: the records.
        max_times: times per record; where it has more, evenly chosen ones, the last among them.
        num_steps: in how many of a record's steps, those of the largest change, to try its events one by one.

    Raises:
        ValueError: for records without events.
    """
    check_events(events)
    parts = [_trajectory(explainer, events.take(np.array([row])), max_times, num_steps) for row in range(len(events))]
    predictions, movers = (pl.concat(frames) for frames in zip(*parts, strict=True))
    return Trajectory(predictions, movers)


@torch.no_grad()
def risk_curve(explainer: Explainer, record: Events) -> pl.DataFrame | None:
    """The risk of one record by any time after it is asked; None of a model that does not say when something happens.

    Returns:
        `hours`, ascending from 0, `risk`, and `output`: which of the model's outputs that is, null for none.
    """
    config = explainer.model.config
    if config.curve_times is None:
        return None
    outputs = dict(zip(config.horizons, label_names(explainer.model), strict=True))
    hours = sorted({*config.curve_times, *outputs})
    logits = explainer.model(**explainer.encode(record)).logits.float()
    risks = explainer.model.predictions(logits, horizons=hours).flatten().tolist()
    return pl.DataFrame(
        {
            "hours": np.array([0, *hours], dtype=float),
            "risk": [0.0, *risks],
            "output": pl.Series([None, *map(outputs.get, hours)], dtype=pl.String),
        }
    )


def _trajectory(explainer: Explainer, record: Events, max_times: int, num_steps: int):
    times = np.unique(record.times)
    if explainer.asked is not None and (asked := np.float32(explainer.asked[record.record_ids[0]])) > times[-1]:
        times = np.append(times, asked)
    if len(times) > max_times:
        times = times[np.unique(np.linspace(0, len(times) - 1, max_times).round().astype(int))]
    predicted = explainer.predictions(explainer.scores_until(record, times))
    trained_hours = explainer.extractor.trained_hours
    trained = ~is_untrained(times, trained_hours)
    if trained_hours is None:
        trained[-1] = True  # the end of the record
    changes = np.diff(predicted)
    steps = 1 + np.argsort(-np.abs(changes), kind="stable")[:num_steps]
    arrived = np.searchsorted(times, record.times)  # the first time at which each event is seen
    moved = np.flatnonzero(np.isin(arrived, steps))
    without = record.take(np.zeros(len(moved), dtype=int))
    position = np.tile(np.arange(len(record.times)), len(moved))
    seen = arrived[position] <= np.repeat(arrived[moved], len(record.times))
    without = without.select(seen & (position != np.repeat(moved, len(record.times))))
    hours = times[arrived[moved]] if explainer.model.config.attention_axis == "channel" else None
    change = predicted[arrived[moved]] - explainer.predictions(explainer.scores(without, hours=hours))
    names = np.array(explainer.extractor.variables, dtype=object)
    identifier = pl.lit(record.record_ids[0]).alias("record_id")
    frame = pl.DataFrame(
        {
            "time": times.astype(np.float64),
            "prediction": predicted,
            "change": [None, *changes],
            "trained": trained,
        }
    )
    movers = pl.DataFrame(
        {
            "time": record.times[moved].astype(np.float64),
            "variable": pl.Series(names[record.variable_ids[moved]], dtype=pl.String),
            "value": pl.Series(record.values[moved].astype(np.float64)).fill_nan(None),
            "change": change,
        }
    ).sort(pl.col("change").abs(), descending=True, maintain_order=True)
    return frame.select(identifier, pl.all()), movers.select(identifier, pl.all())
