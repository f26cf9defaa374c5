"""One unit of work: one model on one fold, its metrics in a small JSON file."""

import json
import os
import shutil
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.evidence.folds import TASK, prepare_fold
from experiments.evidence.models import MODELS, Model
from hymate_training.data.collators import TaskCollator
from hymate_training.data.examples import load_task, outcomes_array
from hymate_training.data.prepared_folder import PreparedFolder
from hymate_training.data.subgroups import subgroup_columns
from hymate_training.evaluation.coverage import coverage_report
from hymate_training.evaluation.decisions import alarm_counts, benefit, class_counts
from hymate_training.evaluation.evaluation import labeled
from hymate_training.evaluation.metrics import bootstrap_samples, compute_metrics
from hymate_training.evaluation.resampling import Resampler
from hymate_training.evaluation.sample import LabeledPredictions
from hymate_training.files import write_file
from hymate_training.fitting.loop import LAST_FOLDER
from hymate_training.fitting.state import STATE_FOLDER
from hymate_training.inference.checkpoints import RUN_FILE, load_checkpoint
from hymate_training.inference.prediction import predict_examples

RECIPE = "physionet2012"
FIGURES = ("auroc", "auprc", "log_loss")  # whose resamples are kept, so that differences are paired later on
THRESHOLDS = (0.05, 0.1, 0.2, 0.3, 0.5)  # at which resamples of the net benefit are kept as well
NUM_SAMPLES = 400
PACKAGES = ("hymate", "torch", "transformers", "xgboost-cpu", "scikit-learn")


def result_path(results: Path, name: str, percent: int, fold: int) -> Path:
    """Where a unit's metrics lie."""
    return results / f"{name}-{percent}-fold{fold}.json"


def run_unit(
    name: str, percent: int, fold: int, prepared: Path, folds: list[list[str]], work: Path, results: Path, quick: bool
) -> None:
    """Trains and evaluates unless the metrics are there already.

    They hold no record: the metrics of the test split, and those of bootstrap resamples of it, the same for
    every model, so that two models' differences have paired intervals.
    """
    path = result_path(results, name, percent, fold)
    if path.is_file():
        return
    model = MODELS[name]
    kind = f"fold{fold}-{percent}" + ("" if model.static else "-no-static")
    data = prepare_fold(prepared, folds, fold, percent, model.static, work / "data" / kind)
    started = time.perf_counter()
    if model.baseline is not None:
        probabilities = model.baseline(data, fold)
        about: dict[str, Any] = {}
    else:
        output = work / "runs" / f"{name}-{percent}-fold{fold}"
        probabilities, about = finetune(model, data, percent, fold, work, output, quick)
    named = {"model": name, "percent": percent, "fold": fold, "seed": fold}
    write_unit(path, named, PreparedFolder(data), TASK, probabilities, about, started)
    if model.baseline is None:
        shutil.rmtree(output)


def write_unit(
    path: Path,
    named: dict[str, Any],
    folder: PreparedFolder,
    task: str,
    probabilities: np.ndarray,
    about: dict[str, Any],
    started: float,
) -> None:
    """Writes the metrics of the test split and of resamples of its records, the same for every model of a fold.

    Args:
        path: file to write.
        named: what the unit is, its `fold` among it.
        folder: the fold.
        task: a binary task of it.
        probabilities: of the test split's examples.
        about: how the run went.
        started: `time.perf_counter()` when it began.
    """
    table = folder.task(task, "test")
    labels = outcomes_array(table, folder.info.task(task))
    records = table["record_id"].to_pylist()
    asks_once = len(set(records)) == len(records)
    sample = LabeledPredictions("binary", labels, probabilities, groups=None if asks_once else records)
    samples = bootstrap_samples(sample, num_samples=NUM_SAMPLES, seed=named["fold"])
    worth, worth_samples = benefits(sample, Resampler(sample.num_records, num_samples=NUM_SAMPLES, seed=named["fold"]))
    write_compact(
        path,
        {
            **named,
            "n": len(labels),
            "positives": int(labels.sum()),
            "split_fingerprint": folder.split_fingerprint(task, "test"),
            "metrics": compute_metrics(sample) | worth,
            **about,
            "seconds": round(time.perf_counter() - started),
            "versions": {package: version(package) for package in PACKAGES},
            "samples": {figure: np.round(samples[figure], 4).tolist() for figure in FIGURES}
            | {figure: np.round(values, 5).tolist() for figure, values in worth_samples.items()},
        },
    )


