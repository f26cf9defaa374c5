"""Shards of a data set in the Medical Event Data Standard: each is read, and its records written, on its own.

The results lie in a folder per shard, are whole or not there, and are the same whoever makes them, so that threads,
jobs of a cluster or the machines of Ray can share the work and do again what was lost.
"""

import hashlib
import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl
from tqdm import tqdm

from hymate_training.data.schema import SPLITS
from hymate_training.data.splits import split_by_hash
from hymate_training.data.writer import Shard, nest_events, write_shard
from hymate_training.files import regular, writing_file, writing_folder
from hymate_training.machines import on_machines
from hymate_training.readers.times import single_precision

logger = logging.getLogger(__name__)

Each = Callable[..., list[Any]]  # does work on items, as `in_threads`
BIRTH = "MEDS_BIRTH"
KINDS: dict[type[pl.DataType], str] = {  # what a column must hold, by the type it is read as
    pl.Int64: "whole numbers",
    pl.Float32: "numbers",
    pl.String: "text",
    pl.Boolean: "true or false",
    pl.Datetime: "timestamps",
}
LAYOUT_VERSION = 1  # of a shard's result; raised when it changes, so that older ones are not taken up again


@dataclass(frozen=True)
class Source:
    """A shard of the data set and the name it has there."""

    path: Path
    name: str

    def key(self, splits: pl.DataFrame | None, seed: int) -> str:
        """Names the shard's result: it changes with the file and with whatever else the result depends on."""
        stat = self.path.stat()
        division = str(seed) if splits is None else hashlib.sha256(splits.write_csv().encode()).hexdigest()
        parts = [LAYOUT_VERSION, self.name, stat.st_size, stat.st_mtime_ns, division]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def find_shards(raw: Path) -> list[Source]:
    """The shards of a data set, in order.

    Raises:
        ValueError: if there are none.
    """
    sources = [
        Source(regular(path), str(path.relative_to(raw)))
        for path in sorted((raw / "data").rglob("*.parquet"))
        if not path.name.startswith(".")
    ]
    if not sources:
        raise ValueError(f"{raw} is not a MEDS data set: there is no Parquet file in its folder data/")
    return sources


def part_of(sources: list[Source], shard: str) -> list[Source]:
    """The shards of part `I/N`."""
    match = re.fullmatch(r"(\d+)/(\d+)", shard)
    index, count = (int(number) for number in match.groups()) if match else (0, 0)
    if not 1 <= index <= count:
        raise ValueError(f"--shard must be I/N with I from 1 to N, such as 2/8; got {shard!r}")
    return sources[index - 1 :: count]


def in_threads(make: Callable, arguments: tuple, items: Sequence[Any], label: str, workers: int) -> list[Any]:
    """Calls what `make(*arguments)` returns with each item, several at a time; the results in their order."""
    work = make(*arguments)
    with ThreadPoolExecutor(workers) as executor:
        try:
            found = executor.map(work, items)
            return list(tqdm(found, total=len(items), desc=label, unit=" shards", leave=False, disable=None))
        except BaseException:
            executor.shutdown(cancel_futures=True)
            raise


def on_ray(make: Callable, arguments: tuple, items: Sequence[Any], label: str, address: str | None) -> list[Any]:
    """The same on the machines of a Ray cluster."""
    return on_machines(make, arguments, items, address)[0] if items else []


def read_shards(
    sources: list[Source], splits: pl.DataFrame | None, seed: int, results: Path, each: Each
) -> list[tuple[Source, Path]]:
    """Reads the shards that were not read before; each with the folder of its result."""
    results.mkdir(parents=True, exist_ok=True)
    shards = [(source, results / source.key(splits, seed)) for source in sources]
    todo = [(source, folder) for source, folder in shards if not folder.is_dir()]
    if len(todo) < len(sources):
        logger.info("%d of %d shards were read before", len(sources) - len(todo), len(sources))
    each(ShardReader, (splits, seed), todo, label="reading")
    return shards


@dataclass(frozen=True)
class ShardReader:
    """Reads the shards of a data set, see `read_shard`."""

    splits: pl.DataFrame | None
    seed: int

    def __call__(self, shard: tuple[Source, Path]) -> None:
        read_shard(*shard, self.splits, self.seed)


