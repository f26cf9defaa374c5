"""Pages about single records: the prediction over time, what it rests on, and all events."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from markupsafe import Markup

from hymate_training.explanations import figures
from hymate_training.explanations.attribution import (
    METHODS,
    Explainer,
    Explanation,
    explain_by_every_method,
    progress_bar,
)
from hymate_training.explanations.cohort import Cohort
from hymate_training.explanations.figures import MOVERS_SHOWN, TIMELINE_VARIABLES, capitalized, spoken
from hymate_training.explanations.markup import render, table_html
from hymate_training.explanations.pictures import Picture
from hymate_training.explanations.trajectory import Trajectory, risk_trajectory
from hymate_training.inference.hours import HOW_TO_TRAIN, said_of_training

TIMELINE_TEXTS = {
    "attention": "The darker and larger a point, the larger its share of the model's attention. Shares sum to one.",
    "integrated_gradients": "Red points raise the score, blue ones lower it, compared with events that say nothing of "
    "what was measured.",
    "occlusion": "Red points raise the score, blue ones lower it: the score falls, or rises, by this much when they "
    "are removed. A variable's events within the same hours are removed together and share the effect.",
}


def page_names(record_ids: Sequence[str]) -> list[str]:
    """File names for records, whatever their ids hold, which differ on any file system; the same for the same ids."""
    names: list[str] = []
    for position, record_id in enumerate(record_ids):
        name = re.sub(r"[^A-Za-z0-9_-]", "_", record_id)[:80]
        taken = name.lower() in {other.lower() for other in names}
        names.append(f"{name}_{position}" if taken else name)
    return names


def write_patient_pages(
    folder: Path,
    explainer: Explainer,
    patients: Cohort,
    findings: Sequence[Mapping[str, str]] = (),
    *,
    window_hours: float = 6.0,
    progress: bool = False,
) -> None:
    """Writes a page for each of the records, its figures beside it.

    Args:
        folder: where to write; made where there is a record.
        explainer: the model and the output that is explained.
        patients: the records.
        findings: what was found about the methods over a cohort, as `faithfulness.findings` says it.
        window_hours: width of occlusion's windows.
        progress: show a progress bar.
    """
    names = page_names(patients.record_ids)
    for row, name in enumerate(progress_bar("patients" if progress else None, names, unit="page")):
        patient = patients.take(np.array([row]))
        pictures = folder / f"{name}_figures"
        pictures.mkdir(parents=True)
        page = patient_page(pictures, explainer, patient, findings, window_hours)
        (folder / f"{name}.html").write_text(page, encoding="utf-8")


def patient_page(
    folder: Path, explainer: Explainer, patient: Cohort, findings: Sequence[Mapping[str, str]], window_hours: float
) -> str:
    """The page of one record as HTML; writes its figures into `folder` as well."""
    probability = explainer.predicts_probability
    explanations = explain_by_every_method(explainer, patient.events, window_hours=window_hours)
    trajectory = risk_trajectory(explainer, patient.events)
    untrained = untrained_sentence(trajectory, explainer.extractor.trained_hours)
    pictures = patient_pictures(explanations, trajectory, patient.units, probability)
    prediction = explanations["attention"].records["prediction"][0]
    static = {key: column[0] for key, column in patient.events.static.items()}
    return render(
        "explanation_patient.html.j2",
        record_id=patient.record_ids[0],
        title=patient.title,
        label=f"predicted probability of {explainer.label}" if probability else f"predicted {explainer.label}",
        prediction=f"{prediction:.1%}" if probability else f"{prediction:.4g}",
        outcome=None if patient.outcomes is None else patient.outcomes[0],
        facts={spoken(key): describe(value, patient.units.get(key, "")) for key, value in static.items()},
        findings=findings,
        untrained=untrained,
        figures={key: picture.save(folder) for key, picture in pictures.items()},
        tables=patient_tables(explanations, trajectory, probability),
        methods=[
            {"name": method, "spoken": words, "text": TIMELINE_TEXTS[method]} for method, words in METHODS.items()
        ],
    )


def untrained_sentence(trajectory: Trajectory, trained_hours: list[float] | None) -> str | None:
    """What the gray part of a trajectory means; None where there is none."""
    if trajectory.predictions["trained"].all():
        return None
    return (
        f"Gray and dashed: the model {said_of_training(trained_hours)}, and what it says at other times means little. "
        f"To follow patients, {HOW_TO_TRAIN.replace('`', '')}."
    )


def describe(value: Any, unit: str) -> str:
    """A static value in words."""
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return "unknown"
    return f"{value:g} {unit}".strip() if isinstance(value, int | float | np.number) else str(value)


def patient_pictures(
    explanations: Mapping[str, Explanation],
    trajectory: Trajectory,
    units: Mapping[str, str],
    probability: bool,
) -> dict[str, Picture]:
    """The figures of one record's page by name."""
    predictions = trajectory.predictions["prediction"].to_numpy()
    label = next(iter(explanations.values())).label
    pictures = [
        Picture(
            "trajectory",
            figures.trajectory_figure(trajectory, label, probability),
            f"The prediction ({spoken(label)}) at successive times: from {predictions[0]:.3g} to "
            f"{predictions[-1]:.3g}, lowest {predictions.min():.3g}, highest {predictions.max():.3g}.",
            [
                ("hour", "prediction", "trained to answer then"),
                *(
                    (f"{row['time']:.2f}", row["prediction"], "yes" if row["trained"] else "no")
                    for row in trajectory.predictions.iter_rows(named=True)
                ),
            ],
        )
    ]
    for method, explanation in explanations.items():
        ranked = explanation.variables.sort(
            pl.col("attribution").abs(), "variable", descending=[True, False]
        ).with_columns(total=pl.col("attribution"))
        leading = ", ".join(
            f"{spoken(row['variable'])} {row['attribution']:{'+.2f' if explanation.signed else '.1%'}}"
            for row in ranked.head(5).iter_rows(named=True)
        )
        pictures.append(
            Picture(
                f"timeline_{method}",
                figures.timeline_figure(explanation, units),
                f"Values over time of the {min(ranked.height, TIMELINE_VARIABLES)} variables with the largest "
                f"attributions by {spoken(method)}, events shaded by their attribution. Largest: {leading}.",
                [
                    ("variable", "unit", "events", "attribution"),
                    *(
                        (spoken(row["variable"]), units.get(row["variable"], ""), row["events"], row["attribution"])
                        for row in ranked.iter_rows(named=True)
                    ),
                ],
            )
        )
    return {picture.name: picture for picture in pictures}


