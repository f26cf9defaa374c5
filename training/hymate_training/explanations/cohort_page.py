"""The cohort page of a report, `index.html`: pictures, tables and what is said about them; aggregates only."""

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from hymate_training.evaluation.metrics import SMALLEST_GROUP, report
from hymate_training.evaluation.sample import LabeledPredictions
from hymate_training.explanations.attribution import (
    Explainer,
    channel_attentions,
    explain_by_every_method,
    progress_bar,
)
from hymate_training.explanations.background import HEADLINES, Background, metric_in_words
from hymate_training.explanations.cohort import Cohort
from hymate_training.explanations.faithfulness import RANDOM, assess, findings, mean_with_interval
from hymate_training.explanations.figures import capitalized, spoken
from hymate_training.explanations.markup import estimate, render, table_html
from hymate_training.explanations.pictures import Picture, cohort_pictures
from hymate_training.explanations.static_columns import static_effects, static_shares
from hymate_training.files import write_json

EXPLANATION_FILE = "explanation.json"
PACKAGES = ("hymate", "torch")


def write_cohort_page(
    folder: Path,
    explainer: Explainer,
    cohort: Cohort,
    *,
    background: Background,
    account: Mapping[str, Any],
    num_patients: int = 0,
    window_hours: float = 6.0,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, Any]:
    """Writes index.html, its figures and explanation.json into `folder`.

    Args:
        folder: where to write.
        explainer: the model and the output that is explained.
        cohort: the records. Of fewer than `SMALLEST_GROUP` no pictures are made.
        background: what is known of the model beside its weights.
        account: what the page says about model, data and settings, by heading.
        num_patients: how many records have a page of their own.
        window_hours: width of occlusion's windows.
        seed: of random orders and resamples.
        progress: show progress bars.

    Returns:
        What `faithfulness.assess` found and the `performance` on these records; empty for too few records.
    """
    assessment: dict[str, Any] = {}
    shown: dict[str, Markup] = {}
    if len(cohort) >= SMALLEST_GROUP:
        assessment, pictures = _explained(explainer, cohort, window_hours, seed, progress)
        (folder / "figures").mkdir()
        bar = progress_bar("figures" if progress else None, pictures, unit="figure")
        shown = {picture.name: picture.save(folder / "figures") for picture in bar}
    page = render(
        "explanation_cohort.html.j2",
        title=cohort.title,
        question=cohort.question,
        label=explainer.label,
        probability=explainer.predicts_probability,
        tiles=_tiles(cohort, background, assessment) if assessment else [],
        performance=background.in_words(),
        num_records=len(cohort),
        smallest_group=SMALLEST_GROUP,
        drivers=cohort.drivers,
        figures=shown,
        grouped=[name for name in shown if name.startswith("by_")],
        tables=cohort_tables(assessment) if assessment else {},
        findings=findings(assessment) if assessment else [],
        num_patients=num_patients,
        account=account,
    )
    (folder / "index.html").write_text(page, encoding="utf-8")
    versions = {name: version(name) for name in PACKAGES}
    write_json(
        folder / EXPLANATION_FILE, {"label": explainer.label, "account": account, **assessment, "versions": versions}
    )
    return assessment


def _explained(
    explainer: Explainer, cohort: Cohort, window_hours: float, seed: int, progress: bool
) -> tuple[dict[str, Any], list[Picture]]:
    """What the explanations of the cohort are worth, and the pictures of them."""
    options: dict[str, Any] = {"window_hours": window_hours, "progress": progress}
    explanations = explain_by_every_method(explainer, cohort.events, **options)
    assessment = assess(explainer, cohort.events, explanations, drivers=cohort.drivers, seed=seed, **options)
    shares = static_shares(static_effects(explainer, cohort.events), explanations["occlusion"].variables)
    assessment["static_shares"] = {
        str(name): mean_with_interval(found["share"].to_numpy(), seed)
        for (name,), found in shares.group_by("column", maintain_order=True)
    }
    predictions = explanations["occlusion"].records["prediction"].to_numpy()
    assessment["performance"] = performance_on(cohort, predictions, explainer.predicts_probability)
    attentions = channel_attentions(explainer, cohort.events, "attention between variables" if progress else None)
    variables = explainer.extractor.variables
    pictures = cohort_pictures(cohort, variables, explanations, assessment, attentions, seed)
    return assessment, list(pictures.values())


