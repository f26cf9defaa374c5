"""Bins of time, horizons and first hazards of a time-to-event model, from the outcomes of its training data."""

from typing import Any

import numpy as np
import torch

from hymate_training.data.schema import YEAR, TaskInfo
from hymate_training.evaluation.metrics import SMALLEST_GROUP
from modeling_hymate.hazards import exposure

LAST_QUANTILE = 0.99  # of the times of events, where the last bin ends
DIGITS = 3  # significant, of a bin's end, so that it is nobody's own time
DAY = 24.0
HORIZONS = (
    6.0,
    12.0,
    DAY,
    2 * DAY,
    3 * DAY,
    7 * DAY,
    14 * DAY,
    30 * DAY,
    90 * DAY,
    180 * DAY,
    YEAR,
    5 * YEAR,
    10 * YEAR,
)


def time_fields(task: TaskInfo, labels: np.ndarray, most_bins: int, horizons: str | None) -> dict[str, Any]:
    """Fields of the configuration of a time-to-event model.

    Args:
        task: names the event.
        labels: of the training examples, hours and whether the event was observed, `(n, 2)`.
        most_bins: how many bins of time; fewer where one would hold less than `SMALLEST_GROUP` events.
        horizons: the option of that name.

    Returns:
        `event`, `time_bins` at quantiles of the times of events, and `horizons`.

    Raises:
        ValueError: if fewer than `SMALLEST_GROUP` events were observed, and for horizons that are no numbers or beyond
            the bins.
    """
    times = labels[labels[:, 1] == 1, 0].astype(np.float64)
    if len(times) < SMALLEST_GROUP:
        raise ValueError(
            f"task {task.name!r}: {len(times)} training examples have their event observed; bins of time need at "
            f"least {SMALLEST_GROUP}"
        )
    count = min(most_bins, len(times) // SMALLEST_GROUP)
    quantiles = np.quantile(times, LAST_QUANTILE * np.arange(1, count + 1) / count)
    bins = sorted({float(f"{hours:.{DIGITS}g}") for hours in quantiles})
    return {"event": task.label_names[0], "time_bins": bins, "horizons": _horizons(horizons, bins)}


def _horizons(given: str | None, bins: list[float]) -> list[float]:
    if given is None:
        return [hours for hours in HORIZONS if bins[0] <= hours <= bins[-1]] or [bins[-1]]
    try:
        hours = sorted({float(text) for text in given.split(",")})
    except ValueError:
        raise ValueError(f"horizons must be hours, separated by commas, got {given!r}") from None
    if not hours[0] > 0 or not hours[-1] <= bins[-1]:
        raise ValueError(
            f"horizons must lie above 0 and up to {bins[-1]:g} hours, by which nearly all of the training events have "
            f"come, got {given!r}"
        )
    return hours


def life_table(labels: np.ndarray, bins: list[float]) -> np.ndarray:
    """Logits of the hazards of all records together: events of each bin by who came into it, `(bins,)`; who was lost
    from sight in it counts for the part that was seen."""
    hours, observed = labels.T
    place = np.searchsorted(bins, hours)
    until = np.where(observed == 1, np.append(bins, np.inf)[place], hours)
    came = exposure(torch.from_numpy(until), bins).numpy().sum(axis=0)
    events = np.bincount(place, observed, len(bins) + 1)[:-1]
    hazards = (events + 0.5) / (came + 1)  # so that none is 0 or 1
    return np.log(hazards / (1 - hazards)).astype(np.float32)
