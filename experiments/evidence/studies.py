"""What is measured: a question about a data set, on which folds, and by which models."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.evidence.folds import assign_folds, hospitals
from experiments.evidence.models import HOSPITAL_MODELS, MODELS, PERCENTAGES, SEPSIS_MODELS, Model

FIGURES = ("auroc", "auprc", "log_loss")


@dataclass(frozen=True)
class Study:
    """A question and the models that answer it.

    Attributes:
        name: of its results and folds, and before the names of its tables.
        reader: of `hymate_training.readers.READERS` that prepares its data.
        prepared: name of the prepared folder, which studies may share.
        task: what is predicted.
        recipe: that HyMaTE is trained by.
        splits: of the prepared folder, whose records make up the folds.
        models: by name; the recipe's is `hymate`.
        tables: of `experiments.evidence.tables.TABLES` that the page has of it.
        thresholds: from which probability on there is an alarm, for the net benefit.
        figures: metrics whose resamples are kept, so that differences are paired later on.
        shown: metrics in its table of models.
        few_labels: models that are trained on `percentages` of the labels, too.
        percentages: of the labels.
        draw: lists the records of each fold.
    """

    name: str
    reader: str
    prepared: str
    task: str
    recipe: str
    splits: tuple[str, ...]
    models: Mapping[str, Model]
    tables: tuple[str, ...]
    thresholds: tuple[float, ...]
    figures: tuple[str, ...] = FIGURES
    shown: tuple[str, ...] = (*FIGURES, "brier", "expected_calibration_error")
    few_labels: tuple[str, ...] = ()
    percentages: tuple[int, ...] = ()
    draw: Callable[..., list[list[str]]] = assign_folds

    @property
    def units(self) -> list[tuple[str, int]]:
        """Name and percentage of the labels of what is trained on each fold."""
        few = [(name, percent) for percent in self.percentages for name in self.few_labels]
        return [(name, 100) for name in self.models] + few

    def folds(self, prepared: Path, path: Path) -> list[list[str]]:
        """Record ids of each fold, which `path` lists, or will from now on."""
        return self.draw(prepared, path, self.splits)


_SEPSIS: dict[str, Any] = {
    "reader": "physionet2019",
    "prepared": "physionet2019",
    "task": "sepsis_onset",
    "recipe": "physionet2019",
    "splits": ("train", "validation", "test"),
    "thresholds": (0.01, 0.02, 0.05, 0.1, 0.2),
    "figures": ("auroc", "auprc", "normalized_utility", "log_loss"),
    "shown": ("auroc", "auprc", "normalized_utility", "log_loss", "expected_calibration_error"),
}
STUDIES = {
    study.name: study
    for study in (
        Study(
            "mortality",
            reader="physionet2012",
            prepared="physionet2012",
            task="in_hospital_mortality",
            recipe="physionet2012",
            splits=("train", "validation"),
            models=MODELS,
            tables=("models", "differences", "decision_curves", "coverage", "findings", "labels"),
            thresholds=(0.05, 0.1, 0.2, 0.3, 0.5),
            few_labels=("scratch", "pretrained", "xgboost"),
            percentages=PERCENTAGES,
        ),
        Study(
            "sepsis",
            models=SEPSIS_MODELS,
            tables=("models", "differences", "decision_curves", "coverage", "findings"),
            **_SEPSIS,
        ),
        Study(
            "hospitals",
            models=HOSPITAL_MODELS,
            tables=("models", "differences", "coverage"),
            draw=hospitals,
            **_SEPSIS,
        ),
    )
}
