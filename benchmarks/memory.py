"""Memory of training, evaluation and prediction on data several times their size.

    hymate prepare physionet2012 --raw ... --output runs/physionet2012
    python -m benchmarks.memory runs/physionet2012 in_hospital_mortality --copies 1 4 32

Each number of copies writes the folder that many times over, every copy with records of its own names, and runs
`hymate finetune` (one epoch of a small model) and `hymate evaluate` on it in processes of their own; then
`hymate predict` on the copies of the validation records as tables of events: Parquet and CSV, record after record, CSV
in the order of time, and Parquet on Ray. Linux alone says what is asked, of a process and those that it starts
together, each at its worst moment: `RssAnon`, memory that is their own, on Ray with the objects that they share; and
the resident memory of the process that has most, with pages of files that it has mapped.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import polars as pl
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from hymate_training.data.prepared_folder import PreparedFolder
from hymate_training.files import markdown_table
from hymate_training.inference.parts import EVENTS

SMALL_MODEL = ("hidden_size=8", "num_mamba_layers=1", "num_attention_layers=1")
FINETUNE = ["finetune", "--model", *SMALL_MODEL, "--epochs", 1, "--batch-size", 512, "--max-events", 16]
SECONDS_BETWEEN = 0.05  # two looks at a process
SPLIT = "validation"  # that is evaluated and predicted
SHARED_MEMORY = Path("/dev/shm")  # where Ray holds objects
COMMANDS = ("finetune", "evaluate", "predict parquet", "predict csv", "predict csv by time", "predict on ray")
HYMATE = [sys.executable, "-m", "hymate_training"]


def multiply(prepared: Path, folder: Path, copies: int) -> None:
    """Writes a prepared folder `copies` times over, a file of records per copy."""
    shutil.copytree(prepared, folder, ignore=shutil.ignore_patterns("*.parquet"))
    for path in sorted(prepared.glob("records/*.parquet")):
        split = path.name.rsplit("-", 1)[0]
        table = pq.read_table(path)
        for copy in range(copies):
            number = len(list(folder.glob(f"records/{split}-*.parquet")))
            target = folder / "records" / f"{split}-{number:05d}.parquet"
            pq.write_table(renamed(table, copy), target, compression="zstd")
    for path in sorted(prepared.glob("tasks/*/*.parquet")):
        table = pq.read_table(path)
        whole = pa.concat_tables([renamed(table, copy) for copy in range(copies)])
        pq.write_table(whole, folder / path.relative_to(prepared), compression="zstd")


def renamed(table: pa.Table, copy: int) -> pa.Table:
    """The rows of a table under names that no other copy has."""
    at = table.schema.get_field_index("record_id")
    names = pc.binary_join_element_wise(table["record_id"], f"{copy}", "-")
    return table.set_column(at, table.schema.field(at), names)


def write_events(prepared: PreparedFolder, copies: int, target: Path, *, by_time: bool) -> None:
    """Writes the events of all copies of the validation records to one CSV or Parquet file."""
    names = pl.DataFrame({"variable": range(len(prepared.info.variables)), "name": prepared.info.variables})
    whole = pl.DataFrame(pl.from_arrow(prepared.records(SPLIT)))
    events = whole.select("record_id", "time", "variable", "value").explode("time", "variable", "value").drop_nulls()
    events = events.join(names.with_columns(pl.col("variable").cast(pl.Int32)), on="variable", maintain_order="left")
    events = events.select("record_id", "time", variable="name", value="value")
    table = (events.sort("time") if by_time else events).to_arrow().cast(pa.schema(list(EVENTS.items())))
    kind = pq.ParquetWriter if target.suffix == ".parquet" else pyarrow.csv.CSVWriter
    with kind(target, table.schema) as writer:
        for copy in range(copies):
            writer.write_table(renamed(table, copy))


def watch(command: list[object]) -> tuple[float, float, float]:
    """Runs a command; its seconds, the most megabytes that its processes together have of their own, and the most
    that one of them has resident.

    Raises:
        SystemExit: if the command fails.
    """
    started, own, resident = time.perf_counter(), 0.0, 0.0
    before = shared_objects()
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while process.poll() is None:
        sizes = list(megabytes(process.pid))
        own = max(own, sum(size["RssAnon"] for size in sizes) + shared_objects() - before)
        resident = max([resident, *(size["VmRSS"] for size in sizes)])
        time.sleep(SECONDS_BETWEEN)
    if process.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} failed: {process.stderr.read().decode()}")
    return time.perf_counter() - started, own, resident


def megabytes(process: int) -> Iterator[dict[str, float]]:
    """What the system says of the memory of a process and of each that it started."""
    with suppress(psutil.NoSuchProcess):
        for each in [own := psutil.Process(process), *own.children(recursive=True)]:
            with suppress(OSError):
                lines = [line.split() for line in Path(f"/proc/{each.pid}/status").read_text().splitlines()]
                sizes = {words[0][:-1]: int(words[1]) / 1024 for words in lines if words[-1] == "kB"}
                if "VmRSS" in sizes:  # which a process that ends has not
                    yield sizes


def shared_objects() -> float:
    """Megabytes of files that processes share in memory, as Ray does."""
    blocks = 0
    for path in SHARED_MEMORY.glob("*"):
        with suppress(OSError):
            blocks += path.stat().st_blocks
    return blocks * 512 / 2**20


def commands(
    names: Sequence[str], prepared: PreparedFolder, task: str, copies: int, checkpoint: Path, scratch: Path
) -> Iterator[tuple[str, list[object]]]:
    """The command lines of `COMMANDS` that are asked for, each when what it reads has been written."""
    data = scratch / "data"
    if {"finetune", "evaluate"} & set(names):
        multiply(prepared.path, data, copies)
    for name in names:
        output = scratch / name.replace(" ", "-")
        if name == "finetune":
            yield name, [*FINETUNE, "--data", data, "--task", task, "--output", output]
        elif name == "evaluate":
            options = ["--split", SPLIT, "--output", f"{output}.json"]
            yield name, ["evaluate", "--checkpoint", checkpoint, "--data", data, "--task", task, *options]
        else:
            events = scratch / ("events.csv" if "csv" in name else "events.parquet")
            write_events(prepared, copies, events, by_time="by time" in name)
            options = ["--engine", "ray", "--output", output] if "ray" in name else ["--output", f"{output}.parquet"]
            yield name, ["predict", "--checkpoint", checkpoint, "--events", events, *options]
            events.unlink()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("data", type=Path, help="Prepared folder.")
    parser.add_argument("task", help="Task of the prepared folder.")
    parser.add_argument("--copies", type=int, nargs="+", default=[1, 4, 32])
    parser.add_argument(
        "--commands", nargs="+", choices=COMMANDS, default=COMMANDS, help="What is run (default: all)."
    )
    args = parser.parse_args()
    prepared = PreparedFolder(args.data)
    table: list[list[object]] = [["command", "copies", "seconds", "own memory, MB", "resident, MB"]]
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "checkpoint"
        watch([*HYMATE, *FINETUNE, "--data", args.data, "--task", args.task, "--output", checkpoint])
        for copies in args.copies:
            with tempfile.TemporaryDirectory() as scratch:
                for name, command in commands(args.commands, prepared, args.task, copies, checkpoint, Path(scratch)):
                    row = [name, copies, *(f"{number:.0f}" for number in watch([*HYMATE, *command]))]
                    table.append(row)
                    print(*row, flush=True, file=sys.stderr)
    print(markdown_table([table[0], *sorted(table[1:], key=lambda row: COMMANDS.index(str(row[0])))]))


if __name__ == "__main__":
    main()
