"""Writing a prepared folder: what is written comes back, all that is malformed is refused and leaves nothing."""

import re
import shutil
from dataclasses import replace

import datasets
import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from hymate_training.data.prepared_folder import PreparedFolder
from hymate_training.data.schema import StaticColumn, TaskInfo
from hymate_training.data.writer import nest_events
from tests.support.prepared import INFO, MORTALITY, content, label_rows, record_rows, records, write_folder


def test_what_is_written_is_read(tmp_path):
    folder = write_folder(tmp_path / "deep" / "out")
    assert PreparedFolder(folder).info == INFO
    train = PreparedFolder(folder).records("train")
    assert train["record_id"].to_pylist() == ["a", "b", "c"]
    assert train["value"].to_pylist()[0] == [80.0, None]
    assert train["age"].to_pylist() == [None, 61.0, None]
    assert train.schema.field("time").type == pa.list_(pa.float32())
    assert PreparedFolder(folder).task("mortality", "train")["boolean_value"].to_pylist() == [True, False]
    assert [path.name for path in folder.parent.iterdir()] == ["out"]


def test_static_columns_may_stand_in_any_order(tmp_path):
    shuffled = record_rows("d").select("sex", "age", "record_id", "value", "variable", "time")
    written = [("train", record_rows("a", "b", "c")), ("validation", shuffled)]
    info = replace(INFO, static_columns=INFO.static_columns[::-1], tasks=())
    folder = PreparedFolder(write_folder(tmp_path / "out", written, info=info))
    assert folder.info == info
    assert folder.records("validation").column_names[-2:] == ["sex", "age"]
    assert folder.records("validation")["age"].to_pylist() == record_rows("d")["age"].to_list()
    assert (
        datasets.load_dataset(str(folder.path), "records", split="train", cache_dir=str(tmp_path / "c")).num_rows == 3
    )


def test_a_split_that_is_absent_is_not_listed(tmp_path):
    folder = write_folder(tmp_path / "out")
    header = yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])
    assert {file["split"] for config in header["configs"] for file in config["data_files"]} == {"train", "validation"}
    assert set(datasets.load_dataset(str(folder), "mortality", cache_dir=str(tmp_path / "c"))) == {
        "train",
        "validation",
    }


HOSTILE = "x<script>alert(1)</script>\n---\nlicense: mit\n`|` [a](javascript:b) ```"


def test_the_card_escapes_names(tmp_path):
    """In headings, lists, tables, code and prose."""
    task = replace(MORTALITY, description=HOSTILE, label_names=("survived", HOSTILE))
    info = replace(
        INFO,
        source=HOSTILE,
        variables=(INFO.variables[0], HOSTILE),
        static_columns=(StaticColumn(HOSTILE, "numeric"), StaticColumn("sex", "categorical", ("female", HOSTILE))),
        tasks=(task,),
        dropped={HOSTILE: 3},
        split_description=HOSTILE,
        citation=HOSTILE,
        extra={"description": HOSTILE, "units": {HOSTILE: HOSTILE}},
    )
    rows = record_rows("a", "b", "c").rename({"age": HOSTILE}).with_columns(sex=pl.lit(HOSTILE))
    folder = write_folder(tmp_path / "out", [("train", rows), (task, "train", label_rows("a", "b"))], info=info)
    _, header, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    assert yaml.safe_load(header)["license"] == INFO.license
    rendered = MarkdownIt("commonmark").enable("table").render(text)
    assert "<script" not in rendered
    assert 'href="javascript:' not in rendered
    for table in re.findall(r"<table>.*?</table>", rendered, re.DOTALL):
        widths = {row.count("<td") + row.count("<th>") for row in re.findall(r"<tr>.*?</tr>", table, re.DOTALL)}
        assert len(widths) == 1