def benefits(sample: LabeledPredictions, resampler: Resampler) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Net benefit of the model and of an alarm for all at each of `THRESHOLDS`, and in resamples."""
    chosen = np.array(THRESHOLDS)
    model, classes = alarm_counts(sample, chosen), class_counts(sample)
    everyone = np.repeat(classes[..., None], len(chosen), axis=-1)
    points, samples = {}, {}
    for who, alarms in (("model", model), ("treat_all", everyone)):
        point = benefit(alarms.sum(axis=0), classes.sum(axis=0), chosen)
        drawn = benefit(resampler.sums(alarms), resampler.sums(classes), chosen)
        for at, threshold in enumerate(THRESHOLDS):
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


def finetune(
    model: Model, data: Path, percent: int, fold: int, work: Path, output: Path, quick: bool
) -> tuple[np.ndarray, dict[str, Any]]:
    """Fine-tunes by the recipe; returns the test split's probabilities, and how the run went."""
    options: dict[str, Any] = {"seed": fold, **model.finetune}
    if percent < 100:  # fewer batches an epoch, so more epochs
        options["epochs"] = options["patience"] = round(options["epochs"] * (100 / percent) ** 0.5)
    if quick:
        options["epochs"] = 1
    arguments = ["--data", str(data), "--task", TASK, "--output", str(output)]
    if model.pretrained:
        arguments += ["--checkpoint", str(pretrain(data, fold, work, quick))]
    hymate("finetune", [*arguments, *flags(options), *_model_flags(model)], output)
    return test_probabilities(output, PreparedFolder(data), TASK)


def test_probabilities(run: Path, folder: PreparedFolder, task: str) -> tuple[np.ndarray, dict[str, Any]]:
    """What a fine-tuned model says of the test split, and how its run went."""
    checkpoint = load_checkpoint(run)
    dataset = load_task(folder, task, "test", checkpoint.extractor.variables)
    predicted = predict_examples(checkpoint.model, dataset, TaskCollator(checkpoint.extractor))
    account = json.loads((run / RUN_FILE).read_text())
    probabilities = predicted.values[:, 1].astype(np.float64)
    conformal, info = checkpoint.conformal(task), folder.info.task(task)
    covered = conformal and coverage_report(
        labeled(dataset, predicted.values, info), subgroup_columns(dataset), info.label_names, conformal
    )
    return probabilities, {
        "recipe": account["recipe"],
        "parameters": account["parameters"],
        "best_step": account["best_step"],
        "coverage": covered,
        "temperature": checkpoint.model.config.temperature,
        "seconds_an_epoch": round(float(np.median([epoch["seconds"] for epoch in account["history"]])), 1),
    }


def pretrain(data: Path, fold: int, work: Path, quick: bool) -> Path:
    """The encoder pretrained on the fold's training records, which all percentages share."""
    output = work / "pretrained" / f"fold{fold}"
    if not (output / LAST_FOLDER).is_dir() or (output / STATE_FOLDER).is_dir():
        options = {"seed": fold} | ({"epochs": 1} if quick else {})
        hymate("pretrain", ["--data", str(data), "--output", str(output), *flags(options)], output)
    return output


def hymate(command: str, arguments: list[str], output: Path, recipe: str = RECIPE) -> None:
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
