"""Reading a prepared folder: once, whole, and refusing what no writer would have written."""

import json
import mmap
import tempfile
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hymate_training.data import mapped as mapped_arrays
from hymate_training.data import prepared_folder
from hymate_training.data.prepared_folder import PreparedFolder
from hymate_training.data.schema import TaskInfo
from tests.support.prepared import INFO, MORTALITY, label_rows, record_rows, write_folder


def test_every_task_and_split_loads_with_datasets(synthetic_folder, tmp_path):
    info = PreparedFolder(synthetic_folder).info
    loaded = datasets.load_dataset(str(synthetic_folder), "records", cache_dir=str(tmp_path))
    assert set(loaded) == {"train", "validation", "test"}
    assert loaded["train"].features["value"] == datasets.List(datasets.Value("float32"))
    assert loaded["test"]["record_id"][:] == PreparedFolder(synthetic_folder).records("test")["record_id"].to_pylist()
    for task in info.tasks:
        loaded = datasets.load_dataset(str(synthetic_folder), task.name, cache_dir=str(tmp_path))
        for split, rows in loaded.items():
            assert rows.to_list() == PreparedFolder(synthetic_folder).task(task.name, split).to_pylist()


def test_fingerprint_follows_content_not_order(tmp_path):
    prints = set()
    for name, frame in {
        "same": label_rows("a", "b", boolean_value=[True, False]),
        "reordered": label_rows("b", "a", boolean_value=[False, True]),
        "other label": label_rows("a", "b", boolean_value=[False, False]),
        "other time": label_rows("a", "b", boolean_value=[True, False], prediction_time=[24.0, 48.0]),
        "fewer": label_rows("a"),
    }.items():
        write_folder(tmp_path / name, [("train", record_rows("a", "b")), (MORTALITY, "train", frame)])
        prints.add(fingerprint := PreparedFolder(tmp_path / name).split_fingerprint("mortality", "train"))
        assert len(fingerprint) == 16
    assert len(prints) == 4
    assert PreparedFolder(tmp_path / "same").split_fingerprint("mortality", "train") == PreparedFolder(
        tmp_path / "reordered"
    ).split_fingerprint("mortality", "train")


def test_reading_says_what_is_wrong(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        PreparedFolder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="not a prepared folder"):
        PreparedFolder(tmp_path)
    folder = write_folder(tmp_path / "out")
    with pytest.raises(ValueError, match="no split 'test'; it has: train, validation"):
        PreparedFolder(folder).records("test")
    with pytest.raises(ValueError, match="no split 'tset'; it has: train, validation"):
        PreparedFolder(folder).task("mortality", "tset")
    with pytest.raises(ValueError, match="unknown task 'death'; this data set has: mortality"):
        PreparedFolder(folder).task("death", "train")

    shard = folder / "records" / "validation-00000.parquet"
    pq.write_table(pq.read_table(shard).drop_columns(["value", "age"]), shard)
    with pytest.raises(ValueError, match=r"validation-00000\.parquet lacks the column\(s\) value, age"):
        PreparedFolder(folder).records("validation")
    shard.write_bytes(b"PAR1 and then nothing")
    with pytest.raises(ValueError, match=r"validation-00000\.parquet is not a readable part"):
        PreparedFolder(folder).records("validation")

    metadata = folder / "metadata.json"
    content = json.loads(metadata.read_text())
    for text in (
        "{",
        "[" * 100_000,
        "[]",
        "{}",
        json.dumps(content | {"schema_version": 99}),
        json.dumps(content | {"new": 1}),
    ):
        metadata.write_text(text)
        with pytest.raises(ValueError, match=r"metadata\.json"):
            PreparedFolder(folder)


def twice(items: list) -> list:
    return [*items, items[0]]


def in_first(key: str, **fields: object):
    """The first of the static columns or of the tasks has other fields."""
    return lambda content: content | {key: [content[key][0] | fields, *content[key][1:]]}


