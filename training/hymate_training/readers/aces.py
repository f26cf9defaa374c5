"""Labels of a MEDS data set by task files of ACES, which runs in an environment of its own.

ACES (`pip install es-aces`, https://github.com/justin13601/ACES) needs a polars below 2 and hymate one from 2 on, so
that they cannot share an environment: its command `aces-cli` is called as a process.
"""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

SHARDS_A_CALL = 200  # which share the seconds that a process takes to start


def extract_labels(raw: Path, task: Path, predicates: Path, output: Path, aces_cli: str = "aces-cli") -> Path:
    """Has ACES find the labels of a task.

    Args:
        raw: the MEDS data set.
        task: task file (YAML); its name without the ending is the task's.
        predicates: file of predicates (YAML), what the task's events are in this data set.
        output: folder for the folder of the task's label shards.
        aces_cli: the command, by its path or as the shell finds it.

    Returns:
        The folder of label shards, named after the task.

    Raises:
        ValueError: if the command or a file is not there, or ACES fails or finds no label.
    """
    command = shutil.which(aces_cli)
    if command is None:
        raise ValueError(
            f"{aces_cli} is not there: ACES needs another polars than hymate, so give it an environment of its own "
            "(python -m venv ENV; ENV/bin/pip install es-aces) and name it by --aces-cli ENV/bin/aces-cli"
        )
    for path in (task, predicates):
        if not path.is_file():
            raise ValueError(f"{path} does not exist")
    data = raw.resolve() / "data"
    shards = sorted(path.relative_to(data).with_suffix("").as_posix() for path in data.rglob("*.parquet"))
    if not shards:
        raise ValueError(f"{raw} is not a MEDS data set: there is no Parquet file in its folder data/")
    output.mkdir(parents=True, exist_ok=True)
    for at in tqdm(range(0, len(shards), SHARDS_A_CALL), desc=f"ACES, {task.stem}", leave=False, disable=None):
        settings = {
            "data.root": [str(data)],
            "data.shard": shards[at : at + SHARDS_A_CALL],
            "cohort_dir": [str(output.resolve())],
            "cohort_name": [task.stem],
            "config_path": [str(task.resolve())],
            "predicates_path": [str(predicates.resolve())],
        }
        call = [command, "--multirun", "data=sharded", "data.standard=meds", f"hydra.sweep.dir={_quoted(output)}"]
        call += [f"{name}={','.join(map(_quoted, values))}" for name, values in settings.items()]
        _run(call, task)
    labels = output / task.stem
    if not any(labels.rglob("*.parquet")):
        raise ValueError(f"{task}: ACES found no label in {raw}")
    return labels


def _quoted(value: str | Path) -> str:
    """A text as Hydra takes it, whatever signs are in it."""
    text = str(value).replace("'", r"\'")
    return f"'{text}'"


def _run(call: Sequence[str], task: Path) -> None:
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    if done.returncode:
        said = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        reasons = [line for line in said if "Error" in line] or said or [f"exit code {done.returncode}"]
        raise ValueError(f"{task}: ACES failed: {reasons[-1]}")
