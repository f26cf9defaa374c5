"""Whether explanations can be trusted: what they say is held against what the model does.

- Deletion and insertion (Petsiuk et al., arXiv 1806.07421): a record's events are removed, or handed over, in the
  order in which a method ranks them, and the model predicts again and again. A faithful ranking moves the prediction
  sooner than a random one.
- Agreement: rank correlation between methods, event by event and variable by variable.
- Randomized weights (Adebayo et al., arXiv 1810.03292): explanations of the same model with fresh weights should not
  resemble those of the trained one; a method that passes over the weights explains the data, not the model.
- True drivers: where the outcome was simulated, whether the variables that drive it come first.

All numbers are means over records with percentile bootstrap intervals over records.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import combinations
from typing import Any

import numpy as np
import polars as pl
import torch
from scipy.stats import rankdata

from hymate_training.evaluation.resampling import percentile_interval
from hymate_training.explanations.attribution import (
    METHODS,
    Explainer,
    Explanation,
    event_positions,
    explain,
    progress_bar,
    version_chunks,
)
from hymate_training.explanations.markup import estimate
from modeling_hymate import Events, HyMaTEForSequenceClassification

FRACTIONS = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.55, 0.7, 0.85, 1.0)
RANDOM = "random"
RANDOM_RANKINGS = 3
SANITY_RECORDS = 50  # of the randomized weights, which explain the records once more
NUM_RESAMPLES = 1000
LEVEL = 0.95


def mean_with_interval(values: np.ndarray, seed: int = 0) -> dict[str, Any]:
    """Mean over records of `values (records,)` with its bootstrap interval; NaN stands for no value.

    Returns:
        `mean`, `interval` (`[low, high]`) and `records`; the first two are None where there is nothing to say.
    """
    defined = values[~np.isnan(values)]
    if not len(defined):
        return {"mean": None, "interval": None, "records": 0}
    interval = percentile_interval(_resampled_means(defined[:, None], seed)[:, 0], LEVEL)
    return {
        "mean": float(defined.mean()),
        "interval": interval if len(defined) > 1 else None,
        "records": len(defined),
    }


def _resampled_means(values: np.ndarray, seed: int) -> np.ndarray:
    """Means of (records, columns) over resampled records, (resamples, columns)."""
    return _resamples(len(values), seed) @ values / len(values)


@lru_cache(maxsize=8)  # a report asks for the same few, hundreds of times
def _resamples(num_records: int, seed: int) -> np.ndarray:
    """How often each record is drawn, (resamples, records)."""
    generator = np.random.default_rng(seed)
    return generator.multinomial(num_records, np.full(num_records, 1 / num_records), NUM_RESAMPLES).astype(float)


def means_with_intervals(values: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means over records of (records, columns), and the lower and upper ends of their intervals, (columns,) each."""
    low, high = np.quantile(_resampled_means(values, seed), [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return values.mean(0), low, high


def variable_shares(explanation: Explanation, variables: Sequence[str]) -> np.ndarray:
    """Share of each variable in what a record's explanation says, `(records, len(variables))`.

    The size of the variable's attribution over the sum of those of all variables; 0 where it was not observed.
    """
    shares = np.zeros((explanation.records.height, len(variables)))
    row = {record_id: index for index, record_id in enumerate(explanation.records["record_id"])}
    column = {name: index for index, name in enumerate(variables)}
    frame = explanation.variables
    rows = [row[record_id] for record_id in frame["record_id"]]
    shares[rows, [column[name] for name in frame["variable"]]] = frame["attribution"].abs().to_numpy()
    return shares / np.maximum(shares.sum(1, keepdims=True), np.finfo(float).tiny)


# ---------------------------------------------------------------------------------------------- deletion and insertion


def rank_events(events: Events, importance: np.ndarray, seed: int = 0) -> np.ndarray:
    """Place of each event in its record's ranking, `(events,)`: 0 for the most important; ties fall at random."""
    ties = np.random.default_rng(seed).random(len(importance))
    order = np.lexsort((ties, -importance, events.rows))
    places = np.empty(len(order), dtype=np.int64)
    places[order] = np.arange(len(order)) - np.repeat(events.offsets[:-1], events.lengths)
    return places


def perturbation_curves(
    explainer: Explainer,
    events: Events,
    explanations: Mapping[str, Explanation],
    seed: int = 0,
    progress: str | None = None,
) -> dict[str, dict[str, np.ndarray]]:
    """How far predictions move while events are removed, or handed over, in the order of each method.

    The movement counts from the prediction for the whole record towards that for none of its events, or the other way
    round; so every curve of a record begins at 0 and ends at the same height. A signed method ranks first the events
    that it says push in this direction, attention those with the largest shares.

    Returns:
        `{"deletion" | "insertion": {method or "random": (records, len(FRACTIONS))}}`, in units of the prediction.
    """
    whole = explainer.predictions(explainer.scores(events))
    none = explainer.predictions(explainer.scores(events.select(np.zeros(len(events.times), dtype=bool))))
    direction = np.where(whole >= none, 1.0, -1.0)
    rankings = {}
    for method, explanation in explanations.items():
        importance = explanation.events["attribution"].to_numpy()
        if explanation.signed:
            importance = importance * direction[events.rows]
        rankings[method] = [rank_events(events, importance, seed)]
    same = np.zeros(len(events.times))
    rankings[RANDOM] = [rank_events(events, same, seed + 1 + index) for index in range(RANDOM_RANKINGS)]
    orders = [name for name, repeats in rankings.items() for _ in repeats]
    places = np.stack([places for repeats in rankings.values() for places in repeats])
    predicted = explainer.predictions(_partial_scores(explainer, events, places, progress))

    curves: dict[str, dict[str, np.ndarray]] = {}
    for inserts, (kind, start) in enumerate({"deletion": whole, "insertion": none}.items()):
        towards = direction if inserts else -direction
        moved = np.zeros((len(orders), len(events), len(FRACTIONS)))
        moved[..., -1] = np.abs(whole - none)
        moved[..., 1:-1] = (towards * (predicted[:, inserts].T - start)).transpose(1, 2, 0)
        curves[kind] = {name: moved[[order == name for order in orders]].mean(0) for name in rankings}
    return curves


def _partial_scores(explainer: Explainer, events: Events, places: np.ndarray, progress: str | None) -> np.ndarray:
    """Scores without the first events of rankings `places (rankings, events)`, and with these alone, at the inner
    `FRACTIONS`: `(records, 2, rankings, len(FRACTIONS) - 2)`."""
    inner = np.array(FRACTIONS[1:-1])
    shape = (len(events), 2, len(places), len(inner))
    scores = np.zeros(np.prod(shape))
    rows = np.repeat(np.arange(len(events)), np.prod(shape[1:]))
    with progress_bar(progress, total=len(rows), unit="prediction") as bar:
        for chunk in version_chunks(events, rows):
            row, inserts, ranking, fraction = np.unravel_index(chunk, shape)
            lengths = events.lengths[row]
            wanted = np.ceil(inner[fraction] * lengths - 1e-9)
            is_first = places[np.repeat(ranking, lengths), event_positions(events, row)] < np.repeat(wanted, lengths)
            keep = is_first == np.repeat(inserts == 1, lengths)
            scores[chunk] = explainer.scores_of_versions(events, row, keep)
            bar.update(len(chunk))
    return scores.reshape(shape)


def summarize_curves(curves: Mapping[str, Mapping[str, np.ndarray]], seed: int = 0) -> dict[str, Any]:
    """Mean curves and their areas, alone and over the random ranking (paired by record), with intervals."""
    summary: dict[str, Any] = {"fractions": list(FRACTIONS)}
    for kind, by_name in curves.items():
        areas = {name: np.trapezoid(curve, FRACTIONS, axis=1) for name, curve in by_name.items()}
        summary[kind] = {}
        for name, curve in by_name.items():
            mean, low, high = means_with_intervals(curve, seed)
            summary[kind][name] = {
                "area": mean_with_interval(areas[name], seed),
                "over_random": None if name == RANDOM else mean_with_interval(areas[name] - areas[RANDOM], seed),
                "curve": {"mean": mean.tolist(), "low": low.tolist(), "high": high.tolist()},
            }
    return summary


def against_random(summary: Mapping[str, Any], method: str, kind: str) -> str:
    """`"better"` or `"worse"` than a random order in a test, `"deletion"` or `"insertion"`, where the interval of the
    difference excludes 0; else `"no better"`."""
    low, high = summary[kind][method]["over_random"]["interval"] or (-np.inf, np.inf)
    return "better" if low > 0 else "worse" if high < 0 else "no better"


def verdict(summary: Mapping[str, Any], method: str) -> str:
    """`"faithful"` if a method's ranking is better than a random one in both tests, `"partly faithful"` if in one,
    `"unfaithful"` if in none."""
    better = sum(against_random(summary, method, kind) == "better" for kind in ("deletion", "insertion"))
    return ("unfaithful", "partly faithful", "faithful")[better]


# ----------------------------------------------------------------------------------------------------------- agreement


def rank_correlations(first: pl.DataFrame, second: pl.DataFrame) -> np.ndarray:
    """Spearman's correlation of the sizes of two methods' attributions inside each record, `(records,)`.

    Both frames have `record_id` and `attribution`, in the same order. NaN where a record has fewer than 3 rows, or a
    method tells none of them apart.
    """
    if not first["record_id"].equals(second["record_id"]):
        raise ValueError("both frames must hold the same records in the same order")
    ids = first["record_id"].rle_id().to_numpy()
    sizes = np.bincount(ids)
    bounds = np.cumsum(sizes)[:-1]
    parts = [np.split(frame["attribution"].abs().to_numpy(), bounds) for frame in (first, second)]
    correlations = np.full(len(sizes), np.nan)
    for index, (one, other) in enumerate(zip(*parts, strict=True)):
        if len(one) >= 3 and np.ptp(one) > 0 and np.ptp(other) > 0:
            correlations[index] = np.corrcoef(rankdata(one), rankdata(other))[0, 1]
    return correlations


def agreement(explanations: Mapping[str, Explanation], seed: int = 0) -> list[dict[str, Any]]:
    """Rank correlation of each pair of methods, over the events and over the variables of a record."""
    return [
        {
            "methods": [first, second],
            **{
                level: mean_with_interval(
                    rank_correlations(getattr(explanations[first], level), getattr(explanations[second], level)), seed
                )
                for level in ("events", "variables")
            },
        }
        for first, second in combinations(explanations, 2)
    ]


def randomized(model: HyMaTEForSequenceClassification, seed: int = 0) -> HyMaTEForSequenceClassification:
    """The same model with fresh weights; the global random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return type(model)(model.config).to(model.device, model.dtype).eval()


def randomization_check(
    explainer: Explainer, events: Events, explanations: Mapping[str, Explanation], seed: int = 0, **options: Any
) -> dict[str, dict[str, Any]]:
    """Rank correlation of each method's explanations with those of the randomized model, over the first
    `SANITY_RECORDS` records: method -> `events` and `variables`.

    `options` go to `explain`, and should be those of `explanations`.
    """
    events = events.take(np.arange(min(SANITY_RECORDS, len(events))))
    model = randomized(explainer.model, seed)
    correlations = {}
    for method, explanation in explanations.items():
        other = explain(model, explainer.extractor, events, method=method, label=explainer.label, **options)
        correlations[method] = {
            "events": mean_with_interval(
                rank_correlations(explanation.events.head(other.events.height), other.events), seed
            ),
            "variables": mean_with_interval(
                rank_correlations(explanation.variables.head(other.variables.height), other.variables), seed
            ),
        }
    return correlations


# -------------------------------------------------------------------------------------------------------- true drivers


def driver_precision(shares: np.ndarray, variables: Sequence[str], drivers: Sequence[str], seed: int = 0) -> dict:
    """Where the true drivers stand when variables are ranked by their mean share, and record by record.

    Args:
        shares: as `variable_shares` returns them.
        variables: names of the columns.
        drivers: names of the variables that drive the outcome.

    Returns:
        `k` (number of drivers), `precision_at_k` of the ranking by mean share, `precision_at_k_by_record` with its
        interval, `precision_by_chance`, and `ranks` (driver -> 1 for the largest mean share).
    """
    k = len(drivers)
    is_driver = np.isin(variables, drivers)
    ranked = np.argsort(-shares.mean(0), kind="stable")
    first = np.argsort(-shares, axis=1, kind="stable")[:, :k]
    place = {variables[index]: rank for rank, index in enumerate(ranked, start=1)}
    return {
        "k": k,
        "precision_at_k": float(is_driver[ranked[:k]].mean()),
        "precision_at_k_by_record": mean_with_interval(is_driver[first].mean(1), seed),
        "precision_by_chance": float(is_driver.mean()),
        "ranks": {name: place[name] for name in sorted(drivers, key=lambda name: place[name])},
    }


# ---------------------------------------------------------------------------------------------------- the whole suite


def assess(
    explainer: Explainer,
    events: Events,
    explanations: Mapping[str, Explanation],
    *,
    drivers: Sequence[str] = (),
    window_hours: float = 6.0,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, Any]:
    """All that is measured about the explanations of a cohort: aggregates only, ready for JSON.

    Args:
        explainer: the model and the output that is explained.
        events: the cohort's records.
        explanations: method -> its explanation of these records.
        drivers: variables that drive the outcome, where it was simulated.
        window_hours: width of occlusion's windows, as for `explanations`.
        seed: of random orders and resamples.
        progress: show progress bars.

    Returns:
        `num_records`; `unit` and `scale` of the numbers of the prediction; `verdicts` (method -> verdict);
        `perturbation` (`summarize_curves`); `agreement`; `randomized_weights` (`randomization_check`); `drivers`
        (method -> `driver_precision`); `variable_shares` (method -> variable -> mean with interval); `bootstrap`.
    """
    variables = explainer.extractor.variables
    shares = {method: variable_shares(explanation, variables) for method, explanation in explanations.items()}
    curves = perturbation_curves(explainer, events, explanations, seed, "faithfulness" if progress else None)
    perturbation = summarize_curves(curves, seed)
    options = {
        "window_hours": window_hours,
        "batch_size": explainer.batch_size,
        "asked": explainer.asked,
        "progress": progress,
    }
    probability = explainer.predicts_probability
    return {
        "num_records": len(events),
        "unit": "percentage points" if probability else f"in units of {explainer.label}",
        "scale": 100.0 if probability else 1.0,
        "verdicts": {method: verdict(perturbation, method) for method in explanations},
        "perturbation": perturbation | {"random_rankings": RANDOM_RANKINGS},
        "agreement": agreement(explanations, seed),
        "randomized_weights": randomization_check(explainer, events, explanations, seed, **options),
        "drivers": {method: driver_precision(found, variables, drivers, seed) for method, found in shares.items()}
        if drivers
        else {},
        "variable_shares": {
            method: {
                variables[index]: mean_with_interval(found[:, index], seed)
                for index in np.argsort(-found.mean(0), kind="stable")
                if found[:, index].any()
            }
            for method, found in shares.items()
        },
        "bootstrap": {"resampled": "records", "num_samples": NUM_RESAMPLES, "seed": seed, "level": LEVEL},
    }


def findings(assessment: Mapping[str, Any]) -> list[dict[str, str]]:
    """What the deletion and insertion tests say of each method, in words: `method`, `verdict`, `ranking`, `areas`."""
    summary, scale = assessment["perturbation"], assessment["scale"]
    words = []
    for method in assessment["verdicts"]:
        outcomes = {kind: against_random(summary, method, kind) for kind in ("deletion", "insertion")}
        if len(set(outcomes.values())) == 1:
            ranking = f"ranks events {outcomes['deletion']} than a random order in both tests"
        else:
            ranking = (
                f"ranks events {outcomes['deletion']} than a random order in the deletion test, "
                f"{outcomes['insertion']} in the insertion test"
            )
        deletion, insertion = (
            estimate(summary[kind][method]["over_random"], scale, sign=True) for kind in ("deletion", "insertion")
        )
        words.append(
            {
                "method": METHODS[method].capitalize(),
                "verdict": assessment["verdicts"][method],
                "ranking": ranking,
                "areas": f"Area over that of a random order, {assessment['unit']}: {deletion} for deletion, "
                f"{insertion} for insertion (95% intervals).",
            }
        )
    return words
