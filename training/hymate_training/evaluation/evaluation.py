"""`hymate evaluate`: figures with intervals, plots and attention shares of a fine-tuned model on a split."""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from hymate_training.data.collation import ExampleDataset, TaskCollator, TaskDataset, check_static_columns, load_task
from hymate_training.data.prepared_folder import read_info, split_fingerprint
from hymate_training.data.schema import TaskInfo
from hymate_training.evaluation.metrics import format_report, report, subgroup_report
from hymate_training.evaluation.plots import save_plots
from hymate_training.evaluation.utility import UTILITIES, add_utility, best_threshold
from hymate_training.fitting.loop import write_json
from hymate_training.inference.prediction import (
    BATCH_SIZE,
    CHECKPOINT_HELP,
    checkpoint_folder,
    label_names,
    load_checkpoint,
    predict_examples,
)
from modeling_hymate import HyMaTEFeatureExtractor, HyMaTEForSequenceClassification

EVALUATION_FILE = "evaluation.json"  # beside a fine-tuned model: its evaluation on the validation split
AGE_BANDS = (45, 65, 80)
MAX_SUBGROUPS = 10
NUM_SHOWN_VARIABLES = 10


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument("--checkpoint", type=Path, required=True, help=CHECKPOINT_HELP)
    parser.add_argument("--data", type=Path, required=True, help="prepared folder")
    parser.add_argument("--task", required=True, help="task of the prepared folder")
    parser.add_argument("--split", default="validation", choices=("train", "validation", "test"))
    parser.add_argument("--output", type=Path, required=True, help="JSON to write; plots go beside it")
    parser.add_argument("--batch-size", type=int, default=BATCH_SIZE, help=f"default: {BATCH_SIZE}")
    parser.add_argument(
        "--max-events", type=int, help="keep the latest events of longer records (default: as in training)"
    )


def run(args: argparse.Namespace) -> str:
    """Evaluates a checkpoint; returns the table to print."""
    if args.output.suffix != ".json":
        raise ValueError(f"--output must end in .json, got {args.output}")
    if args.batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, got {args.batch_size}")
    model, extractor = load_checkpoint(args.checkpoint)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    evaluation = evaluate(
        model,
        extractor,
        args.data,
        args.task,
        args.split,
        args.output,
        args.batch_size,
        args.max_events,
        stored_threshold(checkpoint_folder(args.checkpoint), args.task),
    )
    return f"{format_evaluation(evaluation)}\n\n{args.output}"


