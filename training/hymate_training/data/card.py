"""The data set card of a prepared folder, and the tables that say what it holds."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import yaml

from hymate_training.data.prepared_folder import PreparedFolder
from hymate_training.data.remarks import remarks
from hymate_training.data.schema import SPLITS, DatasetInfo, StaticColumn, TaskInfo, task_path
from hymate_training.files import markdown_table
from hymate_training.markdown import as_code, as_name, as_prose

MOST_SHOWN = 6  # categories of a static column
SHOWN_UNMAPPED = 20  # variables, of those without a concept


def summary_tables(folder: PreparedFolder) -> dict[str, list[list[str]]]:
    """Rows of five tables, headings first.

    Returns:
        `splits`, `tasks` (with prevalence or mean), `static` columns, `dropped` by reason, and `unmapped`: of a folder
        by concepts the most frequent variables that none means.
    """
    info = folder.info
    splits = [["split", "records", "events", "median events per record"]]
    for split in folder.splits:
        counts = np.concatenate([_record_lengths(path) for path in folder.shards(split)])
        splits.append([split, f"{len(counts):,}", f"{counts.sum():,}", f"{np.median(counts):,.0f}"])
    tasks = [["task", "type", "split", "predictions", "labels"]]
    for task in info.tasks:
        for split in SPLITS:
            if (path := task_path(folder.path, task.name, split)).is_file():
                frame = pl.read_parquet(path, glob=False)
                tasks.append([task.name, task.problem_type, split, f"{frame.height:,}", _describe_labels(task, frame)])
    static = [["static column", "kind", "unknown", "values"]]
    if info.static_columns:
        names = [column.name for column in info.static_columns]
        shards = [path for split in folder.splits for path in folder.shards(split)]
        known = pl.concat(pl.DataFrame(pl.from_arrow(pq.read_table(path, columns=names))) for path in shards)
        for column in info.static_columns:
            unknown = f"{known[column.name].null_count() / known.height:.1%}"
            static.append([column.name, column.kind, unknown, _describe_column(column, known[column.name])])
    dropped = [["dropped", "count"], *([reason, f"{count:,}"] for reason, count in info.dropped.items())]
    most = sorted(info.extra.get("concepts", {}).get("unmapped", {}).items(), key=lambda item: -item[1])
    unmapped = [["most frequent without a concept", "events"]]
    unmapped += [[name, f"{count:,}"] for name, count in most[:SHOWN_UNMAPPED]]
    return {"splits": splits, "tasks": tasks, "static": static, "dropped": dropped, "unmapped": unmapped}


def _record_lengths(shard: Path) -> np.ndarray:
    column = pq.ParquetFile(shard).read(["variable"])["variable"]
    return np.concatenate([np.diff(chunk.offsets) for chunk in column.chunks])


def _describe_column(column: StaticColumn, values: pl.Series) -> str:
    known = values.drop_nulls()
    if not len(known):
        return "none"
    if column.kind == "numeric":
        lower, median, upper = np.quantile(known.to_numpy(), [0.25, 0.5, 0.75])
        return f"median {median:.4g}, middle half {lower:.4g} to {upper:.4g}"
    counts = known.value_counts(sort=True).sort("count", column.name, descending=[True, False])
    shown = ", ".join(f"{count / len(known):.1%} {name}" for name, count in counts.head(MOST_SHOWN).iter_rows())
    return shown if len(counts) <= MOST_SHOWN else f"{shown} and {len(counts) - MOST_SHOWN} more"


def _describe_labels(task: TaskInfo, frame: pl.DataFrame) -> str:
    if not frame.height:
        return "none"
    columns = {name: frame[name].to_numpy() for name in task.label_columns}
    first = columns[task.label_columns[0]]
    if task.problem_type == "binary":
        return f"{first.mean():.2%} {task.label_names[1]}"
    if task.problem_type == "time_to_event":
        observed = columns["event_observed"]
        hours = first - frame["prediction_time"].to_numpy()
        return f"{observed.mean():.2%} {task.label_names[0]}, followed for {np.median(hours):.4g} hours in the median"
    if task.problem_type == "regression":
        return f"mean {first.mean():.4g}, median {np.median(first):.4g}"
    if task.problem_type == "multiclass":
        return ", ".join(f"{(first == name).mean():.1%} {name}" for name in task.label_names)
    return ", ".join(f"{labels.mean():.1%} {name}" for name, labels in columns.items())


def card(folder: PreparedFolder) -> str:
    """The data set card: YAML that `datasets` reads, then what a person wants to know."""
    return "\n".join(_card_lines(folder)) + "\n"


def _header(folder: PreparedFolder) -> dict[str, Any]:
    """What `datasets` and the Hub read."""
    info = folder.info

    def data_files(template: str) -> list[dict[str, str]]:
        paths = {split: template.format(split) for split in SPLITS}
        return [{"split": split, "path": path} for split, path in paths.items() if any(folder.path.glob(path))]

    configs = [{"config_name": "records", "data_files": data_files("records/{}-*.parquet"), "default": True}]
    configs += [
        {"config_name": task.name, "data_files": data_files(f"tasks/{task.name}/{{}}.parquet")} for task in info.tasks
    ]
    header: dict[str, Any] = {"license": info.license}
    if info.license == "other":  # the Hub asks for a name, in the form of its identifiers
        name = info.extra.get("license_name", "unspecified")
        header["license_name"] = re.sub(r"[^a-z0-9.]+", "-", name.lower())
    return header | {
        "pretty_name": f"{' '.join(info.source.split())}, prepared for HyMaTE",
        "tags": ["electronic-health-records", "clinical-time-series", "hymate"],
        "configs": configs,
    }


def _card_lines(folder: PreparedFolder) -> Iterator[str]:
    info = folder.info
    yield f"---\n{yaml.safe_dump(_header(folder), sort_keys=False, allow_unicode=True)}---\n"
    yield f"# {as_name(info.source)}, prepared for HyMaTE\n"
    if "description" in info.extra:
        yield f"{as_prose(info.extra['description'])}\n"
    tables = summary_tables(folder)
    yield "## Records and splits\n"
    yield f"{as_prose(info.split_description)}\n"
    yield _table(tables["splits"])
    yield "## Tasks\n"
    yield from (f"- `{task.name}`: {as_name(task.description)}" for task in info.tasks)
    yield ""
    yield _table(tables["tasks"])
    if info.dropped:
        yield "## Dropped\n"
        yield _table(tables["dropped"])
    if len(tables["unmapped"]) > 1:
        yield "## Kept out\n"
        yield "What no concept means; the rest of it is listed in metadata.json.\n"
        yield _table(tables["unmapped"])
    if notes := remarks(folder):
        yield "## Worth a look\n"
        yield from (f"- {as_name(note)}" for note in notes)
        yield ""
    yield from _variable_lines(info)
    for task_name, drivers in info.extra.get("drivers", {}).items():
        yield f"## What drives {as_code(task_name)}\n"
        yield _table([list(drivers[0]), *([str(value) for value in d.values()] for d in drivers)])
    yield "## Citation\n"
    yield as_prose(info.citation)


def _variable_lines(info: DatasetInfo) -> Iterator[str]:
    yield "## Variables\n"
    units = info.extra.get("units", {})
    listed = (
        f"{as_code(name)} ({as_name(units[name])})" if units.get(name) else as_code(name) for name in info.variables
    )
    if len(info.variables) <= 200:
        yield ", ".join(listed) + "\n"
    else:
        yield f"{len(info.variables):,}, listed in metadata.json.\n"
    if info.static_columns:
        names = (
            f"{as_code(c.name)} ({as_name(', '.join(c.categories) or units.get(c.name) or 'number')})"
            for c in info.static_columns
        )
        yield f"Static: {', '.join(names)}\n"


def _table(rows: list[list[str]]) -> str:
    return markdown_table([[as_name(cell) for cell in row] for row in rows]) + "\n"
