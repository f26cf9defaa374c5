"""Any hospital's records in the Medical Event Data Standard (MEDS 0.4), with or without labels.

Reads a data set as the standard lays it out (https://github.com/Medical-Event-Data-Standard/meds): `data/**/*.parquet`
of subject_id, time, code and numeric_value, `metadata/subject_splits.parquet` and `metadata/dataset.json`. A record is
a subject, a variable is a code, and an event carries its numeric_value or no number at all.

- Time: hours since the subject's first timed event other than MEDS_BIRTH. Births are no events: they give the static
  column `age`, in years at that first event. Subjects without a timed event are left out.
- Static events (without a time): codes FAMILY//CATEGORY of which no subject has two become a categorical column,
  and codes that always carry a number, once per subject, a numeric column; all others become events at hour 0.
- Variables: the codes that at least `min_subjects` training subjects have, the most frequent first.
- Splits: those of the data set (train, tuning, held_out); without a split file subjects are divided 80/10/10 by a hash
  of seed and subject_id, so that every shard can be read on its own.
- Labels: each folder of label shards (subject_id, prediction_time and one of boolean_value, categorical_value,
  integer_value, float_value) is a task named after the folder; ACES finds those of `--aces` task files. Without labels
  the folder serves pretraining.
- All times have a time zone, or none has, labels included: a mixture would move predictions by hours.

A prepared folder holds hours in single precision, which over decades cannot tell minutes apart. An event later than a
prediction is therefore stored at a time that is larger than the prediction's in single precision, too.

Shards are read one by one and independently, and each leaves its result in a hidden folder beside the output. A run
that was interrupted goes on with the shards that are not done. `--shard 2/8` does the second eighth of the shards and
stops, for a cluster; the run without it does what is left, puts everything together and removes the hidden folder.
With `--engine ray` the machines of a Ray cluster do the shards, and each writes the records of its own.
A shard has to fit into memory, as the standard intends.
"""

import argparse
import json
import logging
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import polars as pl

from hymate_training.data.schema import (
    EVENT_FIELDS,
    LABEL_COLUMNS,
    LABEL_TYPES,
    SPLITS,
    DatasetInfo,
    StaticColumn,
    TaskInfo,
)
from hymate_training.data.writer import PreparedFolderWriter
from hymate_training.files import regular
from hymate_training.machines import import_ray
from hymate_training.readers.aces import extract_labels
from hymate_training.readers.meds_shards import (
    Each,
    RecordWriter,
    Source,
    find_shards,
    hours_since_origin,
    in_threads,
    on_ray,
    part_of,
    read_parquet,
    read_shards,
)

logger = logging.getLogger(__name__)

SPLIT_NAMES = {
    "train": "train",
    "tuning": "validation",
    "held_out": "test",
    "validation": "validation",
    "test": "test",
}
SUBJECT_SPLITS = Path("metadata", "subject_splits.parquet")
MAX_CATEGORIES = 50
RESERVED = {"age", *(field.name for field in EVENT_FIELDS)}
CITATION = (
    "Arnrich B, Choi E, Fries JA, et al. Medical Event Data Standard (MEDS): facilitating machine learning for "
    "health. ICLR 2024 Workshop on Learning from Time Series for Health."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--raw", type=Path, required=True, help="The MEDS data set, which holds data/ and metadata/.")
    parser.add_argument(
        "--labels", type=Path, nargs="+", default=[], metavar="DIR", help="Folders of label shards, one per task."
    )
    parser.add_argument(
        "--aces", type=Path, nargs="+", default=[], metavar="TASK.yaml", help="Task files whose labels ACES finds."
    )
    parser.add_argument(
        "--predicates", type=Path, metavar="FILE", help="With --aces: what the tasks' events are in this data set."
    )
    parser.add_argument(
        "--aces-cli",
        default="aces-cli",
        metavar="COMMAND",
        help="With --aces: ACES, which needs an environment of its own (default: aces-cli, as the shell finds it).",
    )
    parser.add_argument(
        "--min-subjects", type=int, default=10, help="Drop codes that fewer training subjects have (default: 10)."
    )
    parser.add_argument(
        "--shard", metavar="I/N", help="Only the I-th of N parts of the shards; run without it afterwards to finish."
    )
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count(), help="Shards read at a time (default: one per processor)."
    )
    parser.add_argument(
        "--engine",
        choices=("local", "ray"),
        default="local",
        help="Where to read the shards: in this process, or with ray on the machines of a cluster (default: local).",
    )
    parser.add_argument(
        "--address",
        help="With --engine ray: the cluster, such as auto or ray://HOST:10001 (default: one on this machine).",
    )


