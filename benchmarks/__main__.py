"""`make bench`: kernels and models against their peers, on this machine, in one run."""

import argparse
import shutil
from importlib.metadata import version
from pathlib import Path

import torch
from tqdm import tqdm

import hymate_native
from benchmarks.kernels import SHAPES, machine_limits, mixer_table, scan_table
from benchmarks.measure import processor, titled_table, write_section
from benchmarks.models import LENGTHS, model_table, save_length_plots
from hymate_training.files import write_file, write_json

PACKAGES = ("hymate", "torch", "transformers", "mambapy")
PAGE = Path(__file__).parents[1] / "docs" / "speed.md"


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/bench"), help="Folder of tables, results and plots.")
    parser.add_argument("--quick", action="store_true", help="Small shapes and few repetitions, to see that it runs.")
    parser.add_argument("--full", action="store_true", help="Also time the backward passes that take a minute.")
    parser.add_argument("--write", action="store_true", help="Put the tables and the plot of time into docs/speed.md.")
    args = parser.parse_args()
    budget = 0.05 if args.quick else 2.0
    shapes = {"tiny": (2, 64, 16, 4)} if args.quick else SHAPES
    lengths = LENGTHS[:2] if args.quick else LENGTHS
    args.output.mkdir(parents=True, exist_ok=True)

    result: dict = {
        "machine": processor(),
        "build": hymate_native.selected_build() if hymate_native.is_available() else None,
        "threads": torch.get_num_threads(),
        "versions": {package: version(package) for package in PACKAGES},
    }
    parts = {
        "limits": machine_limits,
        "scan": lambda: scan_table(shapes, args.full, budget),
        "mixer": lambda: mixer_table(args.full, budget),
        "models": lambda: model_table(lengths, budget),
    }
    for name, measure in tqdm(parts.items(), desc="benchmarks"):
        result[name] = measure()
        write_json(args.output / "bench.json", result)
    plot, _ = save_length_plots(result["models"], args.output)
    text = report(result)
    write_file(args.output / "bench.md", text + "\n")
    print(text)
    if args.write:
        shutil.copy(plot, PAGE.parent / "images" / "speed.png")
        write_section(PAGE, "One run", text)


def report(result: dict) -> str:
    """The tables of a run, and the ratios that the project holds itself to."""
    head = f"{result['machine']}, {result['threads']} threads, kernels {result['build']}, " + ", ".join(
        f"{name} {number}" for name, number in result["versions"].items()
    )
    columns = ("forward, ms", "forward + backward, ms", "extra memory, MB")
    scans = [[row["shape"], row["scan"], *_milliseconds(row)] for row in result["scan"]]
    mixers = [[row["mixer"], *_milliseconds(row)] for row in result["mixer"]]
    fields = ("inference", "training", "inference_megabytes", "training_megabytes")
    models = [[row["model"], row["length"], *map(row.get, fields)] for row in result["models"]]
    names = ("inference, s", "training step, s", "inference, MB", "training step, MB")
    return "\n\n".join(
        [
            head,
            titled_table("Selective scan", ("shape", "scan", *columns), scans),
            titled_table("Mamba layer (16 x 880, hidden 64, inner 128, state 16)", ("layer", *columns), mixers),
            titled_table("Whole model, batch 1", ("model", "events", *names), models),
            titled_table("Ratios", ("ratio", "value"), list(ratios(result).items())),
        ]
    )


def _milliseconds(row: dict) -> list[float | None]:
    seconds = [None if row[name] is None else 1000 * row[name] for name in ("forward", "both")]
    return [*seconds, row["megabytes"]]


def ratios(result: dict) -> dict[str, float]:
    """What the tables say, as ratios within this run."""
    scans = {(row["shape"], row["scan"]): row for row in result["scan"]}
    shape = "S2" if ("S2", "native") in scans else next(iter(scans))[0]
    native, peer = scans[shape, "native"], scans[shape, "mambapy"]
    mixer = next(row for row in result["mixer"] if row["mixer"] == "native")
    found = {
        f"scan {shape}: mambapy / native, forward": peer["forward"] / native["forward"],
        f"scan {shape}: mambapy / native, forward + backward": peer["both"] / native["both"],
        f"scan {shape}: native forward + backward / forward": native["both"] / native["forward"],
        f"layer forward + backward / scan forward + backward ({shape})": mixer["both"] / native["both"],
    }
    if result["limits"] is not None and shape in SHAPES:
        batch, length, inner, state = SHAPES[shape]
        count = batch * length * inner * state
        limit = count / result["limits"]["exponentials_per_second"]
        moved = 4 * batch * length * (4 * inner + 2 * state) / result["limits"]["bytes_per_second"]
        found[f"scan {shape}: native forward / time of its exponentials in libmvec"] = native["forward"] / limit
        found[f"scan {shape}: native forward / time of moving its bytes"] = native["forward"] / moved
    lengths = {row["length"]: row for row in result["models"] if row["model"] == "HyMaTE"}
    low, high = (1024, 32768) if 32768 in lengths else (min(lengths), max(lengths))
    for name in ("inference", "training", "inference_megabytes", "training_megabytes"):
        if lengths[low].get(name):
            found[f"HyMaTE {name.replace('_', ' ')}: {high} / {low} events"] = lengths[high][name] / lengths[low][name]
    return found


if __name__ == "__main__":
    main()
