"""Subgroups of records by their static columns."""

import numpy as np

from hymate_training.data.examples import ExampleDataset

AGE_BANDS = (45, 65, 80)
MAX_SUBGROUPS = 10


def subgroup_columns(dataset: ExampleDataset) -> dict[str, np.ndarray]:
    """Subgroup of each example by every static column that has few values, and by age in bands."""
    columns = {}
    for name, column in dataset.events.static.items():
        found = column[dataset.rows]
        few = len({value for value in found if isinstance(value, str)}) in range(1, MAX_SUBGROUPS + 1)
        if few or (name.lower() == "age" and found.dtype.kind == "f"):
            columns[name] = subgroup_names(found)
    return columns


def subgroup_names(column: np.ndarray) -> np.ndarray:
    """Subgroup of each value of a static column: its band, of ages in numbers, or else its category."""
    if column.dtype.kind == "f":
        return np.array([_age_band(age) for age in column], dtype=object)
    return np.array(["unknown" if value is None else value for value in column], dtype=object)


def _age_band(age: float | None) -> str:
    if age is None or np.isnan(age):
        return "unknown"
    bounds = (0, *AGE_BANDS)
    band = int(np.searchsorted(AGE_BANDS, age, side="right"))
    return f"{bounds[band]} and over" if band == len(AGE_BANDS) else f"{bounds[band]} to {bounds[band + 1] - 1}"
