"""Memory of fine-tuning and evaluation on a prepared folder several times its size.

    hymate prepare physionet2012 --raw ... --output runs/physionet2012
    python -m benchmarks.memory runs/physionet2012 in_hospital_mortality --copies 1 4 32

Each number of copies writes the folder that many times over, every copy with records of its own names, and runs
`hymate finetune` (one epoch of a small model) and `hymate evaluate` in processes of their own. Linux alone says what
is asked: the largest `RssAnon` of a process, memory that is its own, and the largest `RssFile`, pages of files that it
has mapped, which the system takes back whenever it wants memory.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from hymate_training.files import markdown_table

SMALL_MODEL = {"model": {"hidden_size": 8, "num_mamba_layers": 1, "num_attention_layers": 1}}
SECONDS_BETWEEN = 0.05  # two looks at a process


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


def watch(command: list[object]) -> dict[str, float]:
    """Runs a command; its seconds, and the most megabytes of its own and of mapped files, each at its worst moment.

    Raises:
        SystemExit: if the command fails.
    """
    started = time.perf_counter()
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    most = {"RssAnon": 0, "RssFile": 0}
    while process.poll() is None:
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
            name, _, rest = line.partition(":")
            if name in most:
                most[name] = max(most[name], int(rest.split()[0]))  # kB
        time.sleep(SECONDS_BETWEEN)
    if process.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} failed: {process.stderr.read().decode()}")
    return {"seconds": time.perf_counter() - started, **{name: size / 1024 for name, size in most.items()}}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("data", type=Path, help="Prepared folder.")
    parser.add_argument("task", help="Task of the prepared folder.")
    parser.add_argument("--copies", type=int, nargs="+", default=[1, 4, 32])
    parser.add_argument("--max-events", type=int, default=16, help="Latest events that the model is shown.")
    args = parser.parse_args()
    hymate = [sys.executable, "-m", "hymate_training"]
    table: list[list[object]] = [["copies", "command", "seconds", "own memory, MB", "of mapped files, MB"]]
    for copies in args.copies:
        with tempfile.TemporaryDirectory() as scratch:
            data, run, recipe = (Path(scratch) / name for name in ("data", "run", "recipe.yaml"))
            recipe.write_text(yaml.safe_dump(SMALL_MODEL), encoding="utf-8")
            multiply(args.data, data, copies)
            options = ["--recipe", recipe, "--epochs", 1, "--batch-size", 512, "--max-events", args.max_events]
            task = ["--data", data, "--task", args.task]
            for command in (
                ["finetune", *task, "--output", run, *options],
                ["evaluate", *task, "--checkpoint", run, "--split", "validation", "--output", f"{run}.json"],
            ):
                found = watch([*hymate, *command])
                row = [copies, command[0], *(f"{found[name]:.0f}" for name in ("seconds", "RssAnon", "RssFile"))]
                table.append(row)
                print(*row, flush=True, file=sys.stderr)
    print(markdown_table(table))


if __name__ == "__main__":
    main()
