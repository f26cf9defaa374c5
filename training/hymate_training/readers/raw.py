"""What readers share: files of folders and archives, tables in pieces, and splits by patient."""

import gzip
import io
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath

import numpy as np
import polars as pl
import pyarrow as pa
from pyarrow import csv

RANDOM_SPLIT = {"train": 0.8, "validation": 0.1, "test": 0.1}


def read_members(source: Path, wanted: Callable[[PurePosixPath], bool]) -> Iterator[tuple[str, bytes]]:
    """Name and content of every wanted file of a folder, a .zip or a .tar.gz, in any order.

    Raises ValueError naming the archive where it is damaged or cut short.
    """
    try:
        if source.is_dir():
            for path in source.iterdir():
                if wanted(PurePosixPath(path.name)):
                    yield path.name, path.read_bytes()
        elif source.suffix == ".zip":
            with zipfile.ZipFile(source) as archive:
                for name in archive.namelist():
                    if wanted(PurePosixPath(name)):
                        yield name, archive.read(name)
        else:
            content = io.BytesIO(gzip.decompress(source.read_bytes()))  # checks the whole; tarfile's stream does not
            with tarfile.open(fileobj=content, mode="r:") as archive:
                for member in archive:
                    if member.isfile() and wanted(PurePosixPath(member.name)):
                        file = archive.extractfile(member)
                        yield member.name, file.read() if file else b""
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise ValueError(f"{source} is damaged or incomplete ({error}); download it again") from error


def read_csv_pieces(
    path: Path, columns: Mapping[str, pa.DataType], *, optional: Iterable[str] = (), piece_bytes: int = 1 << 25
) -> Iterator[pl.DataFrame]:
    """The named columns of a .csv or .csv.gz, some `piece_bytes` of text at a time; an empty field is null.

    A column among `optional` that the table lacks is left out. Raises ValueError naming the file where it is damaged,
    cut short, not UTF-8, empty, lacks a column, or holds something else than the column's type.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            header = file.readline().decode("utf-8-sig").strip()
            names = [name.strip().strip('"') for name in header.split(",")] if header else []
            if not names:
                raise ValueError(f"{path} is empty")
            if missing := [name for name in columns if name not in names and name not in optional]:
                raise ValueError(f"{path} lacks the column(s) {', '.join(missing)}; it has {', '.join(names)}")
            rows = 0
            for batch in _batches(
                file, names, {name: kind for name, kind in columns.items() if name in names}, piece_bytes
            ):
                rows += batch.num_rows
                yield pl.DataFrame(pl.from_arrow(batch))
            if not rows:
                raise ValueError(f"{path} has no rows")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is damaged or incomplete ({error}); download it again") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a table in UTF-8: {error}") from error
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is not readable: {error}") from error


def _batches(
    file: io.BufferedIOBase, names: list[str], columns: Mapping[str, pa.DataType], piece_bytes: int
) -> Iterator[pa.RecordBatch]:
    if not hasattr(file, "peek") or not file.peek(1):
        return  # a header and nothing else
    with csv.open_csv(
        file,
        csv.ReadOptions(block_size=piece_bytes, column_names=names, use_threads=False),
        convert_options=csv.ConvertOptions(
            column_types=columns, include_columns=list(columns), strings_can_be_null=True, null_values=[""]
        ),
    ) as reader:
        yield from reader


def split_at_random(
    names: Iterable[str], fractions: Mapping[str, float], seed: int, strata: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Name (of a patient, or of a record that is one) -> split; each split gets its fraction of the names.

    With `strata` (name -> stratum, such as an outcome) it gets that fraction of each stratum, and one name at least
    where there are enough: what is rare is then in every split. The order of the names is without effect. Raises
    ValueError where there are too few for every split.
    """
    members: dict[str, list[str]] = {}
    for name in sorted(set(names)):
        members.setdefault(strata[name] if strata else "", []).append(name)
    wanted = [split for split, fraction in fractions.items() if fraction > 0]
    shares = np.cumsum([fractions[split] for split in wanted])
    generator = np.random.default_rng(seed)
    assigned = {}
    for _, stratum in sorted(members.items()):
        ends = np.rint(shares * len(stratum)).astype(int)
        spare = max(len(stratum) - len(wanted), 0)
        for index in range(len(wanted)):
            ends[index] = min(np.clip(ends[index], index + 1, spare + index + 1), len(stratum))
        for rank, at in enumerate(generator.permutation(len(stratum))):
            assigned[stratum[at]] = wanted[np.searchsorted(ends, rank, side="right")]
    if empty := sorted(set(wanted) - set(assigned.values())):
        raise ValueError(f"{len(assigned)} patient(s) are too few: none is left for the split(s) {', '.join(empty)}")
    return assigned
