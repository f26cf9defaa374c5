"""PhysioNet 2019: labels and splits by hand, every way a download can be broken, leakage, and the real hospital B."""

import argparse
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from hymate_training.cli import prepare as command
from hymate_training.data.prepared_folder import PreparedFolder
from hymate_training.readers import physionet2019
from tests.support.leakage import check_leakage
from tests.support.prepared import content, records
from tests.support.sepsis_files import make_hospital, make_patient, psv, write_hospital

SPLITS = ("train", "validation", "test")


def labels(folder: Path, task: str) -> dict[str, list[tuple[float, bool]]]:
    found: dict[str, list[tuple[float, bool]]] = {}
    for split in SPLITS:
        for row in PreparedFolder(folder).task(task, split).to_pylist():
            found.setdefault(row["record_id"], []).append((row["prediction_time"], row["boolean_value"]))
    return found


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> Path:
    raw = tmp_path_factory.mktemp("hospitals")
    for letter in "AB":
        write_hospital(raw, letter, make_hospital(letter), "zip")
    return raw


@pytest.fixture(scope="module")
def prepared(both) -> Path:
    physionet2019.prepare(both, both.parent / "by-hospital")
    return both.parent / "by-hospital"


def test_rows_become_events_and_repeated_columns_static(prepared):
    info = PreparedFolder(prepared).info
    row = records(prepared)["p100010"]
    source = make_hospital("B")["p100010"]
    expected = [
        (float(line["ICULOS"]), name, np.float32(line[name]))
        for line in source
        for name in info.variables
        if line[name] != "NaN"
    ]
    events = zip(row["time"], (info.variables[index] for index in row["variable"]), row["value"], strict=True)
    assert list(events) == expected
    assert {"HR", "Lactate", "BaseExcess"} == {name for _, name, _ in expected}
    static = {column.name: row[column.name] for column in info.static_columns}
    assert static == {
        "Age": 50 + 100_010 % 40,
        "Gender": "female",
        "Unit": "surgical ICU",
        "HospAdmTime": -100_010.25,
    }
    assert records(prepared)["p100009"]["Unit"] == "medical ICU"
    assert records(prepared)["p100008"]["Unit"] is None


@pytest.mark.parametrize("horizon", [0, 4])
def test_labels_by_hand(horizon, tmp_path):
    """The published label turns at hour 9 of twelve: positive from 9 - horizon on; hour 1 holds no measurement."""
    patients = {f"p{index}": make_patient(index, 12, 1, 9 if index == 3 else None) for index in range(10)}
    patients["p7"] = make_patient(7, 12, 5, 5)  # positive from its first row on
    raw = write_hospital(tmp_path / "raw", "B", patients)
    info = physionet2019.prepare(raw, tmp_path / "out", horizon_hours=horizon)
    hourly = labels(tmp_path / "out", "sepsis_onset")
    assert hourly["p3"] == [(float(hour), hour >= 9 - horizon) for hour in range(2, 13)]
    assert hourly["p4"] == [(float(hour), False) for hour in range(2, 13)]
    assert hourly["p7"] == [(float(hour), True) for hour in range(6, 17)]
    once = labels(tmp_path / "out", "sepsis")
    assert once == {f"p{index}": [(9.0, True) if index == 3 else (12.0, False)] for index in range(10) if index != 7}
    assert info.dropped["predictions of sepsis whose label is positive from the first row on"] == 1
    assert info.dropped["predictions of sepsis_onset before the first measurement"] == 10
    assert f"{6 + horizon} hours ahead" in info.task("sepsis_onset").description
    assert bool(info.extra["utility"]) == (horizon == 0)


def test_split_by_hospital_and_at_random(both, prepared, tmp_path):
    members = {split: set(records(prepared, split)) for split in SPLITS}
    assert members["test"] == set(make_hospital("B"))
    assert members["train"] | members["validation"] == set(make_hospital("A"))
    assert [len(members[split]) for split in ("train", "validation")] == [24, 6]
    for name, seed in {"one": 1, "again": 1, "two": 2}.items():
        info = physionet2019.prepare(both, tmp_path / name, split="random", seed=seed)
    assert content(tmp_path / "one") == content(tmp_path / "again")
    drawn = {split: records(tmp_path / "one", split) for split in SPLITS}
    assert [len(found) for found in drawn.values()] == [48, 6, 6]
    assert set().union(*drawn.values()) == set(make_hospital("A")) | set(make_hospital("B"))
    assert {row["Hospital"] for row in drawn["train"].values()} == {"A", "B"}
    assert set(records(tmp_path / "two", "test")) != set(drawn["test"])
    assert "Hospital" in [column.name for column in info.static_columns]
    assert "Hospital" not in [column.name for column in PreparedFolder(prepared).info.static_columns]


