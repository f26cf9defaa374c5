"""How probabilities would have to be corrected to be calibrated, fitted as logistic regressions on their log-odds.

The calibration intercept is that of a regression whose slope is held at 1 (calibration in the large): below 0 the
probabilities are too high on average. The calibration slope is that of a regression with both: below 1 they are too
extreme. The smoothed curve is a regression on a restricted cubic spline of the log-odds (Harrell, 2015).

Intervals come from resampled records. In each resample a regression takes one Newton step from the estimate on all
rows (the one-step bootstrap of Shao and Tu, 1995), whose sums are linear in the records' weights.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from hymate_training.evaluation.resampling import Resampler, record_sums
from hymate_training.evaluation.sample import LabeledPredictions

LARGEST_LOG_ODDS = float(-np.log(np.finfo(np.float32).eps))  # beyond it a float32 probability is 0 or 1
KNOTS = (0.05, 0.275, 0.5, 0.725, 0.95)  # quantiles of the log-odds
ROWS_PER_COEFFICIENT = 10  # of the rarer outcome, for the curve
CURVE_POINTS = 50
CURVE_QUANTILES = (0.01, 0.99)  # of the predictions: between these the curve is drawn
STEPS, TOLERANCE = 50, 1e-10
INTERCEPT, SLOPE = "intercept", "slope"


def log_odds(probabilities: np.ndarray) -> np.ndarray:
    """Log-odds of probabilities, bounded by `LARGEST_LOG_ODDS`."""
    with np.errstate(divide="ignore"):
        return np.clip(np.log(probabilities) - np.log1p(-probabilities), -LARGEST_LOG_ODDS, LARGEST_LOG_ODDS)


@dataclass(frozen=True, eq=False)
class Logistic:
    """A logistic regression that was fitted by maximum likelihood.

    Attributes:
        design: `(n, k)`.
        residuals: labels minus fitted probabilities, `(n,)`.
        information: the variance that the fit gives each label, `(n,)`.
        coefficients: `(k,)`.
    """

    design: np.ndarray
    residuals: np.ndarray
    information: np.ndarray
    coefficients: np.ndarray

    def resampled(self, record: np.ndarray, resampler: Resampler) -> np.ndarray:
        """The coefficients after one Newton step in each resample, `(num_samples, k)`; NaN where there is none."""
        count = self.design.shape[1]
        gradient = self.design * self.residuals[:, None]
        products = (self.design[:, :, None] * self.design[:, None, :]).reshape(len(record), -1)
        columns = np.concatenate([gradient, products * self.information[:, None]], axis=1)
        sums = resampler.sums(record_sums(record, resampler.num_records, columns))
        slopes, curvatures = sums[:, :count], sums[:, count:].reshape(-1, count, count)
        steps = np.full_like(slopes, np.nan)
        regular = np.linalg.cond(curvatures) < 1 / np.finfo(np.float64).eps
        steps[regular] = np.linalg.solve(curvatures[regular], slopes[regular, :, None])[..., 0]
        return self.coefficients + steps


def fit_logistic(design: np.ndarray, labels: np.ndarray, offset: np.ndarray | float = 0.0) -> Logistic | None:
    """Maximum likelihood by Newton's method, steps halved until they gain; None where it has no finite maximum."""
    coefficients, logits = np.zeros(design.shape[1]), np.zeros(len(labels)) + offset
    likelihood = _log_likelihood(logits, labels)
    for _ in range(STEPS):
        fitted = probabilities_of(logits)
        residuals, information = labels - fitted, fitted * (1 - fitted)
        curvature = design.T @ (design * information[:, None])
        if not np.linalg.cond(curvature) < 1 / np.finfo(np.float64).eps:
            return None
        step = np.linalg.solve(curvature, design.T @ residuals)
        if np.abs(step).max() < TOLERANCE:
            return Logistic(design, residuals, information, coefficients)
        direction = design @ step
        while (gained := _log_likelihood(logits + direction, labels)) < likelihood and np.abs(step).max() > TOLERANCE:
            step, direction = step / 2, direction / 2
        coefficients, logits, likelihood = coefficients + step, logits + direction, gained
    return None


def _log_likelihood(logits: np.ndarray, labels: np.ndarray) -> float:
    return float(labels @ logits - np.logaddexp(0, logits).sum())


def probabilities_of(log_odds: np.ndarray) -> np.ndarray:
    """The inverse of `log_odds`."""
    return np.exp(-np.logaddexp(0, -log_odds))


def spline_basis(x: np.ndarray, knots: np.ndarray) -> np.ndarray:
    """1, x and the restricted cubic spline terms of x `(n,)`, linear beyond the outer knots: `(n, knots)`."""
    last, before = knots[-1], knots[-2]

    def cubed(knot: float) -> np.ndarray:
        return np.maximum(x - knot, 0) ** 3

    terms = [
        (cubed(knot) - (cubed(before) * (last - knot) - cubed(last) * (before - knot)) / (last - before))
        / (last - knots[0]) ** 2
        for knot in knots[:-2]
    ]
    return np.stack([np.ones_like(x), x, *terms], axis=1)


def regressions(sample: LabeledPredictions) -> dict[str, Logistic | None]:
    """The regressions that give the calibration intercept and slope of a binary sample; None for what has none."""
    x, ones = log_odds(sample.predictions), np.ones((len(sample), 1))
    if np.ptp(sample.labels) == 0:
        return {INTERCEPT: None, SLOPE: None}
    slope = fit_logistic(np.column_stack([ones, x]), sample.labels) if np.ptp(x) > 0 else None
    return {INTERCEPT: fit_logistic(ones, sample.labels, x), SLOPE: slope}


def calibration(sample: LabeledPredictions, resampler: Resampler | None = None) -> dict[str, Any]:
    """Calibration intercept and slope of a binary sample, and a smoothed calibration curve.

    Args:
        sample: of a binary problem.
        resampler: of the records; the defaults of `Resampler` where absent.

    Returns:
        `intercept`, `slope` and `confidence_intervals` of them, None where they have no finite value, such as where
        labels hold one class only or the probabilities separate them; `curve`: `predicted` probabilities, `observed`
        shares of positives by the curve and their `intervals`, or None where there are too few rows for one.
    """
    resampler = resampler or Resampler(sample.num_records)
    found = regressions(sample)
    # of both regressions the last coefficient is the one that is asked for
    intervals = {
        name: resampler.interval(fit.resampled(sample.record, resampler)[:, -1]) if fit else None
        for name, fit in found.items()
    }
    return {
        **{name: float(fit.coefficients[-1]) if fit else None for name, fit in found.items()},
        "confidence_intervals": intervals,
        "curve": _curve(sample, resampler),
    }


def _curve(sample: LabeledPredictions, resampler: Resampler) -> dict[str, Any] | None:
    x = log_odds(sample.predictions)
    knots = np.unique(np.quantile(x, KNOTS))
    rarer = min(sample.labels.sum(), len(sample) - sample.labels.sum())
    if len(knots) < 3 or rarer < ROWS_PER_COEFFICIENT * (len(knots) - 1):
        return None
    fit = fit_logistic(spline_basis(x, knots), sample.labels)
    if fit is None:
        return None
    low, high = np.quantile(sample.predictions, CURVE_QUANTILES)
    predicted = np.linspace(low, high, CURVE_POINTS)
    points = spline_basis(log_odds(predicted), knots)
    resampled = fit.resampled(sample.record, resampler)
    return {
        "predicted": predicted.tolist(),
        "observed": probabilities_of(points @ fit.coefficients).tolist(),
        "intervals": resampler.intervals(probabilities_of(resampled @ points.T)),
    }
