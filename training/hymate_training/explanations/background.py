"""What a prediction is set beside: aggregates that a checkpoint keeps of its training and validation records."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hymate_training.evaluation.aggregates import MEASURED
from hymate_training.evaluation.metrics import metric_titles
from hymate_training.inference.checkpoints import MONITORING_FILE, Checkpoint
from hymate_training.inference.conformal import ALL, label_sets, number_intervals, thresholds_at
from hymate_training.publishing.schemas import read_monitoring
from modeling_hymate.hazards import risk_name

LEVEL = 0.9  # of the prediction sets and intervals that are shown
HEADLINES = {"binary": ("auroc", "auprc"), "regression": ("mae", "r2"), "time_to_event": ("concordance",)}


@dataclass(frozen=True)
class Background:
    """What is known of a model beside its weights; everything may be missing.

    Attributes:
        label: the output that is explained.
        label_names: all outputs of the model, in order.
        evaluation: the checkpoint's own, on the validation split.
        counts: of training records by bin, as `aggregates.summarize` returns them; of scores, validation records.
        horizons: of a model that says when something happens: output -> what its evaluation says of that horizon.
    """

    label: str
    label_names: tuple[str, ...] = ()
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    counts: Mapping[str, Any] = field(default_factory=dict)
    horizons: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, checkpoint: Checkpoint, label: str, task: str | None = None) -> "Background":
        """What a checkpoint keeps; without its evaluation where that is of another task."""
        path = checkpoint.path / MONITORING_FILE
        evaluation = checkpoint.evaluation or {}
        if task is not None and evaluation.get("task") != task:
            evaluation = {}
        counts = read_monitoring(path)["counts"] if path.is_file() else {}
        event, rows = checkpoint.model.config.event, evaluation.get("horizons", [])
        horizons = {risk_name(event or "event", row["hours"]): row for row in rows}
        return cls(label, checkpoint.label_names, evaluation, counts, horizons)

    @property
    def is_positive_class(self) -> bool:
        """Whether the explained output is that of which a binary evaluation tells."""
        return self.evaluation.get("problem_type") == "binary" and self.label == self.label_names[-1]

    @property
    def outcomes(self) -> tuple[int, int] | None:
        """How many of the validation split's outcomes are the label, and how many there are; None where that is
        unknown."""
        own = self.evaluation if self.is_positive_class else self.evaluation.get("per_label", {}).get(self.label)
        # a published evaluation does not tell them of labels that few records have
        return None if own is None or own.get("positives") is None else (own["positives"], own["n"])

    @property
    def base_rate(self) -> float | None:
        """The share of the validation split's outcomes that are the label, or the risk that was observed there."""
        if self.label in self.horizons:
            return self.horizons[self.label]["observed_risk"]
        return None if self.outcomes is None else self.outcomes[0] / self.outcomes[1]

    @property
    def threshold(self) -> float | None:
        """From which probability on the evaluation counts an alarm."""
        return self.evaluation.get("decision_threshold") if self.is_positive_class else None

    def intervals(self, predictions: np.ndarray) -> np.ndarray:
        """What such predictions meant on the validation split, `(n, 3)`: a middle and its interval, NaN where unknown.

        Of a probability the share of records with such a prediction that have the outcome, by the smoothed calibration
        curve with its 95% interval. Of a number itself, with its conformal interval for 90% coverage.
        """
        found = np.full((len(predictions), 3), np.nan)
        conformal = self.evaluation.get("conformal")
        if self.evaluation.get("problem_type") == "regression" and conformal is not None:
            thresholds = thresholds_at(conformal, LEVEL, ALL)
            ends = number_intervals(predictions, thresholds, ALL, [])
            found = np.column_stack([predictions, ends])
            return np.where(np.isfinite(found), found, np.nan)
        curve = self.evaluation.get("calibration", {}).get("curve") if self.is_positive_class else None
        if not curve:
            return found
        ends = np.array([interval or (np.nan, np.nan) for interval in curve["intervals"]], dtype=float)
        for column, heights in enumerate((np.array(curve["observed"], dtype=float), *ends.T)):
            found[:, column] = np.interp(predictions, curve["predicted"], heights, left=np.nan, right=np.nan)
        return found

    def rank(self, prediction: float) -> tuple[float, float] | None:
        """Between which shares of the validation records have a lower prediction, by the bin it falls into."""
        bins = self.counts.get("score", {}).get(self.label)
        if bins is None:
            return None
        below = np.concatenate([[0], np.cumsum(bins["counts"])]) / np.sum(bins["counts"])
        at = int(np.searchsorted(bins["edges"], prediction, "right"))
        return float(below[at]), float(below[at + 1])

    def prediction_set(self, prediction: float) -> list[str] | None:
        """The labels of a binary task that a conformal set for 90% coverage holds."""
        conformal = self.evaluation.get("conformal")
        if conformal is None or not self.is_positive_class:
            return None
        values = np.array([[1 - prediction, prediction]])
        held = label_sets(values, thresholds_at(conformal, LEVEL, ALL), ALL, [ALL], self.label_names)[0]
        return [name for name, holds in zip(self.label_names, held, strict=True) if holds]

    def measured_share(self, variable: str) -> float | None:
        """Share of the training records in which a variable was measured."""
        found = self.counts.get("measured", {}).get(variable)
        if found is None:
            return None
        yes, no = (found["categories"][name] for name in MEASURED)
        return yes / (yes + no) if yes + no else None

    def usual(self, variable: str) -> tuple[float, float] | None:
        """Between which numbers the means of most training records lie, those of the lowest and highest bin left out;
        of a variable or a static column."""
        found = self.counts.get("value", {}).get(variable) or self.counts.get("static", {}).get(variable) or {}
        edges = found.get("edges", ())
        return (edges[0], edges[-1]) if len(edges) > 1 else None

    def performance(self) -> list[str]:
        """The metrics on the validation split that matter most, with their intervals, that of the explained horizon
        first; empty without an evaluation."""
        if not self.evaluation:
            return []
        kind, metrics = self.evaluation["problem_type"], self.evaluation["metrics"]
        found = [
            metric_in_words(kind, name, metrics[name], self.evaluation["confidence_intervals"].get(name))
            for name in HEADLINES.get(kind, tuple(metrics)[:2])
            if metrics.get(name) is not None
        ]
        own = self.horizons.get(self.label, {})
        if own.get("auroc") is not None:
            found.insert(0, metric_in_words("binary", "auroc", own["auroc"], own["confidence_intervals"]["auroc"]))
        return found

    def in_words(self) -> str | None:
        """How well the model did on the validation split; None without an evaluation."""
        return f"{', '.join(self.performance())} {self.evaluated()}" if self.evaluation else None

    def observed(self, label: str) -> str | None:
        """The risk of an output that was observed on the validation split, with its interval; None where unknown."""
        row = self.horizons.get(label, {})
        if row.get("observed_risk") is None:
            return None
        ends = row["confidence_intervals"]["observed_risk"]
        return f"{row['observed_risk']:.1%}" + (f" [{ends[0]:.1%} to {ends[1]:.1%}]" if ends else "")

    def evaluated(self) -> str:
        """On what these metrics were measured."""
        return f"on the {self.evaluation['num_records']:,} records of its {self.evaluation['split']} split"


def metric_in_words(kind: str, name: str, value: float, interval: Sequence[float] | None) -> str:
    """A metric with its interval, as text."""
    ends = f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else ""
    return f"{metric_titles(kind)[name]} {value:.3f}{ends}"
