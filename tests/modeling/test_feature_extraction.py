"""The feature extractor: every shape of input gives the same tensors, values come back, errors name the place."""

import math
import re

import datasets
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoFeatureExtractor

from modeling_hymate import HyMaTEFeatureExtractor, HyMaTEModel, value_statistics
from tests.support.helpers import tiny_config

VARIABLES = ["heart_rate", "lactate", "diagnosis", "constant", "never_seen"]
EVENTS = {
    "record_id": ["b", "b", "b", "a", "a", "b", "c"],
    "time": [0.0, 2.5, 2.5, 1.0, 0.25, 7.0, 3.0],
    "variable": ["heart_rate", "lactate", "diagnosis", "heart_rate", "constant", "heart_rate", "diagnosis"],
    "value": [80.0, 1.5, None, 95.0, 0.1, 62.0, None],
}
STATIC = {"record_id": ["a", "b", "c"], "age": [63.0, None, 48.0], "unit": ["surgery", "medicine", None]}
TENSORS = ("values", "times", "variable_ids", "attention_mask", "value_mask", "static_values")


def training_records(size=400, seed=0):
    """One long record: a plain variable, a skewed one, one without numbers, a constant."""
    rng = np.random.default_rng(seed)
    values = {
        "heart_rate": rng.normal(80, 12, size),
        "lactate": rng.lognormal(0.5, 1.0, size),
        "diagnosis": np.full(size, np.nan),
        "constant": np.full(size, 0.1),
    }
    return {
        "time": np.tile(np.linspace(0, 48, size), 4),
        "variable": np.repeat(list(values), size).tolist(),
        "value": np.concatenate(list(values.values())),
        "age": 60.0,
    }


@pytest.fixture(scope="module")
def extractor() -> HyMaTEFeatureExtractor:
    records = [training_records(seed=seed) | {"age": 50.0 + seed} for seed in range(3)]
    return HyMaTEFeatureExtractor.fit(
        records, VARIABLES, numeric_columns=["age"], categorical_columns={"unit": ["medicine", "surgery"]}
    )


def by_record(columns) -> dict[str, dict]:
    """Events of `EVENTS` as one dict of lists a record, in the order of their first events."""
    ids = list(dict.fromkeys(columns["record_id"]))
    return {
        wanted: {
            name: [item for item, owner in zip(column, columns["record_id"], strict=True) if owner == wanted]
            for name, column in columns.items()
            if name != "record_id"
        }
        for wanted in ids
    }


def assert_equal(found, expected):
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def prepared_rows() -> list[dict]:
    """The records as rows of a prepared data set: variables by index, static columns beside the lists."""
    static = {row["record_id"]: row for row in pl.DataFrame(STATIC).to_dicts()}
    return [
        {"record_id": record_id}
        | {"time": record["time"], "variable": [VARIABLES.index(name) for name in record["variable"]]}
        | {"value": record["value"]}
        | {name: static[record_id][name] for name in ("age", "unit")}
        for record_id, record in by_record(EVENTS).items()
    ]


def long_with_static() -> pl.DataFrame:
    return pl.DataFrame(EVENTS).join(pl.DataFrame(STATIC), on="record_id", how="left", maintain_order="left")


