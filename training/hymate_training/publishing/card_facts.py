"""The facts of a model in one table (a model facts label, Sendak et al., 2020), and what no run can know of it.

Items are those of TRIPOD+AI (Collins et al., 2024) that can be told from a run; the others are named as gaps.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from hymate_training.evaluation.metrics import metric_titles
from hymate_training.markdown import as_code, as_name, as_prose
from hymate_training.publishing.card_decisions import recalibration, worst_groups
from hymate_training.publishing.card_text import estimate_text, number_text, table
from modeling_hymate import HyMaTEFeatureExtractor

# items of TRIPOD+AI that no file of a run holds
GAPS = (
    "when, where and in what setting the patients were treated, and what treatments they had",
    "who was eligible, beyond what the preparation left out",
    "how and by whom the outcome was ascertained",
    "why the sample is as large as it is",
    "approval by an ethics committee, and consent",
    "protocol, registration, funding and conflicts of interest",
    "whether patients and the public were involved",
    "who may use the model, with what training, and what they are to do with its answer",
    "who watches the model in use, and when it is updated",
)
HEADLINES = {
    "binary": ("auroc", "auprc"),
    "multiclass": ("accuracy", "auroc_macro"),
    "multilabel": ("auroc_macro", "auprc_macro"),
    "regression": ("mae", "r2"),
    "time_to_event": ("concordance", "auroc_dynamic"),
}


def facts(
    run: Mapping[str, Any],
    evaluations: Sequence[Mapping[str, Any]],
    extractor: HyMaTEFeatureExtractor,
) -> str:
    """The table; empty for a model without a task.

    Args:
        run: the account of its training.
        evaluations: of the model.
        extractor: its feature extractor.
    """
    task, data = run.get("task") or {}, run.get("data") or {}
    if not task:
        return ""
    counts = run.get("num_records") or {}
    patients = [f"{counts[split]:,} in the {split} split" for split in ("train", "validation") if split in counts]
    hours = extractor.trained_hours
    rows = [
        ("outcome", as_prose(" ".join(str(task.get("description") or task["name"]).split()))),
        ("answer", f"{task['problem_type']}: {', '.join(map(as_code, task.get('label_names', [])))}"),
        ("asked", "at the end of a record" if hours is None else f"from hour {hours[0]:g} to hour {hours[1]:g}"),
        ("patients", ", ".join([as_name(data.get("source", "not recorded")), *patients])),
        ("inputs", f"{len(extractor.variables):,} variables, {len(extractor.static_columns)} static columns"),
        *(("tested", _performance(evaluation)) for evaluation in evaluations),
        *(("at the decision threshold", found) for found in map(_decision, evaluations) if found),
        *(("calibration", found) for found in map(recalibration, evaluations) if found),
        *(("worst served", found) for found in map(worst_groups, evaluations) if found),
        ("tested elsewhere", _elsewhere(evaluations, data)),
    ]
    return table(("fact", "of this model"), rows)


def _performance(evaluation: Mapping[str, Any]) -> str:
    titles = metric_titles(evaluation["problem_type"])
    found = [
        f"{titles[name]} {estimate_text(evaluation, name)}"
        for name in HEADLINES[evaluation["problem_type"]]
        if name in evaluation["metrics"]
    ]
    where = [evaluation.get("source"), f"{evaluation['split']} split" if evaluation.get("split") else None]
    return f"{', '.join(as_name(part) for part in where if part)}: {', '.join(found)}"


def _decision(evaluation: Mapping[str, Any]) -> str:
    threshold = evaluation.get("decision_threshold")
    row = next((row for row in evaluation.get("thresholds", []) if row["threshold"] == threshold), None)
    if row is None:
        return ""
    told = {"sensitivity": "sensitivity", "ppv": "PPV", "alarms_per_100_predictions": "alarms per 100 predictions"}
    shown = [f"{title} {number_text(row[name])}" for name, title in told.items() if row[name] is not None]
    return f"alarm from {threshold:.3g} on: {', '.join(shown)}"


def _elsewhere(evaluations: Sequence[Mapping[str, Any]], data: Mapping[str, Any]) -> str:
    """Whether any evaluation is of other data than the training's."""
    others = sorted({str(one["source"]) for one in evaluations if one.get("source") not in (None, data.get("source"))})
    return ", ".join(map(as_name, others)) if others else "no: only on the data it comes from"
