"""A small prepared folder by hand, and what tests ask of any: its records and predictions, and all its bytes."""

from pathlib import Path

import polars as pl

from hymate_training.data.prepared_folder import PreparedFolder
from hymate_training.data.schema import SPLITS, DatasetInfo, StaticColumn, TaskInfo
from hymate_training.data.writer import PreparedFolderWriter

MORTALITY = TaskInfo("mortality", "Death.", "binary", ("boolean_value",), ("survived", "died"))
INFO = DatasetInfo(
    source="test",
    variables=("HR", "Code"),
    static_columns=(StaticColumn("age", "numeric"), StaticColumn("sex", "categorical", ("female", "male"))),
    tasks=(MORTALITY,),
    dropped={"rows without a parameter": 3},
    split_description="By hand.",
    license="cc0-1.0",
    citation="None.",
    seed=None,
)


def record_rows(*ids: str, **columns: list) -> pl.DataFrame:
    """Records of two events each, with the columns of `INFO`; any column may be another."""
    count = len(ids)
    default = {
        "time": [[0.0, 1.5]] * count,
        "variable": [[0, 1]] * count,
        "value": [[80.0, None]] * count,
        "age": [None, *[61.0] * (count - 1)],
        "sex": ["female"] * count,
    }
    return pl.DataFrame({"record_id": list(ids), **default, **columns}, schema_overrides={"age": pl.Float64})


def label_rows(*ids: str, **columns: list) -> pl.DataFrame:
    """Predictions of `MORTALITY` at hour 48; any column may be another."""
    default = {"prediction_time": [48.0] * len(ids), "boolean_value": [True] * len(ids)}
    return pl.DataFrame({"record_id": list(ids), **default, **columns})


def write_folder(
    output: Path, steps: list[tuple] | None = None, *, info: DatasetInfo | None = INFO, **options
) -> Path:
    """A prepared folder of records a to d.

    `steps` are (split, records) or (task, split, labels); an exception class among them is raised at that point.
    """
    if steps is None:
        steps = [
            ("train", record_rows("a", "b")),
            ("train", record_rows("c")),
            ("validation", record_rows("d")),
            (MORTALITY, "train", label_rows("a", "c", boolean_value=[True, False])),
            (MORTALITY, "validation", label_rows("d")),
        ]
    with PreparedFolderWriter(output, **options) as writer:
        for step in steps:
            if isinstance(step, type):
                raise step
            (writer.write_records if len(step) == 2 else writer.write_task)(*step)
        if info is not None:
            writer.finish(info)
    return output


def records(folder: Path, *splits: str) -> dict[str, dict]:
    """Record id -> its row, of some splits or of all there are."""
    prepared = PreparedFolder(folder)
    rows = (row for split in splits or prepared.splits for row in prepared.records(split).to_pylist())
    return {row["record_id"]: row for row in rows}


def records_frame(folder: Path, *splits: str) -> pl.DataFrame:
    """The records of some splits, or of all there are."""
    prepared = PreparedFolder(folder)
    return pl.concat(pl.DataFrame(pl.from_arrow(prepared.records(split))) for split in splits or prepared.splits)


def labels_frame(folder: Path, task: str, *splits: str) -> pl.DataFrame:
    """The predictions of a task in some splits, or in all that have any."""
    prepared = PreparedFolder(folder)
    chosen = splits or [split for split in SPLITS if (folder / "tasks" / task / f"{split}.parquet").is_file()]
    return pl.concat(pl.DataFrame(pl.from_arrow(prepared.task(task, split))) for split in chosen)


def content(folder: Path) -> dict[str, bytes]:
    """Relative path -> bytes of every file."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
