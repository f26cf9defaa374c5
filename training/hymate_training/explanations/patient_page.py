"""Pages about single records: what was predicted and beside what, the risk over time, what it rests on."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from markupsafe import Markup

from hymate_training.explanations.attribution import (
    METHODS,
    Explainer,
    Explanation,
    explain_by_every_method,
    progress_bar,
)
from hymate_training.explanations.background import LEVEL, Background
from hymate_training.explanations.cohort import Cohort
from hymate_training.explanations.figures import capitalized, spoken
from hymate_training.explanations.markup import render, table_html
from hymate_training.explanations.patient_figures import (
    HOURS,
    TIMELINE_VARIABLES,
    risk_figure,
    shown_movers,
    timeline_figure,
    trajectory_figure,
)
from hymate_training.explanations.pictures import Picture
from hymate_training.explanations.static_columns import static_effects, static_shares
from hymate_training.explanations.trajectory import Trajectory, risk_curve, risk_trajectory
from hymate_training.inference.hours import HOW_TO_TRAIN, said_of_training

SHOWN_BY = "occlusion"  # the method of the figure and of the table; all are in the last table
GROUNDS_SHOWN = 8
NAMES_SHOWN = 24
OFTEN_MEASURED = 0.5  # of the training records


@dataclass(frozen=True)
class Patient:
    """One record, explained.

    Attributes:
        cohort: of this record alone.
        explanations: method -> its explanation.
        trajectory: the prediction while events arrive.
        statics: as `static_effects` returns them.
        background: what the prediction is set beside.
        probability: whether that is a probability.
        curve: as `risk_curve` returns it.
    """

    cohort: Cohort
    explanations: Mapping[str, Explanation]
    trajectory: Trajectory
    statics: pl.DataFrame
    background: Background
    probability: bool
    curve: pl.DataFrame | None = None

    @property
    def record_id(self) -> str:
        return self.cohort.record_ids[0]

    @property
    def label(self) -> str:
        return self.background.label

    @property
    def prediction(self) -> float:
        return float(self.explanations[SHOWN_BY].records["prediction"][0])

    @property
    def hour(self) -> float:
        """The hour at which the record is asked."""
        return float(self.cohort.hours[0])

    @property
    def started(self) -> datetime | None:
        """When the record began, by the clock; None where that is not known."""
        return None if self.cohort.starts is None else self.cohort.starts[0]

    @property
    def units(self) -> Mapping[str, str]:
        return self.cohort.units

    def shown(self, prediction: float) -> str:
        """A prediction in words."""
        if self.probability:
            return f"{prediction:.1%}"
        return f"{prediction:.4g} {self.units.get(self.label, '')}".strip()

    def moment(self, hour: float) -> str:
        """A time as the page gives it: by the clock where that is known, and in hours."""
        if self.started is None:
            return f"hour {hour:.1f}"
        return f"{self.started + timedelta(hours=hour):%Y-%m-%d %H:%M} (hour {hour:.1f})"


def page_names(record_ids: Sequence[str]) -> list[str]:
    """File names for records, whatever their ids hold, which differ on any file system; the same for the same ids."""
    names = ["index"]  # which the list of the pages has
    for position, record_id in enumerate(record_ids):
        name = re.sub(r"[^A-Za-z0-9_-]", "_", record_id)[:80]
        taken = name.lower() in {other.lower() for other in names}
        names.append(f"{name}_{position}" if taken else name)
    return names[1:]


def write_patient_pages(
    folder: Path,
    explainer: Explainer,
    patients: Cohort,
    background: Background,
    findings: Sequence[Mapping[str, str]] = (),
    *,
    window_hours: float = 6.0,
    progress: bool = False,
) -> None:
    """Writes a page for each of the records, and a list of them, highest predictions first.

    Args:
        folder: where to write; made where there is a record.
        explainer: the model and the output that is explained.
        patients: the records.
        background: what their predictions are set beside.
        findings: what was found about the methods over a cohort, as `faithfulness.findings` says it.
        window_hours: width of occlusion's windows.
        progress: show a progress bar.
    """
    if not len(patients):
        return
    folder.mkdir(parents=True)
    listed = []
    names = page_names(patients.record_ids)
    for row, name in enumerate(progress_bar("patients" if progress else None, names, unit="page")):
        patient = explained_patient(explainer, patients.take(np.array([row])), background, window_hours=window_hours)
        page = patient_page(patient, explainer, findings, window_hours)
        (folder / f"{name}.html").write_text(page, encoding="utf-8")
        listed.append((patient, name))
    listed.sort(key=lambda found: -found[0].prediction)
    page = render(
        "explanation_patients.html.j2",
        title=patients.title,
        question=patients.question,
        label=background.label,
        base_rate=None if background.base_rate is None else f"{background.base_rate:.1%}",
        performance=background.in_words(),
        patients=[
            (patient.record_id, f"{name}.html", patient.shown(patient.prediction), patient.moment(patient.hour))
            for patient, name in listed
        ],
    )
    (folder / "index.html").write_text(page, encoding="utf-8")


def explained_patient(
    explainer: Explainer, cohort: Cohort, background: Background, *, window_hours: float = 6.0
) -> Patient:
    """Explains the one record of a cohort by every method."""
    return Patient(
        cohort,
        explain_by_every_method(explainer, cohort.events, window_hours=window_hours),
        risk_trajectory(explainer, cohort.events),
        static_effects(explainer, cohort.events),
        background,
        explainer.predicts_probability,
        risk_curve(explainer, cohort.events),
    )


def patient_page(
    patient: Patient, explainer: Explainer, findings: Sequence[Mapping[str, str]], window_hours: float
) -> str:
    """The page of one record as HTML."""
    cohort, extractor = patient.cohort, explainer.extractor
    grounds = grounds_of(patient, explainer, window_hours)
    moved = shown_movers(patient.trajectory)
    return render(
        "explanation_patient.html.j2",
        record_id=patient.record_id,
        title=cohort.title,
        question=cohort.question,
        label=patient.label,
        asked=f"Answered at {patient.moment(patient.hour)}"
        + (", the time of its last event" if cohort.at_last_event else ""),
        tiles=tiles(patient),
        decision=decision_sentence(patient),
        outcome=outcome_sentence(patient),
        facts=static_facts(patient),
        static_share=_static_share(patient),
        findings=findings,
        untrained=untrained_sentence(patient.trajectory, extractor.trained_hours),
        how_to_train=f"To follow patients, {HOW_TO_TRAIN.replace('`', '')}.",
        base_rate=patient.background.base_rate,
        has_intervals=bool(np.isfinite(patient.background.intervals(np.array([patient.prediction]))).all()),
        probability=patient.probability,
        figures={picture.name: picture.html() for picture in patient_pictures(patient)},
        grounds=_grounds_table(patient, grounds),
        movers=_movers_table(patient, moved) if moved.height else None,
        unmeasured=unmeasured(patient, extractor.variables),
        events=_events_table(patient),
    )


# ----------------------------------------------------------------------------------------------- beside the prediction


def tiles(patient: Patient) -> list[tuple[str, str]]:
    """The prediction and what it is set beside: a number and what it is, each."""
    prediction, background = patient.prediction, patient.background
    what = f"predicted probability of {patient.label}" if patient.probability else f"predicted {patient.label}"
    found = [(patient.shown(prediction), what)]
    middle, low, high = background.intervals(np.array([prediction]))[0]
    if np.isfinite(low) and patient.probability:
        found.append(
            (
                f"{low:.0%} to {high:.0%}",
                f"95% interval: {middle:.0%} of validation records with such a prediction had the outcome "
                f"{patient.label}",
            )
        )
    elif np.isfinite(low):
        found.append(
            (f"{patient.shown(low)} to {patient.shown(high)}", f"holds the true number for {LEVEL:.0%} of records")
        )
    if background.outcomes is not None:
        size = "{:,} of {:,} on the validation split".format(*background.outcomes)
        found.append((f"{background.base_rate:.1%}", f"base rate of {patient.label}: {size}"))
    elif observed := background.observed(patient.label):
        found.append((observed, f"observed risk of {patient.label} on the validation split, with its 95% interval"))
    if (rank := background.rank(prediction)) is not None:
        found.append((_place(*rank), "of the validation records have a lower prediction"))
    return found


def _place(low: float, high: float) -> str:
    if high > 1 - 1e-9:
        return f"over {low:.0%}"
    return f"under {high:.0%}" if low < 1e-9 else f"{low:.0%} to {high:.0%}"


def decision_sentence(patient: Patient) -> str | None:
    """On which side of the evaluation's threshold the prediction is, and which labels cannot be excluded."""
    prediction, background = patient.prediction, patient.background
    said = []
    if (threshold := background.threshold) is not None:
        side = "at or above" if prediction >= threshold else "below"
        said.append(f"This is {side} the threshold of the evaluation, {threshold:.1%}.")
    if (held := background.prediction_set(prediction)) is not None:
        labels = " and ".join(held) or "no label"
        said.append(f"A set of labels that holds the true one for {LEVEL:.0%} of records: {labels}.")
    return " ".join(said) or None


