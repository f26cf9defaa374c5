"""The prepared folder: what is written comes back, everything malformed is refused and leaves nothing behind."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from hymate_training.data.prepared_folder import read_info, read_records, read_task, split_fingerprint
from hymate_training.data.schema import DatasetInfo, StaticColumn, TaskInfo
from hymate_training.data.writer import PreparedFolderWriter, nest_events

MORTALITY = TaskInfo("mortality", "Death.", "binary", ("boolean_value",), ("survived", "died"))
INFO = DatasetInfo(
    source="test",
    variables=("HR", "Code"),
    static_columns=(StaticColumn("age", "numeric"), StaticColumn("sex", "categorical", ("female", "male"))),
    tasks=(MORTALITY,),
    dropped={"rows without a parameter": 3},
    split_description="By hand.",
    license="cc0-1.0",
    citation="None.",
    seed=None,
)


def records(*ids: str, **columns: list) -> pl.DataFrame:
    count = len(ids)
    default = {
        "time": [[0.0, 1.5]] * count,
        "variable": [[0, 1]] * count,
        "value": [[80.0, None]] * count,
        "age": [None, *[61.0] * (count - 1)],
        "sex": ["female"] * count,
    }
    return pl.DataFrame({"record_id": list(ids), **default, **columns}, schema_overrides={"age": pl.Float64})


def labels(*ids: str, **columns: list) -> pl.DataFrame:
    default = {"prediction_time": [48.0] * len(ids), "boolean_value": [True] * len(ids)}
    return pl.DataFrame({"record_id": list(ids), **default, **columns})


def write(output: Path, steps: list[tuple] | None = None, *, info: DatasetInfo | None = INFO, **options) -> Path:
    """Steps are (split, records) or (task, split, labels); an exception class among them is raised at that point."""
    if steps is None:
        steps = [
            ("train", records("a", "b")),
            ("train", records("c")),
            ("validation", records("d")),
            (MORTALITY, "train", labels("a", "c", boolean_value=[True, False])),
            (MORTALITY, "validation", labels("d")),
        ]
    with PreparedFolderWriter(output, **options) as writer:
        for step in steps:
            if isinstance(step, type):
                raise step
            (writer.write_records if len(step) == 2 else writer.write_task)(*step)
        if info is not None:
            writer.finish(info)
    return output


def test_what_is_written_is_read(tmp_path):
    folder = write(tmp_path / "deep" / "out")
    assert read_info(folder) == INFO
    train = read_records(folder, "train")
    assert train["record_id"].to_pylist() == ["a", "b", "c"]
    assert train["value"].to_pylist()[0] == [80.0, None]
    assert train["age"].to_pylist() == [None, 61.0, None]
    assert train.schema.field("time").type == pa.list_(pa.float32())
    assert read_task(folder, "mortality", "train")["boolean_value"].to_pylist() == [True, False]
    assert [path.name for path in folder.parent.iterdir()] == ["out"]


def test_every_task_and_split_loads_with_datasets(synthetic_folder, tmp_path):
    info = read_info(synthetic_folder)
    loaded = datasets.load_dataset(str(synthetic_folder), "records", cache_dir=str(tmp_path))
    assert set(loaded) == {"train", "validation", "test"}
    assert loaded["train"].features["value"] == datasets.List(datasets.Value("float32"))
    assert loaded["test"]["record_id"][:] == read_records(synthetic_folder, "test")["record_id"].to_pylist()
    for task in info.tasks:
        loaded = datasets.load_dataset(str(synthetic_folder), task.name, cache_dir=str(tmp_path))
        for split, rows in loaded.items():
            assert rows.to_list() == read_task(synthetic_folder, task.name, split).to_pylist()


def test_a_split_that_is_absent_is_not_listed(tmp_path):
    folder = write(tmp_path / "out")
    header = yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])
    assert {file["split"] for config in header["configs"] for file in config["data_files"]} == {"train", "validation"}
    assert set(datasets.load_dataset(str(folder), "mortality", cache_dir=str(tmp_path / "c"))) == {
        "train",
        "validation",
    }


def test_fingerprint_follows_content_not_order(tmp_path):
    prints = set()
    for name, frame in {
        "same": labels("a", "b", boolean_value=[True, False]),
        "reordered": labels("b", "a", boolean_value=[False, True]),
        "other label": labels("a", "b", boolean_value=[False, False]),
        "other time": labels("a", "b", boolean_value=[True, False], prediction_time=[24.0, 48.0]),
        "fewer": labels("a"),
    }.items():
        write(tmp_path / name, [("train", records("a", "b")), (MORTALITY, "train", frame)])
        prints.add(fingerprint := split_fingerprint(tmp_path / name, "mortality", "train"))
        assert len(fingerprint) == 16
    assert len(prints) == 4
    assert split_fingerprint(tmp_path / "same", "mortality", "train") == split_fingerprint(
        tmp_path / "reordered", "mortality", "train"
    )


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
        ({"variable": [[0, -1]]}, "variable index is null or negative"),
        ({"variable": [None]}, "'x': variable is null"),
        ({"time": [[]], "variable": [[]], "value": [[]]}, "'x' has no events"),
        ({"record_id": [None]}, "record_id is null"),
        ({"time": [["noon", "night"]]}, "columns must be"),
        ({"age": [float("inf")]}, "'x': age must be a number"),
        ({"sex": [1]}, "static columns"),
    ],
)
def test_malformed_records_are_refused_and_leave_nothing(tmp_path, columns, message):
    steps = [("train", records("fine")), ("train", records("x", **columns))]
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "deep" / "down" / "out", steps)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_record_id_occurs_once_in_all_splits(tmp_path, split):
    with pytest.raises(ValueError, match=r"'a' of split .* was already written to 'train'"):
        write(tmp_path / "out", [("train", records("b", "a")), (split, records("a"))])


def test_a_record_id_occurs_once_in_a_shard(tmp_path):
    with pytest.raises(ValueError, match="'a' of split 'train' was already written to 'train'"):
        write(tmp_path / "out", [("train", records("a", "a"))])


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (labels("z"), "'z' is not among the records of that split"),
        (labels("d"), "'d' is not among the records of that split"),
        (labels("a", "a"), "'a' is predicted twice"),
        (labels("a", boolean_value=[None]), "boolean_value is null"),
        (labels("a", prediction_time=[float("nan")]), "prediction_time nan"),
        (labels("a", prediction_time=[-1.0]), "no event at or before"),
        (labels("a").drop("boolean_value"), "missing column.* boolean_value"),
        (labels("a", extra=[1]), "unexpected column.* extra"),
        (labels("a", boolean_value=["yes"]), "columns must be"),
    ],
)
def test_malformed_tasks_are_refused_and_leave_nothing(tmp_path, frame, message):
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "out", [("train", records("a")), ("test", records("d")), (MORTALITY, "train", frame)])
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
        steps = [("train", records("a")), (task, "train", labels("a", **label).drop("boolean_value"))]
        with pytest.raises(ValueError, match=message):
            write(tmp_path / "out", steps)


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
        write(tmp_path / "out", info=replace(INFO, **change))
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
    folder = write(tmp_path / "out")
    (folder / "mark").touch()
    with pytest.raises(ValueError, match="exists"):
        write(folder)
    with pytest.raises(KeyboardInterrupt):
        write(folder, [("train", records("a")), KeyboardInterrupt], overwrite=True)
    assert (folder / "mark").exists(), "an interrupted run leaves the old result"
    assert len(list(tmp_path.iterdir())) == 1
    write(folder, overwrite=True)
    assert not (folder / "mark").exists()

    foreign = tmp_path / "foreign"
    foreign.mkdir()
    write(foreign)  # an empty folder is nobody's
    shutil.rmtree(foreign)
    foreign.mkdir()
    (foreign / "thesis.txt").touch()
    with pytest.raises(ValueError, match="not a prepared folder"):
        write(foreign, overwrite=True)
    assert (foreign / "thesis.txt").exists()


def test_a_block_without_finish_writes_nothing(tmp_path):
    with pytest.raises(RuntimeError, match="finish"):
        write(tmp_path / "out", info=None)
    with pytest.raises(ValueError, match="no record is left"):
        write(tmp_path / "out", [])
    assert not list(tmp_path.iterdir())


def test_reading_says_what_is_wrong(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        read_info(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="not a prepared folder"):
        read_info(tmp_path)
    folder = write(tmp_path / "out")
    with pytest.raises(ValueError, match="no split 'test'; it has: train, validation"):
        read_records(folder, "test")
    with pytest.raises(ValueError, match="no split 'tset'; it has: train, validation"):
        read_task(folder, "mortality", "tset")
    with pytest.raises(ValueError, match="unknown task 'death'; this data set has: mortality"):
        read_task(folder, "death", "train")

    shard = folder / "records" / "validation-00000.parquet"
    pq.write_table(pq.read_table(shard).drop_columns(["value", "age"]), shard)
    with pytest.raises(ValueError, match=r"validation-00000\.parquet lacks the column\(s\) value, age"):
        read_records(folder, "validation")
    shard.write_bytes(b"PAR1 and then nothing")
    with pytest.raises(ValueError, match=r"validation-00000\.parquet is not a readable part"):
        read_records(folder, "validation")

    metadata = folder / "metadata.json"
    content = json.loads(metadata.read_text())
    for text in ("{", "[]", "{}", json.dumps(content | {"schema_version": 99}), json.dumps(content | {"new": 1})):
        metadata.write_text(text)
        with pytest.raises(ValueError, match=r"metadata\.json"):
            read_info(folder)