def evaluate(
    model: HyMaTEForSequenceClassification,
    extractor: HyMaTEFeatureExtractor,
    data: Path,
    task: str,
    split: str,
    output: Path,
    batch_size: int = BATCH_SIZE,
    max_events: int | None = None,
    threshold: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Evaluates a model on a split of a task; writes the JSON `output` and plots beside it.

    Where the data set defines what an alarm is worth (`DatasetInfo.extra["utility"]`), the normalized utility is
    added, at the given `threshold`, or else at the one that is best on the validation split, whatever `split` is.

    Returns:
        The JSON's content: `metrics`, `confidence_intervals`, `n` and what else `metrics.report` tells, `subgroups`,
        `variable_shares` (mean share of the attention) and `plots` (file names).

    Raises:
        ValueError: if the task is of another kind than the model, or data, task or split are not there.
    """
    info = read_info(data)
    task_info = info.task(task)
    check_task(model, task_info)
    check_static_columns(data, extractor)
    collator = TaskCollator(extractor, max_events)

    def predict(name: str) -> tuple[TaskDataset, np.ndarray, np.ndarray]:
        dataset = load_task(data, task, name, extractor.variables)
        predicted = predict_examples(model, dataset, collator, batch_size, progress=f"evaluate {name}")
        values = np.empty_like(predicted.values)
        values[predicted.indices] = predicted.values
        return dataset, task_predictions(values, task_info), predicted.variable_shares

    dataset, predictions, shares = predict(split)
    names = None if task_info.problem_type == "binary" else task_info.label_names
    evaluation = report(
        task_info.problem_type,
        dataset.labels,
        predictions,
        groups=dataset.record_ids,
        label_names=names,
        split_fingerprint=split_fingerprint(data, task, split),
    )
    if utility := info.extra.get("utility", {}).get(task):
        if threshold is None:
            chosen, probabilities, _ = predict("validation") if split != "validation" else (dataset, predictions, None)
            threshold = {
                "value": best_threshold(alarm_gains(utility, chosen), probabilities),
                "chosen_for": "normalized_utility",
                "chosen_on": "validation",
                "split_fingerprint": split_fingerprint(data, task, "validation"),
            }
        add_utility(evaluation, alarm_gains(utility, dataset), predictions, dataset.record_ids, threshold)
    subgroups = {
        name: subgroup_report(task_info.problem_type, dataset.labels, predictions, groups, groups=dataset.record_ids)
        for name, groups in subgroup_columns(dataset).items()
    }
    shares = shares / max(1, len(dataset))
    ranked = np.argsort(-shares, kind="stable")
    plots = save_plots(
        task_info.problem_type, dataset.labels, predictions, output.parent, output.stem, label_names=names
    )
    evaluation |= {
        "task": task,
        "split": split,
        "source": info.source,
        "subgroups": subgroups,
        "variable_shares": {extractor.variables[at]: round(float(shares[at]), 5) for at in ranked if shares[at] > 0},
        "plots": [path.name for path in plots],
    }
    write_json(output, evaluation)
    return evaluation


def alarm_gains(utility: str, dataset: TaskDataset) -> np.ndarray:
    """What an alarm earns over silence in each example; ValueError for a utility that this release does not know."""
    if utility not in UTILITIES:
        raise ValueError(f"the data set names the utility {utility!r}; known: {', '.join(UTILITIES)}")
    return UTILITIES[utility](dataset.record_ids, dataset.prediction_times, dataset.labels)


def stored_threshold(checkpoint: Path, task: str) -> dict[str, Any] | None:
    """The threshold chosen for a task when the checkpoint was fine-tuned, as its evaluation keeps it; None without."""
    path = checkpoint / EVALUATION_FILE
    if not path.is_file():
        return None
    evaluation = json.loads(path.read_text(encoding="utf-8"))
    return evaluation.get("threshold") if evaluation.get("task") == task else None


def task_predictions(values: np.ndarray, task: TaskInfo) -> np.ndarray:
    """The model's predictions in the shape `metrics` takes for the task's problem type."""
    if task.problem_type == "binary":
        return values[:, 1]
    return values[:, 0] if task.problem_type == "regression" else values


def check_task(model: HyMaTEForSequenceClassification, task: TaskInfo):
    """Raises ValueError if the model was fine-tuned for other labels than the task's. Of a yes or no question, the
    name of yes decides."""
    known, asked = label_names(model), task.label_names
    if (known[1:] != asked[1:] or len(known) != len(asked)) if task.problem_type == "binary" else known != asked:
        raise ValueError(f"the model predicts {known}, but task {task.name!r} has the labels {task.label_names}")


def subgroup_columns(dataset: ExampleDataset) -> dict[str, np.ndarray]:
    """Subgroup of each example by every static column that has few values, and by age in bands."""
    columns = {}
    for name, column in dataset.events.static.items():
        found = column[dataset.rows]
        if name.lower() == "age" and found.dtype.kind == "f":
            columns[name] = np.array([_age_band(age) for age in found], dtype=object)
        elif len({value for value in found if isinstance(value, str)}) in range(1, MAX_SUBGROUPS + 1):
            columns[name] = np.array(["unknown" if value is None else value for value in found], dtype=object)
    return columns


def _age_band(age: float | None) -> str:
    if age is None or np.isnan(age):
        return "unknown"
    bounds = (0, *AGE_BANDS)
    band = int(np.searchsorted(AGE_BANDS, age, side="right"))
    return f"{bounds[band]} and over" if band == len(AGE_BANDS) else f"{bounds[band]} to {bounds[band + 1] - 1}"


def format_evaluation(evaluation: dict[str, Any]) -> str:
    """The figures, and the variables with the largest share of the attention, as text."""
    shares = list(evaluation["variable_shares"].items())[:NUM_SHOWN_VARIABLES]
    width = max((len(name) for name, _ in shares), default=0)
    lines = [f"{name:<{width}}  {share:6.1%}" for name, share in shares]
    threshold = evaluation.get("threshold")
    decisions = [f"alarm from {threshold['value']:.4g} on, chosen on the validation split"] if threshold else []
    return "\n".join(
        [
            f"{evaluation['task']}, {evaluation['split']} split of {evaluation['source']}",
            format_report(evaluation),
            *decisions,
            "",
            "variables by mean share of the attention",
            *lines,
        ]
    )