def outcome_sentence(patient: Patient) -> str | None:
    """What happened, and when where that was asked; None where it is not known."""
    if patient.cohort.outcomes is None:
        return None
    outcome = str(patient.cohort.outcomes[0])
    if patient.cohort.sight is None:
        return outcome
    hour, came = patient.cohort.sight[0].tolist()
    return f"{outcome} {'at' if came else 'until'} {patient.moment(hour)}, {hour - patient.hour:.0f} hours later"


def static_facts(patient: Patient) -> list[tuple[str, str, str]]:
    """Each static column in words, its value, and its effect."""
    score = float(patient.explanations[SHOWN_BY].records["score"][0])
    effects = dict(zip(patient.statics["column"], patient.statics["attribution"], strict=True))
    return [
        (
            spoken(name),
            describe(column[0], patient.units.get(name, "")),
            _change(patient, score, effects[name]) if name in effects else "",
        )
        for name, column in patient.cohort.events.static.items()
    ]


def _static_share(patient: Patient) -> str | None:
    shares = static_shares(patient.statics, patient.explanations[SHOWN_BY].variables)
    return f"{shares['share'].sum():.0%}" if shares.height else None


def _change(patient: Patient, score: float, attribution: float) -> str:
    """By how much the prediction is moved by what moves the score so, with its direction."""
    change = patient.prediction - float(_predicted(patient, score - attribution))
    arrow = "▲" if attribution > 0 else "▼" if attribution < 0 else "·"
    return f"{arrow} {100 * change:+.1f}" if patient.probability else f"{arrow} {change:+.3g}"


