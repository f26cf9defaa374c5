"""What looks like a mistake of the source is pointed out by prepare and on the card; what is fine is not."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from hymate_training.cli.prepare import describe
from hymate_training.data.prepared_folder import PreparedFolder
from hymate_training.data.remarks import remarks
from hymate_training.data.schema import YEAR, StaticColumn, TaskInfo
from tests.support.prepared import INFO, MORTALITY, write_folder

COUNT = 60


def make(folder: Path, task: TaskInfo = MORTALITY, label: list | None = None, **columns: list) -> PreparedFolder:
    """Sixty records of four events; heart rates about 80, ages about 60, a label that nothing tells."""
    generator = np.random.default_rng(0)
    ids = [f"r{number:02d}" for number in range(COUNT)]
    default = {
        "time": [[0.0, 1.0, 2.0, 3.0]] * COUNT,
        "variable": [[0, 0, 0, 1]] * COUNT,
        "value": [[*generator.normal(80, 10, 3).round(1), None] for _ in ids],
        "age": generator.normal(60, 10, COUNT).round().tolist(),
        "sex": generator.choice(["female", "male"], COUNT).tolist(),
    }
    labels = label if label is not None else (generator.random(COUNT) < 0.3).tolist()
    rows = pl.DataFrame({"record_id": ids, "prediction_time": 48_000.0, task.label_columns[0]: labels})
    frame = pl.DataFrame({"record_id": ids, **default, **columns})
    info = replace(
        INFO,
        tasks=(task,),
        static_columns=(*INFO.static_columns[:1], StaticColumn("sex", "categorical", ("female", "male"))),
    )
    return PreparedFolder(write_folder(folder, [("train", frame), (task, "train", rows)], info=info))


def test_nothing_is_said_of_plain_data(tmp_path, synthetic_folder):
    assert remarks(make(tmp_path / "out")) == []
    assert remarks(PreparedFolder(synthetic_folder)) == []
    assert "Worth a look" not in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(("sentinel", "often"), [(-9999.0, 3), (999.0, 5), (1e6, 1)])
def test_a_value_that_stands_for_unknown_is_pointed_out(sentinel, often, tmp_path):
    values = [[80.0 + number % 20, 85.0, 90.0, None] for number in range(COUNT)]
    for row in values[:often]:
        row[1] = sentinel
    folder = make(tmp_path / "out", value=values)
    [said] = remarks(folder)
    assert said.startswith(f"HR is {sentinel:g} in {often} of 180 values")
    assert said in describe(folder)
    assert f"- {said}" in (folder.path / "README.md").read_text()


def test_a_static_number_that_stands_for_unknown_is_pointed_out(tmp_path):
    ages = [40.0 + number % 40 for number in range(COUNT - 3)] + [999.0] * 3
    [said] = remarks(make(tmp_path / "out", age=ages))
    assert said.startswith("age is 999 in 3 of 60 values")


@pytest.mark.parametrize(
    ("usual", "others", "said"),
    [
        (21.0, [-9999.0] * 4, ["HR is -9999 in 4 of 180 values, and 21 in at least half"]),
        (21.0, [30.0, 40.0, 50.0, 60.0, 9999.0], ["HR is 9999 in 1 of 180 values, and 21 in at least half"]),
        (0.0, [50.0, 200.0, 400.0, 800.0, 300.0], []),  # such as the volume of what is seldom drained
        (0.0, [1.0, 1.0], []),
        (15.0, [3.0] * 4, []),
        (21.0, [], []),
    ],
)
def test_a_variable_that_is_mostly_one_number(usual, others, said, tmp_path):
    values = [[usual, usual, usual, None] for _ in range(COUNT)]
    for row, other in zip(values, others, strict=False):
        row[1] = other
    found = remarks(make(tmp_path / "out", value=values))
    assert [line.partition(" of them")[0] for line in found] == said


def test_a_placeholder_date_and_late_times_are_pointed_out(tmp_path):
    times = [[0.0, 1.0, 2.0, 3.0]] * (COUNT - 1) + [[0.0, 100 * YEAR, 100 * YEAR, 100 * YEAR]]
    [said] = remarks(make(tmp_path / "out", time=times))
    assert said.startswith("1 of 60 records have nothing for 20 years after their first event")
    times = [[0.0, 1.0, 2.0, 3.0]] + [[9000.0, 9001.0, 9002.0, 9003.0]] * (COUNT - 1)
    [said] = remarks(
        make(
            tmp_path / "late",
            time=times,
        )
    )
    assert said.startswith("The first event of the median record comes at hour 9,000")


def test_a_static_column_that_tells_the_label_is_pointed_out(tmp_path):
    label = [number % 3 == 0 for number in range(COUNT)]
    told = ["male" if positive else "female" for positive in label]
    [said] = remarks(make(tmp_path / "category", label=label, sex=told))
    assert said.startswith("sex all but determines mortality by itself")
    ages = [(90.0 if positive else 50.0) + number % 20 for number, positive in enumerate(label)]
    [said] = remarks(make(tmp_path / "number", label=label, age=ages))
    assert said.startswith("age all but determines mortality by itself")
    destination = TaskInfo("goes", "Where?", "multiclass", ("categorical_value",), ("home", "ward"))
    classes = ["home" if positive else "ward" for positive in label]
    assert len(remarks(make(tmp_path / "classes", destination, classes, sex=told))) == 1
    days = TaskInfo("days", "How many?", "regression", ("float_value",), ("days",))
    stays = [number * 1.7 for number in range(COUNT)]
    [said] = remarks(make(tmp_path / "days", days, stays, age=[20.0 + number for number in range(COUNT)]))
    assert said.startswith("age all but determines days by itself")


def test_the_summary_says_what_was_understood(tmp_path):
    printed = describe(make(tmp_path / "out"))
    for part in ("mortality +binary +train +60", r"age +numeric +0\.0% +median \d", r"sex +categorical .*% (fe)?male"):
        assert re.search(part, printed)
