"""Evaluation of a fine-tuned model on a split: metrics with intervals, plots and shares of the attention."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from hymate_training.data.collators import TaskCollator
from hymate_training.data.examples import TaskDataset, ask_at, check_static_columns, load_task
from hymate_training.data.prepared_folder import PreparedFolder, open_prepared
from hymate_training.data.schema import TaskInfo
from hymate_training.data.subgroups import subgroup_columns
from hymate_training.evaluation.alarms import SNOOZE_HOURS, alarm_report, check_snooze
from hymate_training.evaluation.baseline import Baseline, check_baseline, find_baseline
from hymate_training.evaluation.coverage import PROBLEM_TYPES as CONFORMAL_TYPES
from hymate_training.evaluation.coverage import calibrate_sets, coverage_report
from hymate_training.evaluation.decisions import (
    CURVE_THRESHOLDS,
    RATES,
    THRESHOLDS,
    check_thresholds,
    net_benefit,
    threshold_table,
)
from hymate_training.evaluation.gaps import subgroup_gaps
from hymate_training.evaluation.metrics import (
    format_differences,
    format_report,
    metric_titles,
    paired_difference,
    report,
    subgroup_report,
)
from hymate_training.evaluation.plots import save_plots
from hymate_training.evaluation.recalibration import calibration
from hymate_training.evaluation.sample import LabeledPredictions
from hymate_training.evaluation.survival import HORIZON_ESTIMATES, horizon_table
from hymate_training.evaluation.utility import UTILITIES, add_utility, best_threshold
from hymate_training.files import write_json
from hymate_training.inference.checkpoints import (
    RUN_FILE,
    Checkpoint,
    check_json_output,
    label_names,
    load_checkpoint,
    read_kept,
)
from hymate_training.inference.prediction import BATCH_SIZE, Predictions, predict_examples
from modeling_hymate import HyMaTEForSequenceClassification

NUM_SHOWN_VARIABLES = 10


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What an evaluation found.

    Attributes:
        content: what the JSON holds: `metrics`, `confidence_intervals`, `n` and what else `metrics.report` tells,
            `subgroups`, `by_hour` where it was asked for, for binary tasks `calibration`, `net_benefit`,
            `decision_threshold`, `thresholds` and `subgroup_gaps`, of times to an event `horizons`,
            with `alarms` where records are asked many times
            and `baselines` where there is one, the thresholds of `conformal` prediction on the validation split and
            their `coverage` on others, `trained_hours` (of the model), `variable_shares` (mean
            share of the attention) and `plots` (file names).
        output: the JSON file, the plots beside it; None where nothing was written.
    """

    content: dict[str, Any]
    output: Path | None


def check_not_trained_on(checkpoint: Checkpoint, folder: PreparedFolder, task: str, split: str) -> None:
    """Raises ValueError for the validation split of a model's training, if it was refitted on it."""
    run = read_kept(checkpoint.path, RUN_FILE) or {}
    chosen_on = run.get("split_fingerprints", {}).get("validation")
    if "refit" in run and chosen_on == folder.split_fingerprint(task, split):
        raise ValueError(
            f"{checkpoint.path} was trained on the {split} split of {folder.path}, too (refit), so that its metrics "
            "there would mean nothing: choose another split"
        )