def read_shard(source: Source, folder: Path, splits: pl.DataFrame | None, seed: int) -> None:
    """Writes the shard's result, whole or not at all: events, static events, subjects, and how many have each code.

    Times are hours in double precision since the subject's first event.
    """
    rows = read_parquet(
        source.path,
        {"subject_id": pl.Int64, "time": pl.Datetime("us"), "code": pl.String, "numeric_value": pl.Float32},
        optional=("numeric_value",),
    )
    for column in ("subject_id", "code"):
        if rows[column].null_count():
            raise ValueError(f"{source.path}: {column} is null in {rows[column].null_count()} row(s)")
    if (empty := (rows["code"].str.strip_chars() == "").sum()) > 0:
        raise ValueError(f"{source.path}: code is empty in {empty} row(s)")
    if (infinite := rows.filter(pl.col("numeric_value").is_infinite())).height:
        raise ValueError(f"{source.path}: subject {infinite['subject_id'][0]} has an infinite numeric_value")
    rows = rows.with_columns(pl.col("numeric_value").fill_nan(None))
    is_birth = (pl.col("code") == BIRTH) | pl.col("code").str.starts_with(f"{BIRTH}//")
    is_timed = pl.col("time").is_not_null()
    subjects = rows.group_by("subject_id").agg(
        origin=pl.col("time").filter(~is_birth).min(), birth=pl.col("time").filter(is_birth).min()
    )
    if splits is None:
        names = split_by_hash(subjects["subject_id"].to_list(), seed)
        subjects = subjects.with_columns(split=pl.Series(names, dtype=pl.String))
    else:
        subjects = subjects.join(splits, on="subject_id", how="left")
    years = (pl.col("origin") - pl.col("birth")).dt.total_seconds() / (365.25 * 24 * 3600)
    subjects = subjects.select("subject_id", "split", "origin", pl.when(years >= 0).then(years).alias("age"))

    chosen = rows.filter(~is_birth).join(subjects.drop_nulls(["split", "origin"]), on="subject_id")
    events = chosen.filter(is_timed).select(
        "subject_id", hours_since_origin("time").alias("time"), "code", pl.col("numeric_value").alias("value")
    )
    static = chosen.filter(~is_timed).select("subject_id", "code", pl.col("numeric_value").alias("value"))
    codes = chosen.group_by("code").agg(
        subjects=pl.col("subject_id").filter(pl.col("split") == "train").n_unique(), events=pl.len()
    )
    with writing_folder(folder) as incoming:  # another process may write the same shard meanwhile, and the same to it
        for name, frame in (("events", events), ("static", static), ("subjects", subjects), ("codes", codes)):
            frame.write_parquet(incoming / f"{name}.parquet")


def hours_since_origin(column: str) -> pl.Expr:
    return (pl.col(column) - pl.col("origin")).dt.total_microseconds() / 3.6e9


def read_parquet(
    path: Path, schema: dict[str, pl.DataType | type[pl.DataType]], optional: Sequence[str] = ()
) -> pl.DataFrame:
    """The columns of a file in the wanted types; ValueError naming the file."""
    try:
        present = pl.scan_parquet(path, glob=False).collect_schema()
        if missing := [name for name in schema if name not in present and name not in optional]:
            raise ValueError(f"lacks the column(s) {', '.join(missing)}")
        for name, kind in schema.items():
            if name in present and not _holds(present[name], kind):
                raise ValueError(f"{name} must be {KINDS[kind.base_type()]}, not {present[name]}")
        if "numeric_value" in optional and "numeric_value" not in present and (other := _numeric_columns(present)):
            raise ValueError(f"lacks numeric_value, but {other[0]} holds numbers: rename it, or drop it")
        frame = pl.read_parquet(
            path, columns=[name for name in schema if name in present], glob=False, hive_partitioning=False
        )
        frame = frame.with_columns(pl.lit(None).alias(name) for name in schema if name not in present)
        return frame.select(pl.col(name).cast(kind) for name, kind in schema.items())
    except (pl.exceptions.PolarsError, OSError, ValueError) as error:
        raise ValueError(f"{path} is damaged or not MEDS: {error}") from error


def _holds(found: pl.DataType, wanted: pl.DataType | type[pl.DataType]) -> bool:
    """Whether a column of one type can be read as one of another with nothing changed or lost."""
    if found == pl.Null or found == wanted.base_type():
        return True
    if wanted.is_integer():
        return found.is_integer()
    if wanted.is_numeric():
        return found.is_numeric()
    return wanted == pl.String and found in (pl.Categorical, pl.Enum)


def _numeric_columns(present: Mapping[str, pl.DataType]) -> list[str]:
    """Columns of events, other than those of MEDS, whose name says that they hold the events' numbers."""
    return [name for name, kind in present.items() if kind.is_numeric() and "val" in name.lower()]


@dataclass(frozen=True, eq=False)
class RecordWriter:
    """Writes the records of a shard from its result.

    Attributes:
        vocabulary: code and variable.
        subjects: subject_id and split of those with a record.
        static_rows: their static columns.
        at_start: their events at hour 0: subject_id, code, value.
        asked: subject_id and time of all predictions.
    """

    vocabulary: pl.DataFrame
    subjects: pl.DataFrame
    static_rows: pl.DataFrame
    at_start: pl.DataFrame
    asked: pl.DataFrame

    def __call__(self, shard: tuple[Source, Path]) -> tuple[dict[str, Shard], pl.DataFrame, int]:
        """The records of each split, written beside the shard's result, each subject's first event, and the number of
        events of codes that are not in the vocabulary."""
        _, folder = shard
        events = pl.read_parquet(folder / "events.parquet", glob=False)
        own = events.select("subject_id").unique()
        beginning = self.at_start.join(own, on="subject_id", how="semi").with_columns(time=pl.lit(0.0))
        events = pl.concat([events, beginning.select(events.columns)])
        known = events.join(self.vocabulary, on="code")
        dropped = events.height - known.height
        known = known.with_columns(single_precision(known, self.asked, "subject_id"))
        first = known.group_by("subject_id").agg(pl.col("time").min().alias("first"))
        static_rows = self.static_rows.rename({"subject_id": "record_id"})
        written = {}
        for split in SPLITS:
            members = self.subjects.filter(pl.col("split") == split).select("subject_id")
            chosen = known.join(members, on="subject_id", how="semi")
            if chosen.height:
                nested = nest_events(chosen.rename({"subject_id": "record_id"}), static_rows)
                path = folder / f"records-{split}.parquet"
                with writing_file(path) as incoming:  # a worker that was taken for lost may write it, too
                    written[split] = replace(write_shard(incoming, split, nested), path=path)
        return written, first, dropped
