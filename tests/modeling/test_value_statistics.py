"""What the feature extractor learns of training records, and what it refuses to be told."""

import math
import re

import numpy as np
import pytest

from modeling_hymate import HyMaTEFeatureExtractor
from modeling_hymate.value_statistics import HEAVY_TAILS, NUM_QUANTILES

VARIABLES = ["heart_rate", "lactate"]
STATIC = {"name": "a", "range": [0, 1], "mean": 0, "deviation": 1}


def fit_static(numbers):
    """An extractor whose records have one static column, and what becomes of `numbers` there."""
    ones = [1.0] * len(numbers)
    events = {"record_id": range(len(ones)), "time": ones, "variable": ["lactate"] * len(ones), "value": ones}
    static = {"record_id": range(len(numbers)), "delay": numbers}
    fitted = HyMaTEFeatureExtractor.fit(events, VARIABLES, static, numeric_columns=["delay"])
    return fitted, fitted(events, static)["static_values"][:, 0].numpy()


def test_a_static_column_with_heavy_tails_is_ranked(tmp_path):
    """As standardized numbers, 0.1 and 3 hours before intensive care would be the same beside months."""
    rng = np.random.default_rng(0)
    numbers = np.concatenate([np.full(200, -0.02), -rng.exponential(3, 600), -rng.exponential(1000, 100)])
    fitted, found = fit_static(numbers)
    column = fitted.static_columns[0]
    quantiles = column["quantiles"]
    assert len(quantiles) == NUM_QUANTILES
    assert [quantiles[0], quantiles[-1]] == column["range"]
    np.testing.assert_allclose(quantiles[1:-1], np.percentile(numbers, np.arange(1, 16) * 6.25))
    order = np.argsort(numbers)
    assert (np.diff(found[order]) >= 0).all()
    assert abs(found.mean()) < 0.1
    assert abs(found.std() - 1) < 0.1
    assert len(set(found[numbers == -0.02].tolist())) == 1
    assert found[numbers == -0.02][0] - found[np.argmin(abs(numbers + 3))] > 0.5
    fitted.save_pretrained(tmp_path)
    again = HyMaTEFeatureExtractor.from_pretrained(tmp_path)
    assert again.static_columns == fitted.static_columns
    assert again.encode_static({"delay": np.array([np.nan, 1e9])}, 2).tolist() == [[0, 1], [np.float32(3**0.5), 0]]


@pytest.mark.parametrize("width", [HEAVY_TAILS * 0.9, HEAVY_TAILS * 1.1, np.inf])
def test_other_static_columns_are_standardized(width):
    if width == np.inf:
        numbers = np.array([5.0] * 900 + [1e5] * 10)  # no interquartile range to compare with
    else:
        numbers = np.concatenate([np.linspace(0, 2, 900), np.full(10, width)])  # 1 between the quartiles
    fitted, found = fit_static(numbers)
    column = fitted.static_columns[0]
    assert ("quantiles" in column) == (HEAVY_TAILS < width < np.inf)
    if "quantiles" not in column:
        expected = (np.clip(numbers, *column["range"]) - column["mean"]) / column["deviation"]
        np.testing.assert_allclose(found, expected, rtol=1e-6)
        column["quantiles"] = None
        assert fitted.encode_static({"delay": numbers}, len(numbers))[:, 0].tolist() == found.tolist()


def test_rare_values_are_not_clipped_away():
    records = {"time": range(4000), "variable": ["lactate"] * 4000, "value": [0.0] * 3998 + [1.0, 1.0]}
    fitted = HyMaTEFeatureExtractor.fit(records, VARIABLES)
    assert fitted.value_ranges[VARIABLES.index("lactate")] == [0, 1]
    usual, rare = fitted({"time": [0, 1], "variable": ["lactate"] * 2, "value": [0, 1]})["values"][0].tolist()
    assert abs(usual) < 0.02
    assert rare - usual == pytest.approx(1000**0.5)  # as if one value in a thousand were so


