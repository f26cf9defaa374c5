"""Tables of docs/evidence.md from the metrics of finished units."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from benchmarks.measure import titled_table
from experiments.evidence.studies import STUDIES, Study
from experiments.evidence.units import benefit_name
from experiments.pages import write_block
from hymate_training.evaluation.metrics import METRICS
from hymate_training.evaluation.resampling import percentile_interval
from hymate_training.files import markdown_table
from hymate_training.inference.conformal import ALL, BY_LABEL

PAGE = Path(__file__).parents[2] / "docs" / "evidence.md"
TITLES = METRICS["binary"] | {"normalized_utility": "normalized utility"}
LEVEL = 0.95
NOT_MEASURED = "Not measured yet."
Results = dict[tuple[str, int], dict[int, dict]]


def read_results(folder: Path) -> Results:
    """(model, percent of labels) -> fold -> a unit's metrics."""
    results: Results = {}
    for path in sorted(folder.glob("*.json")):
        unit = json.loads(path.read_text())
        results.setdefault((unit["model"], unit["percent"]), {})[unit["fold"]] = unit
    return results


def mean_with_interval(units: dict[int, dict], figure: str) -> str:
    """Mean over folds of a figure; where its resamples are kept with the interval of their mean."""
    point = np.mean([unit["metrics"][figure] for unit in units.values()])
    if not all(figure in unit["samples"] for unit in units.values()):
        return f"{point:.4f}"
    interval = percentile_interval(np.mean([unit["samples"][figure] for unit in units.values()], axis=0), LEVEL)
    return f"{point:.4f} [{interval[0]:.4f}, {interval[1]:.4f}]" if interval else f"{point:.4f}"


def paired(units: dict[int, dict], others: dict[int, dict], figure: str) -> tuple[float, list[float] | None, int, int]:
    """Difference of two models in a figure over the folds that both have: its mean, the paired interval, in how many
    folds the first is higher, and of how many."""
    folds = sorted(units.keys() & others.keys())
    differences = [units[fold]["metrics"][figure] - others[fold]["metrics"][figure] for fold in folds]
    samples = np.mean(
        [np.subtract(units[fold]["samples"][figure], others[fold]["samples"][figure]) for fold in folds], axis=0
    )
    return (
        float(np.mean(differences)),
        percentile_interval(samples, LEVEL),
        int(np.sum(np.array(differences) > 0)),
        len(folds),
    )


def main_table(study: Study, results: Results) -> str:
    """Every model on all labels."""
    rows = []
    for name, model in study.models.items():
        if units := results.get((name, 100)):
            seconds = [unit["seconds"] for unit in units.values()]
            shown = [mean_with_interval(units, figure) for figure in study.shown]
            rows.append([model.title, len(units), *shown, f"{np.median(seconds):.0f}"])
    header = ("model", "folds", *(TITLES[figure] for figure in study.shown), "seconds per fold")
    return titled_table("Models", header, rows) if rows else NOT_MEASURED


def difference_tables(study: Study, results: Results) -> str:
    """The recipe, and HyMaTE from scratch, minus every other model, paired by fold and resample."""
    tables = (difference_table(study, results, name) for name in ("hymate", "scratch") if (name, 100) in results)
    return "\n\n".join(filter(None, tables)) or NOT_MEASURED


def difference_table(study: Study, results: Results, reference: str) -> str:
    """A model minus every other one; empty where none ran on its folds."""
    rows = [
        [study.models[name].title, *_differences(study, results[reference, 100], units)]
        for (name, percent), units in _in_order(study, results)
        if percent == 100 and name != reference and reference_overlaps(results, reference, units)
    ]
    header = (
        "compared with",
        *(f"{TITLES[figure]}, difference" for figure in study.figures),
        "folds won (AUROC)",
    )
    return titled_table(f"{study.models[reference].title} minus another model", header, rows) if rows else ""


def compared_figures(study: Study) -> list[str]:
    """Figures of which more is better."""
    return [figure for figure in study.figures if figure != "log_loss"]


def verdicts(study: Study, results: Results, reference: str, others: Sequence[str]) -> str:
    """Whether the reference is better than others in each figure, by their intervals; a line each."""
    lines = []
    for name in others:
        if not reference_overlaps(results, reference, results.get((name, 100), {})):
            continue
        for figure in compared_figures(study):
            mean, interval, _, of = paired(results[reference, 100], results[name, 100], figure)
            if interval is None:
                continue
            verdict = "above" if interval[0] > 0 else "below" if interval[1] < 0 else "neither above nor below"
            lines.append(
                f'- {TITLES[figure]}: {verdict} "{study.models[name].title}" ({mean:+.4f} '
                f"[{interval[0]:+.4f}, {interval[1]:+.4f}], {of} {'folds' if of > 1 else 'fold'})."
            )
    return "\n".join(lines)


def decision_table(study: Study, results: Results) -> str:
    """Net benefit of an alarm for all, of HyMaTE and of XGBoost at each threshold, over the folds that have both."""
    known = {name: results.get((name, 100), {}) for name in ("hymate", "xgboost")}
    folds = sorted(known["hymate"].keys() & known["xgboost"].keys())
    if not folds:
        return NOT_MEASURED
    ours, theirs = ({fold: units[fold] for fold in folds} for units in known.values())
    rows = []
    for threshold in study.thresholds:
        model, everyone = benefit_name("model", threshold), benefit_name("treat_all", threshold)
        mean, interval, won, of = paired(ours, theirs, model)
        difference = f"{mean:+.4f} [{interval[0]:+.4f}, {interval[1]:+.4f}]" if interval else f"{mean:+.4f}"
        shown = (
            mean_with_interval(units, figure) for units, figure in ((ours, everyone), (ours, model), (theirs, model))
        )
        rows.append([f"{threshold:g}", len(folds), *shown, difference, f"{won} of {of}"])
    titles = [study.models[name].title for name in known]
    header = ("threshold", "folds", "alarm for all", *titles, "difference", "folds won")
    return titled_table("Net benefit", header, rows)


