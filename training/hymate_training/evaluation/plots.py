"""Plots of an evaluation, as PNG files that hold aggregates only.

Plots are built with matplotlib's object-oriented interface, so that no display is needed and the state of pyplot is
left alone.
"""

import logging
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn import metrics as sklearn_metrics

from hymate_training.evaluation.metrics import METRICS, SMALLEST_GROUP, calibration_bins, compute_metrics
from hymate_training.evaluation.sample import LabeledPredictions
from hymate_training.evaluation.survival import Followed
from hymate_training.files import writing_file

logger = logging.getLogger(__name__)

# Okabe and Ito's palette, told apart under the common kinds of color blindness
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#6E6E6E"
COLORS = (BLUE, ORANGE, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINE_STYLES = ("-", "--", ":", "-.")
TITLE_SIZE, LABEL_SIZE, TEXT_SIZE = 15, 13, 11
LONGEST_TEXT = 48  # letters
WILSON_Z = NormalDist().inv_cdf(0.975)


def save_plots(
    sample: LabeledPredictions, folder: str | Path, prefix: str, found: Mapping[str, Any] | None = None
) -> list[Path]:
    """Writes `{prefix}_{plot}.png` into `folder` for each plot of the problem type.

    binary: roc, precision_recall, reliability and, where `found` (what an evaluation holds) has a `net_benefit`,
    decision_curve; of its `calibration` the reliability diagram takes the smoothed curve. multiclass: confusion.
    multilabel: roc (one curve per label). regression: predicted_versus_true. time_to_event: survival. A curve that is
    undefined, because labels hold one class only, is left out with a warning.

    Returns:
        The paths of the plots.
    """
    paths = []
    for name, figure in _figures(sample, found or {}).items():
        path = Path(folder) / f"{prefix}_{name}.png"
        with writing_file(path) as incoming:
            figure.savefig(incoming, format="png", dpi=150, bbox_inches="tight", metadata={"Software": None})
        paths.append(path)
    return paths


def _figures(sample: LabeledPredictions, found: Mapping[str, Any]) -> dict[str, Figure]:
    figures: dict[str, Figure] = {}
    if sample.problem_type == "binary":
        if np.ptp(sample.labels) > 0:
            figures["roc"] = roc_figure(sample)
            figures["precision_recall"] = precision_recall_figure(sample)
        else:
            logger.warning("labels are all %d: the ROC and precision-recall curves are left out", sample.labels[0])
        figures["reliability"] = reliability_figure(sample, found.get("calibration", {}).get("curve"))
        if "net_benefit" in found:
            figures["decision_curve"] = decision_curve_figure(found["net_benefit"], _size(sample.labels))
    elif sample.problem_type == "multiclass":
        figures["confusion"] = confusion_figure(sample)
    elif sample.problem_type == "multilabel":
        if np.ptp(sample.labels, axis=0).any():
            figures["roc"] = label_roc_figure(sample)
        else:
            logger.warning("no column of labels holds both classes: the ROC curves are left out")
    elif sample.problem_type == "time_to_event":
        figures["survival"] = survival_figure(sample)
    else:
        figures["predicted_versus_true"] = predicted_versus_true_figure(sample)
    return figures


def lettering(text: str) -> str:
    """Text from the data as a figure takes it: short, in one line, and its dollar signs do not start a formula."""
    line = " ".join(text.split())
    return (line if len(line) <= LONGEST_TEXT else line[: LONGEST_TEXT - 1] + "…").replace("$", r"\$")


def _figure(title: str, width: float = 6.4, height: float = 6.4) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(title, fontsize=TITLE_SIZE)
    return figure


def _dress(axes: Axes, x: str, y: str, subtitle: str = "") -> None:
    axes.set_xlabel(x, fontsize=LABEL_SIZE)
    axes.set_ylabel(y, fontsize=LABEL_SIZE)
    axes.set_title(subtitle, fontsize=TEXT_SIZE, color=GREY)
    axes.tick_params(labelsize=TEXT_SIZE)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#E4E4E4", linewidth=0.8)
    axes.set_axisbelow(True)


def _unit_square(axes: Axes) -> None:
    axes.set_xlim(-0.01, 1.01)
    axes.set_ylim(-0.01, 1.01)
    axes.set_aspect("equal")


def _size(labels: np.ndarray) -> str:
    return f"{len(labels):,} rows, {labels.sum():,} positive ({labels.mean():.1%})"


def _curve(title: str, x: str, y: str, labels: np.ndarray) -> tuple[Figure, Axes]:
    """A picture of a curve in the unit square, still without the curve."""
    figure = _figure(title)
    axes = figure.add_subplot()
    _dress(axes, x, y, _size(labels))
    _unit_square(axes)
    return figure, axes


def roc_figure(sample: LabeledPredictions) -> Figure:
    """ROC curve of a binary sample, both classes present."""
    labels, predictions = sample.labels, sample.predictions
    false_positive_rate, recall, _ = sklearn_metrics.roc_curve(labels, predictions)
    figure, axes = _curve("ROC curve", "false positive rate (1 - specificity)", "true positive rate (recall)", labels)
    auroc = compute_metrics(sample)["auroc"]
    axes.plot(false_positive_rate, recall, color=BLUE, linewidth=2, label=f"model, AUROC {auroc:.3f}")
    axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1.2, label="chance, AUROC 0.500")
    axes.legend(loc="lower right", fontsize=TEXT_SIZE)
    return figure


