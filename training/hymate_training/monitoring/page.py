"""The page of a comparison with the training data, `index.html`: a verdict, why, and every comparison."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from hymate_training.explanations.figures import capitalized, spoken
from hymate_training.explanations.markup import render, table_html

TEMPLATES = Path(__file__).parent / "templates"
KIND_TITLES = {
    "score": "What the model says",
    "measured": "Which variables are measured",
    "value": "Values",
    "timing": "How often and how long",
    "static": "Static columns",
}
BIN_TITLES = {
    "score": "predictions",
    "measured": "share of records in which it is measured",
    "value": "mean value in a record",
    "timing": "of a record",
    "static": "share of records",
}
MOST_BARS = 8  # comparisons that are drawn; all are in the tables


def render_page(content: Mapping[str, Any], units: Mapping[str, str]) -> str:
    """The page, from what monitor.json holds.

    Args:
        content: what it holds.
        units: of variables and static columns, as far as they are known.
    """
    comparisons = content["comparisons"]
    kinds = {kind: [row for row in comparisons if row["kind"] == kind] for kind in KIND_TITLES}
    tables = {
        KIND_TITLES[kind]: table_html(
            [("compared", "shifted", "index", "p-value", "records"), *map(_cells, rows)],
            "Largest shift first; stability index, p-value corrected for the number of comparisons",
        )
        for kind, rows in kinds.items()
        if rows
    }
    drawn = [row for row in comparisons if row["shifted"]][:MOST_BARS] or comparisons[:3]
    return render(
        "monitor.html.j2",
        TEMPLATES,
        content=content,
        tables=tables,
        title=capitalized(spoken(content["task"])),
        pictures=[_bars(row, units) for row in drawn],
        calibration=_calibration(content["calibration"]),
    )


def _cells(row: Mapping[str, Any]) -> tuple:
    shifted = "yes" if row["shifted"] else "no"
    records = f"{row['num_records']:,}"
    return spoken(row["name"]), shifted, f"{row['stability_index']:.3f}", f"{row['corrected_p_value']:.2g}", records


def _bars(row: Mapping[str, Any], units: Mapping[str, str]) -> dict[str, Any]:
    """A picture of bars in HTML: of each bin its share in training and now."""
    highest = max(max(part["reference"], part["new"]) for part in row["bins"])
    unit = units.get(row["name"], "") if row["kind"] in ("value", "static") else ""
    return {
        "title": ", ".join(filter(None, (spoken(row["name"]), unit, BIN_TITLES[row["kind"]]))),
        "index": row["stability_index"],
        "bins": [
            {**part, "reference_width": 100 * part["reference"] / highest, "new_width": 100 * part["new"] / highest}
            for part in row["bins"]
        ],
    }


def _calibration(found: Mapping[str, Any] | None) -> Markup | None:
    if found is None:
        return None
    estimates = {
        **{
            f"calibration {name}": (found[name], found["confidence_intervals"][name])
            for name in ("intercept", "slope")
        },
        **{name: (found["metrics"][name], found["metric_intervals"][name]) for name in ("auroc", "brier")},
    }
    rows = [
        (
            name.replace("auroc", "AUROC").replace("brier", "Brier score"),
            "not defined" if value is None else f"{value:.3f}",
            "not available" if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}",
        )
        for name, (value, interval) in estimates.items()
    ]
    return table_html([("metric", "value", "95% interval"), *rows], f"{found['n']:,} records with a known outcome")