EDITS = {
    "variable twice": (lambda content: content | {"variables": twice(content["variables"])}, "non-unique elements"),
    "variable without a name": (lambda content: content | {"variables": ["", "b"]}, "variables.0: "),
    "number for a variable": (lambda content: content | {"variables": [7]}, "variables.0: 7 is not of type 'string'"),
    "text for variables": (lambda content: content | {"variables": "abc"}, "variables: 'abc' is not of type 'array'"),
    "unknown kind": (in_first("static_columns", kind="number"), "static_columns.0.kind: 'number' is not one of"),
    "numbers for categories": (in_first("static_columns", categories=[1]), "static_columns.0.categories.0: 1 is not"),
    "column twice": (
        lambda content: content | {"static_columns": twice(content["static_columns"])},
        "static_columns holds 'age' twice",
    ),
    "task twice": (lambda content: content | {"tasks": twice(content["tasks"])}, "tasks holds 'mortality' twice"),
    "unknown problem": (in_first("tasks", problem_type="ternary"), "tasks.0.problem_type: 'ternary' is not one of"),
    "one label for two": (in_first("tasks", label_names=["a"]), "task 'mortality': 2 label_names are needed, not 1"),
    "one label twice": (in_first("tasks", label_names=["a", "a"]), "tasks.0.label_names: .* non-unique"),
    "list of units": (lambda content: content | {"extra": {"units": ["h"]}}, "extra.units: .* not of type 'object'"),
    "number for a unit": (lambda content: content | {"extra": {"units": {"hr": 3}}}, "extra.units.hr: 3 is not"),
    "utility of nothing": (lambda content: content | {"extra": {"utility": {"a": {}}}}, "extra.utility.a: "),
    "no source": (lambda content: content | {"source": None}, "source: None is not of type 'string'"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_metadata_that_was_edited_is_checked_on_opening(edit, tmp_path):
    change, message = EDITS[edit]
    folder = write_folder(tmp_path / "out")
    path = folder / "metadata.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(ValueError, match=rf"metadata\.json: .*{message}"):
        PreparedFolder(folder)


def altered(path: Path, **columns: list) -> None:
    """Puts other columns into a Parquet file, past every check of the writer."""
    table = pq.read_table(path)
    for name, values in columns.items():
        position = table.schema.get_field_index(name)
        table = table.set_column(position, name, pa.array(values, table.schema.field(name).type))
    pq.write_table(table, path)


TRAIN = r"records/train-00000\.parquet: record '{}'"
BROKEN_RECORDS = {
    "infinite value": ({"value": [[1.0, None], [np.inf, None]]}, f"{TRAIN} has an infinite value".format("b")),
    "negative variable": ({"variable": [[0, 1], [0, -1]]}, f"{TRAIN} has a variable index that is null".format("b")),
    "null variable": ({"variable": [[0, None], [0, 1]]}, f"{TRAIN} has a variable index that is null".format("a")),
    "unknown variable": (
        {"variable": [[0, 2], [0, 1]]},
        f"{TRAIN} has a variable index that is out of range: there are 2".format("a"),
    ),
    "unequal lengths": ({"value": [[1.0, 2.0], [1.0]]}, f"{TRAIN}: time and value differ in length".format("b")),
    "no list": ({"time": [None, [0.0, 1.0]]}, f"{TRAIN}: time is null".format("a")),
    "no events": (
        {"time": [[], [0, 1]], "variable": [[], [0, 1]], "value": [[], [0, 1]]},
        f"{TRAIN} has no ev".format("a"),
    ),
    "order": ({"time": [[0.0, 1.0], [2.0, 1.0]]}, f"{TRAIN} has events out of order".format("b")),
    "NaN time": ({"time": [[0.0, 1.0], [0.0, np.nan]]}, f"{TRAIN} has a time that is missing".format("b")),
    "infinite static": ({"age": [1.0, np.inf]}, f"{TRAIN}: age must be a number or null, not inf".format("b")),
    "unknown category": ({"sex": ["male", "cat"]}, f"{TRAIN}: sex is 'cat', which is not among its".format("b")),
    "twice in a file": ({"record_id": ["a", "a"]}, r"train-00000\.parquet: record 'a' occurs twice"),
    "twice in a split": (
        {"record_id": ["a", "c"]},
        r"train-00000\.parquet and .*train-00001\.parquet: record 'c' occurs twice",
    ),
    "in two splits": (
        {"record_id": ["d", "b"]},
        r"train-00000\.parquet and .*validation-00000\.parquet: record 'd' occurs twice",
    ),
    "null record_id": ({"record_id": ["a", None]}, r"train-00000\.parquet: record_id is null in 1 row"),
}


@pytest.mark.parametrize("broken", BROKEN_RECORDS)
def test_records_that_no_writer_wrote_are_refused_on_reading(tmp_path, broken):
    columns, message = BROKEN_RECORDS[broken]
    folder = write_folder(tmp_path / "out")
    altered(folder / "records" / "train-00000.parquet", **columns)
    with pytest.raises(ValueError, match=message):
        PreparedFolder(folder).events("train")


BROKEN_LABELS = {
    "record missing": ({"record_id": ["a", "d"]}, "record 'd' is not among the records of that split"),
    "NaN time": ({"prediction_time": [np.nan, 1.0]}, "record 'a' has prediction_time nan, which is not finite"),
    "infinite time": ({"prediction_time": [1.0, np.inf]}, "record 'c' has prediction_time inf, which is not finite"),
    "twice": ({"record_id": ["a", "a"]}, "record 'a' is predicted twice at one time"),
    "null label": ({"boolean_value": [None, True]}, "boolean_value is null in 1 row"),
}


@pytest.mark.parametrize("broken", BROKEN_LABELS)
def test_labels_that_no_writer_wrote_are_refused_on_reading(tmp_path, broken):
    columns, message = BROKEN_LABELS[broken]
    folder = write_folder(tmp_path / "out")
    altered(folder / "tasks" / "mortality" / "train.parquet", **columns)
    with pytest.raises(ValueError, match=r"tasks/mortality/train\.parquet: " + message):
        PreparedFolder(folder).task("mortality", "train")


@pytest.mark.parametrize(
    ("task", "label", "message"),
    [
        (TaskInfo("goes", "Where?", "multiclass", ("categorical_value",), ("home",)), "moon", "unknown class 'moon'"),
        (
            TaskInfo("stay", "Days.", "regression", ("float_value",), ("days",)),
            np.inf,
            "'a' has a float_value that is",
        ),
    ],
)
def test_unknown_classes_and_infinite_targets_are_refused_on_reading(tmp_path, task, label, message):
    name, fine = task.label_columns[0], {"moon": "home", np.inf: 1.0}[label]
    rows = label_rows("a", **{name: [fine]}).drop("boolean_value")
    folder = write_folder(
        tmp_path / "out", [("train", record_rows("a")), (task, "train", rows)], info=replace(INFO, tasks=(task,))
    )
    altered(folder / "tasks" / task.name / "train.parquet", **{name: [label]})
    with pytest.raises(ValueError, match=message):
        PreparedFolder(folder).task(task.name, "train")


def test_each_file_is_read_whole_once(synthetic_folder, monkeypatch):
    read: list[Path] = []
    original = prepared_folder._parquet_parts

    def counted(path, schema):
        if schema.names != ["record_id"]:
            read.append(path.relative_to(synthetic_folder))
        return original(path, schema)

    monkeypatch.setattr(prepared_folder, "_parquet_parts", counted)
    folder = PreparedFolder(synthetic_folder)
    for _ in range(2):
        for split in folder.splits:
            assert folder.events(split, (*folder.info.variables, "one more")).times is folder.events(split).times
            for task in folder.info.tasks:
                assert folder.task(task.name, split) is folder.task(task.name, split)
    assert sorted(read) == sorted(path.relative_to(synthetic_folder) for path in synthetic_folder.rglob("*.parquet"))


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("tasks/mortality/train.parquet", {"boolean_value": [False, False]}),
        ("tasks/mortality/validation.parquet", {"prediction_time": [47.0]}),
        ("records/validation-00000.parquet", {"value": [[80.0, 1.0]]}),
        ("records/train-00001.parquet", {"age": [62.0]}),
    ],
)
def test_the_fingerprint_changes_with_labels_and_records(tmp_path, name, columns):
    folder = write_folder(tmp_path / "out")
    before = PreparedFolder(folder).fingerprint
    assert before == PreparedFolder(write_folder(tmp_path / "again")).fingerprint
    (folder / "README.md").write_text("edited")
    assert PreparedFolder(folder).fingerprint == before
    altered(folder / name, **columns)
    assert PreparedFolder(folder).fingerprint != before


