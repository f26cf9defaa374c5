"""The data set card of a prepared folder, and the tables that say what it holds."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import yaml

from hymate_training.data.prepared_folder import record_shards, task_path
from hymate_training.data.schema import SPLITS, DatasetInfo, TaskInfo


def summary_tables(folder: str | Path, info: DatasetInfo) -> dict[str, list[list[str]]]:
    """Rows of three tables, headings first: `splits`, `tasks` (with prevalence or mean), and `dropped` by reason."""
    folder = Path(folder)
    splits = [["split", "records", "events", "median events a record"]]
    for split in SPLITS:
        lengths = [_record_lengths(path) for path in record_shards(folder, split)]
        if lengths:
            counts = np.concatenate(lengths)
            splits.append([split, f"{len(counts):,}", f"{counts.sum():,}", f"{np.median(counts):,.0f}"])
    tasks = [["task", "type", "split", "predictions", "labels"]]
    for task in info.tasks:
        for split in SPLITS:
            if (path := task_path(folder, task.name, split)).is_file():
                frame = pl.read_parquet(path)
                tasks.append([task.name, task.problem_type, split, f"{frame.height:,}", _describe_labels(task, frame)])
    dropped = [["dropped", "count"], *([reason, f"{count:,}"] for reason, count in info.dropped.items())]
    return {"splits": splits, "tasks": tasks, "dropped": dropped}


def _record_lengths(shard: Path) -> np.ndarray:
    column = pq.ParquetFile(shard).read(["variable"])["variable"]
    return np.concatenate([np.diff(chunk.offsets) for chunk in column.chunks])


def _describe_labels(task: TaskInfo, frame: pl.DataFrame) -> str:
    if not frame.height:
        return "none"
    columns = {name: frame[name].to_numpy() for name in task.label_columns}
    first = columns[task.label_columns[0]]
    if task.problem_type == "binary":
        return f"{first.mean():.2%} {task.label_names[1]}"
    if task.problem_type == "regression":
        return f"mean {first.mean():.4g}, median {np.median(first):.4g}"
    if task.problem_type == "multiclass":
        return ", ".join(f"{(first == name).mean():.1%} {name}" for name in task.label_names)
    return ", ".join(f"{labels.mean():.1%} {name}" for name, labels in columns.items())


def card(folder: Path, info: DatasetInfo) -> str:
    """The data set card: YAML that `datasets` reads, then what a person wants to know."""
    return "\n".join(_card_lines(folder, info)) + "\n"


def _card_lines(folder: Path, info: DatasetInfo) -> Iterator[str]:
    def data_files(template: str) -> list[dict[str, str]]:
        paths = {split: template.format(split) for split in SPLITS}
        return [{"split": split, "path": path} for split, path in paths.items() if any(folder.glob(path))]

    configs = [{"config_name": "records", "data_files": data_files("records/{}-*.parquet"), "default": True}]
    configs += [
        {"config_name": task.name, "data_files": data_files(f"tasks/{task.name}/{{}}.parquet")} for task in info.tasks
    ]
    header: dict[str, Any] = {"license": info.license}
    if info.license == "other":  # the Hub asks for a name, in the form of its identifiers
        name = info.extra.get("license_name", "unspecified")
        header["license_name"] = re.sub(r"[^a-z0-9.]+", "-", name.lower())
    header |= {
        "pretty_name": f"{info.source}, prepared for HyMaTE",
        "tags": ["electronic-health-records", "clinical-time-series", "hymate"],
        "configs": configs,
    }
    yield f"---\n{yaml.safe_dump(header, sort_keys=False, allow_unicode=True)}---\n"
    yield f"# {info.source}, prepared for HyMaTE\n"
    if "description" in info.extra:
        yield f"{info.extra['description']}\n"
    tables = summary_tables(folder, info)
    yield "## Records and splits\n"
    yield f"{info.split_description}\n"
    yield from _markdown_table(tables["splits"])
    yield "## Tasks\n"
    yield from (f"- `{task.name}`: {task.description}" for task in info.tasks)
    yield ""
    yield from _markdown_table(tables["tasks"])
    if info.dropped:
        yield "## Dropped\n"
        yield from _markdown_table(tables["dropped"])
    yield "## Variables\n"
    units = info.extra.get("units", {})
    listed = (f"`{name}` ({units[name]})" if units.get(name) else f"`{name}`" for name in info.variables)
    if len(info.variables) <= 200:
        yield ", ".join(listed) + "\n"
    else:
        yield f"{len(info.variables):,}, listed in metadata.json.\n"
    if info.static_columns:
        names = (
            f"`{c.name}` ({', '.join(c.categories) or units.get(c.name) or 'number'})" for c in info.static_columns
        )
        yield f"Static: {', '.join(names)}\n"
    for task_name, drivers in info.extra.get("drivers", {}).items():
        yield f"## What drives `{task_name}`\n"
        yield from _markdown_table([list(drivers[0]), *([str(value) for value in d.values()] for d in drivers)])
    yield "## Citation\n"
    yield info.citation


def _markdown_table(rows: list[list[str]]) -> Iterator[str]:
    yield f"| {' | '.join(rows[0])} |"
    yield "|" + "---|" * len(rows[0])
    yield from (f"| {' | '.join(row)} |" for row in rows[1:])
    yield ""
