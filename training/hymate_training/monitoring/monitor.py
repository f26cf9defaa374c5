"""`monitor`: whether a month of new records is like the records that a model was trained on."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from hymate_training.data.collators import TaskCollator
from hymate_training.data.examples import ExampleDataset, last_times
from hymate_training.data.exports import Layout
from hymate_training.data.tables import UNKNOWN, read_frame, refuse
from hymate_training.evaluation.aggregates import describe, names_one_answer, scores_of
from hymate_training.evaluation.metrics import SMALLEST_GROUP, report
from hymate_training.evaluation.recalibration import calibration
from hymate_training.evaluation.sample import LabeledPredictions
from hymate_training.files import write_file, write_json
from hymate_training.inference.checkpoints import MONITORING_FILE, Checkpoint, load_checkpoint
from hymate_training.inference.prediction import BATCH_SIZE, predict_examples, read_export
from hymate_training.inference.records import read_records
from hymate_training.monitoring.drift import P_LIMIT, PSI_LIMIT, compare
from hymate_training.monitoring.page import render_page
from hymate_training.publishing.schemas import read_monitoring
from modeling_hymate import Events

MONITOR_FILE = "monitor.json"
PAGE = "index.html"
KNOWN_LIMIT = 0.95  # share of the events whose variable the model knows
INTERCEPT_LIMIT = 0.2  # log-odds: probabilities are off by a factor of 1.2 and more, on average
SLOPE_LIMITS = (0.8, 1.25)
LIMITS = {
    "stability_index": PSI_LIMIT,
    "corrected_p_value": P_LIMIT,
    "known_share": KNOWN_LIMIT,
    "calibration_intercept": INTERCEPT_LIMIT,
    "calibration_slope": list(SLOPE_LIMITS),
}


@dataclass(frozen=True, eq=False)
class Monitoring:
    """What a comparison with the training data found.

    Attributes:
        content: what monitor.json holds: `shifted`, `reasons`, `num_records`, `limits`, `known_share`, `comparisons`
            as `drift.compare` returns them, `calibration` where there are labels.
        output: the folder that was written.
    """

    content: dict[str, Any]
    output: Path | None

    @property
    def shifted(self) -> bool:
        """Whether any limit is passed."""
        return bool(self.content["shifted"])


def monitor(
    checkpoint: str | Path | Checkpoint,
    events: Any,
    static: Any = None,
    labels: str | Path | pl.DataFrame | None = None,
    output: str | Path | None = None,
    *,
    max_events: int | None = None,
    batch_size: int = BATCH_SIZE,
    start: str | Path | None = None,
    layout: Layout | None = None,
) -> Monitoring:
    """Compares new records with those that a model was trained on, each up to where it is asked about.

    Events of variables that the model does not know are counted and left out. Nothing of the training records is
    needed but the aggregates that `hymate finetune` keeps in the checkpoint.

    Args:
        checkpoint: a fine-tuned model: its folder, its name on the Hub, or an open checkpoint.
        events: as `predict` takes them; records should end where the model would be asked.
        static: the same.
        labels: CSV or Parquet file, or a frame, of a binary task once outcomes are known: `record_id` and `label`, 0
            or 1. Records without one are not looked at.
        output: folder for monitor.json and index.html.
        max_events: keep only the latest events of longer records; as in training where absent.
        batch_size: records at a time.
        start: of a hospital's files, as `predict` takes it.
        layout: the same.

    Returns:
        What was found, and where it was written.

    Raises:
        ValueError: for a checkpoint without aggregates of its training data, fewer than `SMALLEST_GROUP` records,
            labels that do not fit, an output with a page of something else, and as `predict` does.
    """
    if output is not None:
        output = Path(output)
        _check_output(output)
    opened = load_checkpoint(checkpoint)
    path = opened.path / MONITORING_FILE
    if not path.is_file():
        raise ValueError(
            f"{opened.path} lacks {MONITORING_FILE}, the aggregates of its training data: fine-tune it again"
        )
    reference = read_monitoring(path)
    if isinstance(events, list):
        events, static, _ = read_export(opened, events, static, start, layout)
    read = read_records(opened.extractor, events, static, ignore_unknown_variables=True).events
    records = read.take(np.flatnonzero(read.lengths > 0))
    if len(records) < SMALLEST_GROUP:
        raise ValueError(f"{len(records)} records are too few to compare: at least {SMALLEST_GROUP} are needed")
    dataset = ExampleDataset(records, np.arange(len(records)), last_times(records))
    predicted = predict_examples(
        opened.model, dataset, TaskCollator(opened.extractor, max_events), batch_size, progress="monitor"
    ).values
    described = describe(records, opened.extractor.variables, records.static)
    described["score"] = scores_of(opened.model, predicted)
    ignored = records.ignored.total()
    content: dict[str, Any] = {
        "checkpoint": opened.path.name,
        "task": reference["task"],
        "num_records": len(records),
        "num_training_records": reference["num_records"],
        "num_left_out": len(read) - len(records),
        "known_share": len(records.times) / (len(records.times) + ignored),
        "limits": dict(LIMITS),
        "comparisons": compare(reference["counts"], described),
        "calibration": None if labels is None else _calibration(opened, records, predicted, labels),
    }
    content["reasons"] = _reasons(content)
    content["shifted"] = bool(content["reasons"])
    if output is not None:
        write_json(output / MONITOR_FILE, content)
        write_file(output / PAGE, render_page(content, opened.extractor.units))
    return Monitoring(content, output)


def _check_output(folder: Path) -> None:
    if (folder / PAGE).exists() and not (folder / MONITOR_FILE).is_file():
        raise ValueError(f"{folder / PAGE} is there already, and no page of `hymate monitor`: name another folder")


def _calibration(
    checkpoint: Checkpoint, records: Events, values: np.ndarray, labels: str | Path | pl.DataFrame
) -> dict[str, Any]:
    """Calibration and metrics of the records whose outcome is known."""
    name = "labels" if isinstance(labels, pl.DataFrame) else str(labels)
    frame = labels if isinstance(labels, pl.DataFrame) else read_frame(labels, UNKNOWN)
    if not names_one_answer(checkpoint.model):
        raise ValueError(f"{name}: calibration is checked for binary tasks only")
    if missing := [column for column in ("record_id", "label") if column not in frame.columns]:
        raise ValueError(f"{name} lacks the column {missing[0]!r}; it has {', '.join(frame.columns)}")
    frame = frame.with_columns(pl.col("record_id").cast(pl.String), pl.col("label").cast(pl.Float64, strict=False))
    refuse(name, frame["record_id"].is_duplicated(), "record_id named before, or again below")
    refuse(name, ~frame["label"].is_in([0.0, 1.0]).fill_null(False), "label must be 0 or 1")
    known = pl.DataFrame({"record_id": records.record_ids}).join(
        frame, on="record_id", how="left", maintain_order="left"
    )
    outcome = known["label"].to_numpy()
    found = ~np.isnan(outcome)
    if found.sum() < SMALLEST_GROUP:
        raise ValueError(f"{name} holds {found.sum()} of the records: at least {SMALLEST_GROUP} are needed")
    sample = LabeledPredictions("binary", outcome[found], values[found, 1])
    measured = report(sample)
    return {
        **{key: measured[key] for key in ("n", "positives", "metrics", "undefined")},
        **calibration(sample),
        "metric_intervals": measured["confidence_intervals"],
    }


def _reasons(content: dict[str, Any]) -> list[str]:
    """Each limit that is passed, in words."""
    reasons = []
    if content["known_share"] < KNOWN_LIMIT:
        reasons.append(f"only {content['known_share']:.1%} of the events are of variables that the model knows")
    reasons += [
        f"{KIND_WORDS[row['kind']].format(name=row['name'])} (stability index {row['stability_index']:.2f})"
        for row in content["comparisons"]
        if row["shifted"]
    ]
    found = content["calibration"]
    if found is not None:
        reasons += _off(found, "intercept", (-INTERCEPT_LIMIT, INTERCEPT_LIMIT))
        reasons += _off(found, "slope", SLOPE_LIMITS)
    return reasons


def _off(found: dict[str, Any], name: str, limits: Sequence[float]) -> list[str]:
    interval = found["confidence_intervals"][name]
    if interval is None or (interval[0] <= limits[1] and interval[1] >= limits[0]):
        return []
    return [f"the calibration {name} is {found[name]:.2f} [{interval[0]:.2f}, {interval[1]:.2f}]"]


KIND_WORDS = {
    "measured": "{name}: measured in another share of the records",
    "value": "{name}: other values",
    "timing": "{name}: other numbers than in the training records",
    "static": "{name}: distributed otherwise",
    "score": "predictions of {name}: distributed otherwise",
}
