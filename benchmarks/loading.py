"""MEDS to batches: `hymate` beside meds-torch-data, on copies of a MEDS data set.

    python3 -m venv /tmp/meds && /tmp/meds/bin/pip install meds-torch-data
    python -m benchmarks.loading MEDS --other /tmp/meds

Each number of copies writes the data set that many times over, every copy with subjects of its own. Both prepare it,
and then go through the training subjects in batches, their latest events each, without a model behind them.
meds-torch-data pins other versions than this package and so has an environment of its own.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import polars as pl
from tqdm import tqdm

from benchmarks.measure import processor, titled_table, write_section
from benchmarks.pipeline import HYMATE, ID_STEP, PAGE

EPOCH = Path(__file__).with_name("loading_epoch.py")
SECTION = "From MEDS to batches"
INTRODUCTION = """\
`python -m benchmarks.loading MEDS --other ENVIRONMENT` writes this section: MEDS is the MIMIC-IV demo in MEDS, written
several times over, every copy with subjects of its own; ENVIRONMENT holds
[meds-torch-data](https://github.com/mmcdermott/meds-torch-data) {version}. Both prepare it (`hymate prepare meds`
with all codes, and `MTD_preprocess`), and then make batches of 64 training subjects, of each the latest 512 events, in
one process, the best of five epochs. `hymate prepare` also checks its input and describes it in a card. It leaves
values as they are, so that its batches standardize them, which `MTD_preprocess` has done before. Memory is the largest
resident set of one process."""


def multiply(meds: Path, folder: Path, copies: int) -> int:
    """Writes a MEDS data set `copies` times over, a shard per copy; the number of its events."""
    shutil.copytree(meds / "metadata", folder / "metadata", ignore=shutil.ignore_patterns("subject_splits.parquet"))
    splits = pl.read_parquet(meds / "metadata" / "subject_splits.parquet")
    whole = pl.concat(shifted(splits, copy) for copy in range(copies))
    whole.write_parquet(folder / "metadata" / "subject_splits.parquet")
    events = 0
    for shard in sorted(meds.glob("data/**/*.parquet")):
        table = pl.read_parquet(shard)
        events += table.height * copies
        target = folder / shard.relative_to(meds).parent
        target.mkdir(parents=True, exist_ok=True)
        for copy in range(copies):
            shifted(table, copy).write_parquet(target / f"{shard.stem}-{copy}.parquet")
    return events


def shifted(table: pl.DataFrame, copy: int) -> pl.DataFrame:
    """The rows under subjects that no other copy has."""
    return table.with_columns(pl.col("subject_id") + copy * ID_STEP)


def measure(command: Sequence[object], environment: dict[str, str]) -> tuple[float, float, float, str]:
    """Seconds, CPU seconds and gigabytes of a command and what it starts, and what it prints.

    Raises:
        SystemExit: if it fails.
    """
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+") as printed:
        process = subprocess.Popen(
            list(map(str, command)), stdout=printed, stderr=subprocess.DEVNULL, env=os.environ | environment
        )
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(f"{' '.join(map(str, command))} failed")
        printed.seek(0)
        lines = printed.read()
    return time.perf_counter() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1e6, lines


def rows_of(copies: int, meds: Path, other: Path, scratch: Path) -> list[list[object]]:
    """A row of the table per library."""
    data = scratch / "meds"
    events = multiply(meds, data, copies)
    ours, theirs = scratch / "hymate", scratch / "meds-torch-data"
    alone = {"PATH": f"{other / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": ""}
    ways = {
        "hymate": (
            [*HYMATE, "prepare", "meds", "--raw", data, "--output", ours, "--min-subjects", 1],
            [sys.executable, "-P", EPOCH, "hymate", ours],
            {},
        ),
        "meds-torch-data": (
            [other / "bin" / "MTD_preprocess", f"MEDS_dataset_dir={data}", f"output_dir={theirs}"],
            [other / "bin" / "python", "-P", EPOCH, "meds-torch-data", theirs],
            alone,
        ),
    }
    table: list[list[object]] = []
    for name, (prepare, epoch, environment) in tqdm(ways.items(), desc=f"{copies} copies", leave=False):
        _, cpu, gigabytes, _ = measure(prepare, environment)
        found = json.loads(measure(epoch, environment)[-1].splitlines()[-1])
        rate = found["events"] / found["cpu_seconds"] / 1e6
        table.append([name, copies, f"{events:,}", cpu, gigabytes, found["records"], rate, found["gigabytes"]])
    return table


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("meds", type=Path, help="MEDS data set.")
    parser.add_argument("--other", type=Path, required=True, help="Virtual environment with meds-torch-data.")
    parser.add_argument("--copies", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--write", action="store_true", help="Put the table into docs/speed.md.")
    args = parser.parse_args()
    asked = "import importlib.metadata as m; print(m.version('meds-torch-data'))"
    version = subprocess.check_output([args.other / "bin" / "python", "-c", asked], text=True).strip()
    table: list[list[object]] = []
    for copies in args.copies:
        with tempfile.TemporaryDirectory() as scratch:
            table += rows_of(copies, args.meds, args.other.absolute(), Path(scratch))
    columns = (
        *("library", "copies", "events", "preparing, CPU seconds", "preparing, GB", "training subjects"),
        *("million events in batches per CPU second", "batches, GB"),
    )
    title = "Copies of the MIMIC-IV demo in MEDS"
    text = "\n\n".join([INTRODUCTION.format(version=version), processor(), titled_table(title, columns, table)])
    print(text)
    if args.write:
        write_section(PAGE, SECTION, text)


if __name__ == "__main__":
    main()