def precision_recall_figure(sample: LabeledPredictions) -> Figure:
    """Precision-recall curve of a binary sample, both classes present, with the prevalence."""
    labels, predictions = sample.labels, sample.predictions
    precision, recall, _ = sklearn_metrics.precision_recall_curve(labels, predictions)
    title, precision_label = "Precision-recall curve", "precision (positive predictive value)"
    figure, axes = _curve(title, "recall (sensitivity)", precision_label, labels)
    auprc = compute_metrics(sample)["auprc"]
    # drawn in steps, as average precision integrates it
    axes.step(recall, precision, where="post", color=BLUE, linewidth=2, label=f"model, AUPRC {auprc:.3f}")
    prevalence = labels.mean()
    axes.axhline(prevalence, color=GREY, linestyle="--", linewidth=1.2, label=f"prevalence {prevalence:.3f}")
    axes.legend(loc="upper right", fontsize=TEXT_SIZE)
    return figure


def wilson_interval(share: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's 95% score interval (low, high) of a binomial share observed in so many rows."""
    scale = 1 + WILSON_Z**2 / rows
    center = (share + WILSON_Z**2 / (2 * rows)) / scale
    half = WILSON_Z / scale * np.sqrt(share * (1 - share) / rows + WILSON_Z**2 / (4 * rows**2))
    # bounded by the share itself, which rounding could otherwise leave outside at 0 and 1
    return np.clip(center - half, 0, share), np.clip(center + half, share, 1)


def reliability_figure(sample: LabeledPredictions, curve: Mapping[str, Any] | None = None) -> Figure:
    """Reliability diagram of a binary sample, over a histogram of the probabilities.

    The points are the bins of `metrics.calibration_bins`, with Wilson's 95% intervals; the line between them, where
    there is one, is the smoothed `curve` of `recalibration.calibration` with its bootstrap intervals. The upper axes
    end where the bins do, since at a low prevalence all of them lie in a corner of the unit square.
    """
    labels, predictions = sample.labels, sample.predictions
    bins = calibration_bins(sample)
    low, high = wilson_interval(bins.observed, bins.rows)
    error = compute_metrics(sample)["expected_calibration_error"]
    figure = _figure("Reliability diagram", height=8.6)
    axes, histogram = figure.subplots(2, 1, height_ratios=(3, 1))
    highest = max(bins.predicted.max(), high.max(), *(curve["observed"] if curve else ()))
    limit = min(1.0, np.ceil(10 * highest) / 10)

    _dress(axes, "mean predicted probability", "observed share of positives", _size(labels))
    axes.plot([0, limit], [0, limit], color=GREY, linestyle="--", linewidth=1.2, label="perfect calibration")
    axes.errorbar(
        bins.predicted,
        bins.observed,
        yerr=(bins.observed - low, high - bins.observed),
        color=BLUE,
        marker="o",
        linestyle="none" if curve else "-",
        linewidth=1.5,
        elinewidth=1.2,
        capsize=3,
        label=f"model, expected calibration error {error:.3f}\n(bins of equal size, 95% Wilson intervals)",
    )
    if curve:
        axes.plot(curve["predicted"], curve["observed"], color=ORANGE, linewidth=1.5, label="smoothed, with interval")
        _band(axes, curve["predicted"], curve["intervals"], ORANGE)
    axes.set_xlim(-0.02 * limit, 1.02 * limit)
    axes.set_ylim(-0.02 * limit, 1.02 * limit)

    _dress(histogram, "predicted probability", "rows")
    edges = np.linspace(0, 1, 41)
    for value, name, color in ((0, "negative", BLUE), (1, "positive", ORANGE)):
        histogram.hist(
            predictions[labels == value], bins=edges, histtype="step", linewidth=1.8, color=color, label=name
        )
    histogram.set_yscale("symlog", linthresh=1)
    histogram.set_xlim(-0.02, 1.02)
    histogram.set_ylim(0)
    # below both axes, where it hides neither points nor bars
    figure.legend(loc="outside lower center", fontsize=TEXT_SIZE, ncols=2)
    return figure


def _band(axes: Axes, x: Sequence[float], intervals: Sequence[Sequence[float] | None], color: str) -> None:
    low, high = np.array([interval or (np.nan, np.nan) for interval in intervals]).T
    axes.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)


