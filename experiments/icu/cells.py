"""One cell of the transfer table: a way to a model, a target, a share of its labels and a fold; a small JSON file."""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.evidence.baselines import xgboost
from experiments.evidence.folds import assign_folds, prepare_fold
from experiments.evidence.units import Predictions, chosen_threshold, finetuned, flags, hymate, write_unit
from experiments.icu.release import RECIPE
from experiments.icu.sources import prepare_sources
from experiments.icu.targets import TARGETS
from hymate_training.data.prepared_folder import PreparedFolder
from hymate_training.fitting.loop import LAST_FOLDER
from hymate_training.fitting.state import STATE_FOLDER


@dataclass(frozen=True)
class Cell:
    """A cell: the name of its target, its arm, the percentage of the labels and the fold."""

    target: str
    arm: str
    percent: int
    fold: int

    @property
    def name(self) -> str:
        return f"{self.target}-{self.arm}-{self.percent}-fold{self.fold}"


@dataclass(frozen=True)
class Workplace:
    """Where cells are run.

    Attributes:
        raw: folder of the downloads.
        work: prepared folders, folds and unfinished runs.
        results: what is finished.
        quick: one epoch of everything: does it run?
    """

    raw: Path
    work: Path
    results: Path
    quick: bool = False

    def sources(self, *names: str) -> dict[str, Path]:
        return prepare_sources(names, self.raw, self.work / "data")

    def fold(self, name: str, percent: int, fold: int) -> Path:
        """The fold of a target as the test split of a prepared folder."""
        target = TARGETS[name]
        prepared = self.sources(target.source)[target.source]
        folds = assign_folds(prepared, self.work / "folds" / f"{name}.json", target.splits)
        output = self.work / "folds" / f"{name}-{percent}-fold{fold}"
        return prepare_fold(prepared, folds, fold, percent, True, output, target.splits)


def run_cell(cell: Cell, place: Workplace) -> None:
    """Trains and evaluates unless the result is there already.

    A result holds no record: metrics of the test split, and of resamples of its records, the same for each cell of a
    fold, so that differences have paired intervals.
    """
    path = place.results / f"{cell.name}.json"
    if path.is_file():
        return
    target, started = TARGETS[cell.target], time.perf_counter()
    data = place.fold(cell.target, cell.percent, cell.fold)
    output = place.work / "runs" / cell.name
    about: dict[str, Any] = {}
    if cell.arm == "xgboost":
        predict = xgboost(data, target.task, cell.fold)
        predictions = Predictions(predict("test"), chosen_threshold(data, target.task, predict))
    else:
        predictions, about = finetune(cell, place, data, output)
    named = {"target": cell.target, "arm": cell.arm, "percent": cell.percent, "fold": cell.fold, "seed": cell.fold}
    write_unit(path, named, PreparedFolder(data), target, predictions, about, started)
    shutil.rmtree(output, ignore_errors=True)


def finetune(cell: Cell, place: Workplace, data: Path, output: Path) -> tuple[Predictions, dict[str, Any]]:
    """Fine-tunes by the recipe; what the model says of the test split, and how the run went."""
    target = TARGETS[cell.target]
    options = {"seed": cell.fold, **target.finetune}
    if cell.percent < 100:  # fewer batches an epoch, so more epochs
        options["epochs"] = round(options["epochs"] * (100 / cell.percent) ** 0.5)
    if place.quick:
        options["epochs"] = 1
    arguments = ["--data", str(data), "--task", target.task, "--output", str(output), *flags(options)]
    if cell.arm != "scratch":
        arguments += ["--checkpoint", str(encoder(cell, place))]
    hymate("finetune", arguments, output, RECIPE)
    return finetuned(output, PreparedFolder(data), target.task)


def encoder(cell: Cell, place: Workplace) -> Path:
    """The pretrained encoder: of the other sources one for the target, of the same source one for each fold, from its
    training records, with or without labels."""
    if cell.arm == "others":
        target = TARGETS[cell.target]
        folders, name, seed = list(place.sources(*target.others).values()), f"{cell.target}-others", 0
    else:
        folders, name, seed = [place.fold(cell.target, 100, cell.fold)], f"{cell.target}-fold{cell.fold}", cell.fold
    output = place.work / "pretrained" / name
    if not (output / LAST_FOLDER).is_dir() or (output / STATE_FOLDER).is_dir():
        options = {"seed": seed} | ({"epochs": 1} if place.quick else {})
        arguments = [part for folder in folders for part in ("--data", str(folder))]
        hymate("pretrain", [*arguments, "--output", str(output), *flags(options)], output, RECIPE)
    return output
