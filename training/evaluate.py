"""`hymate evaluate`: figures with intervals, plots and attention shares of a fine-tuned model on a split."""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from hymate_training.collation import ExampleDataset, TaskCollator, load_task
from hymate_training.loop import write_json
from hymate_training.metrics import format_report, report, subgroup_report
from hymate_training.plots import save_plots
from hymate_training.predict import BATCH_SIZE, label_names, load_checkpoint, predict_examples
from hymate_training.records import TaskInfo, read_info, split_fingerprint
from modeling_hymate import HyMaTEFeatureExtractor, HyMaTEForSequenceClassification

AGE_BANDS = (45, 65, 80)
MAX_SUBGROUPS = 10
NUM_SHOWN_VARIABLES = 10


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder of a fine-tuned model")
    parser.add_argument("--data", type=Path, required=True, help="prepared folder")
    parser.add_argument("--task", required=True, help="task of the prepared folder")
    parser.add_argument("--split", default="validation", choices=("train", "validation", "test"))
    parser.add_argument("--output", type=Path, required=True, help="JSON to write; plots go beside it")
    parser.add_argument("--batch-size", type=int, default=BATCH_SIZE, help=f"default: {BATCH_SIZE}")
    parser.add_argument("--max-events", type=int, help="keep the latest events of longer records")


def run(args: argparse.Namespace) -> str:
    """Evaluates a checkpoint; returns the table to print."""
    if args.output.suffix != ".json":
        raise ValueError(f"--output must end in .json, got {args.output}")
    model, extractor = load_checkpoint(args.checkpoint)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    evaluation = evaluate(
        model, extractor, args.data, args.task, args.split, args.output, args.batch_size, args.max_events
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
) -> dict[str, Any]:
    """Evaluates a model on a split of a task; writes the JSON `output` and plots beside it.

    Returns:
        The JSON's content: `metrics`, `confidence_intervals`, `n` and what else `metrics.report` tells, `subgroups`,
        `variable_shares` (mean share of the attention) and `plots` (file names).

    Raises:
        ValueError: if the task is of another kind than the model, or data, task or split are not there.
    """
    info = read_info(data)
    task_info = info.task(task)
    check_task(model, task_info)
    dataset = load_task(data, task, split, extractor.variables)
    collator = TaskCollator(extractor, max_events)
    predicted = predict_examples(model, dataset, collator, batch_size, progress=f"evaluate {split}")
    values = np.empty_like(predicted.values)
    values[predicted.indices] = predicted.values
    predictions = task_predictions(values, task_info)
    evaluation = report(
        task_info.problem_type,
        dataset.labels,
        predictions,
        groups=dataset.record_ids,
        label_names=None if task_info.problem_type == "binary" else task_info.label_names,
        split_fingerprint=split_fingerprint(data, task, split),
    )
    subgroups = {
        name: subgroup_report(task_info.problem_type, dataset.labels, predictions, groups, groups=dataset.record_ids)
        for name, groups in subgroup_columns(dataset).items()
    }
    shares = predicted.variable_shares / max(1, len(dataset))
    ranked = np.argsort(-shares, kind="stable")
    plots = save_plots(task_info.problem_type, dataset.labels, predictions, output.parent, output.stem)
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


def task_predictions(values: np.ndarray, task: TaskInfo) -> np.ndarray:
    """The model's predictions in the shape `metrics` takes for the task's problem type."""
    if task.problem_type == "binary":
        return values[:, 1]
    return values[:, 0] if task.problem_type == "regression" else values


def check_task(model: HyMaTEForSequenceClassification, task: TaskInfo):
    """Raises ValueError if the model was fine-tuned for other labels than the task's."""
    known = label_names(model)
    if known != task.label_names:
        raise ValueError(f"the model predicts {known}, but task {task.name!r} has the labels {task.label_names}")


def subgroup_columns(dataset: ExampleDataset) -> dict[str, np.ndarray]:
    """Subgroup of each example by every static column that has few values, and by age in bands."""
    columns = {}
    for name, column in dataset.events.static.items():
        found = column[dataset.rows]
        if name.lower() == "age":
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
    return "\n".join(
        [
            f"{evaluation['task']}, {evaluation['split']} split of {evaluation['source']}",
            format_report(evaluation),
            "",
            "variables by mean share of the attention",
            *lines,
        ]
    )