def decision_curve_figure(curves: Mapping[str, Any], size: str) -> Figure:
    """Net benefit by threshold, as `decisions.net_benefit` found it, with intervals of the model and a baseline."""
    figure = _figure("Decision curve", width=7.3)
    axes = figure.add_subplot()
    _dress(axes, "probability from which on an alarm is raised", "net benefit", size)
    thresholds = curves["thresholds"]
    shown = {
        "treat_none": ("no alarm", GREY, ":"),
        "treat_all": ("alarm at every prediction", GREY, "--"),
        "baseline": ("baseline", ORANGE, "-."),
        "model": ("model", BLUE, "-"),
    }
    for name, (title, color, line) in shown.items():
        if name in curves:
            axes.plot(thresholds, curves[name], color=color, linestyle=line, linewidth=1.8, label=title)
        if name in curves and color != GREY:
            _band(axes, thresholds, curves["confidence_intervals"][name], color)
    highs = [interval[1] for interval in curves["confidence_intervals"]["model"] if interval]
    top = max(*curves["model"], *curves["treat_all"], *highs, 1e-3)
    axes.set_xlim(0, max(thresholds))
    axes.set_ylim(-0.25 * top, 1.1 * top)
    axes.legend(loc="upper right", fontsize=TEXT_SIZE)
    return figure


def confusion_figure(sample: LabeledPredictions) -> Figure:
    """Confusion matrix of a multiclass sample, by the most probable class; shades show row shares."""
    labels, predictions = sample.labels, sample.predictions
    classes = predictions.shape[1]
    names = list(map(lettering, sample.label_names))
    counts = sklearn_metrics.confusion_matrix(labels, predictions.argmax(axis=1), labels=np.arange(classes))
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = float(np.clip(2.5 + 0.9 * classes, 6.4, 14))
    figure = _figure("Confusion matrix", width=side + 0.9, height=side)
    axes = figure.add_subplot()
    _dress(axes, "predicted class", "true class", f"{len(labels):,} rows, accuracy {counts.trace() / len(labels):.3f}")
    axes.grid(visible=False)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(classes), names, rotation=35, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(classes), names)
    bar = figure.colorbar(image, ax=axes, shrink=0.8)
    bar.set_label("share of the true class", fontsize=LABEL_SIZE)
    bar.ax.tick_params(labelsize=TEXT_SIZE)
    if classes <= 12:
        for row, column in product(range(classes), repeat=2):
            axes.text(
                column,
                row,
                _cell_text(counts[row, column], shares[row, column]),
                ha="center",
                va="center",
                fontsize=TEXT_SIZE,
                color="white" if shares[row, column] > 0.5 else "black",
            )
    return figure


def _cell_text(count: int, share: float) -> str:
    """A cell of a confusion matrix; small counts, which could tell about single patients, in words."""
    return f"<{SMALLEST_GROUP}" if 0 < count < SMALLEST_GROUP else f"{count:,}\n{share:.0%}"


