"""Commands: tables, paths and numbers that cannot be, each ended by one line, with exit code 2 and nothing written."""

import os
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from tests.support.runs import TASK

LONG_NAME = "x" * 300


def of_events(events: object) -> dict[str, list[object]]:
    """Arguments of each command that reads a table of events, but for the checkpoint."""
    return {
        "predict": ["--events", events, "--output", "out.csv"],
        "embed": ["--events", events, "--output", "out.parquet"],
        "explain": ["--events", events, "--output", "out"],
        "prepare": ["frame", "--events", events, "--output", "out"],
    }


def with_checkpoint(command: str, classifier: Path, arguments: list[object]) -> list[object]:
    return [command, *([] if command == "prepare" else ["--checkpoint", classifier]), *arguments]


HEADER = "record_id,time,variable,value\n"
ROW = "1,0.5,heart_rate,80\n"
TABLES: dict[str, tuple[str | bytes, str]] = {
    "nothing": ("", "events.csv"),
    "a header alone": (HEADER, "events.csv"),
    "blank lines": ("\n\n\n", "events.csv"),
    "no record_id": ("time,variable,value\n0.5,heart_rate,80\n", "record_id"),
    "no time": ("record_id,variable,value\n1,heart_rate,80\n", "time"),
    "two columns of one name": ("record_id,time,time,variable,value\n1,0,0,heart_rate,80\n", "events.csv"),
    "a row too long": (HEADER + ROW + "1,0.5,heart_rate,80,9,9\n", "events.csv"),
    "time in words": (HEADER + ROW + "1,soon,heart_rate,80\n", "time"),
    "no time in a row": (HEADER + ROW + "1,,heart_rate,80\n", "time"),
    "negative time": (HEADER + ROW + "1,-3,heart_rate,80\n", "time"),
    "NaN time": (HEADER + ROW + "1,NaN,heart_rate,80\n", "time"),
    "infinite time": (HEADER + ROW + "1,inf,heart_rate,80\n", "time"),
    "time since 1970": (HEADER + ROW + "1,5600000000,heart_rate,80\n", "time"),
    "a date": (HEADER + "1,2020-01-01,heart_rate,80\n", "time"),
    "no variable in a row": (HEADER + ROW + "1,0.5,,80\n", "variable"),
    "infinite value": (HEADER + ROW + "1,0.5,heart_rate,inf\n", "value"),
    "no id in a row": (HEADER + ROW + ",0.5,heart_rate,80\n", "record_id"),
    "an id of a spreadsheet": (HEADER + "1.33E+10,0.5,heart_rate,80\n", "record_id"),
    "an id of 20,000 letters": (HEADER + ROW * 100 + "x" * 20_000 + ",0.5,heart_rate,80\n", "record_id"),
    "zeros": (b"\0" * 64, "events.csv"),
    "no text": (bytes(range(256)), "events.csv"),
    "half of UTF-16": (b"\xff\xfer", "events.csv"),
    "half of gzip": (b"\x1f\x8b\x08\0\0\0", "events.csv"),
}
FRAMES: dict[str, tuple[dict, str]] = {
    "ids as numbers with a fraction": (
        {"record_id": [1.5], "time": [0.0], "variable": ["heart_rate"], "value": [1.0]},
        "record_id",
    ),
    "ids as dates": ({"record_id": [True], "time": [0.0], "variable": ["heart_rate"], "value": [1.0]}, "record_id"),
    "times as lists": ({"record_id": ["1"], "time": [[0.0]], "variable": ["heart_rate"], "value": [1.0]}, "time"),
    "values as lists": ({"record_id": ["1"], "time": [0.0], "variable": ["heart_rate"], "value": [[1.0]]}, "value"),
    "times as truth": ({"record_id": ["1"], "time": [True], "variable": ["heart_rate"], "value": [1.0]}, "time"),
    "variables as lists": (
        {"record_id": ["1"], "time": [0.0], "variable": [["heart_rate"]], "value": [1.0]},
        "variable",
    ),
    "no rows": ({"record_id": [], "time": [], "variable": [], "value": []}, "events.parquet"),
}


@pytest.mark.parametrize("command", of_events(""))
@pytest.mark.parametrize("table", TABLES)
def test_a_table_of_events(table, command, classifier, tmp_path, complaint):
    content, named = TABLES[table]
    path = tmp_path / "events.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    line = complaint(*with_checkpoint(command, classifier, of_events(path)[command]))
    assert named in line
    assert len(line) < 1000


@pytest.mark.parametrize("command", of_events(""))
@pytest.mark.parametrize("frame", FRAMES)
def test_a_parquet_file_of_events(frame, command, classifier, tmp_path, complaint):
    columns, named = FRAMES[frame]
    path = tmp_path / "events.parquet"
    pl.DataFrame(columns).write_parquet(path)
    assert named in complaint(*with_checkpoint(command, classifier, of_events(path)[command]))


def pipe(path: Path) -> None:
    os.mkfifo(path)  # opening it would wait for ever