PANDAS, POLARS = pd.DataFrame(EVENTS), pl.DataFrame(EVENTS)
SHAPES = {
    "pandas": lambda: (PANDAS, pd.DataFrame(STATIC)),
    "polars": lambda: (POLARS, pl.DataFrame(STATIC)),
    "pandas with static columns": lambda: (long_with_static().to_pandas(), None),
    "polars with static columns": lambda: (long_with_static(), None),
    "dict of columns": lambda: (EVENTS, STATIC),
    "pandas nullable": lambda: (PANDAS.convert_dtypes(), pd.DataFrame(STATIC).convert_dtypes()),
    "pandas category": lambda: (PANDAS.astype({"variable": "category"}), pd.DataFrame(STATIC)),
    "polars categorical": lambda: (POLARS.cast({"variable": pl.Categorical}), pl.DataFrame(STATIC)),
    "pandas with another index": lambda: (PANDAS.set_index(np.arange(100, 107)), STATIC),
    "integer ids": lambda: (
        POLARS.with_columns(variable=pl.col("variable").replace_strict(VARIABLES, range(5))),
        STATIC,
    ),
    "numbers as strings": lambda: (POLARS.cast({"value": pl.String}), STATIC),
    "list of dicts": lambda: (
        [record | {"record_id": record_id} for record_id, record in by_record(EVENTS).items()],
        STATIC,
    ),
    "list of frames": lambda: (POLARS.partition_by("record_id", maintain_order=True), STATIC),
    "frames and dicts": lambda: ([PANDAS[PANDAS["record_id"] == "b"], *prepared_rows()[1:]], STATIC),
    "prepared rows": lambda: (prepared_rows(), None),
    "a slice of a data set": lambda: (datasets.Dataset.from_list(prepared_rows())[:3], None),
    "a data set": lambda: (datasets.Dataset.from_list(prepared_rows()), None),
    "dict of pandas columns": lambda: (dict(PANDAS), dict(pd.DataFrame(STATIC))),
    "dict of polars columns": lambda: (POLARS.to_dict(), pl.DataFrame(STATIC).to_dict()),
    "pyarrow": lambda: (POLARS.to_arrow(), pl.DataFrame(STATIC).to_arrow()),
    "record_id as the index": lambda: (PANDAS.set_index("record_id"), pd.DataFrame(STATIC).set_index("record_id")),
    "record_id as a level": lambda: (
        PANDAS.set_index(["record_id", "time"]),
        pd.DataFrame(STATIC).iloc[::-1].set_index(["record_id", "age"]),
    ),
    "ids as an index beside lists": lambda: (EVENTS | {"record_id": pd.Index(EVENTS["record_id"])}, STATIC),
    "static in the order of records": lambda: (
        POLARS,
        {"age": [None, 63.0, 48.0], "unit": ["medicine", "surgery", ""]},
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_of_input_gives_the_same(extractor, shape):
    found = extractor(*SHAPES[shape]())
    assert tuple(found) == TENSORS
    assert found["values"].dtype == torch.float32
    assert found["variable_ids"].tolist() == [[0, 1, 2, 0], [3, 0, 0, 0], [2, 0, 0, 0]]
    assert found["attention_mask"].sum(1).tolist() == [4, 2, 1]
    assert found["value_mask"].tolist() == [[True, True, False, True], [True, True, False, False], [False] * 4]
    torch.testing.assert_close(found["times"][0] * extractor.time_scale, torch.tensor([0, 2.5, 2.5, 7.0]))
    assert found["static_values"][:, 1:].tolist() == [[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    assert_equal(found, extractor(POLARS, pl.DataFrame(STATIC)))


STATIC_WITHOUT_ID = {name: column for name, column in STATIC.items() if name != "record_id"}


@pytest.mark.parametrize(
    ("records", "static", "complaint"),
    [
        (POLARS.rename({"record_id": "stay_id"}), None, "the frame has no column 'record_id', but 'stay_id'"),
        (
            PANDAS,
            pd.DataFrame({**STATIC_WITHOUT_ID, "PatientID": ["b", "a", "c"]}),
            "static has no column 'record_id', but",
        ),
        (PANDAS, [{"age": 60.0, "unit": None}] * 3, "static must be a frame or a mapping of its columns, got list"),
        (PANDAS, pd.Series({"age": 60.0}), "static must be a frame or a mapping of its columns, got Series"),
        (
            PANDAS.assign(record_id=[1.0, 1, 1, 2, 2, 1, 3]),
            None,
            "'record_id' must hold text or whole numbers, not float64",
        ),
        (
            PANDAS,
            pd.DataFrame({**STATIC, "record_id": [1.0, 2.0, 3.0]}),
            "'record_id' must hold text or whole numbers",
        ),
        (pd.concat([PANDAS, PANDAS["value"]], axis=1), None, "the frame has two columns called 'value'"),
        (POLARS.with_columns(variable=pl.lit("Heart_Rate")), None, "did you mean 'heart_rate'"),
        (PANDAS.rename(columns={"record_id": "key"}).set_index("key"), None, "the frame has the index 'key'"),
        (PANDAS.drop(columns="record_id").set_index(np.array([2, 2, 2, 1, 1, 2, 3])), None, "has an index of its own"),
        (PANDAS.drop(columns="record_id").set_index(PANDAS["record_id"].to_numpy()), None, "has an index of its own"),
        (dict(PANDAS.set_index("record_id")), None, "record 0 has the index 'record_id'"),
        (PANDAS, pd.DataFrame(STATIC_WITHOUT_ID, index=list("abc")), "static has an index of its own"),
        (PANDAS, pd.DataFrame(STATIC).set_index(["record_id", "age"]).rename_axis(["key", "age"]), "index 'key'"),
        (PANDAS.assign(record_id="1.33E+10"), None, "'1.33E+10' is a number that a spreadsheet has shortened"),
        (PANDAS, {**STATIC, "record_id": ["1.33E+10", "b", "c"]}, "a number that a spreadsheet has shortened"),
        (EVENTS | {"record_id": [1, 1, 1, "1", "1", 1, 2]}, None, "holds the number 1 and the same as text"),
        ([{"record_id": 1.5, **by_record(EVENTS)["a"]}], None, "'record_id' must hold text or whole numbers"),
        (POLARS.lazy(), None, "a lazy frame holds no rows yet"),
        (POLARS.rename({"time": "hour"}).to_arrow(), None, "the frame lacks the column 'time'; it has 'record_id', "),
    ],
)
def test_what_would_mix_up_records_is_refused(extractor, records, static, complaint):
    with pytest.raises(ValueError, match=re.escape(complaint)):
        extractor(records, static)


def test_records_encoded_apart_are_padded_together(extractor):
    records, hours = prepared_rows(), [[1.0, 9.0], [3.0], [2.0, 4.0]]
    apart = [extractor([record], prediction_times=own) for record, own in zip(records, hours, strict=True)]
    assert_equal(extractor.pad(apart), extractor(records, prediction_times=hours))
    rows = [{name: tensor[0] for name, tensor in extractor([record]).items()} for record in records]
    labeled = extractor.pad([row | {"labels": at} for at, row in enumerate(rows)], return_tensors="np")
    assert labeled["labels"].tolist() == [0, 1, 2]
    assert_equal({name: torch.from_numpy(labeled[name]) for name in TENSORS}, extractor(records))
    with pytest.raises(ValueError, match="features must all have the same entries, but 'labels' is in some"):
        extractor.pad([rows[0] | {"labels": 1}, rows[1]])
    with pytest.raises(ValueError, match="features is empty"):
        extractor.pad([])


def test_one_record(extractor):
    record = by_record(EVENTS)["b"]
    expected = extractor(record, {"age": 63.0, "unit": "surgery"})
    assert expected["values"].shape == (1, 4)
    assert_equal(extractor(record | {"age": 63.0, "unit": "surgery"}), expected)
    assert_equal(extractor([record], {"age": np.float64(63), "unit": np.str_("surgery")}), expected)
    assert_equal(extractor(pd.DataFrame(record).assign(age=63, unit="surgery")), expected)
    arrays = {"time": torch.tensor(record["time"]), "variable": tuple(record["variable"])}
    arrays["value"] = np.array(record["value"], dtype=np.float64)
    assert_equal(extractor(arrays, pd.DataFrame({"age": [63], "unit": ["surgery"]})), expected)
    assert_equal(
        extractor(
            {name: pd.Series(column)[::1] for name, column in record.items()}, {"age": [63.0], "unit": ["surgery"]}
        ),
        expected,
    )


@settings(max_examples=10, deadline=None)
@given(order=st.permutations(range(7)))
def test_order_of_rows_does_not_matter(extractor, order):
    times = [0.0, 2.5, 2.5, 1.0, 0.25, 2.5, 3.0]  # ties of one variable, too
    frame = pl.DataFrame(EVENTS | {"time": times, "record_id": ["a"] * 7})
    assert_equal(extractor(frame[list(order)]), extractor(frame))
    assert_equal(extractor(frame[list(order)], max_events=3), extractor(frame, max_events=3))


def test_max_events_keeps_the_latest(extractor):
    found = extractor(POLARS, max_events=2)
    assert found["variable_ids"].tolist() == [[2, 0], [3, 0], [2, 0]]
    torch.testing.assert_close(found["times"][0] * extractor.time_scale, torch.tensor([2.5, 7.0]))
    assert_equal(extractor(POLARS, max_events=99), extractor(POLARS))
    with pytest.raises(ValueError, match="max_events must be at least 1, got 0"):
        extractor(POLARS, max_events=0)


def test_max_events_of_the_training_is_remembered(extractor, tmp_path):
    description = extractor.to_dict() | {"max_events": 2}
    HyMaTEFeatureExtractor.from_dict(description).save_pretrained(tmp_path)
    loaded = HyMaTEFeatureExtractor.from_pretrained(tmp_path)
    assert_equal(loaded(POLARS), extractor(POLARS, max_events=2))
    assert_equal(loaded(POLARS, max_events=3), extractor(POLARS, max_events=3))
    with pytest.raises(ValueError, match="max_events must be at least 1, got 0"):
        HyMaTEFeatureExtractor.from_dict(description | {"max_events": 0})


@settings(max_examples=30, deadline=None)
@given(
    events=st.lists(
        st.tuples(
            st.floats(0, 1e4, width=32),
            st.integers(0, len(VARIABLES) - 1),
            st.none() | st.floats(0, 1),
        ),
        min_size=1,
        max_size=12,
    )
)
def test_values_come_back_inside_the_clipping_range(extractor, events):
    def value(variable, share):
        low, high = extractor.value_ranges[variable]
        return None if share is None else low + share * (high - low)

    record = {
        "time": [time for time, _, _ in events],
        "variable": [VARIABLES[variable] for _, variable, _ in events],
        "value": [value(variable, share) for _, variable, share in events],
    }
    (decoded,) = extractor.decode(extractor(record))

    def ordered(columns):
        rows = zip(columns["time"], columns["variable"], columns["value"], strict=True)
        return sorted(rows, key=lambda row: (round(row[0], 1), row[1], row[2] is None, row[2] or 0, row[0]))

    times, names, values = zip(*ordered(decoded), strict=True)
    expected_times, expected_names, expected_values = zip(*ordered(record), strict=True)
    assert names == expected_names
    assert times == pytest.approx(expected_times, rel=1e-5, abs=1e-4)
    assert [value is None for value in values] == [value is None for value in expected_values]
    known = [(a, b) for a, b in zip(values, expected_values, strict=True) if a is not None]
    for found, expected in known:
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_statistics(extractor):
    standardized = extractor([training_records(seed=seed) for seed in range(3)])
    for variable, name in enumerate(VARIABLES[:2]):
        values = standardized["values"][standardized["variable_ids"] == variable]
        assert abs(values.mean()) < 0.05, name
        assert 0.95 < values.std() < 1.05, name
    assert extractor.value_medians[0] is None
    assert extractor.value_medians[1] == pytest.approx(math.exp(0.5), rel=0.15)  # skewed: on a logarithmic scale
    low, high = extractor.value_ranges[0]
    assert 35 < low < 50
    assert 110 < high < 125
    far = extractor({"time": [0, 0], "variable": ["heart_rate"] * 2, "value": [-1e9, 1e9]})["values"]
    assert far.abs().max() < 5  # clipped
    constant = extractor({"time": [0, 0], "variable": ["constant"] * 2, "value": [0.1, 50.0]})
    assert constant["values"].tolist() == [[0, 0]]
    unseen = extractor({"time": [0], "variable": ["never_seen"], "value": [7.0]})
    assert unseen["values"].tolist() == [[0]]
    assert unseen["value_mask"].tolist() == [[True]]
    assert extractor.time_scale == 64  # the power of two above 48


def test_static_features(extractor):
    assert extractor.static_feature_names == ["age", "age missing", "unit=medicine", "unit=surgery", "unit missing"]
    found = extractor(POLARS, STATIC)["static_values"]
    deviation = math.sqrt(2 / 3)  # of 50, 51, 52, clipped a little
    np.testing.assert_allclose(found[:, 0], [0, 1 / deviation, -1 / deviation], atol=0.02)
    nothing = extractor(POLARS)["static_values"]
    assert nothing.tolist() == [[0, 1, 0, 0, 1]] * 3
    assert len(extractor.static_feature_names) == found.shape[1]


def test_columns_of_other_libraries(extractor):
    plain = {"time": [0.0, 1.0], "variable": ["heart_rate"] * 2, "value": [80.0, 95.0]}
    expected = extractor(plain)
    batch = pa.RecordBatch.from_pydict(plain)
    for records in (batch, plain | {"value": torch.tensor([80.0, 95.0], requires_grad=True)}):
        assert torch.equal(extractor(records)["values"], expected["values"])
    nested = torch.nested.nested_tensor([torch.tensor([0.0, 1.0]), torch.tensor([2.0])], layout=torch.jagged)
    lists = {"time": [[0.0, 1.0], [2.0]], "variable": [["heart_rate"] * 2, ["lactate"]]}
    for records in (lists | {"time": nested}, lists | {"value": nested}):
        same = {"value": [[0.0, 1.0], [2.0]], **{name: lists.get(name, [[0.0, 1.0], [2.0]]) for name in records}}
        assert torch.equal(extractor({"value": same["value"], **records})["values"], extractor(same)["values"])
    masked = extractor(plain | {"value": np.ma.masked_array([80.0, 95.0], [False, True])})
    assert masked["value_mask"].tolist() == [[True, False]]
    for values, message in (
        (torch.tensor([80.0, 95.0], dtype=torch.bfloat16), "column 'value' must hold numbers, got torch.bfloat16"),
        (torch.zeros(2, device="meta"), "column 'value' must hold numbers, got torch.float32 on meta"),
    ):
        with pytest.raises(ValueError, match=message):
            extractor(plain | {"value": values})
    with pytest.raises(ValueError, match=r"column 'time', event 1 of record '0': a time is missing|is not"):
        extractor(plain | {"time": np.ma.masked_array([0.0, 1.0], [False, True])})
    with pytest.raises(ValueError, match="column 'record_id' must hold one value per record"):
        extractor([pa.RecordBatch.from_pydict(plain | {"record_id": ["a", "b"]})])


@pytest.mark.parametrize("missing", [None, math.nan, pd.NA, np.nan])
def test_kinds_of_missing(extractor, missing):
    record = {"time": [0, 1], "variable": ["lactate", "heart_rate"], "value": [missing, 80]}
    static = {"age": missing, "unit": missing}
    assert_equal(extractor(record, static), extractor(record | {"value": [None, 80]}, {"age": None, "unit": None}))


BASE = {
    "record_id": ["x", "x", "y"],
    "time": [0.0, 1.0, 2.0],
    "variable": ["heart_rate"] * 3,
    "value": [1.0, 2.0, 3.0],
}


@pytest.mark.parametrize("make", [pd.DataFrame, pl.DataFrame, dict], ids=["pandas", "polars", "dict"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"time": [0.0, -1.0, 2.0]}, "column 'time', event 1 of record 'x': -1.0 is not hours .* not negative"),
        ({"time": [0.0, 1.0, None]}, "column 'time', event 0 of record 'y': nan is not a finite number"),
        ({"time": ["0", "soon", "2"]}, "column 'time', event 1 of record 'x': 'soon' is not a number"),
        ({"value": ["1", "2", "high"]}, "column 'value', event 0 of record 'y': 'high' is not a number"),
        ({"value": [1.0, math.inf, 2.0]}, "column 'value', event 1 of record 'x': inf is not a finite number"),
        (
            {"variable": ["heart_rate", "hart_rate", "lactate"]},
            "column 'variable', event 1 of record 'x': 'hart_rate' is not one of the 5 .* did you mean 'heart_rate'",
        ),
        (
            {"variable": ["heart_rate", None, "lactate"]},
            "column 'variable', event 1 of record 'x': the variable is missing",
        ),
        ({"variable": [0, 5, 1]}, r"column 'variable', event 1 of record 'x': index 5 is not in \[0, 5\)"),
        ({"variable": [0.0, 1.0, 1.0]}, "column 'variable' must hold names or whole-number indices"),
        ({"record_id": ["x", None, "y"]}, "column 'record_id', row 1: the record id is missing"),
        ({"time": None}, "lacks the column 'time'; it has 'record_id', 'variable', 'value'"),
        ({"variable": None}, "lacks the column 'variable'"),
        ({"value": None}, "lacks the column 'value'"),
        ({"age": [60.0, 61.0, 5.0]}, "column 'age' must hold one value per record, but record 'x' has 2"),
        ({"age": ["old", "old", "5"]}, "static column 'age' must hold numbers"),
        ({"unit": ["attic", "attic", "surgery"]}, "static column 'unit': 'attic' is not one of 'medicine', 'surgery'"),
    ],
)
def test_errors_name_the_place(extractor, make, change, message):
    columns = {name: column for name, column in (BASE | change).items() if column is not None}
    with pytest.raises(ValueError, match=message):
        extractor(make(columns))


@pytest.mark.parametrize(
    ("records", "message"),
    [
        (pd.DataFrame(BASE)[:0], "records is empty|no events"),
        (pl.DataFrame(BASE)[:0], "records is empty|no events"),
        ([], "records is empty"),
        ({"time": [], "variable": [], "value": []}, "record '0' has no events"),
        ([BASE | {"record_id": "x"}, {"time": [], "variable": [], "value": []}], "record '1' has no events"),
        (5, "records must be a frame, a mapping or a sequence of them, got int"),
        ("events.csv", "record 0 must be a mapping or a frame, got str"),
        ([pl.DataFrame(BASE)], "column 'record_id' must hold one value per record, but record 0 has 2"),
        ({"time": 1.0, "variable": ["lactate"], "value": [1]}, "column 'time' must hold a list, got float"),
        ({"time": [1.0, 2.0], "variable": ["lactate"], "value": [1]}, "record '0': columns differ in length"),
        (
            {"time": [[1.0], [2.0]], "variable": [["lactate"], ["lactate"]], "value": [[1.0]]},
            "column 'value' must hold one item per record, as 'time' does .2.; it holds 1 items",
        ),
        (BASE | {"value": [1.0]}, "columns differ in length"),
        (
            pd.DataFrame(BASE | {"time": pd.to_timedelta([0, 1, 2], unit="h")}),
            "column 'time' must hold numbers .times in hours., got timedelta64",
        ),
        (
            pd.DataFrame(BASE | {"time": pd.to_datetime(["2020-01-01"] * 3)}),
            "column 'time' must hold numbers .times in hours., got datetime64",
        ),
    ],
)
def test_bad_records_are_named(extractor, records, message):
    with pytest.raises(ValueError, match=message):
        extractor(records)


@pytest.mark.parametrize(
    ("static", "message"),
    [
        ({"record_id": ["a", "b", "b"], "age": [1, 2, 3], "unit": [None] * 3}, "record_id 'b' more than once"),
        ({"record_id": ["a", "b"], "age": [1, 2], "unit": [None] * 2}, "static has no row for record_id 'c'"),
        (
            {"record_id": ["a", "b", "c"], "age": [1, 2, 3]},
            "static lacks the column 'unit'; it has 'record_id', 'age'",
        ),
        ({"age": [1, 2], "unit": [None] * 2}, "static column 'age' has 2 rows for 3 records"),
        ({"age": [1.0, math.inf, 2.0], "unit": [None] * 3}, "static column 'age' must hold finite numbers"),
    ],
)
@pytest.mark.parametrize("make", [pd.DataFrame, pl.DataFrame, dict])
def test_bad_static_tables_are_named(extractor, static, message, make):
    with pytest.raises(ValueError, match=message):
        extractor(POLARS, make(static))


def test_unknown_variables_are_dropped_and_counted(extractor, caplog):
    lenient = HyMaTEFeatureExtractor(**extractor.to_dict() | {"unknown_variables": "ignore"})
    frame = pl.DataFrame(
        {
            "record_id": ["x"] * 4,
            "time": [0.0, 1.0, 2.0, 3.0],
            "variable": ["shoe_size", "heart_rate", "shoe_size", "hat"],
            "value": [1.0, 80.0, 2.0, 3.0],
        }
    )
    assert lenient.parse(frame).ignored == {"shoe_size": 2, "hat": 1}
    assert_equal(lenient(frame), extractor(frame[1:2]))
    assert "dropped 3 events of 2 unknown variables: shoe_size, hat" in caplog.text
    with pytest.raises(ValueError, match="record 'x' has no events left: all of its variables are unknown"):
        lenient(frame[:1])
    fitted = HyMaTEFeatureExtractor.fit(frame, VARIABLES, unknown_variables="ignore")
    assert fitted.unknown_variables == "ignore"
    with pytest.raises(ValueError, match="'shoe_size' is not one of"):
        HyMaTEFeatureExtractor.fit(frame, VARIABLES)
    with pytest.raises(ValueError, match="unknown_variables must be 'error' or 'ignore', got 'drop'"):
        HyMaTEFeatureExtractor(**extractor.to_dict() | {"unknown_variables": "drop"})


def test_saving_and_loading(extractor, tmp_path):
    extractor.save_pretrained(tmp_path)
    config = tiny_config(num_variables=5, num_static_features=5)
    HyMaTEModel(config).save_pretrained(tmp_path)
    loaded = AutoFeatureExtractor.from_pretrained(tmp_path)
    assert isinstance(loaded, HyMaTEFeatureExtractor)
    assert loaded.to_dict() == extractor.to_dict()
    features = loaded(POLARS, STATIC)
    assert_equal(features, extractor(POLARS, STATIC))
    assert HyMaTEModel.from_pretrained(tmp_path)(**features).pooler_output.isfinite().all()
    loaded.save_pretrained(tmp_path / "again")
    name = "preprocessor_config.json"
    assert (tmp_path / "again" / name).read_bytes() == (tmp_path / name).read_bytes()


def test_return_tensors(extractor):
    arrays, tensors = extractor(POLARS, return_tensors="np"), extractor(POLARS)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(arrays[name], tensor.numpy())
    with pytest.raises(ValueError, match="return_tensors must be 'pt' or 'np', got 'tf'"):
        extractor(POLARS, return_tensors="tf")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"variables": ["a", "a"]}, "variables must not repeat|must have one entry per variable"),
        ({"value_means": [0.0]}, r"value_means must have one entry per variable \(5\): 1"),
        ({"time_scale": 0}, "time_scale must be positive, got 0"),
        ({"time_scale": math.nan}, "time_scale must be positive, got nan"),
    ],
)
def test_bad_settings_are_named(extractor, change, message):
    with pytest.raises(ValueError, match=message):
        HyMaTEFeatureExtractor(**extractor.to_dict() | change)


