"""Raw tables to predictions: `hymate` beside features of polars and XGBoost, on copies of the MIMIC-IV demo.

    make bench-pipeline RAW=mimic-iv-demo-2.2

Each number of copies writes the demo that many times over, every copy with patients, admissions and stays of its own,
and takes both ways from the raw tables to a prediction per stay, each step in a process of its own. Memory is the
largest resident set of the process that holds most.
"""

import argparse
import gzip
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import polars as pl
from tqdm import tqdm

from benchmarks.measure import processor, titled_table, write_section

TABLES = {
    "hosp": ("patients", "admissions", "labevents"),
    "icu": ("icustays", "chartevents", "inputevents", "outputevents", "procedureevents"),
}
IDS = ("subject_id", "hadm_id", "stay_id")
ID_STEP = 100_000_000  # larger than any identifier of the source
TASK = "in_hospital_mortality_24h"
MIMIC_IV_ROWS = 400_000_000
PAGE = Path(__file__).parents[1] / "docs" / "speed.md"
SECTION = "From raw tables to predictions"
HYMATE = [sys.executable, "-m", "hymate_training"]
INTRODUCTION = """\
`make bench-pipeline RAW=DEMO` writes this section: DEMO is the MIMIC-IV demo, written several times over, every copy
with stays of its own. `hymate prepare mimic-iv` and `hymate predict` (a small model, fine-tuned for one epoch on the
demo; the training stays, each at its end) are beside what a user might write instead: polars reads the same tables
of events and makes features per stay and item (count, mean, minimum, maximum, last), and 200 trees of XGBoost learn
from them and predict. It reconciles no units, and an event counts from when it was charted, not from when it stood in
the database. CPU seconds depend little on what else the machine does; seconds do. Memory is the largest resident set,
pages of mapped files included."""


def multiply(demo: Path, folder: Path, copies: int) -> int:
    """Writes the demo `copies` times over; the number of rows of its event tables."""
    rows = 0
    for part, names in TABLES.items():
        (folder / part).mkdir(parents=True)
        for dictionary in ("d_items", "d_labitems"):
            if (source := demo / part / f"{dictionary}.csv.gz").is_file():
                (folder / part / source.name).symlink_to(source.absolute())
        for name in names:
            table = pl.read_csv(demo / part / f"{name}.csv.gz", infer_schema=False)
            rows += table.height * copies if name.endswith("events") else 0
            ids = [column for column in IDS if column in table.columns]
            with gzip.open(folder / part / f"{name}.csv.gz", "wb", compresslevel=1) as file:
                for copy in range(copies):
                    shifted = table.with_columns(pl.col(ids).cast(pl.Int64) + copy * ID_STEP)
                    file.write(shifted.write_csv(include_header=copy == 0).encode())
    return rows


def measure(command: Sequence[object]) -> tuple[float, float, float]:
    """Seconds, CPU seconds and gigabytes of a command.

    Raises:
        SystemExit: if it fails.
    """
    start = time.perf_counter()
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(map(str, command))} failed")
    return time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1e6


def both_ways(raw: Path, rows: int, copies: int, checkpoint: Path, scratch: Path) -> list[list[object]]:
    """A row of the table per step."""
    prepared = scratch / "prepared"
    steps: dict[str, Sequence[object]] = {
        "hymate prepare": [*HYMATE, "prepare", "mimic-iv", "--raw", raw, "--output", prepared],
        "hymate predict": [
            *(*HYMATE, "predict", "--checkpoint", checkpoint, "--data", prepared, "--split", "train"),
            *("--ignore-unknown-variables", "--output", scratch / "predictions.parquet"),
        ],
        "polars + XGBoost": [sys.executable, "-m", "benchmarks.pipeline_trees", raw, scratch / "trees.parquet"],
    }
    table = []
    for name, command in tqdm(steps.items(), desc=f"{copies} copies", leave=False):
        seconds, cpu, gigabytes = measure(command)
        table.append([name, copies, f"{rows:,}", seconds, cpu, rows / cpu / 1e6, gigabytes])
    return table


def fine_tune(demo: Path, checkpoint: Path, scratch: Path) -> None:
    """A small model of the demo."""
    measure([*HYMATE, "prepare", "mimic-iv", "--raw", demo, "--output", scratch / "demo"])
    options = ["--epochs", 1, "--model", "hidden_size=32", "--output", checkpoint]
    measure([*HYMATE, "finetune", "--data", scratch / "demo", "--task", TASK, *options])


def growth(table: Sequence[Sequence[object]], name: str) -> float:
    """CPU microseconds that a further row takes, between the smallest and the largest size."""
    rows = [row for row in table if row[0] == name]
    first, last = rows[0], rows[-1]
    more = int(str(last[2]).replace(",", "")) - int(str(first[2]).replace(",", ""))
    return (float(str(last[4])) - float(str(first[4]))) / max(1, more) * 1e6


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("demo", type=Path, help="Folder of the MIMIC-IV demo.")
    parser.add_argument("--copies", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--write", action="store_true", help="Put the table into docs/speed.md.")
    args = parser.parse_args()
    table: list[list[object]] = []
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "checkpoint"
        fine_tune(args.demo, checkpoint, Path(folder))
        for copies in args.copies:
            with tempfile.TemporaryDirectory() as scratch:
                rows = multiply(args.demo, Path(scratch) / "raw", copies)
                table += both_ways(Path(scratch) / "raw", rows, copies, checkpoint, Path(scratch))
    columns = ("step", "copies", "rows", "seconds", "CPU seconds", "million rows per CPU second", "memory, GB")
    text = "\n\n".join([INTRODUCTION, processor(), titled_table("Copies of the MIMIC-IV demo", columns, table)])
    if len(args.copies) > 1:
        costs = {name: growth(table, name) for name in ("hymate prepare", "hymate predict", "polars + XGBoost")}
        rows = [[name, cost, cost * MIMIC_IV_ROWS / 1e6 / 60] for name, cost in costs.items()]
        names = ("step", "CPU microseconds per further row", f"CPU minutes for {MIMIC_IV_ROWS // 10**6} million rows")
        text += "\n\n" + titled_table("Growth", names, rows)
    print(text)
    if args.write:
        write_section(PAGE, SECTION, text)


if __name__ == "__main__":
    main()