def evaluate(
    checkpoint: str | Path | Checkpoint,
    data: str | Path | PreparedFolder,
    task: str,
    split: str = "validation",
    output: str | Path | None = None,
    *,
    at: Sequence[float] | None = None,
    thresholds: Sequence[float] = THRESHOLDS,
    snooze_hours: float = SNOOZE_HOURS,
    baseline: str | Path | None = None,
    baseline_data: str | Path | PreparedFolder | None = None,
    batch_size: int = BATCH_SIZE,
    max_events: int | None = None,
) -> Evaluation:
    """Evaluates a fine-tuned model on a split of a task.

    Where the data set defines what an alarm is worth (`DatasetInfo.extra["utility"]`), the normalized utility is
    added, at the threshold that the checkpoint's own evaluation chose, or else at the one that is best on the
    validation split, whatever `split` is.

    Args:
        checkpoint: the model: its folder, its name on the Hub, or an open checkpoint.
        data: prepared folder.
        task: its task.
        split: train, validation or test.
        output: JSON file to write; plots go beside it.
        at: hours for `by_hour`. A task that asks each record once is asked at each of them instead, of all records
            whose own prediction time, up to which the outcome is open, is not earlier; the predictions of a task that
            asks more often are taken apart at these hours.
        thresholds: of a binary task: probabilities from which on an alarm is raised, for `thresholds` and `alarms`.
            The decision threshold is added: the one that was chosen for the utility, or else the share of positives
            in the checkpoint's own evaluation, or else in this one.
        snooze_hours: how long an alarm keeps others of its record silent, where records are asked many times.
        baseline: for a binary task: another model's predictions, as `read_baseline` takes them, called by the file's
            name; or `"xgboost"`, for trees on summary statistics that are grown for this.
        baseline_data: the prepared folder on whose train split the trees are grown, and on whose validation split they
            are tuned: that of the checkpoint's training. `data` where absent.
        batch_size: records at a time.
        max_events: keep only the latest events of longer records; as in training where absent.

    Returns:
        The evaluation, and where it was written.

    Raises:
        ValueError: if the task is of another kind than the model, if data, task or split are not there, for a
            validation split that a refitted model was trained on, and as `check_json_output` and `load_checkpoint` do.
    """
    if output is not None:
        check_json_output(output, ("task", "split", "variable_shares"))
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    check_thresholds(thresholds)
    check_snooze(snooze_hours)
    opened, folder = load_checkpoint(checkpoint), open_prepared(data)
    task_info = folder.info.task(task)
    check_not_trained_on(opened, folder, task, split)
    check_task(opened.model, task_info)
    check_static_columns(folder, opened.extractor)
    if baseline is not None:
        check_baseline(baseline, task_info)
    answers = _Answers(opened, folder, task_info, split, TaskCollator(opened.extractor, max_events), batch_size)
    dataset, sample = answers.dataset, answers.sample
    content = report(sample, split_fingerprint=answers.split_fingerprint)
    if utility := folder.info.extra.get("utility", {}).get(task):
        add_utility(content, alarm_gains(utility, dataset), sample, answers.utility_threshold(utility))
    if sample.problem_type == "binary":
        training = folder if baseline_data is None else open_prepared(baseline_data)
        other = None if baseline is None else find_baseline(baseline, training, opened, task, dataset)
        chosen = _decision_threshold(opened, task, content)
        content |= answers.decisions(thresholds, chosen, snooze_hours, None if other is None else other.sample)
        if other is not None:
            content["baselines"] = {other.name: _baseline_report(other, answers, training)}
    if sample.problem_type == "time_to_event":
        content["horizons"] = horizon_table(sample, opened.model.config.horizons or [])
    if sample.problem_type in CONFORMAL_TYPES:
        content |= answers.conformal()
    content |= {
        "task": task,
        "split": split,
        "source": folder.info.source,
        "trained_hours": opened.extractor.trained_hours,
        "subgroups": {name: subgroup_report(sample, found) for name, found in answers.groups.items()},
        "variable_shares": answers.variable_shares,
    }
    if at is not None:
        content["by_hour"] = answers.by_hour(at)
    if output is not None:
        output = Path(output)
        content["plots"] = [path.name for path in save_plots(sample, output.parent, output.stem, content)]
        write_json(output, content)
    return Evaluation(content, output)