def _predicted(patient: Patient, score: float) -> float:
    return float(np.exp(-np.logaddexp(0, -score))) if patient.probability else score


def describe(value: Any, unit: str) -> str:
    """A static value in words."""
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return "unknown"
    return f"{value:g} {unit}".strip() if isinstance(value, int | float | np.number) else str(value)


def untrained_sentence(trajectory: Trajectory, trained_hours: list[float] | None) -> str | None:
    """What the gray part of a trajectory means; None where there is none."""
    if trajectory.predictions["trained"].all():
        return None
    return (
        f"Gray and dashed: the model {said_of_training(trained_hours)}, and what it says at other times means little."
    )


def unmeasured(patient: Patient, variables: Sequence[str]) -> dict[str, str]:
    """Which variables have no event, those that most training records have first: `often`, `seldom`, in words."""
    seen = set(patient.explanations[SHOWN_BY].events["variable"])
    absent = {name: patient.background.measured_share(name) or 0.0 for name in variables if name not in seen}
    ranked = sorted(absent, key=lambda name: (-absent[name], name))
    often = [f"{spoken(name)} ({absent[name]:.0%})" for name in ranked if absent[name] >= OFTEN_MEASURED]
    seldom = [spoken(name) for name in ranked if absent[name] < OFTEN_MEASURED]
    return {"often": _listed(often), "seldom": _listed(seldom)}


