"""PhysioNet 2012: a small download in every published form, every way it can be broken, and the real one."""

import argparse
import io
import random
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hymate_training.cli import prepare as command
from hymate_training.data.prepared_folder import PreparedFolder
from hymate_training.readers import physionet2012
from tests.support.leakage import check_leakage
from tests.support.prepared import content, records

HEADER = "Time,Parameter,Value"
OUTCOME_HEADER = "RecordID,SAPS-I,SOFA,Length_of_stay,Survival,In-hospital_death"
START = {"a": 132539, "b": 142675, "c": 152871}
HR = "00:07,HR,71"
Stays = dict[str, list[str]]  # record id -> its rows


def make_stays(letter: str, count: int = 10) -> Stays:
    stays = {}
    for index in range(count):
        record_id = str(START[letter] + index)
        stays[record_id] = [
            f"00:00,RecordID,{record_id}",
            f"00:00,Age,{50 + index}",
            f"00:00,Gender,{index % 3 - 1}",
            "00:00,Height,-1" if index % 2 else "00:00,Height,170.2",
            f"00:00,ICUType,{index % 4 + 1}",
            "00:00,Weight,-1" if index % 2 else "00:00,Weight,81.5",
            f"00:07,HR,{70 + index}",
            "00:07,HR,99",
            "00:07,HR,99",
            "47:59,pH,7.38",
        ]
    return stays


def write_folder(raw: Path, letter: str, files: dict[str, bytes]) -> None:
    (raw / f"set-{letter}").mkdir()
    for name, text in files.items():
        (raw / f"set-{letter}" / name).write_bytes(text)