def coverage_table(_study: Study, results: Results) -> str:
    """What conformal sets of the recipe, chosen on the validation split of each fold, cover of its test split."""
    return coverage_of("Coverage of conformal sets", results.get(("hymate", 100), {})) or NOT_MEASURED


def coverage_of(title: str, units: dict[int, dict]) -> str:
    """What sets of all records and of those of each label cover, a row for each level; empty where no unit says it."""
    units = {fold: unit for fold, unit in units.items() if unit.get("coverage")}
    rows = []
    for taxonomy in (ALL, BY_LABEL):
        parts: dict[tuple[str, float], list[dict]] = {}
        for unit in units.values():
            for part, found in unit["coverage"].get(taxonomy, {}).items():
                for row in found:
                    parts.setdefault((part, row["level"]), []).append(row)
        for (part, level), found in parts.items():
            held = sum(
                row["interval"] is not None and row["interval"][0] <= level <= row["interval"][1] for row in found
            )
            means = (np.mean([row[name] for row in found]) for name in ("coverage", "mean_size"))
            rows.append([part, f"{level:.0%}", *(f"{mean:.3f}" for mean in means), f"{held} of {len(found)}"])
    header = ("sets for", "level", "covered, mean", "labels per set", "folds whose interval holds the level")
    return titled_table(title, header, rows) if rows else ""


FINDINGS = (
    ("The recipe is, with paired 95% intervals,", "hymate", ("xgboost", "logistic_regression", "gru_d")),
    ("The hybrid, pretrained like each of its halves, is", "hymate", ("attention_only", "mamba_only")),
    ("After the short training, starting from a pretrained encoder is", "pretrained", ("scratch",)),
)


def findings(study: Study, results: Results) -> str:
    """Whether the recipe beats the baselines, pretraining the random start, and the hybrid its parts."""
    found = ((lead, verdicts(study, results, reference, others)) for lead, reference, others in FINDINGS)
    return "\n\n".join(f"{lead}\n\n{lines}" for lead, lines in found if lines) or NOT_MEASURED


def card_notes(study: Study, results: Results) -> str:
    """What the card of a released model says about cross-validation: the recipe beside its baselines."""
    figures = compared_figures(study)
    rows = [
        [study.models[name].title, *(mean_with_interval(results[name, 100], figure) for figure in figures)]
        for name in ("hymate", "xgboost", "logistic_regression", "gru_d")
        if (name, 100) in results
    ]
    folds = len(results["hymate", 100])
    return "\n\n".join(
        [
            f"The recipe in {folds}-fold cross-validation, one seed per fold. Means over folds, with 95% intervals "
            "from resampled patients.",
            markdown_table([("model", *(TITLES[figure] for figure in figures)), *rows]),
            f"HyMaTE is, with paired intervals,\n\n{verdicts(study, results, 'hymate', ('xgboost',)) or NOT_MEASURED}",
            decision_table(study, results),
            coverage_table(study, results),
            "Sets were chosen on the validation split of each fold; what they cover was counted on its test split.",
            "More is in the project's documentation, on the page Evidence.",
        ]
    )


def reference_overlaps(results: Results, reference: str, units: dict[int, dict]) -> bool:
    """Whether the reference ran on any fold that the units ran on."""
    return bool(results.get((reference, 100), {}).keys() & units.keys())


def _in_order(study: Study, results: Results) -> list[tuple[tuple[str, int], dict[int, dict]]]:
    names = list(study.models)
    return sorted(results.items(), key=lambda item: (names.index(item[0][0]), item[0][1]))


def _differences(study: Study, units: dict[int, dict], others: dict[int, dict]) -> list[str]:
    cells = []
    for figure in study.figures:
        mean, interval, _, _ = paired(units, others, figure)
        cells.append(f"{mean:+.4f} [{interval[0]:+.4f}, {interval[1]:+.4f}]" if interval else f"{mean:+.4f}")
    _, _, won, of = paired(units, others, study.figures[0])
    return [*cells, f"{won} of {of}"]


def label_table(study: Study, results: Results) -> str:
    """By percentage of the labels: metrics of what is trained on them, and what pretraining gains."""
    rows = []
    for percent in (*study.percentages, 100):
        found = {name: results.get((name, percent), {}) for name in study.few_labels}
        if found["pretrained"].keys() & found["scratch"].keys():
            shown = [mean_with_interval(units, "auroc") if units else "" for units in found.values()]
            rows.append([f"{percent}%", *shown, *_differences(study, found["pretrained"], found["scratch"])])
    header = (
        "labels",
        *(f"AUROC, {study.models[name].title}" for name in study.few_labels),
        *(f"{TITLES[figure]}, gain" for figure in study.figures),
    )
    table = titled_table("What pretraining adds", (*header, "folds won (AUROC)"), rows)
    return table if rows else NOT_MEASURED


TABLES: dict[str, Callable[[Study, Results], str]] = {
    "models": main_table,
    "differences": difference_tables,
    "decision_curves": decision_table,
    "coverage": coverage_table,
    "findings": findings,
    "labels": label_table,
}


def write_page(results: Path, page: Path = PAGE) -> None:
    """Puts the tables of every study between their markers in the page.

    Args:
        results: folder with one of each study's finished units.
        page: of the documentation.
    """
    for study in STUDIES.values():
        finished = read_results(results / study.name)
        for name in study.tables:
            write_block(page, f"{study.name}_{name}", TABLES[name](study, finished))
