"""The transfer table of docs/evidence.md, from the results of finished cells."""

import json
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
            if rows := [row for percent in PERCENTAGES if (row := _row(results, name, percent, figure))]:
                gains = [f"other sources minus {ARMS[arm]}" for arm in ("scratch", "same", "xgboost")]
                tables.append(
                    titled_table(f"{title}, {target.title}", ("labels", "folds", *ARMS.values(), *gains), rows)
                )
        tables.append(
            coverage_of(f"Coverage of conformal sets, {target.title}", results.get((name, "others", 100), {}))
        )
    return "\n\n".join(filter(None, tables))


def _row(results: Results, target: str, percent: int, figure: str) -> list[str] | None:
    found = {arm: results.get((target, arm, percent), {}) for arm in ARMS}
    folds = set.intersection(*(set(cells) for cells in found.values()))  # that all arms have: the same for each column
    if not folds:
        return None
    common = {arm: {fold: cells[fold] for fold in folds} for arm, cells in found.items()}
    gains = []
    for arm in ("scratch", "same", "xgboost"):
        mean, interval, won, of = paired(common["others"], common[arm], figure)
        shown = f" [{interval[0]:+.4f}, {interval[1]:+.4f}]" if interval else ""
        gains.append(f"{mean:+.4f}{shown}, {won} of {of}")
    return [f"{percent}%", str(len(folds)), *(mean_with_interval(common[arm], figure) for arm in ARMS), *gains]


def write_page(results: Results, page: Path = PAGE) -> None:
    """Puts the tables between their markers in the page."""
    write_block(page, MARKER, transfer_tables(results))