@dataclass(frozen=True, eq=False)
class _Answers:
    """What a model says of a split of a task, and how good that is."""

    checkpoint: Checkpoint
    data: PreparedFolder
    task: TaskInfo
    split: str
    collator: TaskCollator
    batch_size: int

    @cached_property
    def dataset(self) -> TaskDataset:
        return load_task(self.data, self.task.name, self.split, self.checkpoint.extractor.variables)

    @cached_property
    def predicted(self) -> Predictions:
        return self._predict(self.dataset, f"evaluate {self.split}")

    @cached_property
    def sample(self) -> LabeledPredictions:
        return self._labeled(self.dataset, self.predicted)

    @cached_property
    def groups(self) -> dict[str, np.ndarray]:
        return subgroup_columns(self.dataset)

    @cached_property
    def split_fingerprint(self) -> str:
        return self.data.split_fingerprint(self.task.name, self.split)

    @property
    def variable_shares(self) -> dict[str, float]:
        """Mean share of the attention of each variable that has any, the largest first."""
        shares = self.predicted.variable_shares / max(1, len(self.dataset))
        ranked = [at for at in np.argsort(-shares, kind="stable") if shares[at] > 0]
        return {self.checkpoint.extractor.variables[at]: round(float(shares[at]), 5) for at in ranked}

    def utility_threshold(self, utility: str) -> dict[str, Any]:
        """The threshold that the checkpoint's own evaluation chose, or else the best one on the validation split."""
        known = self.checkpoint.threshold(self.task.name)
        if known is not None:
            return known
        validation = self if self.split == "validation" else replace(self, split="validation")
        return _utility_threshold(self.data, self.task.name, utility, validation.dataset, validation.sample)

    def decisions(
        self,
        thresholds: Sequence[float],
        decision_threshold: float,
        snooze_hours: float,
        baseline: LabeledPredictions | None,
    ) -> dict[str, Any]:
        """What is said of a binary task about decisions, for whom they are worse, and about alarms where records are
        asked many times."""
        sample, shown = self.sample, [*thresholds, decision_threshold]
        content: dict[str, Any] = {
            "calibration": calibration(sample),
            "net_benefit": net_benefit(sample, [*CURVE_THRESHOLDS, *shown], baseline),
            "decision_threshold": decision_threshold,
            "thresholds": threshold_table(sample, shown),
            "subgroup_gaps": subgroup_gaps(sample, self.groups, decision_threshold),
        }
        if not self.dataset.asks_once:
            content["alarms"] = alarm_report(
                sample,
                self.dataset.prediction_times,
                [row["threshold"] for row in content["thresholds"]],
                snooze_hours=snooze_hours,
                label_lead=self.data.info.extra.get("label_leads", {}).get(self.task.name),
            )
        return content

    def conformal(self) -> dict[str, Any]:
        """What the checkpoint's own thresholds cover on another split than theirs; thresholds anew on the validation
        split."""
        names, own = self.task.label_names, self.checkpoint.conformal(self.task.name)
        if own is not None and own["split_fingerprint"] != self.split_fingerprint:
            return {"coverage": coverage_report(self.sample, self.groups, names, own)}
        if self.split != "validation":
            return {}
        place = {"calibrated_on": self.split, "split_fingerprint": self.split_fingerprint}
        return {"conformal": calibrate_sets(self.sample, self.groups, names) | place}

    def by_hour(self, hours: Sequence[float]) -> dict[str, dict[str, Any]]:
        """Hour, or time between two of them -> what `subgroup_report` says of it, in order of time."""
        bounds, dataset, sample = np.unique(np.asarray(hours, dtype=np.float32)), self.dataset, self.sample
        if dataset.asks_once:
            dataset = ask_at(dataset, hours)
            sample = self._labeled(dataset, self._predict(dataset, "evaluate by hour"))
            names = [f"{hour:g}" for hour in bounds]
        else:
            edges = [f"{hour:g}" for hour in bounds]
            between = [f"after {low} to {high}" for low, high in pairwise(edges)]
            names = [f"up to {edges[0]}", *between, f"after {edges[-1]}"]
        group = np.array(names, dtype=object)[bounds.searchsorted(dataset.prediction_times, "left")]
        found = subgroup_report(sample, group)
        return {name: found[name] for name in names if name in found}

    def _predict(self, dataset: TaskDataset, title: str) -> Predictions:
        return predict_examples(
            self.checkpoint.model,
            dataset,
            self.collator,
            self.batch_size,
            horizons=self.checkpoint.model.config.curve_times,
            progress=title,
        )

    def _labeled(self, dataset: TaskDataset, predicted: Predictions) -> LabeledPredictions:
        return labeled(dataset, predicted.values, self.task, self.checkpoint.model.config.curve_times)


def _utility_threshold(
    folder: PreparedFolder, task: str, utility: str, dataset: TaskDataset, sample: LabeledPredictions
) -> dict[str, Any]:
    """The threshold with the largest normalized utility on the validation split, and where it comes from."""
    return {
        "value": best_threshold(alarm_gains(utility, dataset), sample.predictions),
        "chosen_for": "normalized_utility",
        "chosen_on": "validation",
        "split_fingerprint": folder.split_fingerprint(task, "validation"),
    }


def _baseline_report(baseline: Baseline, answers: _Answers, training: PreparedFolder) -> dict[str, Any]:
    """The metrics of a baseline, what it is, and the model's paired differences from it."""
    content, task = report(baseline.sample), answers.task.name
    utility = training.info.extra.get("utility", {}).get(task)
    if utility and baseline.validation:
        threshold = _utility_threshold(training, task, utility, *baseline.validation)
        add_utility(content, alarm_gains(utility, answers.dataset), baseline.sample, threshold)
    settings = {"settings": baseline.settings} if baseline.settings else {}
    return content | settings | {"differences": paired_difference(answers.sample, baseline.sample)}


def _decision_threshold(checkpoint: Checkpoint, task: str, content: Mapping[str, Any]) -> float:
    """From which probability on an alarm is raised where one threshold must do; see `evaluate`."""
    own = checkpoint.evaluation or {}
    known = own if own.get("task") == task and own.get("positives") else content
    chosen = content.get("threshold", {}).get("value"), known["positives"] / known["n"]
    return next((value for value in chosen if value is not None and 0 < value < 1), 0.5)


def labeled(
    dataset: TaskDataset, values: np.ndarray, task: TaskInfo, times: Sequence[float] | None = None
) -> LabeledPredictions:
    """A data set's labels with the model's predictions `(examples, num_labels)` for them, or of a time to an event its
    risks by some `times` `(examples, times)`."""
    if task.problem_type == "binary":
        values = values[:, 1]
    elif task.problem_type == "regression":
        values = values[:, 0]
    names = task.label_names if values.ndim == 2 and times is None else None
    return LabeledPredictions(
        task.problem_type, dataset.labels, values, groups=dataset.record_ids, label_names=names, times=times
    )


