"""Every public source that is at hand from its download to its metrics: prepared, fine-tuned, evaluated, each by the
command a user has for it. Writes the metrics into docs/data.md.

    python -m experiments.data_runs --data ../shared/data --output runs/data

The models are small and see the data a few times: the runs show that every step works on every source. What is done
stays in --output and is not done again.
"""

import argparse
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from experiments.data_sources import PAGE, SOURCES, Source, prepare
from experiments.pages import write_block
from hymate_training.evaluation.metrics import metric_titles
from hymate_training.files import markdown_table
from hymate_training.fitting.state import STATE_FOLDER
from hymate_training.inference.checkpoints import EVALUATION_FILE, RUN_FILE

SMALL = ("--model", "hidden_size=16", "num_mamba_layers=1", "--epochs", "3", "--learning-rate", "2e-3")
DEMO = (*SMALL, "--batch-size", "8")  # of some ten patients: steps enough to learn anything at all
SPLIT = "validation"


@dataclass(frozen=True)
class Run:
    """A task of a source, the metrics shown of it, options of `hymate finetune`, and whether it is a demo's."""

    task: str
    metrics: tuple[str, ...]
    options: tuple[str, ...]
    is_demo: bool = True


RUNS = {
    "physionet2012": Run("in_hospital_mortality", ("auroc", "auprc"), SMALL, is_demo=False),
    # neighboring hours of a patient say nearly the same
    "physionet2019": Run(
        "sepsis_onset", ("auroc", "auprc"), (*SMALL, "--batch-size", "64", "--examples-per-record", "4"), is_demo=False
    ),
    "mimic-iv": Run("in_hospital_mortality_24h", ("auroc", "auprc"), DEMO),
    # records of years: the model takes their latest events
    "meds": Run("long_stay", ("auroc", "auprc"), (*DEMO, "--max-events", "512")),
    # one patient of the split died, which is too few for a metric of mortality
    "eicu": Run("length_of_stay", ("mae", "spearman"), DEMO),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="Folder of the downloads.")
    parser.add_argument("--output", type=Path, required=True, help="Folder of the prepared data and the runs.")
    args = parser.parse_args()
    table = [["source", "task", "trained on", f"{SPLIT} split", "metrics, 95% intervals", "what it shows"]]
    commands = []
    for source in (source for source in SOURCES if source.name in RUNS):
        raw = args.data / source.folder
        if not raw.is_dir():
            raise SystemExit(f"{source.reader}: {raw} is missing")
        commands += run(source, raw, args.output / source.reader)
        table.append(row(source, args.output / source.reader))
    write_block(PAGE, "runs", "\n".join(["```", *commands, "```", "", markdown_table(table)]))


def run(source: Source, raw: Path, folder: Path) -> list[str]:
    """Does what is not done yet; the three commands, as a user would give them."""
    data, model, chosen = folder / "prepared", folder / "model", RUNS[source.reader]
    if not data.is_dir():
        prepare(source, raw, data)
    shown = ["prepare", source.reader, "--raw", f"DIR/{source.folder}", "--output", str(data)]
    if source.labels:
        shown += ["--labels", str(folder / "labels" / source.labels[1])]
    common = ["--data", str(data), "--task", chosen.task]
    finetune = ["finetune", *common, "--output", str(model), *chosen.options]
    evaluate = ["evaluate", *common, "--split", SPLIT, "--checkpoint", str(model)]
    evaluate += ["--output", str(folder / f"{SPLIT}.json")]
    if (model / STATE_FOLDER).is_dir():
        hymate([*finetune, "--resume"])
    elif not (model / EVALUATION_FILE).is_file():
        shutil.rmtree(model, ignore_errors=True)
        (folder / f"{SPLIT}.json").unlink(missing_ok=True)
        hymate(finetune)
    if not (folder / f"{SPLIT}.json").is_file():
        hymate(evaluate)
    return [" ".join(["hymate", *command]).replace(f"{folder.parent}/", "") for command in (shown, finetune, evaluate)]


def hymate(arguments: list[str]) -> None:
    subprocess.run([sys.executable, "-m", "hymate_training", *arguments], check=True, stdout=subprocess.DEVNULL)


def row(source: Source, folder: Path) -> list[str]:
    """What `hymate evaluate` left, as a row of the table."""
    chosen = RUNS[source.reader]
    evaluation = json.loads((folder / f"{SPLIT}.json").read_text(encoding="utf-8"))
    account = json.loads((folder / "model" / RUN_FILE).read_text(encoding="utf-8"))
    size = f"{evaluation['n']:,} predictions of {evaluation['num_records']:,} records"
    if "positives" in evaluation:
        size += f", {evaluation['positives']:,} positive"
    trained = f"{account['num_examples']['train']:,} predictions, {account['epochs']} epochs"
    if most := account["recipe"]["examples_per_record"]:
        trained += f" of {most} per record"
    titles = metric_titles(evaluation["problem_type"])
    metrics = []
    for name in chosen.metrics:
        value, interval = evaluation["metrics"][name], evaluation["confidence_intervals"][name]
        shown = "not defined" if value is None else f"{value:.3f}"
        metrics.append(f"{titles[name]} {shown}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else ""))
    shows = "proof of function, nothing of accuracy" if chosen.is_demo else "a small model after few epochs"
    return [f"{source.reader}, {source.version}", chosen.task, trained, size, ", ".join(metrics), shows]


if __name__ == "__main__":
    main()