event = st.tuples(
    st.sampled_from("abc"),
    st.floats(0, 48, width=32),
    st.integers(0, 1),
    st.one_of(st.none(), st.just(float("nan")), st.floats(-9, 9, width=32)),
)


@given(st.lists(event, min_size=1, max_size=30), st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_nesting_ignores_the_order_of_events_and_keeps_all(rows, random):
    names = ["record_id", "time", "variable", "value"]
    types = {"record_id": pl.String, "time": pl.Float64, "variable": pl.Int64, "value": pl.Float64}
    static = pl.DataFrame({"record_id": ["c", "b", "a"], "age": [3.0, 2.0, 1.0]})
    nested = nest_events(pl.DataFrame(rows, schema=types, orient="row"), static)
    shuffled = random.sample(rows, len(rows))
    assert nested.equals(nest_events(pl.DataFrame(shuffled, schema=types, orient="row"), static))
    assert nested.columns == [*names, "age"]
    assert nested["record_id"].to_list() == sorted({row[0] for row in rows})
    for record_id, time, variable, value, age in nested.iter_rows():
        assert time == sorted(time)
        assert len(time) == len(variable) == len(value) == sum(row[0] == record_id for row in rows)
        assert all(v is None or np.isfinite(v) for v in value)
        assert age == "abc".index(record_id) + 1


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"time": [[2.0, 1.0]]}, "'x' has events out of order"),
        ({"time": [[-1.0, 1.0]]}, "'x' has a negative time"),
        ({"time": [[0.0, float("nan")]]}, "'x' has a time that is missing or not finite"),
        ({"time": [[0.0, None]]}, "'x' has a time that is missing or not finite"),
        ({"value": [[float("inf"), None]]}, "'x' has an infinite value"),
        ({"value": [[1.0]]}, "'x': time and value differ in length"),
        ({"variable": [[0, -1]]}, "'x' has a variable index that is null or negative"),
        ({"variable": [None]}, "'x': variable is null"),
        ({"time": [[]], "variable": [[]], "value": [[]]}, "'x' has no events"),
        ({"record_id": [None]}, "record_id is null"),
        ({"time": [["noon", "night"]]}, "columns must be"),
        ({"age": [float("inf")]}, "'x': age must be a number"),
        ({"sex": [1]}, "static columns"),
    ],
)
def test_malformed_records_are_refused_and_leave_nothing(tmp_path, columns, message):
    steps = [("train", record_rows("fine")), ("train", record_rows("x", **columns))]
    with pytest.raises(ValueError, match=message):
        write_folder(tmp_path / "deep" / "down" / "out", steps)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_record_id_occurs_once_in_all_splits(tmp_path, split):
    with pytest.raises(ValueError, match=r"'a' of split .* was already written to 'train'"):
        write_folder(tmp_path / "out", [("train", record_rows("b", "a")), (split, record_rows("a"))])


def test_a_record_id_occurs_once_in_a_shard(tmp_path):
    with pytest.raises(ValueError, match="'a' of split 'train' was already written to 'train'"):
        write_folder(tmp_path / "out", [("train", record_rows("a", "a"))])


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (label_rows("z"), "'z' is not among the records of that split"),
        (label_rows("d"), "'d' is not among the records of that split"),
        (label_rows("a", "a"), "'a' is predicted twice"),
        (label_rows("a", boolean_value=[None]), "boolean_value is null"),
        (label_rows("a", prediction_time=[float("nan")]), "prediction_time nan"),
        (label_rows("a", prediction_time=[-1.0]), "no event at or before"),
        (label_rows("a").drop("boolean_value"), "missing column.* boolean_value"),
        (label_rows("a", extra=[1]), "unexpected column.* extra"),
        (label_rows("a", boolean_value=["yes"]), "columns must be"),
    ],
)
def test_malformed_tasks_are_refused_and_leave_nothing(tmp_path, frame, message):
    with pytest.raises(ValueError, match=message):
        write_folder(
            tmp_path / "out", [("train", record_rows("a")), ("test", record_rows("d")), (MORTALITY, "train", frame)]
        )
    assert not list(tmp_path.iterdir())


