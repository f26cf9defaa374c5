"""Files of a download, from a folder or an archive."""

import gzip
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from hymate_training.files import regular

MAX_MEMBER_BYTES = 64 << 20  # of one patient's file; the largest of the sources have some 100 kB
DRAIN_BYTES = 1 << 20


def read_members(source: Path, wanted: Callable[[PurePosixPath], bool]) -> Iterator[tuple[str, bytes]]:
    """Name and content of every wanted file of a folder, a .zip or a .tar.gz, in any order, one at a time in memory.

    Args:
        source: the folder or archive.
        wanted: whether a file of that name is read.

    Raises:
        ValueError: naming the archive that is damaged or cut short, or the file that is too large or no file at all.
    """
    try:
        if regular(source).is_dir():
            yield from _folder_members(source, wanted)
        elif source.suffix == ".zip":
            yield from _zip_members(source, wanted)
        else:
            yield from _tar_members(source, wanted)
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError) as error:
        raise ValueError(f"{source} is damaged or incomplete ({error}); download it again") from error


def _folder_members(source: Path, wanted: Callable[[PurePosixPath], bool]) -> Iterator[tuple[str, bytes]]:
    for path in source.iterdir():
        if wanted(PurePosixPath(path.name)):
            _check_size(regular(path).stat().st_size, str(path))
            yield path.name, path.read_bytes()


def _zip_members(source: Path, wanted: Callable[[PurePosixPath], bool]) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(source) as archive:
        for member in archive.infolist():
            if not member.is_dir() and wanted(PurePosixPath(member.filename)):
                _check_size(member.file_size, f"{source}: {member.filename}")
                yield member.filename, archive.read(member)


def _tar_members(source: Path, wanted: Callable[[PurePosixPath], bool]) -> Iterator[tuple[str, bytes]]:
    with gzip.open(source) as content:
        with tarfile.open(fileobj=content, mode="r|") as archive:
            for member in archive:
                if member.isfile() and wanted(PurePosixPath(member.name)):
                    _check_size(member.size, f"{source}: {member.name}")
                    file = archive.extractfile(member)
                    yield member.name, file.read() if file else b""
        while content.read(DRAIN_BYTES):  # to the end, where gzip checks the whole; tarfile stops before
            pass


def _check_size(size: int, name: str) -> None:
    if size > MAX_MEMBER_BYTES:
        raise ValueError(
            f"{name} has {size / 2**20:,.0f} MiB, more than the {MAX_MEMBER_BYTES >> 20} MiB of any patient"
        )
