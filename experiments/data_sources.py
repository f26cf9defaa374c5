"""Prepares every public source that is at hand and writes what came of it into docs/data.md.

    python -m experiments.data_sources --data ../shared/data

A source whose folder is missing keeps the text that docs/data.md has for it.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from experiments.pages import write_block
from hymate_training.data.card import summary_tables
from hymate_training.data.prepared_folder import PreparedFolder
from hymate_training.files import markdown_table

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "data.md"


@dataclass(frozen=True)
class Source:
    """What a reader is given: a folder below --data, and the version of the data in it.

    `labels` names a script of examples/ that derives the task of that name from data that come without labels. `block`
    is where the page has what came of it, called by the reader where absent.
    """

    reader: str
    folder: str
    version: str
    labels: tuple[str, str] | None = None
    block: str = ""
    options: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.block or self.reader


SOURCES = (
    Source("physionet2012", "physionet2012", "1.0.0, sets b and c"),
    Source("physionet2019", "physionet2019", "1.0.0, 14,235 patients of hospital A and 7,000 of B"),
    Source("mimic-iv", "mimic-iv-demo-2.2", "demo 2.2"),
    Source("meds", "mimic-iv-demo-meds", "MIMIC-IV demo in MEDS 0.4", ("meds_labels.py", "long_stay")),
    Source("eicu", "eicu-demo", "demo 2.0.1, without bedside vitals"),
    Source("eicu", "eicu-demo-2.0.1", "demo 2.0.1, without laboratory values", block="eicu-2.0.1"),
    Source("mimic-iii", "mimic-iii-demo-1.4", "demo 1.4"),
    Source("omop", "mimic-iv-demo-omop-0.9", "MIMIC-IV demo in OMOP 0.9", block="omop-mimic-iv"),
    Source(
        "omop",
        "synthea27nj-omop-5.4",
        "Synthea27Nj",
        None,
        "omop-synthea",
        ("--records", "person", "--min-records", "3"),
    ),
    Source(
        "fhir", "synthea-fhir-r4", "SMART generated sample data", options=("--records", "person", "--min-records", "3")
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="Folder of the downloads.")
    parser.add_argument(
        "--only", nargs="+", choices=[source.name for source in SOURCES], help="Sources to prepare (default: all)."
    )
    args = parser.parse_args()
    for source in SOURCES:
        raw = args.data / source.folder
        if args.only and source.name not in args.only:
            continue
        if not raw.is_dir():
            print(f"{source.name}: {raw} is missing, left as it is")
            continue
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "prepared"
            seconds, mebibytes = prepare(source, raw, output)
            print(f"{source.name}: {seconds:.1f} s, {mebibytes:,.0f} MiB")
            text = "\n".join(describe(source, PreparedFolder(output), seconds, mebibytes))
        write_block(PAGE, source.name, text)


def prepare(source: Source, raw: Path, output: Path) -> tuple[float, float]:
    """Runs `hymate prepare` in a process of its own; its seconds of processor time and its peak memory in MiB."""
    command = [sys.executable, "-m", "hymate_training", "prepare", source.reader, "--raw", str(raw), *source.options]
    if source.labels:
        script, task = source.labels
        labels = output.with_name("labels") / task
        arguments = ["--raw", str(raw), "--output", str(labels)]
        subprocess.run([sys.executable, str(ROOT / "examples" / script), *arguments], check=True)
        command += ["--labels", str(labels)]
    process = subprocess.Popen([*command, "--output", str(output)], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with exit code {process.returncode}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def describe(source: Source, folder: PreparedFolder, seconds: float, mebibytes: float) -> list[str]:
    """The generated part of a source's section: what it holds, and its three tables."""
    info, tables = folder.info, summary_tables(folder)
    static = ", ".join(f"`{column.name}`" for column in info.static_columns) or "none"
    names = [f"`{name}`" for name in info.variables]
    variables = ", ".join(names) if len(names) <= 50 else f"{', '.join(names[:8])} and {len(names) - 8:,} more"
    lines = [
        f"Version: {source.version}. License: {info.license}. {len(info.variables):,} variables: {variables}. "
        f"Static columns: {static}.",
        "",
        f"Splits: {info.split_description}",
        "",
        *(f"- `{task.name}`: {task.description}" for task in info.tasks),
        "",
    ]
    for rows in tables.values():
        if len(rows) > 1:
            lines += [markdown_table(rows), ""]
    return [*lines, f"Prepared with {seconds:.1f} s of processor time and {mebibytes:,.0f} MiB of memory at its peak."]


if __name__ == "__main__":
    main()
