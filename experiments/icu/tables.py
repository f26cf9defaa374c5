"""The transfer table of docs/evidence.md, from the results of finished cells."""

import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks.measure import titled_table
from experiments.evidence.tables import PAGE, coverage_of, mean_with_interval, paired
from experiments.icu.targets import ARMS, PERCENTAGES, TARGETS
from experiments.pages import write_block

RESULTS = Path(__file__).with_name("results")
MARKER = "transfer"
FIGURES = {"auroc": "AUROC", "auprc": "AUPRC"}
Results = dict[tuple[str, str, int], dict[int, dict]]


def read_results(folder: Path) -> Results:
    """(target, arm, percent of labels) -> fold -> a cell's result."""
    results: Results = {}
    for path in sorted(folder.glob("*.json")):
        cell = json.loads(path.read_text(encoding="utf-8"))
        results.setdefault((cell["target"], cell["arm"], cell["percent"]), {})[cell["fold"]] = cell
    return results


def transfer_tables(results: Results) -> str:
    """For each target a table per metric: each way on each share of the labels, and what other sources gain; and what
    the conformal sets of the model from other sources cover, on all labels."""
    tables = []
    for name, target in TARGETS.items():
        for figure, title in FIGURES.items():
            tables.append(_table(f"{title}, {target.title}", _rows(results, name, figure)))
        tables.append(
            coverage_of(f"Coverage of conformal sets, {target.title}", results.get((name, "others", 100), {}))
        )
    return "\n\n".join(filter(None, tables))


def gains_tables(results: Results) -> str:
    """What other sources gain in AUROC on each target: few enough numbers for a card."""
    arms = ("scratch", "xgboost")
    tables = [
        _table(f"AUROC, {target.title}", _rows(results, name, "auroc", ("others",), arms, brief=True))
        for name, target in TARGETS.items()
    ]
    return "\n\n".join(filter(None, tables))


def _table(title: str, rows: list[dict[str, str]]) -> str:
    return titled_table(title, tuple(rows[0]), [list(row.values()) for row in rows]) if rows else ""


def _rows(
    results: Results,
    target: str,
    figure: str,
    shown: Sequence[str] = tuple(ARMS),
    compared: Sequence[str] = ("scratch", "same", "xgboost"),
    *,
    brief: bool = False,
) -> list[dict[str, str]]:
    """A row per share of the labels that all arms have a fold of, by the titles of the columns: the arms `shown`, what
    other sources gain over those `compared`, and unless it is brief in how many folds."""
    rows = []
    for percent in PERCENTAGES:
        found = {arm: results.get((target, arm, percent), {}) for arm in ARMS}
        folds = set.intersection(*(set(cells) for cells in found.values()))  # the same for each column
        if not folds:
            continue
        common = {arm: {fold: cells[fold] for fold in folds} for arm, cells in found.items()}
        row = {"labels": f"{percent}%", "folds": str(len(folds))}
        row |= {ARMS[arm]: mean_with_interval(common[arm], figure) for arm in shown}
        for arm in compared:
            mean, interval, won, of = paired(common["others"], common[arm], figure)
            within = f" [{interval[0]:+.4f}, {interval[1]:+.4f}]" if interval else ""
            row[f"other sources minus {ARMS[arm]}"] = f"{mean:+.4f}{within}" + ("" if brief else f", {won} of {of}")
        rows.append(row)
    return rows


def write_page(results: Results, page: Path = PAGE) -> None:
    """Puts the tables between their markers in the page."""
    write_block(page, MARKER, transfer_tables(results))