def test_numeric_categories_and_records_at_time_zero():
    frame = pl.DataFrame({"record_id": [1, 2], "time": [0, 0], "variable": ["a", "a"], "value": [1, 3], "icu": [1, 4]})
    extractor = HyMaTEFeatureExtractor.fit(frame, ["a"], categorical_columns={"icu": [1, 2, 4]})
    found = extractor(frame)
    assert found["static_values"].tolist() == [[1, 0, 0, 0], [0, 0, 1, 0]]
    assert extractor.time_scale == 1.0
    assert found["values"].squeeze().tolist() == pytest.approx([-1, 1], abs=1e-2)


@pytest.mark.parametrize("at_once", [1 << 21, 7])
def test_fit_looks_at_a_block_of_events_at_a_time(monkeypatch, at_once):
    monkeypatch.setattr(value_statistics, "FIT_AT_ONCE", at_once)
    records = training_records()
    fitted = HyMaTEFeatureExtractor.fit(records, VARIABLES)
    values = np.asarray(records["value"])
    for index, name in enumerate(("heart_rate", "lactate")):
        own = values[np.array(records["variable"]) == name]
        low, median, high = np.percentile(own, [0.1, 50, 99.9])
        scaled = np.clip(own, low, high)
        assert (fitted.value_medians[index] is not None) == (name == "lactate")
        if name == "lactate":
            scaled = np.log1p((scaled - low) / (median - low))
        np.testing.assert_allclose(fitted.value_ranges[index], [low, high], rtol=1e-12)
        np.testing.assert_allclose(fitted.value_means[index], scaled.mean(), rtol=1e-12)
        np.testing.assert_allclose(fitted.value_deviations[index], scaled.std(), rtol=1e-12)
    assert fitted.time_scale == 64.0


@pytest.mark.parametrize(
    ("units", "message"),
    [
        (["bpm"], "units must map names to text"),
        ({"HR": 1}, "units must map names to text"),
        ({"someone": "bpm"}, "units must name variables or static columns, got 'someone'"),
    ],
)
def test_units_are_text_of_known_names(extractor, units, message):
    with pytest.raises(ValueError, match=message):
        HyMaTEFeatureExtractor(**extractor.to_dict() | {"units": units})
