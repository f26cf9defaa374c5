"""Time and memory of `hymate prepare mimic-iv` on a database several times the size of the demo.

    python -m benchmarks.prepare_growth ../shared/data/mimic-iv-demo-2.2 --factors 1 4 16

Each factor writes the demo that many times over, every copy with patients, admissions and stays of its own, and runs
the reader in a process of its own. Memory is the largest resident set of that process.
"""

import argparse
import gzip
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import polars as pl

from hymate_training.files import markdown_table

TABLES = {
    "hosp": ("patients", "admissions", "labevents"),
    "icu": ("icustays", "chartevents", "inputevents", "outputevents", "procedureevents"),
}
IDS = ("subject_id", "hadm_id", "stay_id")
ID_STEP = 100_000_000  # larger than any identifier of the source


def multiply(demo: Path, folder: Path, factor: int) -> int:
    """Writes the demo `factor` times over; the number of rows of its event tables."""
    rows = 0
    for part, names in TABLES.items():
        (folder / part).mkdir(parents=True)
        for dictionary in ("d_items", "d_labitems"):
            if (source := demo / part / f"{dictionary}.csv.gz").is_file():
                (folder / part / source.name).symlink_to(source.absolute())
        for name in names:
            table = pl.read_csv(demo / part / f"{name}.csv.gz", infer_schema=False)
            rows += table.height * factor if name.endswith("events") else 0
            ids = [column for column in IDS if column in table.columns]
            with gzip.open(folder / part / f"{name}.csv.gz", "wb", compresslevel=1) as file:
                for copy in range(factor):
                    shifted = table.with_columns(pl.col(ids).cast(pl.Int64) + copy * ID_STEP)
                    file.write(shifted.write_csv(include_header=copy == 0).encode())
    return rows


def measure(raw: Path, output: Path) -> tuple[float, float]:
    """Seconds and gigabytes of the reader in a process of its own."""
    command = [sys.executable, "-m", "hymate_training", "prepare", "mimic-iv", "--raw", raw, "--output", output]
    start = time.perf_counter()
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(map(str, command))} failed")
    return time.perf_counter() - start, usage.ru_maxrss / 1e6


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("demo", type=Path, help="Folder of the MIMIC-IV demo.")
    parser.add_argument("--factors", type=int, nargs="+", default=[1, 4, 16])
    args = parser.parse_args()
    table: list[list[object]] = [["copies", "rows", "seconds", "million rows/s", "memory, GB"]]
    for factor in args.factors:
        with tempfile.TemporaryDirectory() as scratch:
            rows = multiply(args.demo, Path(scratch) / "raw", factor)
            seconds, gigabytes = measure(Path(scratch) / "raw", Path(scratch) / "prepared")
        table.append([factor, f"{rows:,}", f"{seconds:.1f}", f"{rows / seconds / 1e6:.2f}", f"{gigabytes:.2f}"])
    print(markdown_table(table))


if __name__ == "__main__":
    main()
