"""Whatever happens while something is written, what was there stays, and nothing half-written is left beside it."""

import errno
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hymate_training import files
from hymate_training.files import (
    check_place,
    markdown_table,
    replace_folder,
    write_file,
    write_json,
    writing_file,
    writing_folder,
)


def names(folder: Path) -> list[str]:
    """Everything below a folder, hidden names too."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_text_bytes_and_json_are_written_as_they_are(tmp_path):
    write_file(tmp_path / "text.md", "°C\n")
    write_file(str(tmp_path / "bytes"), b"\x00\r\n")
    write_json(tmp_path / "new" / "content.json", {"name": "Zoë", "values": [1, None]})
    assert (tmp_path / "text.md").read_bytes() == "°C\n".encode()
    assert (tmp_path / "bytes").read_bytes() == b"\x00\r\n"
    written = (tmp_path / "new" / "content.json").read_text(encoding="utf-8")
    assert json.loads(written) == {"name": "Zoë", "values": [1, None]}
    assert "Zoë" in written
    assert written.endswith("}\n")
    assert names(tmp_path) == ["bytes", "new", "new/content.json", "text.md"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "no space"), KeyboardInterrupt(), ValueError("a bug")])
def test_an_interrupted_file_leaves_the_old_one_and_nothing_beside_it(tmp_path, error):
    write_file(tmp_path / "kept", "old")

    def interrupted(path: Path) -> None:
        with writing_file(path) as incoming:
            incoming.write_text("half")
            raise error

    for path in (tmp_path / "kept", tmp_path / "a" / "b" / "new"):
        with pytest.raises(type(error)):
            interrupted(path)
    assert names(tmp_path) == ["kept"]
    assert (tmp_path / "kept").read_text() == "old"


def test_a_disk_that_fills_up_while_flushing_leaves_the_old_file(tmp_path, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "no space")

    write_file(tmp_path / "kept", "old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_file(tmp_path / "kept", "new")
    assert names(tmp_path) == ["kept"]
    assert (tmp_path / "kept").read_text() == "old"


def test_a_block_that_writes_nothing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), writing_file(tmp_path / "new"):
        pass
    assert names(tmp_path) == []


def test_a_link_stays_a_link_to_what_was_written(tmp_path):
    (tmp_path / "far").mkdir()
    write_file(tmp_path / "far" / "file", "old")
    (tmp_path / "link").symlink_to(tmp_path / "far" / "file")
    write_file(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "far" / "file").read_text() == "new"


def test_only_a_file_is_replaced_by_a_file(tmp_path):
    with pytest.raises(ValueError, match="is a folder"):
        write_file(tmp_path, "text")
    if hasattr(os, "mkfifo"):  # not on Windows
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(ValueError, match="is not a regular file"):
            write_file(tmp_path / "pipe", "text")


def test_the_longest_name_that_a_file_system_takes(tmp_path):
    write_file(tmp_path / ("é" * 127), "text")
    assert names(tmp_path) == ["é" * 127]


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_folder_replaces_the_one_before_with_all_it_held(tmp_path, monkeypatch, exchanges):
    if not exchanges:
        monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    for name in ("first", "second"):
        with writing_folder(tmp_path / "above" / "folder") as incoming:
            (incoming / "inner").mkdir()
            write_file(incoming / "inner" / name, name)
            assert name not in names(tmp_path / "above" / "folder")
    assert names(tmp_path) == ["above", "above/folder", "above/folder/inner", "above/folder/inner/second"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "no space"), KeyboardInterrupt()])
def test_an_interrupted_folder_leaves_the_old_one_and_nothing_beside_it(tmp_path, error):
    def interrupted(path: Path) -> None:
        with writing_folder(path) as incoming:
            write_file(incoming / "half", "half")
            raise error

    with writing_folder(tmp_path / "folder") as incoming:
        write_file(incoming / "kept", "old")
    for path in (tmp_path / "folder", tmp_path / "a" / "b"):
        with pytest.raises(type(error)):
            interrupted(path)
    assert names(tmp_path) == ["folder", "folder/kept"]


def test_a_folder_that_cannot_take_its_name_gives_the_old_one_its_name_back(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    (tmp_path / "old").mkdir()
    with pytest.raises(OSError, match="missing"):
        replace_folder(tmp_path / "missing", tmp_path / "old")
    assert names(tmp_path) == ["old"]


def test_a_cell_cannot_break_its_table():
    assert markdown_table([["name", "n"], ["a|b", 1], ["two\nlines", None]]) == (
        "| name | n |\n|---|---|\n| a\\|b | 1 |\n| two lines | None |"
    )


@pytest.mark.parametrize("name", ["new", "deep/er/new", "there"])
def test_trying_a_place_leaves_nothing(name, tmp_path):
    (tmp_path / "there").write_text("kept")
    check_place(tmp_path / name)
    assert names(tmp_path) == ["there"]
    assert (tmp_path / "there").read_text() == "kept"


@pytest.mark.parametrize("name", ["there/new", "x" * 300, f"{'x' * 300}/new"])
def test_a_place_that_cannot_be_is_an_error(name, tmp_path):
    (tmp_path / "there").write_text("kept")
    with pytest.raises(OSError, match=r"there|xxx"):
        check_place(tmp_path / name)
    assert names(tmp_path) == ["there"]


def test_tensors_that_cannot_be_written_are_named(tmp_path):
    """As a full disk does it: safetensors' own error is no OSError, and would be a traceback of every command."""
    refused = pytest.raises(OSError, match=r"weights\.safetensors cannot be written: .*os error")
    with refused, writing_file(tmp_path / "weights.safetensors") as incoming:
        save_file({"a": torch.zeros(2)}, incoming / "nowhere")
    assert not list(tmp_path.iterdir())
