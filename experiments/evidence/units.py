"""One unit of work: one model on one fold, its metrics in a small JSON file."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from experiments.evidence.folds import prepare_fold
from experiments.evidence.models import Model
from experiments.evidence.studies import Study
from hymate_training.data.collators import TaskCollator
from hymate_training.data.examples import load_task
from hymate_training.data.prepared_folder import PreparedFolder
from hymate_training.data.subgroups import subgroup_columns
from hymate_training.evaluation.coverage import coverage_report
from hymate_training.evaluation.decisions import alarm_counts, benefit, class_counts
from hymate_training.evaluation.evaluation import alarm_gains, labeled
from hymate_training.evaluation.metrics import bootstrap_samples, compute_metrics
from hymate_training.evaluation.resampling import Resampler
from hymate_training.evaluation.sample import LabeledPredictions
from hymate_training.evaluation.utility import best_threshold, normalized_utility, utility_samples
from hymate_training.files import write_file
from hymate_training.fitting.loop import LAST_FOLDER
from hymate_training.fitting.state import STATE_FOLDER
from hymate_training.inference.checkpoints import EVALUATION_FILE, RUN_FILE, load_checkpoint
from hymate_training.inference.prediction import predict_examples
from hymate_training.readers import READERS
from hymate_training.versions import installed_versions

HERE = Path(__file__).parent
RESULTS = HERE / "results"  # a folder per study
NUM_SAMPLES = 400
PACKAGES = ("hymate", "torch", "transformers", "xgboost-cpu", "scikit-learn")


@dataclass(frozen=True)
class Place:
    """Where the units of a study are run.

    Attributes:
        study: what is measured.
        prepared: folder of all records.
        folds: record ids of each fold.
        work: prepared folds and unfinished runs.
        results: what is finished.
        quick: one epoch of everything: does it run?
    """

    study: Study
    prepared: Path
    folds: list[list[str]]
    work: Path
    results: Path
    quick: bool = False

    def result(self, name: str, percent: int, fold: int) -> Path:
        """Where a unit's metrics lie."""
        return self.results / f"{name}-{percent}-fold{fold}.json"

    def fold(self, fold: int, percent: int = 100, static: bool = True) -> Path:
        """The fold as the test split of a prepared folder."""
        kind = f"{self.study.name}-fold{fold}-{percent}" + ("" if static else "-no-static")
        output = self.work / "data" / kind
        return prepare_fold(self.prepared, self.folds, fold, percent, static, output, self.study.splits)


def open_place(study: Study, raw: Path, work: Path, quick: bool = False) -> Place:
    """The study's data, prepared, and its folds; what is quick lies apart, so that nothing of it is taken for a
    finished run."""
    if quick:
        work = work / "quick"
    prepared = work / "data" / study.prepared
    if not prepared.is_dir():
        READERS[study.reader].prepare(raw, prepared)
    lists, results = (work, work / "figures") if quick else (HERE / "folds", RESULTS / study.name)
    folds = study.folds(prepared, lists / f"{study.name}.json")
    return Place(study, prepared, folds, work, results, quick)