def performance_on(cohort: Cohort, predictions: np.ndarray, probability: bool) -> dict[str, Any] | None:
    """How well the explained output was predicted for these records: `problem_type`, `positives` of a label,
    `metrics` and `confidence_intervals`; None where outcomes are unknown, or too few have the label or lack it."""
    if cohort.truths is None:
        return None
    kind = "binary" if probability else "regression"
    if probability and min(cohort.truths.sum(), (1 - cohort.truths).sum()) < SMALLEST_GROUP:
        return None
    found = report(LabeledPredictions(kind, cohort.truths, predictions))
    names = ("problem_type", "positives", "metrics", "confidence_intervals")
    return {name: found[name] for name in names if name in found}


def _tiles(cohort: Cohort, background: Background, assessment: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The first screen: for how many records, how well, and which explanations can be trusted."""
    outcomes = ""
    found = assessment["performance"]
    if found is not None and "positives" in found:
        outcomes = f", {found['positives']:,} of them {background.label} ({found['positives'] / len(cohort):.1%})"
    elif background.horizons and (named := _named_outcomes(cohort)):
        outcomes = f": {named}"
    tiles = [(f"{len(cohort):,} records", f"were explained{outcomes}")]
    if observed := background.observed(background.label):
        mean = background.horizons[background.label]["mean_risk"]
        tiles.append((observed, f"observed risk of {background.label} on its validation split; predicted {mean:.1%}"))
    if found is not None:
        kind, name = found["problem_type"], HEADLINES[found["problem_type"]][0]
        value, interval = found["metrics"][name], found["confidence_intervals"][name]
        if value is not None:
            tiles.append((metric_in_words(kind, name, value, interval), "on these records"))
    if known := background.performance():
        tiles.append((capitalized(known[0]), background.evaluated()))
    verdicts = assessment["verdicts"]
    faithful = [spoken(method) for method, verdict in verdicts.items() if verdict == "faithful"]
    named = f": {', '.join(faithful)}" if faithful else ""
    tiles.append(
        (f"{len(faithful)} of {len(verdicts)} methods", f"explain faithfully by both tests at the end{named}")
    )
    return tiles


def _named_outcomes(cohort: Cohort) -> str:
    """How many records have each outcome; empty where they are unknown, or one is that of few."""
    names, counts = np.unique([] if cohort.outcomes is None else cohort.outcomes.astype(str), return_counts=True)
    return ", ".join(map("{} with {}".format, counts, names)) if min(counts, default=0) >= SMALLEST_GROUP else ""


def cohort_tables(assessment: Mapping[str, Any]) -> dict[str, Markup]:
    """The tables of the faithfulness tests."""
    summary, scale = assessment["perturbation"], assessment["scale"]
    areas: list[tuple] = [("order", "deletion", "over random", "insertion", "over random")]
    for name in summary["deletion"]:
        row = [capitalized(spoken(name)) if name != RANDOM else "Random"]
        for kind in ("deletion", "insertion"):
            found = summary[kind][name]
            row += [estimate(found["area"], scale)]
            row += ["" if name == RANDOM else estimate(found["over_random"], scale, sign=True)]
        areas.append(tuple(row))
    tables = {
        "areas": table_html(areas, f"Areas under the curves, {assessment['unit']} [95% interval]"),
        "agreement": table_html(
            [
                ("methods", "events", "variables"),
                *(
                    (
                        " and ".join(spoken(method) for method in pair["methods"]),
                        estimate(pair["events"]),
                        estimate(pair["variables"]),
                    )
                    for pair in assessment["agreement"]
                ),
            ],
            "Rank correlation between methods [95% interval]",
        ),
        "randomized": table_html(
            [
                ("method", "events", "variables"),
                *(
                    (capitalized(spoken(method)), estimate(found["events"]), estimate(found["variables"]))
                    for method, found in assessment["randomized_weights"].items()
                ),
            ],
            "Rank correlation with the explanations of a model with random weights [95% interval]",
        ),
    }
    if assessment["static_shares"]:
        rows = [(spoken(name), estimate(found, 100)) for name, found in assessment["static_shares"].items()]
        tables["static"] = table_html(
            [("column", "mean share, % [95% interval]"), *rows], "Share of the static columns in all effects"
        )
    if assessment["drivers"]:
        tables["drivers"] = _drivers_table(assessment["drivers"])
    return tables


def _drivers_table(drivers: Mapping[str, Mapping[str, Any]]) -> Markup:
    first = next(iter(drivers.values()))
    k, chance = first["k"], first["precision_by_chance"]
    head = ("method", "places of the drivers", f"among the first {k}", f"record by record (by chance {chance:.2f})")
    rows = [
        (
            capitalized(spoken(method)),
            ", ".join(f"{spoken(name)} {place}" for name, place in found["ranks"].items()),
            f"{found['precision_at_k']:.2f}",
            estimate(found["precision_at_k_by_record"]),
        )
        for method, found in drivers.items()
    ]
    return table_html([head, *rows], f"True drivers by mean share: places, and precision at {k} [95% interval]")
