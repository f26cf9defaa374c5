"""Outputs that would destroy what is there already: refused before the work, and nothing changed."""

import shutil
from pathlib import Path

import polars as pl
import pytest

from hymate_training.inference.export import SUFFIXES
from hymate_training.monitoring.monitor import monitor
from tests.support.runs import TASK


@pytest.fixture(scope="module")
def place(classifier: Path, synthetic_folder: Path, events: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, a prepared folder, a table of events, other files, and links to them."""
    folder = tmp_path_factory.mktemp("place")
    shutil.copytree(classifier, folder / "run")
    shutil.copytree(synthetic_folder, folder / "data")
    shutil.copy(events, folder / "events.parquet")
    (folder / "mine.json").write_text('{"task": "mine"}')
    (folder / "list.json").write_text("[1]")
    (folder / "config_link.json").symlink_to("run/config.json")
    (folder / "events_link.parquet").symlink_to("events.parquet")
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


JSON_OUTPUTS = {
    "run/config.json": "lies in the folder of a checkpoint",
    "run/preprocessor_config.json": "lies in the folder of a checkpoint",
    "run/training_run.json": "lies in the folder of a checkpoint",
    "run/export.json": "lies in the folder of a checkpoint",
    "run/model.safetensors": "must end in .json",
    "config_link.json": "is there already and holds something else",
    "mine.json": "is there already and holds something else",
    "list.json": "is there already and holds something else",
    "data/metadata.json": "lies in the prepared folder",
    "data/new.json": "lies in the prepared folder",
    "data/records/new.json": "lies in the prepared folder",
    "data/tasks/length_of_stay/new.json": "lies in the prepared folder",
}
TABLE_OUTPUTS = {
    "events.parquet": "is read from",
    "events_link.parquet": "is read from",
    "data/records/train-00000.parquet": "lies in the prepared folder",
    "data/new.parquet": "lies in the prepared folder",
}


@pytest.mark.parametrize("output", JSON_OUTPUTS)
@pytest.mark.parametrize("command", ["evaluate", "compare"])
def test_an_account_replaces_none_but_its_own_kind(command, output, place, complaint):
    before = content(place)
    shutil.copytree(place / "run", place / "other", dirs_exist_ok=True)
    runs = ["--checkpoint", place / "run"] if command == "evaluate" else [place / "run", place / "other"]
    line = complaint(command, *runs, "--data", place / "data", "--task", TASK, "--output", place / output)
    shutil.rmtree(place / "other")
    assert JSON_OUTPUTS[output] in line
    assert content(place) == before


@pytest.mark.parametrize("output", TABLE_OUTPUTS)
@pytest.mark.parametrize("command", ["predict", "embed"])
def test_a_table_replaces_nothing_that_is_read(command, output, place, complaint):
    before = content(place)
    arguments = ["--checkpoint", place / "run", "--events", place / "events.parquet", "--output", place / output]
    assert TABLE_OUTPUTS[output] in complaint(command, *arguments, "--overwrite")
    assert content(place) == before


PROGRAM_OUTPUTS = {
    "mine.pt2": "is there already: name another output, or replace it (overwrite, --overwrite)",
    "mine_link.pt2": "is there already",
    "data/model.pt2": "lies in the prepared folder",
}


@pytest.mark.parametrize("output", PROGRAM_OUTPUTS)
@pytest.mark.parametrize("program", ["torch", "aoti", "onnx"])
def test_a_program_replaces_nothing_unasked(program, output, place, complaint):
    (place / "mine.pt2").write_text("mine")
    shutil.copy(place / "mine.pt2", place / "mine.onnx")
    for suffix in (".pt2", ".onnx"):
        (place / f"mine_link{suffix}").unlink(missing_ok=True)
        (place / f"mine_link{suffix}").symlink_to(f"mine{suffix}")
    before = content(place)
    path = (place / output).with_suffix(SUFFIXES[program])
    for checkpoint in (place / "run", place / "none"):  # which is not even looked for
        line = complaint("export", "--checkpoint", checkpoint, "--program", program, "--output", path)
        assert PROGRAM_OUTPUTS[output] in line
    assert content(place) == before


@pytest.mark.parametrize("mine", ["notes.txt", "records/mine.parquet", "tasks/mine/notes.csv"])
def test_a_prepared_folder_with_other_files_is_not_replaced(mine, synthetic_folder, tmp_path, complaint):
    shutil.copytree(synthetic_folder, tmp_path / "data")
    (tmp_path / "data" / mine).parent.mkdir(exist_ok=True)
    (tmp_path / "data" / mine).write_text("kept")
    (tmp_path / "link").symlink_to("data")
    before = content(tmp_path / "data")
    for output in ("data", "link"):
        line = complaint("prepare", "synthetic", "--num-records", 40, "--output", tmp_path / output, "--overwrite")
        assert f"holds {mine}, which `hymate prepare` did not write" in line
    assert content(tmp_path / "data") == before


def test_the_page_of_something_else_is_not_replaced(finetuned, tmp_path):
    (tmp_path / "index.html").write_text("a report")
    with pytest.raises(ValueError, match=r"index\.html is there already, and no page of `hymate monitor`"):
        monitor(finetuned, pl.DataFrame(), output=tmp_path)
    assert (tmp_path / "index.html").read_text() == "a report"