def run_unit(name: str, percent: int, fold: int, place: Place) -> None:
    """Trains and evaluates unless the metrics are there already.

    They hold no record: the metrics of the test split, and those of bootstrap resamples of it, the same for
    every model, so that two models' differences have paired intervals.
    """
    path = place.result(name, percent, fold)
    if path.is_file():
        return
    study, model = place.study, place.study.models[name]
    data = place.fold(fold, percent, model.static)
    started = time.perf_counter()
    output = place.work / "runs" / study.name / f"{name}-{percent}-fold{fold}"
    named = {"model": name, "percent": percent, "fold": fold, "seed": fold}
    about: dict[str, Any] = {}
    if model.baseline is not None:
        predict = model.baseline(data, study.task, fold)
        predictions = Predictions(predict("test"), chosen_threshold(data, study.task, predict))
    else:
        finetune(model, data, percent, fold, place, output)
        predictions, about = finetuned(output, PreparedFolder(data), study.task)
    write_unit(path, named, PreparedFolder(data), study, predictions, about, started)
    shutil.rmtree(output, ignore_errors=True)


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a model says of the test split.

    Attributes:
        probabilities: of its examples.
        threshold: from which probability on there is an alarm, chosen on the validation split; None where the data
            set has no utility that would choose it.
    """

    probabilities: np.ndarray
    threshold: float | None = None


class Question(Protocol):
    """What `write_unit` has to know of a study: its task, the thresholds of the net benefit, and the metrics whose
    resamples are kept."""

    @property
    def task(self) -> str: ...

    @property
    def thresholds(self) -> tuple[float, ...]: ...

    @property
    def figures(self) -> tuple[str, ...]: ...


def chosen_threshold(data: Path, task: str, predict: Callable[[str], np.ndarray]) -> float | None:
    """The threshold with the best utility on the validation split; None where the data set has no utility."""
    folder = PreparedFolder(data)
    if (utility := folder.info.extra.get("utility", {}).get(task)) is None:
        return None
    dataset = load_task(folder, task, "validation", folder.info.variables)
    return best_threshold(alarm_gains(utility, dataset), predict("validation"))


def write_unit(
    path: Path,
    named: dict[str, Any],
    folder: PreparedFolder,
    question: Question,
    predictions: Predictions,
    about: dict[str, Any],
    started: float,
) -> None:
    """Writes the metrics of the test split and of resamples of its records, the same for every model of a fold.

    Args:
        path: file to write.
        named: what the unit is, its `fold` among it.
        folder: the fold.
        question: its task is binary.
        predictions: of the test split's examples.
        about: how the run went.
        started: `time.perf_counter()` when it began.
    """
    dataset = load_task(folder, question.task, "test", folder.info.variables)
    groups = None if dataset.asks_once else dataset.record_ids
    sample = LabeledPredictions("binary", dataset.labels, predictions.probabilities, groups=groups)
    samples = bootstrap_samples(sample, num_samples=NUM_SAMPLES, seed=named["fold"])
    resampler = Resampler(sample.num_records, num_samples=NUM_SAMPLES, seed=named["fold"])
    worth, worth_samples = benefits(sample, resampler, question.thresholds)
    metrics = compute_metrics(sample) | worth
    if predictions.threshold is not None:
        alarms = sample.predictions >= predictions.threshold
        gains = alarm_gains(folder.info.extra["utility"][question.task], dataset)
        metrics["normalized_utility"] = normalized_utility(gains, alarms)
        samples["normalized_utility"] = utility_samples(gains, alarms, sample, resampler)
    write_compact(
        path,
        {
            **named,
            "n": len(dataset),
            "positives": int(dataset.labels.sum()),
            "split_fingerprint": folder.split_fingerprint(question.task, "test"),
            "metrics": metrics,
            **about,
            "seconds": round(time.perf_counter() - started),
            "versions": installed_versions(PACKAGES),
            "samples": {figure: np.round(samples[figure], 4).tolist() for figure in question.figures}
            | {figure: np.round(values, 5).tolist() for figure, values in worth_samples.items()},
        },
    )


def benefits(
    sample: LabeledPredictions, resampler: Resampler, thresholds: Sequence[float]
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Net benefit of the model and of an alarm for all at each threshold, and in resamples."""
    chosen = np.array(thresholds)
    model, classes = alarm_counts(sample, chosen), class_counts(sample)
    everyone = np.repeat(classes[..., None], len(chosen), axis=-1)
    points, samples = {}, {}
    for who, alarms in (("model", model), ("treat_all", everyone)):
        point = benefit(alarms.sum(axis=0), classes.sum(axis=0), chosen)
        drawn = benefit(resampler.sums(alarms), resampler.sums(classes), chosen)
        for at, threshold in enumerate(thresholds):
            points[benefit_name(who, threshold)] = float(point[at])
            samples[benefit_name(who, threshold)] = drawn[:, at]
    return points, samples