def alarm_gains(utility: str, dataset: TaskDataset) -> np.ndarray:
    """What an alarm earns over silence in each example; ValueError for a utility that this release does not know."""
    if utility not in UTILITIES:
        raise ValueError(f"the data set names the utility {utility!r}; known: {', '.join(UTILITIES)}")
    return UTILITIES[utility](dataset.record_ids, dataset.prediction_times, dataset.labels)


def check_task(model: HyMaTEForSequenceClassification, task: TaskInfo) -> None:
    """Raises ValueError if the model was fine-tuned for other labels than the task's. Of a yes or no question, the
    name of yes decides."""
    event, asked = model.config.event, task.label_names
    known = label_names(model) if event is None else (event,)
    if (event is None) != (task.problem_type != "time_to_event"):
        raise ValueError(f"the model was trained for a task of another kind than {task.name!r}, a {task.problem_type}")
    if (known[1:] != asked[1:] or len(known) != len(asked)) if task.problem_type == "binary" else known != asked:
        raise ValueError(f"the model predicts {known}, but task {task.name!r} has the labels {task.label_names}")


def format_evaluation(evaluation: dict[str, Any]) -> str:
    """The metrics, and the variables with the largest share of the attention, as text."""
    shares = list(evaluation["variable_shares"].items())[:NUM_SHOWN_VARIABLES]
    width = max((len(name) for name, _ in shares), default=0)
    lines = [f"{name:<{width}}  {share:6.1%}" for name, share in shares]
    threshold = evaluation.get("threshold")
    by_hour = _format_by_hour(evaluation) if evaluation.get("by_hour") else []
    decisions = [f"alarm from {threshold['value']:.4g} on, chosen on the validation split"] if threshold else []
    if evaluation.get("thresholds"):
        decisions += _format_decisions(evaluation)
    if evaluation.get("horizons"):
        decisions += _format_horizons(evaluation["horizons"])
    for name, found in evaluation.get("baselines", {}).items():
        decisions += ["", format_differences(evaluation["problem_type"], found["differences"], ("model", name))]
    return "\n".join(
        [
            f"{evaluation['task']}, {evaluation['split']} split of {evaluation['source']}",
            format_report(evaluation),
            *decisions,
            *by_hour,
            "",
            "variables by mean share of the attention",
            *lines,
        ]
    )


def _format_decisions(evaluation: Mapping[str, Any]) -> list[str]:
    """Calibration, and one line per threshold with its rates and net benefit."""
    found, curves = evaluation["calibration"], evaluation["net_benefit"]
    parts = [f"{name} {found[name]:.3f}" for name in ("intercept", "slope") if found[name] is not None]
    rows = [["alarm from", "sensitivity", "specificity", "PPV", "NPV", "alarms/100", "net benefit", "alarm always"]]
    for row in evaluation["thresholds"]:
        at = curves["thresholds"].index(row["threshold"])
        numbers = [*(row[name] for name in RATES), curves["model"][at], curves["treat_all"][at]]
        rows.append([f"{row['threshold']:.3g}", *("-" if value is None else f"{value:.3f}" for value in numbers)])
    return ["", *([f"calibration {', '.join(parts)}"] if parts else []), *_aligned(rows)]


def _format_horizons(horizons: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line per horizon: the risk that was observed and the mean of those predicted, AUROC and Brier score."""
    rows = [["within hours", "observed risk", "mean risk", "AUROC", "Brier score"]]
    for row in horizons:
        values = (row[name] for name in HORIZON_ESTIMATES)
        rows.append([f"{row['hours']:g}", *("-" if value is None else f"{value:.3f}" for value in values)])
    return ["", *_aligned(rows)]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]


def _format_by_hour(evaluation: Mapping[str, Any]) -> list[str]:
    """Lines of a table: one row per hour, one column per metric; and what the hours mean for this model."""
    titles = metric_titles(evaluation["problem_type"])
    rows = [["hour", "rows", *(titles[name] for name in evaluation["metrics"])]]
    for hour, found in evaluation["by_hour"].items():
        metrics = (found["metrics"].get(name) for name in evaluation["metrics"])
        rows.append([hour, f"{found['n']:,}", *("-" if value is None else f"{value:.4f}" for value in metrics)])
    trained = evaluation["trained_hours"]
    said = (
        "the model was trained at the end of each record alone, and what it says earlier means little"
        if trained is None
        else f"the model was trained at hours {trained[0]:g} to {trained[1]:g}"
    )
    return ["", f"by hour ({said})", *_aligned(rows)]