def write_tar(raw: Path, letter: str, files: dict[str, bytes]) -> None:
    with tarfile.open(raw / f"set-{letter}.tar.gz", "w:gz") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(f"set-{letter}/{name}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text))


def write_zip(raw: Path, letter: str, files: dict[str, bytes]) -> None:
    with zipfile.ZipFile(raw / f"set-{letter}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(f"set-{letter}/{name}", text)


FORMS = {"folder": write_folder, "tar.gz": write_tar, "zip": write_zip}


def make_raw(
    raw: Path, stays: dict[str, Stays], form: str = "folder", outcomes: dict[str, list[str]] | None = None
) -> Path:
    """A download of the given sets; without `outcomes`, every third stay dies and every fifth has no known length."""
    raw.mkdir(parents=True)
    for letter, members in stays.items():
        files = {f"{name}.txt": ("\n".join([HEADER, *rows]) + "\n").encode() for name, rows in members.items()}
        FORMS[form](raw, letter, files)
        rows = (outcomes or {}).get(letter) or [
            f"{name},10,5,{-1 if index % 5 == 4 else index + 3},-1,{int(index % 3 == 0)}"
            for index, name in enumerate(members)
        ]
        (raw / f"Outcomes-{letter}.txt").write_text("\n".join([OUTCOME_HEADER, *rows]) + "\n")
    return raw


@pytest.fixture(scope="module")
def sets() -> dict[str, Stays]:
    return {letter: make_stays(letter) for letter in "abc"}


@pytest.fixture(scope="module")
def prepared(sets: dict[str, Stays], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("physionet2012")
    physionet2012.prepare(make_raw(folder / "raw", sets), folder / "out")
    return folder / "out"


def test_rows_become_events_and_descriptors_static_columns(prepared):
    info = PreparedFolder(prepared).info
    row = records(prepared, "test")["132541"]  # index 2
    events = [
        (time, info.variables[v], x) for time, v, x in zip(row["time"], row["variable"], row["value"], strict=True)
    ]
    assert events == [
        (0.0, "Weight", 81.5),
        (pytest.approx(7 / 60), "HR", 72.0),
        (pytest.approx(7 / 60), "HR", 99.0),
        (pytest.approx(7 / 60), "HR", 99.0),
        (pytest.approx(47 + 59 / 60), "pH", pytest.approx(7.38)),
    ]
    assert {column.name: row[column.name] for column in info.static_columns} == {
        "Age": 52,
        "Gender": "male",
        "Height": 170.2,
        "ICUType": "medical ICU",
    }
    unknown = records(prepared, "test")["132542"]  # index 3
    assert unknown["Gender"] is None
    assert unknown["Height"] is None
    assert info.variables.index("Weight") not in unknown["variable"]
    assert info.dropped["events with a negative value (unknown)"] == 15


def test_set_a_is_the_test_split_and_the_rest_is_divided(prepared, sets):
    members = {split: set(records(prepared, split)) for split in ("train", "validation", "test")}
    assert members["test"] == set(sets["a"])
    assert members["train"] | members["validation"] == set(sets["b"]) | set(sets["c"])
    assert not members["train"] & members["validation"]
    assert [len(members[split]) for split in ("train", "validation")] == [16, 4]


def test_outcomes_become_labels_and_unknown_ones_are_dropped(prepared):
    died = PreparedFolder(prepared).task("in_hospital_mortality", "test").to_pylist()
    assert [row["boolean_value"] for row in died] == [index % 3 == 0 for index in range(10)]
    assert {row["prediction_time"] for row in died} == {48.0}
    days = PreparedFolder(prepared).task("length_of_stay", "test")
    assert days["float_value"].to_pylist() == [3, 4, 5, 6, 8, 9, 10, 11]
    assert PreparedFolder(prepared).info.dropped["predictions of length_of_stay without a known outcome"] == 6


def test_time_to_death_is_censored_on_leaving_the_hospital_alive(sets, tmp_path):
    """A death after it is none of the stay's. Days are whole, so their middle counts; 48 hours must be survived."""
    ends = [(7, 9, 1), (9, 468, 0), (9, -1, 0), (2, 2, 1), (1, 1, 1), (-1, -1, 0)]  # length of stay, survival, death
    outcomes = {
        letter: [f"{name},10,5,{','.join(map(str, ends[index % len(ends)]))}" for index, name in enumerate(members)]
        for letter, members in sets.items()
    }
    physionet2012.prepare(make_raw(tmp_path / "raw", sets, outcomes=outcomes), tmp_path / "out")
    folder = PreparedFolder(tmp_path / "out")
    assert folder.info.task("time_to_death").label_names == ("death",)
    rows = folder.task("time_to_death", "test").to_pylist()
    place = {name: index for index, name in enumerate(sets["a"])}
    found = {place[row["record_id"]]: (row["event_time"] / 24, row["event_observed"]) for row in rows}
    kinds = {0: (9.5, True), 1: (9.5, False), 2: (9.5, False), 3: (2.5, True)}
    assert found == {index: kinds[index % 6] for index in range(10) if index % 6 in kinds}
    assert {row["prediction_time"] for row in rows} == {48.0}
    left_out = sum(index % 6 not in kinds for index in range(10))
    assert folder.info.dropped["predictions of time_to_death without a known outcome"] == 3 * left_out


@pytest.mark.parametrize("task", ["in_hospital_mortality", "length_of_stay"])
def test_nothing_after_the_prediction_is_seen(task, sets, tmp_path):
    """The challenge has nothing after hour 48, where it asks; should a download have, it stays unseen."""
    late = {
        letter: {name: [*rows, "48:01,HR,250", "61:00,Lactate,9"] for name, rows in members.items()}
        for letter, members in sets.items()
    }
    physionet2012.prepare(make_raw(tmp_path / "raw", late), tmp_path / "out")
    assert check_leakage(tmp_path / "out", task) >= 2 * 13  # the training stays with a known outcome


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_the_download_gives_the_same_folder(form, prepared, sets, tmp_path):
    raw = make_raw(tmp_path / "raw", sets, form)
    physionet2012.prepare(raw, tmp_path / "out")
    assert content(tmp_path / "out") == content(prepared)


@given(st.randoms(use_true_random=False))
@settings(max_examples=8, deadline=None)
def test_the_order_of_rows_and_files_changes_nothing(
    prepared: Path, sets: dict[str, Stays], tmp_path_factory: pytest.TempPathFactory, shuffle: random.Random
):
    folder = tmp_path_factory.mktemp("shuffled")
    mixed = {
        letter: {name: shuffle.sample(members[name], len(members[name])) for name in shuffle.sample(list(members), 10)}
        for letter, members in sets.items()
    }
    ordered = {letter: [f"{n},1,1,{3 + i},-1,1" for i, n in enumerate(members)] for letter, members in sets.items()}
    shuffled = {letter: shuffle.sample(rows, len(rows)) for letter, rows in ordered.items()}
    physionet2012.prepare(make_raw(folder / "raw", mixed, "tar.gz", shuffled), folder / "out")
    physionet2012.prepare(make_raw(folder / "raw2", sets, "tar.gz", ordered), folder / "out2")
    assert content(folder / "out") == content(folder / "out2")
    assert records(folder / "out", "train") == records(prepared, "train")


def test_the_seed_decides_the_split(sets, tmp_path):
    raw = make_raw(tmp_path / "raw", sets)
    for name, seed in {"one": 1, "again": 1, "two": 2}.items():
        physionet2012.prepare(raw, tmp_path / name, seed=seed)
    assert content(tmp_path / "one") == content(tmp_path / "again")
    assert set(records(tmp_path / "one", "validation")) != set(records(tmp_path / "two", "validation"))
    assert records(tmp_path / "one", "test") == records(tmp_path / "two", "test")


def test_what_the_source_is_known_to_lack_is_dropped_and_counted(tmp_path):
    stays = make_stays("b")
    stays["142675"] += ["02:35,,4", "03:00,,1.6", "04:00,Temp,-17.8"]
    stays["142676"] = stays["142676"][:6]  # descriptors only, the weight unknown
    stays["142677"] = stays["142677"][:6]  # descriptors only, the weight known
    stays["142678"] = [*stays["142678"][:6], "05:00,HR,-1"]
    info = physionet2012.prepare(make_raw(tmp_path / "raw", {"b": stays}), tmp_path / "out")
    assert info.dropped["rows without a parameter"] == 2
    assert info.dropped["stays with descriptors only"] == 3
    assert info.dropped["events with a negative value (unknown)"] == 7
    assert set(records(tmp_path / "out", "train", "validation")) == set(stays) - {"142676", "142677", "142678"}
    assert "Set a, the usual test split, was not there" in info.split_description
    assert "one of them was not there" in info.split_description


def test_windows_line_ends_missing_final_newline_and_stray_files_are_read(prepared, sets, tmp_path):
    raw = make_raw(tmp_path / "raw", sets)
    for path in raw.glob("set-?/*.txt"):
        path.write_bytes(path.read_bytes().rstrip().replace(b"\n", b"\r\n"))
    (raw / "set-b" / "._142675.txt").write_bytes(b"\x00\x05\x16\x07")
    (raw / "set-b" / "index.html").touch()
    physionet2012.prepare(raw, tmp_path / "out")
    assert content(tmp_path / "out") == content(prepared)


def replace_row(old: str, *new: str) -> Callable[[Path], None]:
    def change(raw: Path) -> None:
        path = raw / "set-b" / "142676.txt"
        path.write_text(path.read_text().replace(old + "\n", "".join(f"{row}\n" for row in new)))

    return change


def replace_outcome(old: str, new: str) -> Callable[[Path], None]:
    def change(raw: Path) -> None:
        path = raw / "Outcomes-b.txt"
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new, 1))

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (replace_row(HR, "00:07,HR,fast"), r"142676\.txt: line 8: value must be a number, found 'fast'"),
        (replace_row(HR, "00:07,HR,nan"), r"142676\.txt: line 8: value must be a number, found 'nan'"),
        (replace_row(HR, "00:07,HR,"), r"142676\.txt: line 8: value must be a number, found None"),
        (replace_row(HR, "00:71,HR,71"), r"142676\.txt: line 8: time must be hh:mm, found '00:71'"),
        (replace_row(HR, "noon,HR,71"), r"142676\.txt: line 8: time must be hh:mm, found 'noon'"),
        (replace_row(HR, ",HR,71"), r"142676\.txt: line 8: time must be hh:mm, found None"),
        (replace_row(HR, "00:07,Mood,71"), r"142676\.txt: line 8: unknown parameter 'Mood'"),
        (
            replace_row("00:07,HR,71", "00:07,HR"),
            r"142676\.txt: line 8: expected Time,Parameter,Value, found '00:07",
        ),
        (
            replace_row("00:07,HR,71", "00:07,HR,71,72", "00:07,HR"),
            r"142676\.txt: line 8: expected Time,Parameter,Val",
        ),
        (
            replace_row("00:07,HR,71", "", "00:07,HR,71"),
            r"142676\.txt: line 8: expected Time,Parameter,Value, found ''",
        ),
        (replace_row(HR, "00:07,H\u00e9,71"), r"142676\.txt: line 8: expected Time,Parameter,Value"),
        (replace_row(HEADER, "Time;Parameter;Value"), r"142676\.txt: line 1 must read Time,Parameter,Value"),
        (replace_row("00:00,RecordID,142676"), r"142676\.txt: no RecordID row"),
        (
            replace_row("00:00,RecordID,142676", "00:00,RecordID,7"),
            r"142676\.txt: RecordID 7 in the file",
        ),
        (replace_row("00:00,Age,51", "00:00,Age,51", "00:00,Age,52"), r"142676\.txt: Age occurs more than once"),
        (replace_row("00:00,Gender,0", "00:00,Gender,2"), r"142676\.txt: Gender must be one of 0, 1, found 2"),
        (
            replace_row("00:00,ICUType,2", "00:00,ICUType,9"),
            r"142676\.txt: ICUType must be one of 1, 2, 3, 4",
        ),
        (lambda raw: (raw / "set-b" / "142676.txt").write_text(""), r"142676\.txt: line 1 must read"),
        (lambda raw: (raw / "set-c" / "142676.txt").write_text(f"{HEADER}\n"), "142676 occurs twice"),
        (lambda raw: [path.unlink() for path in (raw / "set-b").iterdir()], "set-b holds no stays"),
        (lambda raw: (raw / "Outcomes-b.txt").unlink(), r"Outcomes-b\.txt is missing"),
        (lambda raw: (raw / "Outcomes-b.txt").write_text(""), r"Outcomes-b\.txt is not a readable table"),
        (replace_outcome("In-hospital_death", "Died"), r"Outcomes-b\.txt lacks the column\(s\) In-hospital_death"),
        (replace_outcome("142676,", "142677,"), r"Outcomes-b\.txt: record 142677 occurs twice"),
        (
            replace_outcome("142676,", "999999,"),
            r"Outcomes-b\.txt has no outcome for 1 stay\(s\)",
        ),
        (
            replace_outcome("142676,10,5,4,-1,0", "142676,10,5,4,-1,x"),
            r"Outcomes-b\.txt: line 3: In-hospital_death",
        ),
        (
            replace_outcome("142676,10,5,4,-1,0", "142676,10,5,4,-1,2"),
            "142676: In-hospital_death must be 0 or 1",
        ),
    ],
)
def test_a_broken_download_is_one_clear_message_and_no_output(change, message, sets, tmp_path):
    raw = make_raw(tmp_path / "raw", {letter: sets[letter] for letter in "bc"})
    change(raw)
    with pytest.raises(ValueError, match=message):
        physionet2012.prepare(raw, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


@pytest.mark.parametrize("form", ["tar.gz", "zip"])
@pytest.mark.parametrize("kept", [0, 10, 400, -4])
def test_a_truncated_archive_is_named(form, kept, sets, tmp_path):
    raw = make_raw(tmp_path / "raw", {"b": sets["b"]}, form)
    archive = raw / f"set-b.{form}"
    archive.write_bytes(archive.read_bytes()[:kept])
    with pytest.raises(ValueError, match=rf"set-b\.{form} is damaged or incomplete") as raised:
        physionet2012.prepare(raw, tmp_path / "out")
    assert "\n" not in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_a_wrong_folder_is_named(sets, tmp_path):
    for raw, message in {
        tmp_path / "nowhere": "no such folder",
        tmp_path: "holds none of set-a, set-b, set-c",
        make_raw(tmp_path / "only", {"a": sets["a"]}): "holds set a only, which is the test split",
    }.items():
        with pytest.raises(ValueError, match=message):
            physionet2012.prepare(raw, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_surplus_outcomes_are_counted_and_warned_of(sets, tmp_path, caplog):
    raw = make_raw(tmp_path / "raw", {"b": sets["b"]})
    (raw / "set-b" / "142680.txt").unlink()
    info = physionet2012.prepare(raw, tmp_path / "out")
    assert info.dropped["outcomes without a stay"] == 1
    assert "lists 10 stays, set-b holds 9" in caplog.text


def test_the_real_sets_b_and_c(shared_data, tmp_path):
    raw = shared_data("physionet2012")
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    args = parser.parse_args(["physionet2012", "--raw", str(raw), "--output", str(tmp_path / "out")])
    printed = command.run(args)
    for part in ("6,392", "1,599", "2,403", "rows without a parameter", "% died", "no test split"):
        assert part in printed

    info = PreparedFolder(tmp_path / "out").info
    assert len(info.variables) == 37
    assert info.dropped["rows without a parameter"] == 2403
    assert info.dropped["stays with descriptors only"] == 9
    assert info.dropped["events with a negative value (unknown)"] == 347 + 17 + 328 + 224 + 18
    splits = [
        pl.DataFrame(pl.from_arrow(PreparedFolder(tmp_path / "out").records(split)))
        for split in ("train", "validation")
    ]
    rows = pl.concat(splits)
    assert rows.height == 8000 - 9
    assert rows["time"].list.len().median() == pytest.approx(423, abs=5)
    assert rows["time"].list.max().max() == 48.0
    assert rows["Gender"].null_count() == 9  # 5 in set b, 4 in set c

    labels = pl.concat(
        [
            pl.DataFrame(pl.from_arrow(PreparedFolder(tmp_path / "out").task("in_hospital_mortality", split)))
            for split in ("train", "validation")
        ]
    )
    is_b = labels["record_id"].cast(pl.Int64) < START["c"] - 1
    for members, prevalence in ((is_b, 0.1420), (~is_b, 0.1463)):
        assert labels.filter(members)["boolean_value"].mean() == pytest.approx(prevalence, abs=5e-4)

    until = pl.concat(
        pl.DataFrame(pl.from_arrow(PreparedFolder(tmp_path / "out").task("time_to_death", split)))
        for split in ("train", "validation")
    )
    known = labels.join(until, on="record_id")
    assert known["boolean_value"].equals(known["event_observed"])
    assert info.dropped["predictions of time_to_death without a known outcome"] == rows.height - until.height < 180
    assert until["event_time"].min() == 60.0

    with tarfile.open(raw / "set-c.tar.gz") as archive:  # one stay read the plain way
        file = archive.extractfile("set-c/152871.txt")
        assert file is not None
        lines = [line.split(",") for line in file.read().decode().splitlines()[1:]]
    expected = sorted(
        (np.float32(int(time[:-3]) + int(time[-2:]) / 60), info.variables.index(name), np.float32(value))
        for time, name, value in lines
        if name in info.variables and float(value) >= 0
    )
    stay = rows.row(by_predicate=pl.col("record_id") == "152871", named=True)
    assert list(zip(stay["time"], stay["variable"], stay["value"], strict=True)) == expected