def test_unknown_classes_and_infinite_targets_are_refused(tmp_path):
    cases = {
        "unknown class 'moon'": (
            TaskInfo("goes", "Where?", "multiclass", ("categorical_value",), ("home", "ward")),
            {"categorical_value": ["moon"]},
        ),
        "not finite": (
            TaskInfo("stay", "Days.", "regression", ("float_value",), ("days",)),
            {"float_value": [np.inf]},
        ),
    }
    for message, (task, label) in cases.items():
        steps = [("train", record_rows("a")), (task, "train", label_rows("a", **label).drop("boolean_value"))]
        with pytest.raises(ValueError, match=message):
            write_folder(tmp_path / "out", steps)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"variables": ("HR",)}, "variable index 1 is out of range"),
        ({"variables": ("HR", "HR")}, "must be unique"),
        ({"static_columns": INFO.static_columns[:1]}, "static columns written"),
        ({"static_columns": (INFO.static_columns[0], StaticColumn("sex", "categorical", ("male",)))}, "'female'"),
        ({"static_columns": (StaticColumn("age", "categorical"), INFO.static_columns[1])}, "'age' is described as"),
        ({"tasks": ()}, "tasks written"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        write_folder(tmp_path / "out", info=replace(INFO, **change))
    assert not list(tmp_path.iterdir())


def test_a_task_is_named_and_labeled_as_its_type_demands():
    for bad in (
        {"name": "records"},
        {"name": "a/b"},
        {"problem_type": "regression"},
        {"problem_type": "multilabel", "label_columns": ()},
        {"label_columns": ("boolean_value", "other")},
    ):
        with pytest.raises(ValueError, match="task"):
            replace(MORTALITY, **bad)


def test_an_existing_output_is_replaced_only_on_request_and_only_whole(tmp_path):
    folder = write_folder(tmp_path / "out")
    before = content(folder)
    with pytest.raises(ValueError, match="is there already"):
        write_folder(folder)
    with pytest.raises(KeyboardInterrupt):
        write_folder(folder, [("train", record_rows("a")), KeyboardInterrupt], overwrite=True)
    assert content(folder) == before, "an interrupted run leaves the old result"
    assert len(list(tmp_path.iterdir())) == 1
    write_folder(folder, [("train", record_rows("z")), (MORTALITY, "train", label_rows("z"))], overwrite=True)
    assert set(records(folder)) == {"z"}
    assert not (folder / "records" / "validation-00000.parquet").exists()


@pytest.mark.parametrize(
    "name", ["thesis.txt", "records/notes.txt", "records/train.parquet", "tasks/mine.csv", ".git/x"]
)
def test_a_file_that_prepare_did_not_write_is_never_deleted(tmp_path, name):
    folder = write_folder(tmp_path / "out")
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).touch()
    before = content(folder)
    with pytest.raises(ValueError, match=rf"out holds {name}, which `hymate prepare` did not write"):
        write_folder(folder, overwrite=True)
    assert content(folder) == before


def test_a_folder_of_something_else_is_never_replaced_and_an_empty_one_always(tmp_path):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    write_folder(foreign)  # an empty folder is nobody's
    shutil.rmtree(foreign)
    foreign.mkdir()
    (foreign / "thesis.txt").touch()
    with pytest.raises(ValueError, match="not a prepared folder"):
        write_folder(foreign, overwrite=True)
    assert (foreign / "thesis.txt").exists()


def test_a_block_without_finish_writes_nothing(tmp_path):
    with pytest.raises(RuntimeError, match="finish"):
        write_folder(tmp_path / "out", info=None)
    with pytest.raises(ValueError, match="no record is left"):
        write_folder(tmp_path / "out", [])
    assert not list(tmp_path.iterdir())