def _listed(names: Sequence[str]) -> str:
    rest = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {rest:,} more" if rest > 0 else "")


# ---------------------------------------------------------------------------------------------------- what it rests on


def grounds_of(patient: Patient, explainer: Explainer, window_hours: float) -> pl.DataFrame:
    """What moves the prediction most: a variable's events within a window of hours, removed together.

    Returns:
        `variable`, `first` and `last` (hours), `low` and `high` (values, null: none), `events`, `attribution`; the
        largest first.
    """
    hour = (pl.col("time") / window_hours).floor()
    return (
        patient.explanations[SHOWN_BY]
        .events.group_by("variable", hour.alias("window"), maintain_order=True)
        .agg(
            first=pl.col("time").min(),
            last=pl.col("time").max(),
            low=pl.col("value").min(),
            high=pl.col("value").max(),
            events=pl.len(),
            attribution=pl.col("attribution").sum(),
        )
        .sort(pl.col("attribution").abs(), descending=True, maintain_order=True)
        .head(GROUNDS_SHOWN)
    )


def _grounds_table(patient: Patient, grounds: pl.DataFrame) -> Markup:
    score = float(patient.explanations[SHOWN_BY].records["score"][0])
    rows = [
        (
            _with_usual(
                patient, row["variable"], _values(row["low"], row["high"], row["events"], _unit(patient, row))
            ),
            _span(patient, row["first"], row["last"]),
            _change(patient, score, row["attribution"]),
        )
        for row in grounds.iter_rows(named=True)
    ]
    caption = f"With and without these measurements, {_change_title(patient)}"
    return table_html([("measurement", _when_title(patient), "moves it by"), *rows], caption)


def _change_title(patient: Patient) -> str:
    return "percentage points" if patient.probability else f"in units of {patient.label}"


def _when_title(patient: Patient) -> str:
    return "when" if patient.started is not None else "hours"


def _unit(patient: Patient, row: Mapping[str, Any]) -> str:
    return patient.units.get(row["variable"], "")


def _values(low: float | None, high: float | None, events: int, unit: str) -> str:
    if low is None or high is None:
        return "recorded" if events == 1 else f"recorded {events} times"
    if low == high:
        return f"{low:.4g} {unit}".strip() + (f" ({events} times)" if events > 1 else "")
    return f"{low:.4g} to {high:.4g} {unit}".strip() + f" ({events} times)"


def _with_usual(patient: Patient, variable: str, values: str) -> str:
    usual = patient.background.usual(variable)
    return f"{spoken(variable)} {values}" + ("" if usual is None else f"; usual {usual[0]:g} to {usual[1]:g}")


def _span(patient: Patient, first: float, last: float) -> str:
    begins, ends = _when(patient, first), _when(patient, last)
    if begins == ends:
        return begins
    day = begins[: begins.find(" ") + 1]  # of a time by the clock
    return f"{begins} to {ends.removeprefix(day)}"


def _when(patient: Patient, hour: float) -> str:
    """A time as a table gives it, by the clock where that is known."""
    if patient.started is None:
        return f"{hour:.1f}"
    return f"{patient.started + timedelta(hours=hour):%m-%d %H:%M}"


def _movers_table(patient: Patient, movers: pl.DataFrame) -> Markup:
    rows = [
        (
            str(number),
            f"{spoken(row['variable'])} {_values(row['value'], row['value'], 1, _unit(patient, row))}",
            _when(patient, row["time"]),
            f"{'▲' if row['change'] > 0 else '▼'} {(100 if patient.probability else 1) * row['change']:+.2f}",
        )
        for number, row in enumerate(movers.iter_rows(named=True), start=1)
    ]
    caption = f"Events that moved it most when they arrived, {_change_title(patient)}"
    return table_html([("number", "event", _when_title(patient), "moved it by"), *rows], caption)


