"""Metrics of risks over time, where some records are lost from sight before anything happened (censored).

concordance
    Of all pairs in which one record has its event while the other is still in sight, the share in which the former has
    the higher risk by that time (Antolini, Boracchi and Biganzoli, 2005); equal risks count half.
auroc_dynamic
    AUROC of the risk by a time, of those with their event by then against those in sight later (Uno et al., 2007),
    averaged over times by how many events each adds (Lambert and Chevret, 2014).
integrated_brier_score
    Mean squared error of the risk by a time, integrated over times (Graf et al., 1999).

The latter two weight each event by the inverse of the probability of being in sight by then, which the Kaplan-Meier
estimate of censoring in the same rows gives. Their times are those of the predictions by which some are in sight no
longer and others still are; of AUROC those by which some have had their event. The definitions are those of
scikit-survival, and of torchsurv for the concordance; tests hold them to both. Here they are evaluated on many
resamples of the records at once.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from hymate_training.evaluation.resampling import Resampler
from hymate_training.evaluation.sample import LabeledPredictions

TIED = 1e-8  # by which equal risks may differ
EVENTS_AT_ONCE = 64
PAIRS_HELD = 200_000_000  # compared once and kept, a byte each; of more, every resample compares them anew
HORIZON_ESTIMATES = ("observed_risk", "mean_risk", "auroc", "brier")


class Followed:
    """The rows of a time-to-event sample in ascending order of their times, events before who is censored then.

    Weights `(resamples, n)` say how often each row counts, in this order.
    """

    def __init__(self, sample: LabeledPredictions) -> None:
        hours, observed = sample.labels[:, 0], sample.labels[:, 1] == 1
        order = np.lexsort((~observed, hours))
        self.hours, self.observed, self.record = hours[order], observed[order], sample.record[order]
        self.risks, self.times = sample.predictions[order], sample.times
        begins = np.diff(self.hours, prepend=-np.inf) != 0
        self.starts = np.flatnonzero(begins)  # of the rows of each distinct time
        self.moment = np.cumsum(begins) - 1  # which distinct time a row has

    @cached_property
    def span(self) -> np.ndarray:
        """Positions of the times of the predictions by which some are in sight no longer, and others still are."""
        return np.flatnonzero((self.hours[0] <= self.times) & (self.times < self.hours[-1]))

    @cached_property
    def grid(self) -> np.ndarray:
        """Those of `span` by which some have had their event."""
        first = self.hours[self.observed].min(initial=np.inf)
        return self.span[first <= self.times[self.span]]

    def risk_at(self, hours: np.ndarray) -> np.ndarray:
        """Risk by any hours up to the last time, `(n, hours)`: between two times the hazard is constant."""
        known = -np.log1p(-np.minimum(self.risks, 1 - 1e-12))
        hazard, times = np.insert(known, 0, 0, axis=1), np.insert(self.times, 0, 0)
        after = np.searchsorted(times[1:], hours, "left") + 1
        share = (hours - times[after - 1]) / (times[after] - times[after - 1])
        return -np.expm1(-(hazard[:, after - 1] * (1 - share) + hazard[:, after] * share))

    def kaplan_meier(self, weights: np.ndarray, *, of_censoring: bool = False) -> np.ndarray:
        """Probability of no event, or of no censoring, up to and with each distinct time, `(resamples, times)`."""
        mass = np.add.reduceat(weights, self.starts, axis=1)
        events = np.add.reduceat(weights * self.observed, self.starts, axis=1)
        at_risk = np.cumsum(mass[:, ::-1], axis=1)[:, ::-1]
        lost, of = (mass - events, at_risk - events) if of_censoring else (events, at_risk)
        return np.cumprod(1 - np.divide(lost, of, out=np.zeros_like(mass), where=of > 0), axis=1)

    def at(self, estimate: np.ndarray, hours: float) -> np.ndarray:
        """A Kaplan-Meier estimate at an hour, `(resamples,)`."""
        place = np.searchsorted(self.hours[self.starts], hours, "right") - 1
        return np.ones(len(estimate)) if place < 0 else estimate[:, place]

    def auroc(self, hours: float, risk: np.ndarray, weights: np.ndarray, in_sight: np.ndarray) -> np.ndarray:
        """AUROC of the risk `(n,)` by an hour; NaN where all or none have had their event."""
        order = np.argsort(-risk, kind="stable")
        ends = np.flatnonzero(np.abs(np.diff(risk[order], append=-np.inf)) > TIED)
        cases = np.cumsum((weights * self._by(hours) * self._inverse(in_sight))[:, order], axis=1)[:, ends]
        controls = np.cumsum((weights * (self.hours > hours))[:, order], axis=1)[:, ends]
        step = np.diff(cases, axis=1, prepend=0)
        area = (np.diff(controls, axis=1, prepend=0) * (cases - step / 2)).sum(axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            return area / (cases[:, -1] * controls[:, -1])

    def brier(self, hours: float, risk: np.ndarray, weights: np.ndarray, in_sight: np.ndarray) -> np.ndarray:
        """Mean squared error of the risk `(n,)` by an hour; NaN where none is in sight then."""
        later = self.hours > hours
        had = weights * self._inverse(in_sight) @ (self._by(hours) * (1 - risk) ** 2)
        with np.errstate(divide="ignore", invalid="ignore"):
            rest = weights @ (later * risk**2) / self.at(in_sight, hours)
        return np.where(weights @ later > 0, had + rest, np.nan) / weights.sum(axis=1)

    def concordance(self, weights: np.ndarray) -> np.ndarray:
        """Antolini's concordance; NaN where no two rows can be compared."""
        later = np.cumsum(weights[:, ::-1], axis=1)[:, ::-1]
        later = np.append(later, np.zeros((len(weights), 1)), axis=1)
        right = pairs = np.zeros(len(weights))
        for rows, begins, higher in self._compare() if self._pairs is None else self._pairs:
            right = right + (weights[:, rows] * (higher @ weights.T).T).sum(axis=1) / 2
            pairs = pairs + (weights[:, rows] * later[:, begins]).sum(axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            return right / pairs

    @cached_property
    def _pairs(self) -> list | None:
        return list(self._compare()) if self.observed.sum() * len(self.hours) <= PAIRS_HELD else None

    def _compare(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Some rows with events at a time: which, where those begin that are in sight later, and by row of these 2
        where the event's risk by then is higher, 1 where both are equal."""
        (events,) = np.nonzero(self.observed & (self.hours <= self.times[-1]))
        last = np.bincount(self.moment[self.observed], minlength=len(self.starts)) + self.starts
        for at in range(0, len(events), EVENTS_AT_ONCE):
            rows = events[at : at + EVENTS_AT_ONCE]
            begins, risk = last[self.moment[rows]], self.risk_at(self.hours[rows]).T  # (rows, n)
            gap = risk[np.arange(len(rows)), rows][:, None] - risk
            higher = np.where(gap > TIED, 2, (np.abs(gap) <= TIED)).astype(np.int8)
            higher[np.arange(len(self.hours)) < begins[:, None]] = 0
            yield rows, begins, higher

    def _by(self, hours: float) -> np.ndarray:
        return self.observed & (self.hours <= hours)

    def _inverse(self, in_sight: np.ndarray) -> np.ndarray:
        own = in_sight[:, self.moment]
        return np.divide(1, own, out=np.zeros_like(own), where=own > 0)


def undefined_survival_metrics(sample: LabeledPredictions) -> dict[str, str]:
    """Which metrics of a time-to-event sample have no value, and why."""
    followed, reasons = Followed(sample), {}
    first = followed.hours[followed.observed].min(initial=np.inf)
    if first > followed.times[-1]:
        reasons = dict.fromkeys(("concordance", "auroc_dynamic"), "no event is observed")
    elif followed.hours[-1] == first and followed.observed[followed.hours == first].all():
        reasons["concordance"] = "nobody is in sight when the first event has come"
    if not len(followed.grid):
        reasons.setdefault("auroc_dynamic", "nobody is in sight at the times by which events have come")
    if len(followed.span) < 2:
        reasons["integrated_brier_score"] = "records go out of sight within less than two times of the predictions"
    return reasons


def survival_evaluator(sample: LabeledPredictions) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """The metrics of a time-to-event sample, as one of `weighted_metrics.EVALUATORS`."""
    followed = Followed(sample)
    times, span = followed.times[followed.grid], followed.times[followed.span]

    def evaluate(counts: np.ndarray) -> dict[str, np.ndarray]:
        weights = counts[:, followed.record].astype(np.float64)
        nothing = np.full(len(weights), np.nan)
        in_sight, alive = followed.kaplan_meier(weights, of_censoring=True), followed.kaplan_meier(weights)
        by_time = {at: (followed.times[at], followed.risks[:, at], weights, in_sight) for at in followed.span}
        area, score = nothing, nothing
        if len(times):
            areas = np.stack([followed.auroc(*by_time[at]) for at in followed.grid], axis=1)
            still = np.stack([followed.at(alive, time) for time in times], axis=1)
            added = -np.diff(still, axis=1, prepend=1)
            with np.errstate(divide="ignore", invalid="ignore"):
                area = np.where(added > 0, areas * added, 0).sum(axis=1) / (1 - still[:, -1])
        if len(span) > 1:
            scores = np.stack([followed.brier(*found) for found in by_time.values()], axis=1)
            score = np.trapezoid(scores, span, axis=1) / (span[-1] - span[0])
        return {"concordance": followed.concordance(weights), "auroc_dynamic": area, "integrated_brier_score": score}

    return evaluate


def horizon_table(
    sample: LabeledPredictions, horizons: Sequence[float], resampler: Resampler | None = None
) -> list[dict[str, Any]]:
    """What a time-to-event sample says of each horizon.

    Returns:
        One row per horizon: `hours`, `observed_risk` (one minus the Kaplan-Meier estimate), `mean_risk` (predicted),
        `auroc` and `brier` by then, and `confidence_intervals` of each; None where nobody was followed for so long.
    """
    followed = Followed(sample)
    resampler = resampler or Resampler(sample.num_records)
    hours = np.asarray(horizons, dtype=np.float64)
    risks = followed.risk_at(hours)

    def estimates(counts: np.ndarray) -> np.ndarray:
        weights = counts[:, followed.record].astype(np.float64)
        in_sight, alive = followed.kaplan_meier(weights, of_censoring=True), followed.kaplan_meier(weights)
        mean = weights @ risks / weights.sum(axis=1, keepdims=True)
        found = []
        for at, hour in enumerate(hours):
            observed = 1 - followed.at(alive, hour) if hour < followed.hours[-1] else np.full(len(weights), np.nan)
            scored = (score(hour, risks[:, at], weights, in_sight) for score in (followed.auroc, followed.brier))
            found.append(np.stack([observed, mean[:, at], *scored], axis=1))
        return np.stack(found, axis=1)  # (resamples, horizons, estimates)

    points = estimates(np.ones((1, sample.num_records)))[0]
    drawn = np.concatenate([estimates(counts) for counts in resampler.counts(len(sample))])
    rows = []
    for at, hour in enumerate(hours.tolist()):
        known = {name: value for name, value in zip(HORIZON_ESTIMATES, points[at].tolist(), strict=True)}
        intervals = dict(zip(HORIZON_ESTIMATES, resampler.intervals(drawn[:, at]), strict=True))
        missing = {name for name, value in known.items() if np.isnan(value)}
        rows.append(
            {
                "hours": hour,
                **{name: None if name in missing else value for name, value in known.items()},
                "confidence_intervals": {
                    name: None if name in missing else found for name, found in intervals.items()
                },
            }
        )
    return rows
