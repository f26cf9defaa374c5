"""Files of a download: the same from a folder and any archive, nothing read that is too large or no file."""

import gzip
import io
import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from hymate_training.readers import raw
from hymate_training.readers.raw import read_members

FILES = {f"{number}.txt": f"patient {number}\n".encode() * number for number in range(1, 6)}


def write(folder: Path, form: str, files: dict[str, bytes]) -> Path:
    source = folder / f"set{form}"
    if form == "":
        source.mkdir()
        for name, text in files.items():
            (source / name).write_bytes(text)
    elif form == ".zip":
        with zipfile.ZipFile(source, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, text in files.items():
                archive.writestr(f"set/{name}", text)
    else:
        with tarfile.open(source, "w:gz") as archive:
            for name, text in files.items():
                member = tarfile.TarInfo(f"set/{name}")
                member.size = len(text)
                archive.addfile(member, io.BytesIO(text))
    return source


def read(source: Path) -> dict[str, bytes]:
    return {Path(name).name: text for name, text in read_members(source, lambda path: path.suffix == ".txt")}


FORMS = ("", ".zip", ".tar.gz")


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_files(form, tmp_path):
    assert read(write(tmp_path, form, {**FILES, "index.html": b"no patient"})) == FILES


@pytest.mark.parametrize("form", FORMS)
def test_a_file_larger_than_any_patient_is_refused_before_it_is_read(form, tmp_path, monkeypatch):
    source = write(tmp_path, form, {"bomb.txt": bytes(3 << 20)})
    monkeypatch.setattr(raw, "MAX_MEMBER_BYTES", 1 << 20)
    with pytest.raises(ValueError, match=r"bomb\.txt has 3 MiB, more than the 1 MiB of any patient"):
        read(source)


def test_a_pipe_is_refused_and_does_not_wait(tmp_path):
    if not hasattr(os, "mkfifo"):
        pytest.skip("Windows has no pipes in folders")
    source = write(tmp_path, "", FILES)
    os.mkfifo(source / "6.txt")
    with pytest.raises(ValueError, match=r"6\.txt is not a regular file"):
        read(source)


def test_an_archive_whose_checksum_is_wrong_is_refused(tmp_path):
    """Also where it unpacks: the checksum of the whole stands at its end."""
    source = write(tmp_path, ".tar.gz", FILES)
    whole = source.read_bytes()
    source.write_bytes(whole[:-6] + bytes([whole[-6] ^ 1]) + whole[-5:])
    with pytest.raises(ValueError, match=r"set\.tar\.gz is damaged or incomplete .*CRC"):
        read(source)
    source.write_bytes(gzip.compress(gzip.decompress(whole)[:700]))
    with pytest.raises(ValueError, match=r"set\.tar\.gz is damaged or incomplete"):
        read(source)