def benefit_name(who: str, threshold: float) -> str:
    """The name of a net benefit among the metrics of a unit; `who` is model or treat_all."""
    return f"net_benefit_{who}_{threshold:g}"


def write_compact(path: Path, content: dict[str, Any]) -> None:
    """Writes JSON, one line per key."""
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in content.items()]
    write_file(path, "{\n" + ",\n".join(lines) + "\n}\n")


def finetune(model: Model, data: Path, percent: int, fold: int, place: Place, output: Path) -> None:
    """Fine-tunes by the recipe."""
    options: dict[str, Any] = {"seed": fold, **model.finetune}
    if percent < 100:  # fewer batches an epoch, so more epochs
        options["epochs"] = options["patience"] = round(options["epochs"] * (100 / percent) ** 0.5)
    if place.quick:
        options["epochs"] = 1
    study = place.study
    arguments = ["--data", str(data), "--task", study.task, "--output", str(output)]
    if model.pretrained:
        arguments += ["--checkpoint", str(pretrain(model, data, fold, place))]
    hymate("finetune", [*arguments, *flags(options), *_model_flags(model)], output, study.recipe)


def finetuned(run: Path, folder: PreparedFolder, task: str) -> tuple[Predictions, dict[str, Any]]:
    """What a fine-tuned model says of the test split, and how its run went."""
    checkpoint = load_checkpoint(run)
    dataset = load_task(folder, task, "test", checkpoint.extractor.variables)
    predicted = predict_examples(checkpoint.model, dataset, TaskCollator(checkpoint.extractor))
    account, evaluation = (json.loads((run / name).read_text()) for name in (RUN_FILE, EVALUATION_FILE))
    threshold = evaluation["threshold"]["value"] if "normalized_utility" in evaluation["metrics"] else None
    conformal, info = checkpoint.conformal(task), folder.info.task(task)
    covered = conformal and coverage_report(
        labeled(dataset, predicted.values, info), subgroup_columns(dataset), info.label_names, conformal
    )
    return Predictions(predicted.values[:, 1].astype(np.float64), threshold), {
        "recipe": account["recipe"],
        "parameters": account["parameters"],
        "best_step": account["best_step"],
        "coverage": covered,
        "temperature": checkpoint.model.config.temperature,
        "seconds_an_epoch": round(float(np.median([epoch["seconds"] for epoch in account["history"]])), 1),
    }


def pretrain(model: Model, data: Path, fold: int, place: Place) -> Path:
    """The encoder pretrained on the fold's training records, which all percentages and models of its shape share."""
    settings = "".join(f"-{name}={value}" for name, value in model.model.items())
    output = place.work / "pretrained" / f"{place.study.name}-fold{fold}{settings}"
    if not (output / LAST_FOLDER).is_dir() or (output / STATE_FOLDER).is_dir():
        options = {"seed": fold} | ({"epochs": 1} if place.quick else {})
        arguments = ["--data", str(data), "--output", str(output), *flags(options), *_model_flags(model)]
        hymate("pretrain", arguments, output, place.study.recipe)
    return output


def hymate(command: str, arguments: list[str], output: Path, recipe: str) -> None:
    """Runs the command in a process of its own; goes on with the run in `output` if one was interrupted there."""
    resume = ["--resume"] if (output / STATE_FOLDER).is_dir() else []
    if output.is_dir() and not resume:
        shutil.rmtree(output)
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    call = [sys.executable, "-m", "hymate_training", command, "--recipe", recipe, *arguments, *resume]
    subprocess.run(call, check=True, env=environment)


def flags(options: dict[str, Any]) -> list[str]:
    """Options as a command line has them."""
    return [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]


def _model_flags(model: Model) -> list[str]:
    return ["--model", *(f"{name}={value}" for name, value in model.model.items())] if model.model else []