def label_roc_figure(sample: LabeledPredictions) -> Figure:
    """ROC curve of each label of a multilabel sample; labels of one class only are named, not drawn."""
    labels, predictions = sample.labels, sample.predictions
    names = list(map(lettering, sample.label_names))
    styles = [(color, line) for line in LINE_STYLES for color in COLORS]
    columns = 1 + (len(names) - 1) // 18
    figure = _figure("ROC curve of each label", width=6.8 + 3.4 * columns)
    axes = figure.add_subplot()
    _dress(axes, "false positive rate (1 - specificity)", "true positive rate (recall)", f"{len(labels):,} rows")
    _unit_square(axes)
    for column, name in enumerate(names):
        y, p = labels[:, column], predictions[:, column]
        color, line = styles[column % len(styles)]
        if np.ptp(y) == 0:
            axes.plot([], [], color="none", label=f"{name}, one class only")
            continue
        false_positive_rate, recall, _ = sklearn_metrics.roc_curve(y, p)
        positives = f"{y.sum():,}" if y.sum() >= SMALLEST_GROUP else f"<{SMALLEST_GROUP}"
        title = f"{name}, {sklearn_metrics.roc_auc_score(y, p):.3f} ({positives} pos.)"
        axes.plot(false_positive_rate, recall, color=color, linestyle=line, linewidth=1.6, label=title)
    axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1.2)
    axes.legend(
        loc="upper left",
        bbox_to_anchor=(1.02, 1),
        fontsize=TEXT_SIZE,
        ncols=columns,
        title="label, AUROC",
        title_fontsize=TEXT_SIZE,
    )
    return figure


def survival_figure(sample: LabeledPredictions) -> Figure:
    """Share without the event by the times of the predictions: as it was observed, and the mean of those predicted."""
    followed = Followed(sample)
    estimate = followed.kaplan_meier(np.ones((1, len(sample))))
    within = sample.times < followed.hours[-1]  # beyond the last sight nothing is known
    observed = [followed.at(estimate, hours)[0] for hours in sample.times[within]]
    events = int(followed.observed.sum())
    figure = _figure("Survival", width=7.3)
    axes = figure.add_subplot()
    size = f"{len(sample):,} rows, {events:,} with the event observed"
    _dress(axes, "hours after the prediction", "share without the event", size)
    predicted = 1 - sample.predictions.mean(axis=0)
    axes.plot([0, *sample.times], [1, *predicted], color=BLUE, linewidth=2, label="predicted, mean")
    axes.plot([0, *sample.times[within]], [1, *observed], "o--", color=ORANGE, label="observed, by Kaplan and Meier")
    axes.set_ylim(top=1.01)
    axes.legend(loc="lower left", fontsize=TEXT_SIZE)
    return figure


def predicted_versus_true_figure(sample: LabeledPredictions) -> Figure:
    """Predicted against true numbers of a regression: counts in hexagons that hold `SMALLEST_GROUP` rows or more."""
    labels, predictions = sample.labels, sample.predictions
    metrics = compute_metrics(sample)
    rows = f"{len(labels):,} rows"
    figure = _figure("Predicted and true values", width=7.3)
    axes = figure.add_subplot()
    shown = [
        f"{METRICS['regression'][name]} {metrics[name]:.3g}" for name in ("mae", "r2") if metrics[name] is not None
    ]
    _dress(axes, "true value (unit of the label)", "predicted value (unit of the label)", ", ".join([rows, *shown]))
    low, high = min(labels.min(), predictions.min()), max(labels.max(), predictions.max())
    margin = 0.02 * (high - low) or 1.0
    low, high = low - margin, high + margin
    # coarse where there are few rows, so that most hexagons along the diagonal hold enough
    gridsize = int(np.clip(len(labels) / (2 * SMALLEST_GROUP), 4, 32))
    image = axes.hexbin(
        labels,
        predictions,
        gridsize=gridsize,
        extent=(low, high, low, high),
        mincnt=SMALLEST_GROUP,
        bins="log",
        cmap="viridis",
    )
    counts = np.asarray(image.get_array())
    if not len(counts):
        image.set_clim(SMALLEST_GROUP, 10 * SMALLEST_GROUP)
    axes.plot([low, high], [low, high], color=ORANGE, linestyle="--", linewidth=1.5, label="perfect prediction")
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)
    axes.set_aspect("equal")
    axes.legend(loc="upper left", fontsize=TEXT_SIZE)
    bar = figure.colorbar(image, ax=axes, shrink=0.8)
    hidden = len(labels) - int(counts.sum())
    bar.set_label(f"rows per hexagon ({hidden:,} in hexagons of fewer than {SMALLEST_GROUP})", fontsize=LABEL_SIZE)
    bar.ax.tick_params(labelsize=TEXT_SIZE)
    return figure
