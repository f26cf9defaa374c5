"""Checkpoints and prepared folders that are damaged, in each way that there is: every command that reads the damaged
file ends with one line that names it, exit code 2, and nothing written."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import uvicorn
from safetensors.torch import load_file, save_file

from tests.support.runs import TASK, TINY

Damage = Callable[[Path], object]


def write(content: str | bytes) -> Damage:
    return lambda path: path.write_bytes(content if isinstance(content, bytes) else content.encode())


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def a_link_to_itself(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def edited(**changes: Any) -> Damage:
    """JSON in which some keys hold something else."""
    return lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def lacking(key: str) -> Damage:
    def change(path: Path) -> None:
        content = json.loads(path.read_text())
        del content[key]
        path.write_text(json.dumps(content))

    return change


def weights(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Damage:
    return lambda path: save_file(change(load_file(path)), path, {"format": "pt"})


def not_a_number(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    name = next(name for name in tensors if name.startswith("hymate."))
    return tensors | {name: torch.full_like(tensors[name], torch.nan)}


def without_one(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    tensors.pop(next(name for name in tensors if name.startswith("hymate.")))
    return tensors


WHATEVER: dict[str, Damage] = {
    "empty": write(""),
    "cut": cut,
    "half": half,
    "no text": write(bytes(range(256))),
    "absent": lambda path: path.unlink(),
    "a folder": a_folder,
    "a link to itself": a_link_to_itself,
}
JSON = {
    **WHATEVER,
    "a list": write("[]"),
    "a number": write("3"),
    "an empty object": write("{}"),
    "deep": write("[" * 100_000),
}
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n"
CHECKPOINT: dict[str, dict[str, Damage]] = {
    "model.safetensors": {
        **WHATEVER,
        "a pointer": write(LFS),
        "NaN": weights(not_a_number),
        "a weight fewer": weights(without_one),
        "a pickle": write(b"\x80\x04cos\nsystem\n(S'echo'\ntR."),
    },
    "config.json": {
        **JSON,
        "of another model": edited(model_type="bert"),
        "another width": edited(hidden_size=16),
        "no width": edited(hidden_size="wide"),
        "another temperature": edited(temperature=float("nan")),
        "more variables": edited(num_variables=3),
    },
    "preprocessor_config.json": {
        **JSON,
        "no variables": lacking("variables"),
        "a variable twice": edited(variables=["heart_rate"] * 2),
        "another time": edited(time_scale=-1.0),
        "words for numbers": edited(value_means="high"),
    },
}
CASES = [(name, how) for name, ways in CHECKPOINT.items() for how in ways]


def of_checkpoint(checkpoint: Path, data: Path, events: Path) -> dict[str, list[object]]:
    """Arguments of each command that opens a checkpoint."""
    task = ["--data", data, "--task", TASK]
    return {
        "predict": ["--checkpoint", checkpoint, "--events", events, "--output", "out.csv"],
        "embed": ["--checkpoint", checkpoint, "--events", events, "--output", "out.parquet"],
        "explain": ["--checkpoint", checkpoint, *task, "--split", "test", "--output", "out"],
        "evaluate": ["--checkpoint", checkpoint, *task, "--split", "test", "--output", "out.json"],
        "compare": [checkpoint, "other.csv", *task, "--split", "test", "--output", "out.json"],
        "monitor": ["--checkpoint", checkpoint, "--events", events, "--output", "out"],
        "export": ["--checkpoint", checkpoint, "--output", "out.onnx"],
        "finetune": ["--checkpoint", checkpoint, *task, "--output", "out", "--batch-size", "16"],
        "serve": ["--checkpoint", checkpoint],
        "push": ["--checkpoint", checkpoint, "--repo", "org/name", "--dry-run"],
    }


@pytest.mark.parametrize(("name", "how"), [pytest.param(*case, id=" ".join(case)) for case in CASES])
@pytest.mark.parametrize("command", of_checkpoint(Path(), Path(), Path()))
def test_a_checkpoint(command, name, how, classifier, synthetic_folder, events, tmp_path, complaint, monkeypatch):
    monkeypatch.setattr(uvicorn.Server, "run", lambda *_: pytest.fail("it serves what is damaged"))
    folder = tmp_path / "run"
    shutil.copytree(classifier, folder)
    CHECKPOINT[name][how](folder / name)
    line = complaint(command, *of_checkpoint(folder, synthetic_folder, events)[command])
    assert name in line or str(folder) in line, line
    assert len(line) < 2000


def parquet(change: Callable[[pl.DataFrame], pl.DataFrame]) -> Damage:
    return lambda path: change(pl.read_parquet(path)).write_parquet(path)


def item(column: str, value: Any) -> Damage:
    """The first item of the first list of a column is another."""

    def change(frame: pl.DataFrame) -> pl.DataFrame:
        lists = frame[column].to_list()
        lists[0][0] = value
        return frame.with_columns(pl.Series(column, lists, frame.schema[column]))

    return parquet(change)


def first(column: str, value: Any) -> Damage:
    """The first row of a column is another."""
    return parquet(
        lambda frame: frame.with_columns(
            pl.Series(column, [value, *frame[column].to_list()[1:]], frame.schema[column], strict=False)
        )
    )


RECORDS, LABELS = "records/train-00000.parquet", f"tasks/{TASK}/train.parquet"
PREPARED: dict[str, dict[str, Damage]] = {
    "metadata.json": {**JSON, "no variables": lacking("variables"), "no tasks": edited(tasks=3)},
    RECORDS: {
        **{how: damage for how, damage in WHATEVER.items() if how != "absent"},
        "no times": parquet(lambda frame: frame.drop("time")),
        "times in words": parquet(lambda frame: frame.with_columns(time=pl.lit("soon"))),
        "an infinite time": item("time", np.inf),
        "a negative time": item("time", -1.0),
        "a time out of order": item("time", 1e5),
        "an infinite value": item("value", np.inf),
        "a negative index": item("variable", -1),
        "too large an index": item("variable", 10_000),
        "lists of two lengths": first("value", [1.0]),
        "a record without events": parquet(
            lambda frame: frame.with_columns(pl.col("time", "variable", "value").list.head(0))
        ),
        "a record twice": parquet(lambda frame: pl.concat([frame, frame.head(1)])),
        "no id": first("record_id", None),
    },
    LABELS: {
        **WHATEVER,
        "another's label": first("record_id", "nobody"),
        "no label": first("boolean_value", None),
        "an infinite hour": first("prediction_time", np.inf),
        "asked twice": parquet(lambda frame: pl.concat([frame, frame.head(1)])),
        "labels in words": parquet(lambda frame: frame.with_columns(boolean_value=pl.lit("yes, but"))),
    },
}


def of_prepared(data: Path, checkpoint: Path) -> dict[str, list[object]]:
    """Arguments of each command that opens a prepared folder."""
    task, split = ["--data", data, "--task", TASK], ["--split", "train"]
    return {
        "finetune": [*task, "--output", "out", *TINY],
        "pretrain": ["--data", data, "--output", "out", *TINY],
        "evaluate": ["--checkpoint", checkpoint, *task, *split, "--output", "out.json"],
        "explain": ["--checkpoint", checkpoint, *task, *split, "--output", "out"],
        "compare": [checkpoint, checkpoint.parent / "other", *task, *split],
        "predict": ["--checkpoint", checkpoint, *task, *split, "--output", "out.csv"],
    }


PREPARED_CASES = [
    (command, name, how)
    for command in of_prepared(Path(), Path())
    for name, ways in PREPARED.items()
    for how in ways
    if not (command == "pretrain" and name == LABELS)  # which are not read
]


@pytest.mark.parametrize(
    ("command", "name", "how"), [pytest.param(*case, id=" ".join(map(str, case))) for case in PREPARED_CASES]
)
def test_a_prepared_folder(command, name, how, classifier, synthetic_folder, tmp_path, complaint):
    folder, other = tmp_path / "data", classifier.parent / "other"
    if not other.exists():
        shutil.copytree(classifier, other)
    shutil.copytree(synthetic_folder, folder)
    PREPARED[name][how](folder / name)
    line = complaint(command, *of_prepared(folder, classifier)[command])
    assert name in line or str(folder) in line, line
    assert len(line) < 2000