@pytest.mark.parametrize("form", ["folder", "tar.gz"])
def test_every_form_of_the_download_gives_the_same_folder(form, prepared, tmp_path):
    for letter in "BA":
        write_hospital(
            tmp_path / "raw" / ("training" if form == "folder" else ""), letter, make_hospital(letter), form
        )
    physionet2019.prepare(tmp_path / "raw", tmp_path / "out")
    assert content(tmp_path / "out") == content(prepared)


def test_parsing_in_pieces_changes_nothing(both, prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(physionet2019, "FILES_AT_ONCE", 7)
    physionet2019.prepare(both, tmp_path / "out")
    assert content(tmp_path / "out") == content(prepared)


def test_negative_values_and_windows_line_ends(tmp_path):
    patients = make_hospital("B")
    patients["p100003"][2]["FiO2"] = "-50"
    raw = write_hospital(tmp_path / "raw", "B", patients)
    path = raw / "training_setB" / "p100004.psv"
    path.write_bytes(path.read_bytes().rstrip().replace(b"\n", b"\r\n"))
    info = physionet2019.prepare(raw, tmp_path / "out")
    assert info.dropped["events with a negative value"] == 1
    events = records(tmp_path / "out")["p100003"]
    assert info.variables.index("FiO2") not in events["variable"]
    assert info.variables.index("BaseExcess") in events["variable"]  # may be negative


@pytest.mark.parametrize("task", ["sepsis_onset", "sepsis"])
def test_nothing_after_the_prediction_is_seen(task, prepared):
    altered = check_leakage(prepared, task)
    assert altered > 50


def test_rows_after_an_hour_leave_what_was_before_as_it_is(tmp_path):
    """The reader itself looks back only: later rows altered, earlier events and static columns stay."""
    generator = np.random.default_rng(0)
    patients, altered = make_hospital("B"), make_hospital("B")
    for rows in altered.values():
        for row in rows[6:]:
            row |= {name: f"{generator.normal(50, 5):.2f}" for name in ("HR", "Temp", "WBC")}
    for name, found in (("before", patients), ("after", altered)):
        physionet2019.prepare(write_hospital(tmp_path / name, "B", found), tmp_path / f"{name}-out")
    before, after = (records(tmp_path / f"{name}-out") for name in ("before", "after"))
    for record_id, row in before.items():
        limit = float(patients[record_id][5]["ICULOS"])
        for column in ("time", "variable", "value"):
            kept = [
                [cell for cell, time in zip(found[column], found["time"], strict=True) if time <= limit]
                for found in (row, after[record_id])
            ]
            assert kept[0] == kept[1]
        assert {k: v for k, v in row.items() if k not in ("time", "variable", "value")}.items() <= after[
            record_id
        ].items()
    assert before != after


def cell(row: int, name: str, text: str) -> Callable[[Path], None]:
    def change(raw: Path) -> None:
        patient = make_hospital("B")["p100005"]
        patient[row][name] = text
        (raw / "training_setB" / "p100005.psv").write_text(psv(patient))

    return change


def without(name: str) -> Callable[[Path], None]:
    def change(raw: Path) -> None:
        patient = [{key: text for key, text in row.items() if key != name} for row in make_hospital("B")["p100005"]]
        (raw / "training_setB" / "p100005.psv").write_text(psv(patient))

    return change


def write(text: bytes | str | Callable[[bytes], bytes], name: str = "p100005.psv") -> Callable[[Path], None]:
    def change(raw: Path) -> None:
        path = raw / "training_setB" / name
        path.write_bytes(
            text.encode() if isinstance(text, str) else text if isinstance(text, bytes) else text(path.read_bytes())
        )

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (cell(3, "HR", "fast"), r"p100005\.psv: line 5: HR must be a number, found 'fast'"),
        (cell(3, "HR", "inf"), r"p100005\.psv: line 5: a value must be a finite number or NaN"),
        (cell(3, "ICULOS", "NaN"), r"p100005\.psv: line 5: ICULOS must be a number of hours"),
        (cell(3, "ICULOS", "2"), r"p100005\.psv: line 5: ICULOS must grow"),
        (cell(3, "SepsisLabel", ""), r"p100005\.psv: line 5: SepsisLabel is missing"),
        (cell(3, "SepsisLabel", "2"), r"p100005\.psv: line 5: SepsisLabel must be 0 or 1"),
        (cell(3, "SepsisLabel", "1"), r"p100005\.psv: line 6: SepsisLabel must stay 1"),
        (cell(3, "Gender", "2"), r"p100005\.psv: line 5: Gender must be 0 or 1"),
        (without("Lactate"), r"p100005\.psv: line 1 lacks the column\(s\) Lactate"),
        (without("SepsisLabel"), r"p100005\.psv: line 1 lacks the column\(s\) SepsisLabel"),
        (write(lambda old: old[:-60]), r"p100005\.psv: line \d+: expected 41 columns, found"),
        (write(""), r"p100005\.psv: line 1 lacks the column"),
        (write("|".join(physionet2019.COLUMNS) + "\n"), r"p100005\.psv: no rows"),
        (write("|".join(reversed(physionet2019.COLUMNS)) + "\n1\n"), r"p100005\.psv: line 1 must read HR\|"),
        (write(lambda old: old.decode().encode("utf-16")), r"p100005\.psv: not a table of numbers: .* not ASCII"),
        (write(lambda old: old + "é".encode("latin-1")), r"p100005\.psv: not a table of numbers: .* not ASCII"),
        (lambda raw: [path.unlink() for path in (raw / "training_setB").iterdir()], "training_setB holds no patients"),
        (
            lambda raw: write_hospital(raw, "A", {"p100005": make_patient(1, 9)}),
            r"patient p100005 occurs twice: .*training_setA.*training_setB",
        ),
    ],
)
def test_a_broken_download_is_one_clear_message_and_no_output(change, message, tmp_path):
    raw = write_hospital(tmp_path / "raw", "B", make_hospital("B", 12))
    change(raw)
    with pytest.raises(ValueError, match=message):
        physionet2019.prepare(raw, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


@pytest.mark.parametrize("form", ["zip", "tar.gz"])
@pytest.mark.parametrize("kept", [0, 10, 900, -4])
def test_a_truncated_archive_is_named(form, kept, tmp_path):
    raw = write_hospital(tmp_path / "raw", "B", make_hospital("B"), form)
    archive = raw / f"training_setB.{form}"
    archive.write_bytes(archive.read_bytes()[:kept])
    with pytest.raises(ValueError, match=rf"training_setB\.{form} is damaged or incomplete") as raised:
        physionet2019.prepare(raw, tmp_path / "out")
    assert "\n" not in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_wrong_arguments_are_named(both, tmp_path):
    only = write_hospital(tmp_path / "raw", "B", make_hospital("B"))
    for raw, options, message in (
        (tmp_path / "nowhere", {}, "no such folder"),
        (tmp_path, {}, "holds none of training_setA, training_setB"),
        (only, {"split": "hospital"}, "needs hospitals A and B; .* holds B only"),
        (only, {"horizon_hours": -1}, "--horizon-hours must be 0 or more"),
    ):
        with pytest.raises(ValueError, match=message):
            physionet2019.prepare(raw, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_the_real_hospital_b_without_the_other(shared_data, tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    shutil.copy(shared_data("physionet2019") / "training_setB.zip", raw)
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    args = parser.parse_args(["physionet2019", "--raw", str(raw), "--output", str(tmp_path / "out")])
    printed = command.run(args)
    for part in ("5,600", "700", "7,160", "Hospital B (the other was not there)"):
        assert part in printed

    onset, once = (
        pl.concat(pl.DataFrame(pl.from_arrow(PreparedFolder(tmp_path / "out").task(task, split))) for split in SPLITS)
        for task in ("sepsis_onset", "sepsis")
    )
    assert onset.height == 265_644 - 7_160
    assert once["boolean_value"].sum() == 389 - 76
    assert once.height == 7000 - 76
    rows = {}
    for split in SPLITS:
        table = PreparedFolder(tmp_path / "out").records(split)
        rows |= {record_id.as_py(): (table, at) for at, record_id in enumerate(table["record_id"])}
    assert set(onset["record_id"].unique()) == set(rows)
    assert len(rows) == 7000

    with zipfile.ZipFile(raw / "training_setB.zip") as archive:  # one septic patient read the plain way
        septic = once.filter("boolean_value").sort("record_id").row(0, named=True)
        lines = archive.read(f"training_setB/{septic['record_id']}.psv").decode().splitlines()
    hours = [dict(zip(lines[0].split("|"), line.split("|"), strict=True)) for line in lines[1:]]
    assert septic["prediction_time"] == min(float(row["ICULOS"]) for row in hours if row["SepsisLabel"] == "1")
    found = onset.filter(pl.col("record_id") == septic["record_id"]).sort("prediction_time")
    published = {float(row["ICULOS"]): row["SepsisLabel"] == "1" for row in hours}
    assert dict(found.select("prediction_time", "boolean_value").iter_rows()).items() <= published.items()
    names = PreparedFolder(tmp_path / "out").info.variables
    table, at = rows[septic["record_id"]]
    events = table.slice(at, 1).to_pylist()[0]
    expected = [
        (float(row["ICULOS"]), index, np.float32(row[name]))
        for row in hours
        for index, name in enumerate(names)
        if row[name] != "NaN"
    ]
    assert list(zip(events["time"], events["variable"], events["value"], strict=True)) == expected