def patient_tables(
    explanations: Mapping[str, Explanation], trajectory: Trajectory, probability: bool
) -> dict[str, Markup]:
    """The tables of one record's page: the events that moved the prediction most, and all events."""
    movers = [
        (
            str(number),
            f"{row['time']:.2f}",
            spoken(row["variable"]),
            row["value"],
            f"{'▲' if row['change'] > 0 else '▼'} {(100 if probability else 1) * row['change']:+.2f}",
        )
        for number, row in enumerate(trajectory.movers.head(MOVERS_SHOWN).iter_rows(named=True), start=1)
    ]
    frames = [explanation.events for explanation in explanations.values()]
    columns = [frame["attribution"].to_list() for frame in frames]
    events = [
        (f"{row['time']:.2f}", spoken(row["variable"]), row["value"], *attributions)
        for row, *attributions in zip(frames[0].iter_rows(named=True), *columns, strict=True)
    ]
    return {
        "movers": table_html(
            [
                (
                    "number",
                    "hour",
                    "variable",
                    "value",
                    f"change of the prediction{' in percentage points' if probability else ''}",
                ),
                *movers,
            ],
            "Events that moved the prediction most when they arrived",
        ),
        "events": table_html(
            [("hour", "variable", "value", *(capitalized(spoken(method)) for method in explanations)), *events],
            "All events and their attributions",
            folded=True,
        ),
    }