def test_statistics_are_in_double_precision():
    usual = [60.0 + at % 40 for at in range(400)]
    records = {"time": range(430), "variable": ["lactate"] * 430, "value": usual + [9.97e36] * 30}
    found = HyMaTEFeatureExtractor.fit(records, VARIABLES)(records)
    assert found["values"].isfinite().all()
    assert found["values"].unique().numel() > 1
    records["value"] = usual + [1e300] * 30
    with pytest.raises(ValueError, match=r"value_deviations of 'lactate' must be a positive number, got inf"):
        HyMaTEFeatureExtractor.fit(records, VARIABLES)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"value_means": [math.nan]}, "value_means of '{x}' must be a finite number, got nan"),
        ({"value_means": ["0"]}, "value_means of '{x}' must be a finite number, got '0'"),
        ({"value_means": [10**400]}, "value_means of '{x}' must be a finite number"),
        ({"value_deviations": [-1.0]}, "value_deviations of '{x}' must be a positive number, got -1.0"),
        ({"value_deviations": [math.inf]}, "value_deviations of '{x}' must be a positive number, got inf"),
        ({"value_ranges": [[1, 0]]}, "value_ranges of '{x}' must be two finite numbers, the lower first"),
        ({"value_ranges": [[0]]}, "value_ranges of '{x}' must be two finite numbers, the lower first"),
        ({"value_medians": [0]}, "value_medians of '{x}' must be a finite number above the lower end of its range"),
        ({"time_scale": math.nan}, "time_scale must be positive, got nan"),
        ({"time_scale": "1"}, "time_scale must be positive, got '1'"),
        ({"trained_hours": [5, 1]}, "trained_hours must be a first and a last hour"),
        ({"static_columns": [{"name": "a"}]}, "static column 'a' must have categories, or a range, a mean and a"),
        ({"static_columns": [STATIC | {"quantiles": [0, 2, 1]}]}, "quantiles of static column 'a' must be finite"),
        ({"static_columns": [STATIC | {"quantiles": [1, 1]}]}, "quantiles of static column 'a' must be finite"),
        ({"static_columns": [STATIC | {"quantiles": [0, math.inf]}]}, "quantiles of static column 'a' must be finite"),
        ({"static_columns": [STATIC | {"quantiles": 3}]}, "quantiles of static column 'a' must be finite"),
        ({"static_columns": ["a"]}, "static_columns must each be a dict with a name, got 'a'"),
        ({"static_columns": [{"name": "a", "categories": ["x", "x"]}]}, "must not repeat a name, but 'x' occurs"),
        ({"static_columns": [{"name": "a", "categories": []}] * 2}, "must not repeat a name, but 'a' occurs again"),
    ],
)
def test_statistics_that_cannot_be_are_neither_taken_nor_saved(changes, message, tmp_path):
    right = {"value_ranges": [[0, 1]], "value_medians": [None], "value_means": [0.5], "value_deviations": [0.2]}
    extractor = HyMaTEFeatureExtractor(["{x}"], **right)
    with pytest.raises(ValueError, match=re.escape(message)):
        HyMaTEFeatureExtractor(["{x}"], **right | changes)
    for name, value in changes.items():
        setattr(extractor, name, value)
    with pytest.raises(ValueError, match=re.escape(message)):
        extractor.save_pretrained(tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


@pytest.mark.parametrize(
    ("times", "scale"), [([0.0], 1.0), ([0.0] * 200 + [9.0], 1.0), ([0.3, 0.5], 0.5), ([9.0], 16.0)]
)
def test_the_time_scale_holds_nearly_all_events(times, scale):
    records = {"time": times, "variable": ["lactate"] * len(times), "value": [1.0] * len(times)}
    assert HyMaTEFeatureExtractor.fit(records, VARIABLES).time_scale == scale