def prepare(
    raw: str | Path,
    output: str | Path,
    *,
    labels: Sequence[str | Path] = (),
    aces: Sequence[str | Path] = (),
    predicates: str | Path | None = None,
    aces_cli: str = "aces-cli",
    min_subjects: int = 10,
    shard: str | None = None,
    workers: int | None = 1,
    engine: Literal["local", "ray"] = "local",
    address: str | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> DatasetInfo | None:
    """Read a data set in MEDS into a prepared folder.

    Args:
        raw: the data set.
        output: the prepared folder to make.
        labels: folders of label shards, one per task.
        aces: task files of ACES, one per further task.
        predicates: what their events are in this data set.
        aces_cli: the command that runs ACES.
        min_subjects: drop codes that fewer training subjects have.
        shard: `"I/N"` for the I-th of N parts of the shards alone.
        workers: shards read at a time.
        engine: "ray" reads the shards and writes their records on the machines of a Ray cluster, which must reach the
            data set and the output under the same paths. A shard whose worker is lost is done anew by another.
        address: of the cluster, such as `auto`; one is started on this machine where absent.
        seed: of the split where the data set has none.
        overwrite: replace an existing prepared folder.

    Returns:
        What the folder holds; None where `shard` asked for a part of the work.

    Raises:
        ValueError: naming the file that is missing, damaged or no MEDS.
    """
    if min_subjects < 1:
        raise ValueError(f"--min-subjects must be at least 1, got {min_subjects}")
    if workers is None or workers < 1:
        raise ValueError(f"--workers must be at least 1, got {workers}")
    _check_engine(engine, address)
    raw, output = Path(raw).absolute(), Path(output).absolute()
    writer = PreparedFolderWriter(output, overwrite=overwrite)  # refuses an output it may not replace, before the work
    if aces and predicates is None:
        raise ValueError("--aces needs --predicates, which says what the tasks' events are in this data set")
    sources = find_shards(raw)
    splits = read_splits(raw)
    with tempfile.TemporaryDirectory() as scratch:
        wanted = aces if shard is None else ()  # a part of the events needs no labels
        found = [extract_labels(raw, Path(task), Path(predicates or ""), Path(scratch), aces_cli) for task in wanted]
        folders = [*map(Path, labels), *found]
        check_time_zones([source.path for source in sources], folders)
        tasks = [read_labels(folder) for folder in folders]
    if len({task.name for task, _ in tasks}) < len(tasks):
        raise ValueError("--labels, --aces: two of them have the same name, which is the task's")

    each: Each = partial(in_threads, workers=workers) if engine == "local" else partial(on_ray, address=address)
    results = output.with_name(f".{output.name}.shards")
    mine = sources if shard is None else part_of(sources, shard)
    started_here = not results.exists()
    try:
        done = read_shards(mine, splits, seed, results, each)
        if shard is not None:
            return None
        with writer:
            info = _assemble(writer, raw, done, tasks, min_subjects, splits is None, seed, each)
    except ValueError:
        if started_here and shard is None:  # else other processes may have results there
            shutil.rmtree(results, ignore_errors=True)
        raise
    shutil.rmtree(results)
    return info


def _check_engine(engine: str, address: str | None) -> None:
    if engine not in ("local", "ray"):
        raise ValueError(f"--engine must be local or ray, got {engine!r}")
    if engine == "local" and address is not None:
        raise ValueError("--address is for --engine ray")
    if engine == "ray":
        import_ray()  # or say that it is missing, before the work


# ---------------------------------------------------------------------------------------------------- splits, labels


def check_time_zones(events: Sequence[Path], labels: Sequence[Path]) -> None:
    """Raise ValueError if some of the times have a time zone and others have none."""
    first: dict[bool, tuple[Path, str]] = {}  # whether times have a time zone -> an example
    found = [(path, "time") for path in events]
    found += [(regular(path), "prediction_time") for folder in labels for path in sorted(folder.rglob("*.parquet"))]
    for path, column in found:
        try:
            kind = pl.scan_parquet(path, glob=False).collect_schema().get(column)
        except (pl.exceptions.PolarsError, OSError):
            continue  # is named when it is read
        if isinstance(kind, pl.Datetime):
            first.setdefault(kind.time_zone is not None, (path, column))
    if len(first) == 2:
        (aware, one), (naive, other) = first[True], first[False]
        raise ValueError(f"{one} of {aware} has a time zone and {other} of {naive} has none: write both in one way")


def read_splits(raw: Path) -> pl.DataFrame | None:
    """subject_id and split, null where it is none of ours; None where the data set has no split file."""
    path = regular(raw / SUBJECT_SPLITS)
    if not path.is_file():
        logger.warning("%s is missing: subjects are divided 80/10/10 at random", path)
        return None
    splits = read_parquet(path, {"subject_id": pl.Int64, "split": pl.String})
    if not splits.height:
        raise ValueError(f"{path} has no rows")
    if (twice := splits["subject_id"].is_duplicated()).any():
        raise ValueError(f"{path}: subject {splits['subject_id'][int(twice.arg_max() or 0)]} occurs more than once")
    return splits.with_columns(pl.col("split").replace_strict(SPLIT_NAMES, default=None, return_dtype=pl.String)).sort(
        "subject_id"
    )


def read_labels(folder: Path) -> tuple[TaskInfo, pl.DataFrame]:
    """The task of a folder of label shards and its rows: subject_id, prediction_time, label."""
    paths = sorted(folder.rglob("*.parquet"))
    if not paths:
        raise ValueError(f"--labels {folder}: there is no Parquet file in it")
    kinds = {"boolean_value": pl.Boolean, "categorical_value": pl.String}
    kinds |= {"integer_value": pl.Int64, "float_value": pl.Float32}
    rows = pl.concat(
        read_parquet(
            path, {"subject_id": pl.Int64, "prediction_time": pl.Datetime("us"), **kinds}, optional=tuple(LABEL_TYPES)
        )
        for path in paths
    )
    used = [name for name in kinds if rows[name].null_count() < rows.height]
    if len(used) != 1:
        raise ValueError(
            f"--labels {folder}: exactly one of {', '.join(kinds)} must hold the labels, "
            f"found {', '.join(used) or 'none'}"
        )
    rows = rows.select("subject_id", "prediction_time", used[0])
    for column in rows.columns:
        if rows[column].null_count():
            raise ValueError(f"--labels {folder}: {column} is null in {rows[column].null_count()} row(s)")
    if (twice := rows.select("subject_id", "prediction_time").is_duplicated()).any():
        row = rows.row(int(twice.arg_max() or 0))
        raise ValueError(f"--labels {folder}: subject {row[0]} is predicted twice at {row[1]}")
    problem_type: Any = next(kind for kind, columns in LABEL_COLUMNS.items() if used[0] in columns)
    if problem_type == "multiclass" and rows[used[0]].n_unique() < 2:
        raise ValueError(f"--labels {folder}: {used[0]} is {rows[used[0]][0]!r} in all rows; a task needs two classes")
    names = {
        "binary": ("false", "true"),
        "multiclass": tuple(rows[used[0]].unique().sort()),
        "regression": (folder.name,),
    }
    task = TaskInfo(folder.name, f"Labels of {folder.name}.", problem_type, (used[0],), names[problem_type])
    return task, rows


# ---------------------------------------------------------------------------------------------------------- assembly


def _assemble(
    writer: PreparedFolderWriter,
    raw: Path,
    done: list[tuple[Source, Path]],
    tasks: list[tuple[TaskInfo, pl.DataFrame]],
    min_subjects: int,
    split_by_hash: bool,
    seed: int,
    each: Each,
) -> DatasetInfo:
    """Vocabulary, records and tasks out of the shards' results."""
    dropped: Counter[str] = Counter()
    subjects = _all_subjects(done)
    if not subjects.height:
        raise ValueError(f"{raw / 'data'} holds no events: all its tables are empty")
    dropped["subjects without a split"] = subjects["split"].null_count()
    dropped["subjects without a timed event"] = subjects["origin"].null_count()
    subjects = subjects.drop_nulls(["split", "origin"])
    if "train" not in subjects["split"]:
        raise ValueError(f"{raw}: no subject with a timed event is in the split train; see {SUBJECT_SPLITS}")
    static = pl.concat([pl.read_parquet(folder / "static.parquet", glob=False) for _, folder in done])
    columns, static_rows, at_start = _static_columns(static, subjects, min_subjects, dropped)
    timeless = static.select("code").unique().join(at_start.select("code").unique(), on="code", how="anti")
    vocabulary = _vocabulary(done, timeless, min_subjects)
    if not vocabulary.height:
        raise ValueError(f"{raw}: no code occurs in {min_subjects} training subjects; lower --min-subjects")

    predictions = [_locate(task, rows, subjects, dropped) for task, rows in tasks]
    asked = pl.concat([pl.DataFrame(schema={"subject_id": pl.Int64, "time": pl.Float64})])
    asked = pl.concat([asked, *(rows.select("subject_id", "time") for rows in predictions)]).unique()
    tables = (vocabulary, subjects.select("subject_id", "split"), static_rows, at_start, asked)
    first = [pl.DataFrame(schema={"subject_id": pl.Int64, "first": pl.Float32})]
    for written, begins, unknown in each(RecordWriter, tables, done, label="writing"):
        dropped[f"events of codes that fewer than {min_subjects} training subjects have"] += unknown
        first.append(begins)
        for split, shard in written.items():
            writer.add_shard(split, shard)
    begun = pl.concat(first)
    dropped["subjects without an event of a known code"] = subjects.height - begun.height
    for (task, _), rows in zip(tasks, predictions, strict=True):
        _write_task(writer, task, rows.join(begun, on="subject_id", how="left"), dropped)
    described = tuple(task for task, _ in tasks)
    info = _describe(raw, tuple(vocabulary["code"]), tuple(columns), described, dropped, split_by_hash, seed)
    writer.finish(info)
    return info


def _vocabulary(done: list[tuple[Source, Path]], left_out: pl.DataFrame, min_subjects: int) -> pl.DataFrame:
    """The codes that become variables, the most frequent first: `code`, and its index, `variable`."""
    codes = pl.concat([pl.read_parquet(folder / "codes.parquet", glob=False) for _, folder in done])
    codes = codes.group_by("code").agg(pl.col("subjects").sum(), pl.col("events").sum())
    kept = codes.filter(pl.col("subjects") >= min_subjects).join(left_out, on="code", how="anti")
    ordered = kept.sort(["subjects", "events", "code"], descending=[True, True, False]).select("code")
    return ordered.with_row_index("variable").cast({"variable": pl.Int32})


def _describe(
    raw: Path,
    variables: tuple[str, ...],
    static_columns: tuple[StaticColumn, ...],
    tasks: tuple[TaskInfo, ...],
    dropped: Counter[str],
    split_by_hash: bool,
    seed: int,
) -> DatasetInfo:
    metadata = _metadata(raw)
    return DatasetInfo(
        source=str(metadata.get("dataset_name") or raw.resolve().name),
        variables=variables,
        static_columns=static_columns,
        tasks=tasks,
        dropped={reason: count for reason, count in dropped.items() if count},
        split_description=f"Subjects, by a hash of seed {seed}: 80% train, 10% validation, 10% test."
        if split_by_hash
        else "The data set's own: train, tuning (validation) and held_out (test).",
        license=str(metadata.get("license") or "unknown"),
        citation=CITATION,
        seed=seed if split_by_hash else None,
        extra={
            "description": "Records in the Medical Event Data Standard; a variable is a code.",
            "meds": metadata,
            "units": {"age": "years"},
        },
    )


def _all_subjects(done: list[tuple[Source, Path]]) -> pl.DataFrame:
    frames = []
    for source, folder in done:
        frames.append(pl.read_parquet(folder / "subjects.parquet", glob=False).with_columns(shard=pl.lit(source.name)))
    subjects = pl.concat(frames)
    if (twice := subjects["subject_id"].is_duplicated()).any():
        subject = subjects["subject_id"][int(twice.arg_max() or 0)]
        shards = subjects.filter(pl.col("subject_id") == subject)["shard"]
        raise ValueError(f"subject {subject} is in two shards, {shards[0]} and {shards[1]}; MEDS keeps it in one")
    return subjects.drop("shard")


def _static_columns(
    static: pl.DataFrame, subjects: pl.DataFrame, min_subjects: int, dropped: Counter[str]
) -> tuple[list[StaticColumn], pl.DataFrame, pl.DataFrame]:
    """The static columns, their values (one row per subject), and the static events that become events at hour 0."""
    split_code = pl.col("code").str.splitn("//", 2)
    parts = static.with_columns(
        family=split_code.struct.field("field_0"), category=split_code.struct.field("field_1")
    ).with_columns(
        train=pl.col("subject_id").is_in(subjects.filter(pl.col("split") == "train")["subject_id"].implode())
    )
    columns, rows = [StaticColumn("age", "numeric")], subjects.select("subject_id", "age")
    taken = []
    once = pl.col("subject_id").n_unique() == pl.len()
    by_code = parts.group_by("code").agg(use=once & pl.col("value").is_not_null().all() & pl.col("train").any())
    for code in by_code.filter("use")["code"].sort():
        if code not in RESERVED:
            columns.append(StaticColumn(code, "numeric"))
            found = parts.filter(pl.col("code") == code)
            rows = rows.join(
                found.select("subject_id", pl.col("value").cast(pl.Float64).alias(code)), on="subject_id", how="left"
            )
            taken.append(pl.col("code") == code)
    by_family = parts.group_by("family").agg(
        use=once & pl.col("value").is_null().all() & pl.col("category").is_not_null().all()
    )
    for family in by_family.filter("use")["family"].sort():
        found = parts.filter(pl.col("family") == family)
        counts = found.filter("train").group_by("category").len().filter(pl.col("len") >= min_subjects)
        if family in RESERVED or not 0 < counts.height <= MAX_CATEGORIES:
            continue
        categories = tuple(counts["category"].sort())
        known = found.filter(pl.col("category").is_in(categories))
        dropped[f"categories of {family} that fewer than {min_subjects} training subjects have"] = (
            found.height - known.height
        )
        columns.append(StaticColumn(family, "categorical", categories))
        rows = rows.join(known.select("subject_id", pl.col("category").alias(family)), on="subject_id", how="left")
        taken.append(pl.col("family") == family)
    at_start = parts.filter(~pl.any_horizontal(taken)) if taken else parts
    return columns, rows, at_start.select("subject_id", "code", "value")


def _locate(task: TaskInfo, rows: pl.DataFrame, subjects: pl.DataFrame, dropped: Counter[str]) -> pl.DataFrame:
    """Labels with `time`, the prediction's hours in double precision, and their split."""
    located = rows.join(subjects.select("subject_id", "split", "origin"), on="subject_id")
    if not located.height:
        raise ValueError(f"no label of {task.name} is left: none is of a subject with a record")
    dropped[f"labels of {task.name} of subjects without a record"] = rows.height - located.height
    return located.with_columns(time=hours_since_origin("prediction_time"))


def _write_task(writer: PreparedFolderWriter, task: TaskInfo, rows: pl.DataFrame, dropped: Counter[str]) -> None:
    rows = rows.with_columns(prediction_time=pl.col("time").cast(pl.Float32))
    seen = rows.filter(pl.col("first") <= pl.col("prediction_time"))
    dropped[f"labels of {task.name} before the first event of a known code"] = rows.height - seen.height
    apart = seen.sort("subject_id", "time").unique(
        ["subject_id", "prediction_time"], keep="first", maintain_order=True
    )
    dropped[f"labels of {task.name} too close to another to tell apart"] = seen.height - apart.height
    if not apart.height:
        raise ValueError(f"no label of {task.name} is left: all are before the first event of a known code")
    for split in SPLITS:
        chosen = apart.filter(pl.col("split") == split)
        writer.write_task(
            task, split, chosen.select(pl.col("subject_id").cast(pl.String).alias("record_id"), *task.schema.names[1:])
        )


def _metadata(raw: Path) -> dict[str, Any]:
    """The content of metadata/dataset.json; empty where there is none."""
    path = raw / "metadata" / "dataset.json"
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold an object, found {type(content).__name__}")
    return content