def _events_table(patient: Patient) -> Markup:
    frames = [explanation.events for explanation in patient.explanations.values()]
    columns = [frame["attribution"].to_list() for frame in frames]
    events = [
        (
            f"{row['time']:.2f}",
            f"{spoken(row['variable'])} {patient.units.get(row['variable'], '')}".strip(),
            row["value"],
            *attributions,
        )
        for row, *attributions in zip(frames[0].iter_rows(named=True), *columns, strict=True)
    ]
    head = ("hour", "variable", "value", *(capitalized(spoken(method)) for method in METHODS))
    return table_html([head, *events], "All events and their attributions", folded=True)


# ------------------------------------------------------------------------------------------------------------- figures


def patient_pictures(patient: Patient) -> list[Picture]:
    """The figures of one record's page."""
    predictions = patient.trajectory.predictions["prediction"].to_numpy()
    intervals = patient.background.intervals(predictions)[:, 1:]
    x = HOURS if patient.started is None else f"hours since {patient.started:%Y-%m-%d %H:%M}"
    options: dict[str, Any] = {"intervals": intervals, "base_rate": patient.background.base_rate, "x": x}
    explanation = patient.explanations[SHOWN_BY]
    ranked = explanation.variables.sort(pl.col("attribution").abs(), "variable", descending=[True, False])
    leading = ", ".join(
        f"{spoken(row['variable'])} {row['attribution']:+.2f}" for row in ranked.head(5).iter_rows(named=True)
    )
    return [
        *_curve_pictures(patient),
        Picture(
            "trajectory",
            partial(trajectory_figure, patient.trajectory, patient.label, patient.probability, **options),
            f"The prediction ({spoken(patient.label)}) at successive times: from {predictions[0]:.3g} to "
            f"{predictions[-1]:.3g}, lowest {predictions.min():.3g}, highest {predictions.max():.3g}.",
            [
                ("hour", "prediction", "interval", "trained to answer then"),
                *(
                    (
                        f"{row['time']:.2f}",
                        patient.shown(row["prediction"]),
                        _interval(patient, *ends) if row["trained"] else "",
                        "yes" if row["trained"] else "no",
                    )
                    for row, ends in zip(
                        patient.trajectory.predictions.iter_rows(named=True), intervals.tolist(), strict=True
                    )
                ),
            ],
        ),
        Picture(
            "timeline",
            partial(timeline_figure, explanation, patient.units, x=x),
            f"Values over time of the {min(ranked.height, TIMELINE_VARIABLES)} variables with the largest effects, "
            f"events colored by theirs. Largest: {leading}.",
            [
                ("variable", "unit", "events", "effect on the log-odds" if patient.probability else "effect"),
                *(
                    (
                        spoken(row["variable"]),
                        patient.units.get(row["variable"], ""),
                        row["events"],
                        row["attribution"],
                    )
                    for row in ranked.iter_rows(named=True)
                ),
            ],
        ),
    ]


def _curve_pictures(patient: Patient) -> list[Picture]:
    """The risk by any time after the question, where the model says it."""
    if patient.curve is None:
        return []
    observed = {
        row["hours"]: (row["observed_risk"], row["confidence_intervals"]["observed_risk"])
        for row in patient.background.horizons.values()
        if row["observed_risk"] is not None
    }
    end, last, _ = patient.curve.row(-1)
    return [
        Picture(
            "curve",
            partial(risk_figure, patient.curve, observed),
            f"The risk by the time after the question, up to {last:.1%} within {end:g} hours.",
            [
                ("what", "predicted", "observed on the validation split [95% interval]"),
                *(
                    (name, f"{risk:.1%}", patient.background.observed(name) or "")
                    for _, risk, name in patient.curve.drop_nulls("output").iter_rows()
                ),
            ],
        )
    ]


def _interval(patient: Patient, low: float, high: float) -> str:
    if not np.isfinite(low):
        return ""
    return f"{low:.0%} to {high:.0%}" if patient.probability else f"{patient.shown(low)} to {patient.shown(high)}"