def test_events_lie_in_files_and_not_in_memory(synthetic_folder, monkeypatch):
    whole = PreparedFolder(synthetic_folder).records("train")
    monkeypatch.setattr(prepared_folder, "BLOCK", 1000)  # so that a file is read in many parts
    folder = PreparedFolder(synthetic_folder)
    assert len(list(folder.parts("train"))) > 10
    for variables in (folder.info.variables, folder.info.variables[::-1]):
        events = folder.events("train", variables)
        for array, column in ((events.times, "time"), (events.values, "value")):
            expected = whole[column].combine_chunks().flatten().to_numpy(zero_copy_only=False)
            np.testing.assert_array_equal(array, expected)
        names = np.array(folder.info.variables)[whole["variable"].combine_chunks().flatten().to_numpy()]
        np.testing.assert_array_equal(np.array(variables)[events.variable_ids], names)
        np.testing.assert_array_equal(events.lengths, [len(times) for times in whole["time"].to_pylist()])
        assert events.record_ids == whole["record_id"].to_pylist()
        assert events.record_ids[3:5] == list(events.record_ids)[3:5] == [events.record_ids[3], events.record_ids[4]]
        for array in (events.times, events.variable_ids, events.values):
            assert not array.flags.owndata
            assert isinstance(array.base, memoryview | mmap.mmap)
    assert sorted(path.name for path in synthetic_folder.iterdir()) == [
        "README.md",
        "metadata.json",
        "records",
        "tasks",
    ]


def test_a_folder_that_is_not_to_be_written_to(synthetic_folder, monkeypatch):
    refused = []

    def temporary_file(dir=None, buffering=-1):
        if dir is not None:
            refused.append(dir)
            raise PermissionError
        return tempfile.NamedTemporaryFile()

    monkeypatch.setattr(mapped_arrays, "TemporaryFile", temporary_file)
    times = PreparedFolder(synthetic_folder).events("validation").times
    assert refused == [synthetic_folder] * 3
    np.testing.assert_array_equal(times, PreparedFolder(synthetic_folder).events("validation").times)