PLACES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "nowhere": ("gone.csv", lambda path: None),
    "another kind": ("events.xlsx", lambda path: path.write_bytes(b"PK\3\4")),
    "an empty folder": ("folder", lambda path: path.mkdir()),
    "a folder called a CSV": ("folder.csv", lambda path: path.mkdir()),
    "a pipe": ("pipe.csv", pipe),
    "a link to nowhere": ("link.csv", lambda path: path.symlink_to("gone")),
    "a link to itself": ("loop.csv", lambda path: path.symlink_to(path)),
    "no Parquet": ("events.parquet", lambda path: path.write_bytes(b"PAR1 no PAR1")),
    "empty Parquet": ("events.parquet", lambda path: path.write_bytes(b"")),
    "too long a name": (f"{LONG_NAME}.csv", lambda path: None),
}


@pytest.mark.parametrize("command", of_events(""))
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
def test_a_place_of_events(place, command, classifier, tmp_path, complaint):
    name, make = PLACES[place]
    make(tmp_path / name)
    assert name in complaint(*with_checkpoint(command, classifier, of_events(tmp_path / name)[command]))


def of_data(classifier: object, data: object, events: object) -> dict[str, list[object]]:
    """All arguments but --output of each command that writes."""
    task, checkpoint = ["--data", data, "--task", TASK], ["--checkpoint", classifier]
    return {
        "prepare": ["synthetic", "--num-records", 40],
        "pretrain": ["--data", data],
        "finetune": task,
        "evaluate": [*checkpoint, *task, "--split", "test"],
        "predict": [*checkpoint, "--events", events],
        "embed": [*checkpoint, "--events", events],
        "explain": [*checkpoint, *task, "--split", "test"],
        "export": checkpoint,
    }


def linked_to_itself(path: Path) -> Path:
    path.symlink_to(path)
    return path


SUFFIX = {"evaluate": ".json", "predict": ".csv", "embed": ".parquet", "export": ".onnx"}
OUTPUTS: dict[str, Callable[[Path, str], Path]] = {
    "below a file": lambda folder, name: folder / "file" / name,
    "too long a name": lambda folder, name: folder / f"{LONG_NAME}{name}",
    "too long a folder": lambda folder, name: folder / LONG_NAME / name,
    "a link to itself": lambda folder, name: linked_to_itself(folder / name),
    "where nothing can be written": lambda folder, name: Path("/proc/1") / name,
    "a file for a folder or a folder for a file": lambda folder, name: folder / ("folder" if "." in name else "file"),
}


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("command", of_data("", "", ""))
def test_a_place_to_write(output, command, classifier, synthetic_folder, events, tmp_path, complaint):
    (tmp_path / "file").write_text("kept")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").write_text("kept")
    path = OUTPUTS[output](tmp_path, f"out{SUFFIX.get(command, '')}")
    arguments = of_data(classifier, synthetic_folder, events)[command]
    line = complaint(command, *arguments, "--output", path)
    assert any(str(part) in line for part in (path, path.parent)), line
    assert (tmp_path / "file").read_text() == (tmp_path / "folder" / "mine").read_text() == "kept"
    assert sorted(os.listdir(tmp_path)) == ["file", "folder", "here", *([path.name] if os.path.islink(path) else [])]


NUMBERS: dict[str, dict[str, list[str]]] = {
    "predict": {"--batch-size": ["0", "-1"], "--max-events": ["0", "-1"], "--every": ["0", "-1", "nan", "inf"]},
    "embed": {"--batch-size": ["0", "-1"], "--max-events": ["0", "-1"], "--every": ["0", "-1", "nan", "inf"]},
    "evaluate": {
        "--batch-size": ["0", "-1"],
        "--max-events": ["0", "-1"],
        "--at": ["-1", "nan", "inf"],
        "--thresholds": ["-1", "0", "1", "nan"],
        "--snooze-hours": ["-1", "nan", "inf"],
    },
    "explain": {
        "--batch-size": ["0", "-1"],
        "--max-events": ["0", "-1"],
        "--num-records": ["0", "-1"],
        "--window-hours": ["0", "-1", "nan", "inf"],
        "--seed": ["-1"],
    },
    "prepare": {"--num-records": ["0", "-1"], "--seed": ["-1"]},
}


@pytest.mark.parametrize(
    ("command", "option", "value"),
    [
        pytest.param(command, option, value, id=f"{command} {option} {value}")
        for command, options in NUMBERS.items()
        for option, values in options.items()
        for value in [*values, "many"]
    ],
)
def test_a_number(command, option, value, classifier, synthetic_folder, events, complaint):
    arguments = of_data(classifier, synthetic_folder, events)[command]
    out = f"out{SUFFIX.get(command, '')}"
    line = complaint(command, *arguments, "--output", out, f"{option}={value}")
    name = option.strip("-")
    assert name in line or name.replace("-", "_") in line or name.rstrip("s") in line, line
