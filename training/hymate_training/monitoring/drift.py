"""Whether two groups of records could have been drawn from one source, bin by bin.

The population stability index says how far their shares are apart, a chi-squared test of homogeneity whether chance
explains it. p-values are corrected for the number of comparisons (Bonferroni), so that of all that is compared in data
that have not changed, nothing is flagged in all but `P_LIMIT` of months.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.stats import chi2_contingency

from hymate_training.evaluation.aggregates import count_like, counts_of, names_of

PSI_LIMIT = 0.1  # below it a shift is customarily called small
P_LIMIT = 0.01
PSEUDO_COUNT = 0.5  # of records per bin, so that an empty one has a share


def stability_index(reference: np.ndarray, counts: np.ndarray) -> float:
    """Population stability index of counts against a reference, both `(bins,)`."""
    expected, found = ((part + PSEUDO_COUNT) / (part + PSEUDO_COUNT).sum() for part in (reference, counts))
    return float(((found - expected) * np.log(found / expected)).sum())


def homogeneity(reference: np.ndarray, counts: np.ndarray) -> float:
    """p-value of the chi-squared test that both `(bins,)` come from one source."""
    table = np.stack([reference, counts])
    table = table[:, table.sum(axis=0) > 0]
    if table.shape[1] < 2 or (table.sum(axis=1) == 0).any():
        return 1.0
    return float(chi2_contingency(table, correction=False).pvalue)


def compare(
    reference: Mapping[str, Mapping[str, Any]], described: Mapping[str, Mapping[str, np.ndarray]]
) -> list[dict[str, Any]]:
    """Compares new records with what is kept of the training records.

    Args:
        reference: as `aggregates.summarize` returned it.
        described: as `aggregates.describe` returns it of the new records.

    Returns:
        One row per comparison, the largest stability index first: `kind`, `name`, `stability_index`, `p_value`,
        `corrected_p_value`, `shifted` (past both limits), `num_records` with the number compared, and `bins`: `name`,
        `reference` and `new` share of each.
    """
    rows: list[dict[str, Any]] = []
    for kind, summaries in reference.items():
        for name, summary in summaries.items():
            if name not in described[kind]:
                continue
            expected, found = counts_of(summary), count_like(summary, described[kind][name])
            if found.sum():  # where nothing is measured, another comparison says so
                rows.append({"kind": kind, "name": name, **_comparison(summary, expected, found)})
    for row in rows:
        row["corrected_p_value"] = min(1.0, row["p_value"] * len(rows))
        row["shifted"] = row["stability_index"] >= PSI_LIMIT and row["corrected_p_value"] < P_LIMIT
    return sorted(rows, key=lambda row: -row["stability_index"])


def _comparison(summary: Mapping[str, Any], expected: np.ndarray, found: np.ndarray) -> dict[str, Any]:
    shares = zip(names_of(summary), expected / expected.sum(), found / found.sum(), strict=True)
    return {
        "stability_index": stability_index(expected, found),
        "p_value": homogeneity(expected, found),
        "num_records": int(found.sum()),
        "bins": [
            {"name": name, "reference": float(one), "new": float(other)} for name, one, other in shares if one or other
        ],
    }
